"""The caller of inject and sendmail: its arguments, its message, and its error messages. Hot.

Exit codes are qmail-inject's: 75 of sysexits.h would be success to PHP.
"""

from __future__ import annotations

import posix
import sys

from picoqmail.errors import InputError
from picoqmail.layout import PIPE_BLOCK_OCTETS

ACCEPTED, PERMANENT, TEMPORARY = 0, 100, 111

_STDIN, _STDERR = 0, 2


def _visible(character: str) -> str:
    octets = character.encode("utf-8", "surrogateescape")
    return "".join([f"\\x{octet:02x}" for octet in octets])


def octets(words: list[str]) -> list[bytes]:
    """Return arguments as the caller gave them; Python decodes them with surrogateescape."""
    encoding = sys.getfilesystemencoding()
    return [word.encode(encoding, "surrogateescape") for word in words]


def read_stdin() -> bytes:
    """Return the next octets of descriptor 0, b"" at its end. Raises InputError."""
    try:
        return posix.read(_STDIN, PIPE_BLOCK_OCTETS)
    except OSError as exc:
        raise InputError(exc.errno, f"read error: {exc.strerror}", "descriptor 0") from exc


def say(text: str) -> None:
    """Print a line for the user; if standard error is closed or full, the mail goes on.

    Line ends stay. Other control characters are escaped: a text may quote a header or an argument,
    and must not steer a terminal.
    """
    if not text.isprintable():
        text = "".join([c if c.isprintable() or c == "\n" else _visible(c) for c in text])
    try:
        posix.write(_STDERR, f"{text}\n".encode())
    except OSError:
        return
