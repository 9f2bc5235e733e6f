"""Where the header of a message ends, what its fields are called, and the lines that we add.

Only reading and writing of header lines may live here; what a field means for the envelope is the
business of `inject`. Follows qmail-header(5) and RFC 5322 section 2.2.
"""

from __future__ import annotations

import time

from picoqmail.errors import MessageTooLargeError
from picoqmail.message.dates import header_date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADER_LIMIT_OCTETS = 16 * 1024 * 1024
"""Longest header that the library takes: it holds it, often several times. One that is longer is a
body whose blank line is missing."""

MAX_HEADER_OCTETS = 128 * 1024 * 1024
"""Longest header that inject takes. It has to be held in memory: what is added before it depends on
what is in it."""

_NAME_OCTETS = bytes(range(33, 127)).replace(b":", b"")


def field_name(line: bytes) -> bytes:
    """Return the name of the field that `line` begins, in lower case; empty if it begins none.

    Blanks between the name and its colon are allowed, as RFC 822 had them.
    """
    name, colon, _ = line.partition(b":")
    if not colon:
        return b""
    name = name.rstrip(b" \t")
    return b"" if name.translate(None, _NAME_OCTETS) else name.lower()


class MessageReader:
    """A message that is read once: first all `fields()`, then the `body()`.

    `read` returns the next bytes, at most a buffer full, and b"" at the end. The body is never
    held; the header is not held here either, but one field is.

    A line of just a CR is not a blank line to qmail, which puts one of its own before it; with
    `crlf_blank` it is one, and nothing is put in. With `quoted_mbox`, a first line `>From ` is an
    mbox line too: some programs quote it so.

    Raises MessageTooLargeError when the header is longer than `max_header` octets; whatever
    `read` raises passes through.
    """

    __slots__ = ("_blanks", "_chunk", "_head", "_mbox_lines", "_position", "_read", "_room")

    def __init__(
        self,
        read: Callable[[], bytes],
        max_header: int = MAX_HEADER_OCTETS,
        *,
        crlf_blank: bool = False,
        quoted_mbox: bool = False,
    ) -> None:
        self._read = read
        self._mbox_lines = (b"From ", b">From ") if quoted_mbox else (b"From ",)
        self._blanks = (b"\n", b"\r\n") if crlf_blank else (b"\n",)
        self._chunk = b""
        self._position = 0
        self._head = b""
        self._room = max_header

    def _line(self) -> bytes:
        r"""Return the next line; the last one gets the `\n` it may lack; b"" at the end."""
        pieces: list[bytes] = []
        while True:
            if self._position >= len(self._chunk):
                self._chunk = self._read()
                self._position = 0
                if not self._chunk:
                    return b"".join((*pieces, b"\n")) if pieces else b""
            end = self._chunk.find(b"\n", self._position) + 1
            piece = self._chunk[self._position : end or len(self._chunk)]
            self._position += len(piece)
            self._room -= len(piece)
            if self._room < 0:
                reason = (
                    f"the header is longer than {MAX_HEADER_OCTETS} bytes; "
                    "is a blank line missing between header and body?"
                )
                raise MessageTooLargeError(reason)
            if end and not pieces:
                return piece
            pieces.append(piece)
            if end:
                return b"".join(pieces)

    def fields(self) -> Iterator[bytes]:
        """Yield each field with all its folded lines and its newlines.

        An mbox `From ` line comes as the field `MBOX-Line`. The header ends at a blank line,
        at the end of the input, or before the first line that is no field; a blank line is put in
        between then.
        """
        # One buffer, not a list: millions of short lines would cost many times their size.
        field = bytearray()
        while line := self._line():
            if field:
                if line[0] in b" \t":
                    field += line
                    continue
                yield bytes(field)
                field.clear()
            if line in self._blanks:
                self._head = line
                return
            if line.startswith(self._mbox_lines):
                field += b"MBOX-Line: " + line
            elif field_name(line):
                field += line
            else:
                self._head = b"\n" + line
                return
            self._mbox_lines = (b"From ",)
        if field:
            yield bytes(field)

    def body(self) -> Iterator[bytes]:
        r"""Yield the rest of the message, the blank line before it included, ended by `\n`."""
        if not self._head:
            return
        yield self._head
        last = b"\n"
        chunk = self._chunk[self._position :] or self._read()
        while chunk:
            yield chunk
            last = chunk[-1:]
            chunk = self._read()
        if last != b"\n":
            yield b"\n"


def date_field(seconds: float) -> bytes:
    r"""Return the line `Date: 22 Nov 2026 11:29:37 -0000\n` for these Unix seconds."""
    return f"Date: {header_date(seconds)}\n".encode("ascii")


def message_id_field(seconds: float, pid: int, token: str, host: bytes) -> bytes:
    """Return the line `Message-ID: <time.pid.token.picoqmail@host>`.

    `token` is random: in a container every program is process 1, and a second holds many mails.
    """
    stamp = "".join(f"{part:02d}" for part in time.gmtime(seconds)[:6])
    return f"Message-ID: <{stamp}.{pid}.{token}.picoqmail@".encode("ascii") + host + b">\n"
