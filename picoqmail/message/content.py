"""What a caller of the library may hand us as a message, and its octets.

Only turning objects into octets may live here: what the header says of the envelope is the
business of `header_envelope`. The octets of what came as octets are never changed, but for a Bcc
that has to go; what came as an object of the `email` package is written with LF line ends.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

from picoqmail.errors import InputError, MessageError, MessageTooLargeError, MessageTypeError
from picoqmail.importing import importing
from picoqmail.message.header import field_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

MessageLike: TypeAlias = (
    "bytes | bytearray | memoryview | str | Message[Any, Any] | os.PathLike[str] | IO[bytes]"
)

BLOCK_OCTETS = 262144
# The header has to be held; one that is longer than this is a body whose blank line is missing.
HEADER_LIMIT_OCTETS = 16 * 1024 * 1024

_BCC = frozenset((b"bcc", b"resent-bcc"))
# Fields that a program which builds its mail anew for another try will have made anew.
_MADE_ANEW = frozenset((b"date", b"message-id", b"resent-date", b"resent-message-id"))

Field: TypeAlias = tuple[bytes, bytes]


class Content:
    """The octets of one message: its header's fields if somebody asks, then all in blocks.

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
        r"""The header as pairs of a lower-case name and the raw field with its folded lines.

        The header ends before the first line that is no field: the blank one, as a rule; an mbox
        `From ` line in front is a field without a name. Raises InputError, MessageTooLargeError.
        """
        if self._fields is None:
            data = self._source_header()
            self._fields, end = split_header(data)
            self._rest = data[end:]
        return self._fields

    def drop_bcc(self) -> None:
        """Leave out who is to stay unknown (RFC 5322 section 3.6.3)."""
        self._fields = [one for one in self.fields() if one[0] not in _BCC]

    def blocks(self, digest: Any = None) -> Iterator[bytes]:  # noqa: ANN401 - see `fingerprint`
        """All octets, in order; what `fingerprint` has not seen of them goes into `digest`.

        Raises InputError, MessageTypeError.
        """
        if self._fields is not None:
            yield b"".join([raw for _, raw in self._fields])
            if digest is not None:
                digest.update(self._rest)
            yield self._rest
        while block := self._read():
            if digest is not None:
                digest.update(block)
            yield block

    def fingerprint(self) -> Any:  # noqa: ANN401 - hashlib has no public name for its objects
        """A hash of the header but for what differs from one try to the next; of nothing else."""
        digest = sha256()
        for name, raw in self.fields():
            if name not in _MADE_ANEW:
                digest.update(raw)
        digest.update(b"\0")
        return digest

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
                    f"the header is longer than {HEADER_LIMIT_OCTETS} octets; "
                    "is a blank line missing between header and body?"
                )
            tail = seen[-2:]
        return b"".join(pieces)

    def _read(self) -> bytes:
        try:
            block: object = self._source.read(BLOCK_OCTETS)
        except OSError as exc:
            raise InputError(
                exc.errno, f"the message cannot be read: {exc.strerror or exc}"
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

    Raises MessageTypeError for what is no message, MessageError for an object that cannot be
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
        f"{type(message).__name__} is no message; give bytes, str, an email.message.Message, "
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
        raise MessageError(f"the message is no Unicode text: {exc}") from exc
