"""What a caller of the library may hand us as a message, and its octets.

Only turning objects into octets may live here: what the header says of the envelope is the
business of `header_envelope`. The octets of what came as octets are never changed, but for a Bcc
that has to go; what came as an object of the `email` package is written with LF line ends.
"""

from __future__ import annotations

import os
import sys
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

from picoqmail.errors import InputError, MessageError, MessageTooLargeError, MessageTypeError
from picoqmail.importing import importing
from picoqmail.layout import BLOCK_OCTETS
from picoqmail.message.header import HEADER_LIMIT_OCTETS, date_field, field_name, message_id_field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

MessageLike: TypeAlias = (
    "bytes | bytearray | memoryview | str | Message[Any, Any] | os.PathLike[str] | IO[bytes]"
)


_BCC = frozenset((b"bcc", b"resent-bcc"))

Field: TypeAlias = tuple[bytes, bytes]


class Content:
    """The octets of one message: its header's fields on request, then all in blocks.

    Read once. `close` closes only what was opened here.
    """

    def __init__(self, source: IO[bytes], *, opened: bool = False) -> None:
        """`source` is read from where it stands to its end."""
        self._source = source
        self._opened = opened
        self._fields: list[Field] | None = None
        self._rest = b""

    def close(self) -> None:
        """Let go of a file that was named by its path."""
        if self._opened:
            self._source.close()

    def fields(self) -> list[Field]:
        r"""Return the header as pairs of a lower-case name and the raw field with its folded lines.

        The header ends before the first line that is not a field: the blank one, as a rule; an mbox
        `From ` line in front is a field without a name. Raises InputError, MessageTooLargeError.
        """
        if self._fields is None:
            data = self._source_header()
            self._fields, end = split_header(data)
            self._rest = data[end:]
        return self._fields

    def drop_bcc(self) -> None:
        """Leave out the recipients that others must not see (RFC 5322 section 3.6.3)."""
        self._fields = [one for one in self.fields() if one[0] not in _BCC]

    def add_missing(self, now: float, host: str) -> None:
        """Add Date and Message-ID behind the other fields, if the header lacks them.

        `now` is Unix seconds; `host` stands in the Message-ID.
        """
        fields = self.fields()
        names = {name for name, _ in fields}
        end = b"\r\n" if fields and fields[0][1].endswith(b"\r\n") else b"\n"
        added = []
        if b"date" not in names:
            added.append((b"date", date_field(now)))
        if b"message-id" not in names:
            token = os.urandom(8).hex()
            field = message_id_field(now, os.getpid(), token, host.encode())
            added.append((b"message-id", field))
        if added and fields and not fields[-1][1].endswith(b"\n"):
            fields[-1] = (fields[-1][0], fields[-1][1] + end)
        fields += [(name, raw.removesuffix(b"\n") + end) for name, raw in added]
        if added and self._rest and not self._rest.startswith((b"\n", b"\r\n")):
            # A body without a header: its first line must not become one.
            self._rest = end + self._rest

    def blocks(self) -> Iterator[bytes]:
        """Yield all octets, in order. Raises InputError, MessageTypeError."""
        if self._fields is not None:
            yield b"".join([raw for _, raw in self._fields])
            yield self._rest
        while block := self._read():
            yield block

    def _source_header(self) -> bytes:
        """Read until the header surely ended."""
        pieces: list[bytes] = []
        size = 0
        tail = b"\n"
        while block := self._read():
            pieces.append(block)
            size += len(block)
            seen = tail + block
            if b"\n\n" in seen or b"\n\r\n" in seen:
                break
            if size > HEADER_LIMIT_OCTETS:
                raise MessageTooLargeError(
                    f"the header is longer than {HEADER_LIMIT_OCTETS} bytes; "
                    "is a blank line missing between header and body?"
                )
            tail = seen[-2:]
        return b"".join(pieces)

    def _read(self) -> bytes:
        try:
            block: object = self._source.read(BLOCK_OCTETS)
        except MemoryError:
            raise
        except Exception as exc:
            # A stream of anybody's raises what it likes: http.client, zlib, a closed file.
            number = exc.errno if isinstance(exc, OSError) else None
            reason = (exc.strerror if isinstance(exc, OSError) else "") or str(exc)
            raise InputError(
                number, f"the message cannot be read: {reason or type(exc).__name__}"
            ) from exc
        if isinstance(block, bytes):
            return block
        if block is None:
            raise InputError(
                None, "the message cannot be read: its stream has nothing yet and does not wait"
            )
        raise MessageTypeError(
            f"the message's stream gave {type(block).__name__}, not bytes; open it in binary mode"
        )


def split_header(data: bytes) -> tuple[list[Field], int]:
    """Cut a header into fields, octet by octet as it is; and where it ended."""
    fields: list[Field] = []
    position, start = 0, 0
    name: bytes | None = None
    while position < len(data):
        end = data.find(b"\n", position) + 1 or len(data)
        if data[position] not in b" \t" or name is None:
            if name is not None:
                fields.append((name, data[start:position]))
            line = data[position:end]
            is_mbox = position == 0 and line.startswith(b"From ")
            name = b"" if is_mbox else field_name(line) or None
            if name is None:
                return fields, position
            start = position
        position = end
    if name is not None:
        fields.append((name, data[start:]))
    return fields, len(data)


def open_content(message: MessageLike, *, utf8: bool = False) -> Content:
    """Take a message in any of its forms; `utf8` writes the header of an object as RFC 6532 has it.

    Raises MessageTypeError for what is not a message, MessageError for an object that cannot be
    written, InputError where a path cannot be opened.
    """
    if isinstance(message, (bytes, bytearray, memoryview)):
        return Content(BytesIO(message))
    if isinstance(message, str):
        return Content(BytesIO(_text(message)))
    if is_email_object(message):
        with importing:
            from picoqmail.message.generator import write_object

        return Content(BytesIO(write_object(message, utf8=utf8)))
    if isinstance(message, os.PathLike):
        try:
            return Content(open(message, "rb", buffering=0), opened=True)
        except OSError as exc:
            path = os.fspath(message)
            raise InputError(
                exc.errno, f"the message {path!a} cannot be opened: {exc.strerror}"
            ) from exc
    if hasattr(message, "read"):
        return Content(cast("IO[bytes]", message))
    raise MessageTypeError(
        f"{type(message).__name__} is not a message; give bytes, str, an email.message.Message, "
        "a path object or a stream open for reading in binary mode"
    )


def is_email_object(message: object) -> TypeGuard[Message[Any, Any]]:
    """Say whether it is a message of the `email` package, without importing that."""
    # An object of a class exists only where its module was imported.
    module = sys.modules.get("email.message")
    return module is not None and isinstance(message, module.Message)


def _text(message: str) -> bytes:
    try:
        # What the email package could not decode comes back as the octets that it was.
        return message.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise MessageError(f"the message is not Unicode text: {exc}") from exc
