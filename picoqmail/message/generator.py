"""What came as an object of the `email` package becomes octets, and what was written is checked.

Nothing else lives here, for importing it imports that package. Python's generator has written
header lines that nobody set: an encoded word with a line end in it, or a line end in a value or a
name, ended the header early or made a field of its own, such as Bcc. Some versions of Python
check a part of that. Here the octets of every header, also of each part, must have the fields that
the object has, in their order, and not one line more.
"""

from __future__ import annotations

import copy
from email.errors import MessageError as EmailError
from email.generator import BytesGenerator
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

from picoqmail.errors import MessageError
from picoqmail.message.header import field_name

if TYPE_CHECKING:
    from email.message import Message

_BOUNDARY_DIGITS = 32


def write_object(message: Message[Any, Any], *, utf8: bool) -> bytes:
    """Return the octets of a message object, without Bcc and Resent-Bcc; lines end in LF.

    Unlike smtplib, it puts no `>` in front of a `From ` in the body. Boundaries that the object
    leaves open follow from the content, so that the same message has the same octets. Raises
    MessageError, also where a header would get other fields or lines than the object has.
    """
    # One level is enough: only the top's own list of headers is changed.
    message = copy.copy(message)
    del message["Bcc"]
    del message["Resent-Bcc"]
    policy = message.policy
    if utf8 and hasattr(policy, "utf8"):
        policy = policy.clone(utf8=True)  # type: ignore[call-arg] # looked for just above
    out = BytesIO()
    try:
        _Generator(out, mangle_from_=False, policy=policy).flatten(message, linesep="\n")
    except MessageError:
        raise
    except (EmailError, ValueError, TypeError, LookupError, AttributeError) as exc:
        # What a broken object makes the email package raise is of all these kinds.
        raise MessageError(f"the message cannot be written as bytes: {exc}") from exc
    return out.getvalue()


class _Generator(BytesGenerator):
    """The generator of the email package, with our own boundaries and a check of each header."""

    _fp: Any

    @classmethod
    def _make_boundary(cls, text: bytes | str | None = None) -> str:
        content = text.encode("utf-8", "replace") if isinstance(text, str) else text or b""
        boundary = sha256(content).hexdigest()[:_BOUNDARY_DIGITS]
        while boundary.encode() in content:
            boundary = sha256(boundary.encode()).hexdigest()[:_BOUNDARY_DIGITS]
        return f"==============={boundary}=="

    def _write_headers(self, msg: Message[Any, Any]) -> None:
        outer, self._fp = self._fp, BytesIO()
        try:
            super()._write_headers(msg)  # type: ignore[misc] # typeshed has no private names
            written = self._fp.getvalue()
        finally:
            self._fp = outer
        _check_header(msg, written)
        self._fp.write(written)


def _check_header(message: Message[Any, Any], written: bytes) -> None:
    """Raise MessageError unless these octets are a header of the message's fields, and no more."""
    names = message.keys()
    # A lone CR is a line end to some programs; the email package never means one.
    lines = written.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    if lines[-2:] != [b"", b""]:
        raise MessageError("the header was written without the blank line that ends it")
    begun = [line for line in lines[:-2] if line[:1] not in (b" ", b"\t")]
    for index, line in enumerate(begun):
        name = names[index] if index < len(names) else ""
        if not name or field_name(line) != name.lower().encode("utf-8", "surrogateescape"):
            raise MessageError(_complaint(message, index, line))
    if len(begun) < len(names):
        raise MessageError(_complaint(message, len(begun), b""))


def _complaint(message: Message[Any, Any], index: int, line: bytes) -> str:
    """Return what is said of a field that did not come out as one."""
    items = message.keys()
    culprit = items[max(min(index, len(items)) - 1, 0)] if items else ""
    return (
        f"the header would get a line that is not a field of the message: {line[:100]!a}, at the "
        f"field {culprit[:100]!a}; a value or name holds a line end, or text that decodes to one"
    )
