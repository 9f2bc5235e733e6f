"""Keeping a password or token out of what a relay says, also where the relay repeats a part of it.

The rule of this module: pure, and nothing here shows what it was given. A text is redacted before
it is quoted or cut, because both could hide a secret from this search.

A relay may repeat a secret as it is, escaped, in hexadecimal or in base64. So a text is searched
twice for every fragment of six octets: once as it is, and once with letters and digits alone, in
which most ways to quote and to escape look alike. The whole word around a hit is replaced.
"""

from __future__ import annotations

import binascii

FRAGMENT_OCTETS = 6
"""A shorter fragment of a longer secret may pass: almost every word would be one."""

REDACTED = "<secret>"

# All of ASCII but letters and digits.
_OTHERS = bytes([octet for octet in range(128) if not chr(octet).isalnum()])
_WORD_ENDS = frozenset(b" \t,;\n")
# How programs write an octet that they escape: percent and quoted-printable, HTML, C, JSON.
_ESCAPES = ("%02x", "%d", "%03o", "u%04x")
_NAMES = {b"&": b"amp", b"<": b"lt", b">": b"gt", b'"': b"quot", b"'": b"apos"}
# Octets of base64 that depend on what stands before the secret, by its offset modulo 3.
_STRANGE_OCTETS = (0, 2, 3)


class Redactor:
    """Replaces every fragment of the secrets that were added; `add` them as they become known."""

    __slots__ = ("_fragments", "_plain_fragments", "_short")

    def __init__(self) -> None:
        self._fragments: set[bytes] = set()
        self._plain_fragments: set[bytes] = set()
        self._short: set[bytes] = set()

    def __repr__(self) -> str:
        """Show nothing."""
        return "<Redactor>"

    def add(self, secret: bytes) -> None:
        """Keep a password, a token or a part of one out, in every form."""
        if not secret:
            return
        forms = [secret.hex().encode(), *_base64_forms(secret), *_escaped_forms(secret)]
        if len(secret) < FRAGMENT_OCTETS:
            self._short.update((secret.lower(), secret.hex().encode(), _base64(secret).lower()))
            return
        escaped = secret.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        twice = escaped.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        for form in (secret, escaped, twice):
            self._fragments.update(_fragments(form.lower()))
        for form in (secret, *forms):
            self._plain_fragments.update(_fragments(_plain(form)))

    def add_line(self, line: bytes) -> None:
        """Keep the base64 and hexadecimal of a whole response out, as it was sent."""
        for form in (_base64(line), line.hex().encode()):
            self._plain_fragments.update(_fragments(_plain(form)))

    def redact(self, text: str) -> str:
        """Return a text without the secrets."""
        if not text:
            return text
        octets = text.encode("utf-8", "backslashreplace")
        lower = octets.lower()
        plain = _plain(lower)
        hits = _hits(lower, self._fragments)
        plain_hits = _hits(plain, self._plain_fragments)
        short = [one for one in self._short if one in lower]
        if not (hits or plain_hits or short):
            return text
        marks = bytearray(len(octets))
        for start in hits:
            marks[start : start + FRAGMENT_OCTETS] = b"\1" * FRAGMENT_OCTETS
        if plain_hits:
            places = [place for place, octet in enumerate(lower) if octet not in _OTHERS]
            for start in plain_hits:
                first, last = places[start], places[start + FRAGMENT_OCTETS - 1] + 1
                marks[first:last] = b"\1" * (last - first)
        for one in short:
            start = lower.find(one)
            while start >= 0:
                marks[start : start + len(one)] = b"\1" * len(one)
                start = lower.find(one, start + len(one))
        return _without(octets, marks).decode("utf-8", "replace")

    def redact_lines(self, lines: tuple[str, ...]) -> tuple[str, ...]:
        """Return the lines of one reply without the secrets, also one that goes over line ends."""
        joined = "\n".join(lines)
        redacted = self.redact(joined)
        return lines if redacted == joined else tuple(redacted.split("\n"))


def _without(octets: bytes, marks: bytearray) -> bytes:
    """Replace the words that have marks; line ends stay."""
    parts = []
    place, size = 0, len(octets)
    while place < size:
        start = marks.find(1, place)
        if start < 0:
            break
        if octets[start] == 10:  # a line end
            parts.append(octets[place : start + 1])
            place = start + 1
            continue
        end = start
        while start > place and octets[start - 1] not in _WORD_ENDS:
            start -= 1
        while end < size and octets[end] != 10 and (marks[end] or octets[end] not in _WORD_ENDS):
            end += 1
        parts += (octets[place:start], REDACTED.encode())
        place = end
    return b"".join((*parts, octets[place:]))


def _plain(octets: bytes) -> bytes:
    """Return letters, digits and what is beyond ASCII, in lower case."""
    return octets.translate(None, _OTHERS).lower()


def _fragments(octets: bytes) -> set[bytes]:
    ends = range(FRAGMENT_OCTETS, len(octets) + 1)
    return {octets[end - FRAGMENT_OCTETS : end] for end in ends}


def _hits(octets: bytes, fragments: set[bytes]) -> list[int]:
    if not fragments:
        return []
    starts = range(len(octets) - FRAGMENT_OCTETS + 1)
    return [start for start in starts if octets[start : start + FRAGMENT_OCTETS] in fragments]


def _base64(octets: bytes) -> bytes:
    return binascii.b2a_base64(octets, newline=False).rstrip(b"=")


def _base64_forms(secret: bytes) -> list[bytes]:
    """Return what base64 makes of the secret behind any other octets."""
    return [
        _base64(bytes(offset) + secret)[strange:] for offset, strange in enumerate(_STRANGE_OCTETS)
    ]


def _escaped_forms(secret: bytes) -> list[bytes]:
    """Return the secret with everything but letters and digits escaped, in several ways."""
    forms = []
    for escape in _ESCAPES:
        parts = [
            bytes((octet,)) if octet < 128 and octet not in _OTHERS else (escape % octet).encode()
            for octet in secret
        ]
        forms.append(b"".join(parts))
    named = b"".join(_NAMES.get(bytes((octet,)), bytes((octet,))) for octet in secret)
    text = secret.decode("utf-8", "replace")
    return [*forms, named, text.encode("unicode_escape"), text.encode("ascii", "backslashreplace")]
