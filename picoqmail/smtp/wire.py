"""The octets of a message as they go to a relay.

The rule of this module: octets in, octets out, and any division of the input into blocks gives the
same output. All that is known of a message is where its header ends, because a long header line is
best folded where it already has a blank.

The order of the steps matters: line ends first, then folding, then dots. If a line end were made
after the dots had been stuffed, a message could end itself.
"""

from __future__ import annotations

import re

LINE_LIMIT = 998
"""Octets in a line, CRLF not counted (RFC 5322 2.1.1, RFC 5321 4.5.3.1.6)."""

_CONTINUATION_MASK = 0xC0
_CONTINUATION = 0x80
_UTF8_LONGEST = 4
_BLANKS = b" \t"
# A search for two octets takes less than half of the time that `in` takes.
_dot_after_line_end = re.compile(rb"\n\.").search


class Encoder:
    """Makes wire octets of a message, block by block, in constant memory.

    LF and CRLF end a line and become CRLF. Any other CR, and NUL, becomes a space. Lines over 998
    octets are folded with CRLF SP, but never inside a UTF-8 character. A header line is folded
    where it has a blank, if it has one, so that no address is cut in two. With ``stuffed`` (DATA,
    RFC 5321 4.5.2) a line that begins with a dot gets another dot. BDAT (RFC 3030) sends lines as
    they are.

    ``finish`` ends an unfinished last line. The final dot is not part of this.
    """

    __slots__ = ("_carry", "_cr", "_in_header", "_stuffed")

    def __init__(self, *, stuffed: bool = True) -> None:
        self._stuffed = stuffed
        self._carry = b""  # the line that has begun, at most LINE_LIMIT octets, not stuffed yet
        self._cr = False  # the last block ended with a CR: the next octet decides what it is
        self._in_header = True

    def encode(self, block: bytes) -> bytes:
        """Return the wire octets that this block completes; may be empty."""
        if self._cr:
            block = b"\r" + block
            self._cr = False
        if b"\0" in block:
            block = block.replace(b"\0", b" ")
        if b"\r" in block:
            if block.endswith(b"\r"):
                self._cr = True
                block = block[:-1]
            # CR CR LF is a lone CR and one line end. In two passes it would become two line ends.
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        if self._carry:
            block = self._carry + block
        cut = block.rfind(b"\n") + 1
        if cut == len(block):
            self._carry = b""
        else:
            self._carry = block[cut:]
            block = block[:cut]
        out = self._lines(block) if block else b""
        if len(self._carry) > LINE_LIMIT:
            out += self._shorten_carry()
        return out

    def finish(self) -> bytes:
        """Return what is left, with the line end that it may lack."""
        rest = self._carry + b" " if self._cr else self._carry
        self._cr = False
        self._carry = b""
        return self._lines(rest + b"\n") if rest else b""

    def _lines(self, lines: bytes) -> bytes:
        """Encode whole lines, each ended by LF."""
        if _has_long_line(lines):
            return self._fold(lines)
        if self._in_header and (b"\n\n" in lines or lines[:1] == b"\n"):
            self._in_header = False
        if self._stuffed:
            if lines[:1] == b".":
                lines = b"." + lines
            if _dot_after_line_end(lines):
                lines = lines.replace(b"\n.", b"\n..")
        return lines.replace(b"\n", b"\r\n")

    def _fold(self, lines: bytes) -> bytes:
        out: list[bytes] = []
        for line in lines.split(b"\n")[:-1]:
            self._in_header = self._in_header and bool(line)
            out += self._pieces(line)
        return b"".join(map(self._ended, out))

    def _shorten_carry(self) -> bytes:
        *pieces, self._carry = self._pieces(self._carry)
        return b"".join(map(self._ended, pieces))

    def _ended(self, line: bytes) -> bytes:
        dot = b"." if self._stuffed and line[:1] == b"." else b""
        return dot + line + b"\r\n"

    def _pieces(self, line: bytes) -> list[bytes]:
        """Divide a line into lines that are short enough; all but the first begin with a blank."""
        pieces = []
        position, lead = 0, b""
        while len(lead) + len(line) - position > LINE_LIMIT:
            # One octet more than fits; it decides where to cut.
            window = lead + line[position : position + LINE_LIMIT + 1 - len(lead)]
            at, next_lead = self._cut(window)
            pieces.append(window[:at])
            position += at - len(lead)
            lead = next_lead
        pieces.append(lead + line[position:])
        return pieces

    def _cut(self, window: bytes) -> tuple[int, bytes]:
        """Return where to cut, and what must be put before the rest."""
        if self._in_header:
            at = max(window.rfind(b" ", 1), window.rfind(b"\t", 1))
            # A word cut in two is better than a line of blanks only.
            if at > 0 and window[:at].strip(_BLANKS):
                return at, b""
        at = LINE_LIMIT
        while window[at] & _CONTINUATION_MASK == _CONTINUATION:
            at -= 1
            if LINE_LIMIT - at >= _UTF8_LONGEST:  # this is no UTF-8
                return LINE_LIMIT, b" "
        return at, b" "


def _has_long_line(lines: bytes) -> bool:
    """Say whether any of these lines, each ended by LF, is too long; most lines are not visited."""
    start, last = 0, len(lines) - LINE_LIMIT - 2
    while start <= last:
        start = lines.rfind(b"\n", start, start + LINE_LIMIT + 1) + 1
        if not start:
            return True
    return False
