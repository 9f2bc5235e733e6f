"""A hash of what a message says: the same for the same message that was built anew.

A program that tries again builds its mail again, with another boundary, Content-ID, Date and
Message-ID, perhaps folded and encoded in another way. So the hash is one of structure and content:
of header fields without those that are made anew, unfolded and decoded; of the parts in their
order, decoded. Boundaries count as places only, Content-IDs as numbers, in `cid:` links too.
Signatures do not count, for they hold their time; what they sign does.

Pure, and bounded in memory: a message goes through in blocks of any size.
"""

from __future__ import annotations

import binascii
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from picoqmail.message.envelope import encode_envelope
from picoqmail.message.header import HEADER_LIMIT_OCTETS, field_name

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = "2:"
"""Begins a fingerprint. Those of the version before had none, and were of octets."""

_IDS = 10_000
_LONGEST_DELIMITER = 1024

# Made anew with each try, by the program or by what it went through on its way here.
_MADE_ANEW = frozenset(
    (
        b"arc-authentication-results",
        b"arc-message-signature",
        b"arc-seal",
        b"date",
        b"dkim-signature",
        b"message-id",
        b"received",
        b"resent-date",
        b"resent-message-id",
        # How the content is written, not what it says.
        b"content-transfer-encoding",
        b"mime-version",
    )
)
_SIGNATURES = frozenset(
    (
        b"application/pgp-signature",
        b"application/pkcs7-signature",
        b"application/x-pkcs7-signature",
    )
)
_BLANKS = re.compile(rb"\s+")
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"([^"]*)"|([^\s;]+))', re.IGNORECASE)
_START = re.compile(rb';\s*start\s*=\s*"?(<[^>]*>)"?', re.IGNORECASE)
_LINK = re.compile(rb"""cid:([^\s"'<>)\]]{1,256})""", re.IGNORECASE)
_LINK_ENDS = tuple(bytes((end,)) for end in b"\t\n\x0b\x0c\r \"'<>)]")
_LONGEST_WORD = 65536
_ENCODED_WORD = re.compile(rb"=\?([^?\s]+)\?([bq])\?([^?\s]*)\?=", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(rb"(\?=)\s+(?==\?)")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(range(256)).translate(None, _BASE64)


class Fingerprint:
    """Fed with a message's octets by `update`; `hexdigest` once they are all there."""

    def __init__(self) -> None:
        self._digest = sha256()
        self._waiting = b""
        self._header: bytearray | None = bytearray()
        self._boundaries: list[bytes] = []
        self._leaf: _Leaf | None = None
        # What stands before the first delimiter counts only where none follows.
        self._preamble: Any = None
        self._at_line_start = True
        self._ids: dict[bytes, int] = {}

    def update(self, data: bytes) -> None:
        """Take more octets."""
        self._waiting += data
        self._go_on(last=False)

    def of(self, sender: str, recipients: Iterable[str]) -> str:
        """Return the hash of the message with its envelope, as text, with its version."""
        self._end()
        self._digest.update(encode_envelope(sender, recipients))
        return VERSION + self._digest.hexdigest()

    def hexdigest(self) -> str:
        """Return the hash of the message alone, as text, with its version."""
        self._end()
        return VERSION + self._digest.hexdigest()

    def _end(self) -> None:
        self._go_on(last=True)
        if self._header is not None:
            self._begin_body()
        self._end_leaf()
        if self._preamble is not None:
            self._digest.update(self._preamble.digest())

    # --- Cutting -------------------------------------------------------------------------------

    def _go_on(self, *, last: bool) -> None:
        position = 0
        while position < len(self._waiting):
            if self._header is not None:
                after = self._header_line(position, last=last)
            elif self._boundaries:
                after = self._to_delimiter(position, last=last)
            else:
                after = len(self._waiting)
                self._content(self._waiting[position:])
            if after < 0:
                break
            position = after
        self._waiting = self._waiting[position:]

    def _header_line(self, position: int, *, last: bool) -> int:
        """Return one line of a header; where the next begins, -1 if it is not whole yet."""
        header = self._header or bytearray()
        end = self._waiting.find(b"\n", position) + 1
        if not end:
            if not last and len(self._waiting) - position < HEADER_LIMIT_OCTETS:
                return -1
            end = len(self._waiting)
        line = self._waiting[position:end]
        if line in (b"\n", b"\r\n"):
            self._begin_body()
        elif self._is_delimiter(line):
            self._begin_body()
            self._delimiter(line)
        elif (
            (line[:1] in b" \t" and header)
            or field_name(line)
            or (line.startswith(b"From ") and not header)
        ) and len(header) < HEADER_LIMIT_OCTETS:
            header += line
            self._header = header
        else:
            # No field: the header ends before it, as the spool's own reading has it.
            self._begin_body()
            return position
        return end

    def _to_delimiter(self, position: int, *, last: bool) -> int:
        """Read content to the next delimiter line. Return where to go on, -1 if it is to come."""
        waiting = self._waiting
        at = position if self._at_line_start else waiting.find(b"\n", position) + 1 or -1
        while at >= 0:
            if not waiting.startswith(b"--", at):
                at = waiting.find(b"\n--", at) + 1 or -1
                continue
            end = waiting.find(b"\n", at) + 1
            if not end and not last:
                break
            line = waiting[at : end or len(waiting)]
            if self._is_delimiter(line):
                self._take(position, at)
                self._delimiter(line)
                return at + len(line)
            at = end or -1
        # A last line that is not whole may be the beginning of a delimiter.
        stop = len(waiting) if last else waiting.rfind(b"\n", position) + 1
        if stop <= position:
            if len(waiting) - position < _LONGEST_DELIMITER:
                return -1
            stop = len(waiting)
        self._take(position, stop)
        return stop

    def _take(self, start: int, stop: int) -> None:
        """Count content; what stands outside of all delimiters is not shown to anybody."""
        data = self._waiting[start:stop]
        if data:
            self._at_line_start = data.endswith(b"\n")
            self._content(data)

    def _is_delimiter(self, line: bytes) -> bool:
        return line.startswith(b"--") and self._level(line) >= 0

    def _level(self, line: bytes) -> int:
        """Return the index of the boundary that a line is of, the innermost first; -1 if none."""
        text = line.rstrip()
        for level in range(len(self._boundaries) - 1, -1, -1):
            boundary = b"--" + self._boundaries[level]
            if text in (boundary, boundary + b"--"):
                return level
        return -1

    def _delimiter(self, line: bytes) -> None:
        level = self._level(line)
        self._end_leaf()
        self._preamble = None
        self._at_line_start = True
        is_last = line.rstrip() == b"--" + self._boundaries[level] + b"--"
        del self._boundaries[level + (not is_last) :]
        self._digest.update(b"%s%d" % (b")" if is_last else b",", level))
        self._header = None if is_last else bytearray()

    # --- Parts ---------------------------------------------------------------------------------

    def _begin_body(self) -> None:
        header, self._header = bytes(self._header or b""), None
        fields = _fields(header)
        types = [value for name, value in fields if name == b"content-type"]
        kind = types[0] if types else b"text/plain"
        encoding = next((v for n, v in fields if n == b"content-transfer-encoding"), b"")
        said = sorted(
            (name, self._value(name, value))
            for name, value in fields
            if name and name not in _MADE_ANEW
        )
        self._digest.update(b"%d" % len(said))
        for name, value in said:
            self._digest.update(b"%s:%d:%s" % (name, len(value), value))
        media = kind.partition(b";")[0].strip().lower()
        found = _BOUNDARY.search(kind)
        encoding = encoding.strip().lower()
        if media.startswith(b"multipart/") and found:
            self._boundaries.append((found[1] or found[2] or b"").rstrip())
            self._preamble = sha256()
        elif media == b"message/rfc822" and encoding not in (b"base64", b"quoted-printable"):
            self._header = bytearray()
        elif media not in _SIGNATURES:
            self._leaf = _Leaf(
                self,
                encoding,
                is_text=media.startswith(b"text/"),
                is_part=bool(self._boundaries),
            )

    def _value(self, name: bytes, value: bytes) -> bytes:
        """Return what a field says."""
        if name == b"content-id":
            return self._number(value.strip().strip(b"<>"))
        if name == b"content-type":
            value = _BOUNDARY.sub(b"", value)
            value = _START.sub(lambda m: b";start=" + self._number(m[1].strip(b"<>")), value)
            return value.translate(None, b'" \t').lower()
        value = _BETWEEN_WORDS.sub(rb"\1", value)
        return _BLANKS.sub(b" ", _ENCODED_WORD.sub(_decode_word, value)).strip()

    def _number(self, content_id: bytes) -> bytes:
        """Return a Content-ID by the order in which they are met."""
        name = content_id.replace(b"%40", b"@")
        if name not in self._ids and len(self._ids) >= _IDS:
            return name
        return b"#%d" % self._ids.setdefault(name, len(self._ids))

    def _content(self, data: bytes) -> None:
        if self._leaf is not None:
            self._leaf.feed(data)
        elif self._preamble is not None:
            self._preamble.update(data)

    def _end_leaf(self) -> None:
        if self._leaf is not None:
            self._leaf.end()
            self._leaf = None

    def says(self, data: bytes, *, is_text: bool) -> None:
        """Count decoded content, of which links are whole."""
        if is_text:
            data = _LINK.sub(lambda m: b"cid:" + self._number(m[1]), data)
        self._digest.update(data)


class _Leaf:
    """The content of one part, decoded on its way."""

    def __init__(
        self, fingerprint: Fingerprint, encoding: bytes, *, is_text: bool, is_part: bool
    ) -> None:
        self._fingerprint = fingerprint
        self._encoding = encoding
        self._is_text = is_text
        # The line end before a delimiter belongs to that.
        self._has_line_end_more = is_part and encoding != b"base64"
        self._encoded = b""
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take more of it as it stands in the message."""
        if self._encoding == b"base64":
            self._encoded += data.translate(None, _NOT_BASE64)
            whole = len(self._encoded) & ~3
            data, self._encoded = self._encoded[:whole], self._encoded[whole:]
            self._decoded(binascii.a2b_base64(data))
        elif self._encoding == b"quoted-printable":
            self._encoded += data
            whole = self._encoded.rfind(b"\n") + 1
            data, self._encoded = self._encoded[:whole], self._encoded[whole:]
            self._decoded(binascii.a2b_qp(data))
        else:
            self._decoded(data)

    def end(self) -> None:
        """Finish: what was held back counts too."""
        if self._encoding == b"quoted-printable":
            self._decoded(binascii.a2b_qp(self._encoded))
        elif self._encoding == b"base64" and len(self._encoded) > 1:
            self._decoded(binascii.a2b_base64(self._encoded + b"=="))
        held = self._held
        if self._has_lines:
            held = held.replace(b"\r\n", b"\n")
        if self._has_line_end_more:
            held = held.removesuffix(b"\n")
        self._fingerprint.says(held, is_text=self._is_text)
        self._fingerprint.says(b"\0", is_text=False)

    @property
    def _has_lines(self) -> bool:
        return self._is_text or self._encoding != b"base64"

    def _decoded(self, data: bytes) -> None:
        if not self._has_lines:
            self._fingerprint.says(data, is_text=False)
            return
        data = self._held + data
        # Held back: what may be one half of a line end or, up to a blank or quote, of a link.
        keep = len(data) - 1
        if self._is_text:
            keep = min(keep, max(data.rfind(end) for end in _LINK_ENDS) + 1)
            if len(data) - keep > _LONGEST_WORD:
                keep = len(data) - 1
        keep = max(keep, 0)
        if data[keep - 1 : keep] == b"\r":
            keep -= 1
        self._held = data[keep:]
        self._fingerprint.says(data[:keep].replace(b"\r\n", b"\n"), is_text=self._is_text)


def _fields(header: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields as pairs of a lower-case name and the value, unfolded."""
    fields: list[tuple[bytes, bytes]] = []
    for line in header.splitlines():
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + b" " + line.strip())
        else:
            fields.append((field_name(line), line.partition(b":")[2].strip()))
    return fields


def _decode_word(found: re.Match[bytes]) -> bytes:
    """Return an encoded word as UTF-8; as it stands if it cannot be decoded."""
    charset = found[1].partition(b"*")[0].decode("ascii", "replace")
    try:
        if found[2] in b"bB":
            octets = binascii.a2b_base64(found[3] + b"==")
        else:
            octets = binascii.a2b_qp(found[3], header=True)
        return octets.decode(charset).encode()
    except (LookupError, ValueError):
        return found[0]
