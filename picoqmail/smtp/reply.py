"""What a relay says: octets in, whole replies out.

The rule of this module: it knows how a reply is written, never what it means for a message.
Everything a relay sends passes through here first, so every bound on its length is here.
"""

from __future__ import annotations

import re
from functools import lru_cache

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

REPLY_LINE_LIMIT = 2000
"""Octets in one reply line, CRLF included. RFC 5321 4.5.3.1.5 says 512; real relays write more."""

LINES_LIMIT = 100
"""Lines in one reply."""

REPLY_LIMIT = 65536
"""Octets in one reply. Without a bound a relay that never stops could fill our memory."""

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?: |$)")
_CODES = {b"%d" % code: code for code in range(200, 600)}
_BLANK_OR_HYPHEN = (b" ", b"-", b"")
_CODE_LENGTH = 3
_LONGEST_QUOTE = 200


class ReplyError(Exception):
    """What came is no SMTP reply. That is always the relay's fault, never the message's."""


class Reply(Value):
    """One whole reply.

    ``code`` is 200 to 599, ``enhanced`` the enhanced status code of RFC 2034 as text or ``""``,
    ``lines`` the text of each line without code, line end and unprintable characters.
    """

    __slots__ = ("code", "enhanced", "lines")

    def __init__(self, code: int, enhanced: str, lines: tuple[str, ...]) -> None:
        self.code: Final = code
        self.enhanced: Final = enhanced
        self.lines: Final = lines

    @property
    def text(self) -> str:
        """The reply on one line, as for a log: ``550 5.1.1 No such user``."""
        return f"{self.code} {' / '.join(self.lines)}".rstrip()

    @property
    def is_success(self) -> bool:
        """Whether the code is 2xx."""
        return self.code < 300

    @property
    def is_temporary(self) -> bool:
        """Whether the code is 4xx: the same thing may work later."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """Whether the code is 5xx: do not try the same thing again."""
        return self.code >= 500


def _legible(raw: bytes) -> str:
    # The text is shown on terminals and in logs, and a relay must not be able to control them.
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}" for character in text
    )


def _make(code: int, raw_lines: list[bytes]) -> Reply:
    lines = tuple(map(_legible, raw_lines))
    found = _ENHANCED.match(lines[0])
    enhanced = ""
    if found and int(found[1]) == code // 100:
        enhanced = found[0].rstrip()
    return Reply(code, enhanced, lines)


# A relay sends the same few replies again and again ("250 2.1.0 Ok"), and replies are frozen.
@lru_cache(maxsize=256)
def _single(line: bytes) -> Reply | None:
    """Return the reply that a line with its end is; None if it is no whole reply."""
    text = line[:-2]
    code, mark = text[:_CODE_LENGTH], text[_CODE_LENGTH : _CODE_LENGTH + 1]
    if line[-2:] != b"\r\n" or b"\r" in text or b"\0" in text:
        return None
    if code not in _CODES or mark not in (b" ", b""):
        return None
    return _make(_CODES[code], [text[_CODE_LENGTH + 1 :]])


class ReplyParser:
    """Divides what a relay sends into replies, however it arrives.

    ``feed`` takes octets in any portions; ``next`` returns one reply, or None if it is not whole.
    ``redact`` takes secrets out of what its errors quote.
    """

    __slots__ = ("_buffer", "_code", "_lines", "_octets", "redact")

    def __init__(self) -> None:
        self.redact: Callable[[str], str] = str
        self._buffer = b""
        self._code = b""
        self._lines: list[bytes] = []
        self._octets = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be read, not even a part of a reply."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> None:
        """Take octets as they came from the transport."""
        self._buffer = self._buffer + data if self._buffer else data

    def next(self) -> Reply | None:
        """Return the next whole reply, or None if its end has not come yet.

        Raises ReplyError for what is not a reply: a line not ended by CRLF, a code outside 200 to
        599, different codes in one reply, or one that is longer than the limits of this module.
        """
        while True:
            end = self._buffer.find(b"\n", 0, REPLY_LINE_LIMIT) + 1
            if not end:
                if len(self._buffer) >= REPLY_LINE_LIMIT:
                    raise ReplyError(f"a reply line is longer than {REPLY_LINE_LIMIT} bytes")
                return None
            line = self._buffer[:end]
            reply = None if self._lines else _single(line)
            if reply is None:
                reply = self._take_line(line)
            self._buffer = self._buffer[end:]
            if reply is not None:
                return reply

    def _take_line(self, ended: bytes) -> Reply | None:
        """Add a line to a reply of several; return the reply if that is its last line."""
        line = ended[:-2]
        if ended[-2:] != b"\r\n" or b"\r" in line or b"\0" in line:
            raise ReplyError(f"a reply line does not end with CRLF: {self._quoted(ended[:-1])}")
        code, mark = line[:_CODE_LENGTH], line[_CODE_LENGTH : _CODE_LENGTH + 1]
        if code not in _CODES or mark not in _BLANK_OR_HYPHEN:
            raise ReplyError(f"this is not an SMTP reply: {self._quoted(line)}")
        if not self._lines:
            self._code = code
        elif code != self._code:
            raise ReplyError(
                f"one reply with two codes, {self._code.decode()} and {code.decode()}: "
                f"{self._quoted(line)}"
            )
        self._lines.append(line[_CODE_LENGTH + 1 :])
        self._octets += len(line)
        if len(self._lines) > LINES_LIMIT or self._octets > REPLY_LIMIT:
            raise ReplyError(f"a reply is longer than {LINES_LIMIT} lines or {REPLY_LIMIT} bytes")
        if mark == b"-":
            return None
        reply = _make(_CODES[self._code], self._lines)
        self._lines, self._octets = [], 0
        return reply

    def _quoted(self, line: bytes) -> str:
        # Redacted first: quotes and backslashes would hide a secret, and a cut a part of it.
        return repr(self.redact(_legible(line))[:_LONGEST_QUOTE])
