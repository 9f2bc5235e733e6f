"""A message with octets over 127 for a relay that takes none: the same content in 7 bits.

RFC 6152 section 3 wants that of a client whose server does not offer 8BITMIME. Text becomes
quoted-printable or base64 (RFC 2045 section 6), header fields get encoded words (RFC 2047), and
whatever is in 7 bits already keeps its octets. What is signed or encrypted is not touched: its
octets are what was signed. Not hot; imported only for such a message and relay.
"""

from __future__ import annotations

import binascii
import re
from email.errors import MessageError
from email.header import Header
from email.parser import BytesHeaderParser
from email.policy import compat32
from email.utils import formataddr, getaddresses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.message import Message

MOST_OCTETS = 64 << 20
"""Larger messages are not converted: it is done in memory, with several copies."""

_DEEPEST = 50
_SIGNED = frozenset(
    (
        "multipart/signed",
        "multipart/encrypted",
        "application/pkcs7-mime",
        "application/x-pkcs7-mime",
        "application/pgp-encrypted",
    )
)
_ADDRESSES = frozenset(
    prefix + name
    for name in (b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc")
    for prefix in (b"", b"resent-")
)
_ENCODED = frozenset(("quoted-printable", "base64"))
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:.*?(?:\n(?![ \t])|\Z)", re.DOTALL)
_PGP = b"-----BEGIN PGP SIGNED MESSAGE-----"
# With more than every second octet, quoted-printable would be half as long again as base64.
_MANY = 2


class NotConvertibleError(ValueError):
    """This message has no form in 7 bits; the text says what is in the way."""


def convert(message: bytes) -> bytes:
    """Return the message in 7 bits, with LF line ends. Raises NotConvertibleError."""
    if len(message) > MOST_OCTETS:
        raise NotConvertibleError(f"it is larger than {MOST_OCTETS >> 20} MiB")
    converted = _entity(message.replace(b"\r\n", b"\n"), "", 0)
    head, blank, body = _divided(converted)
    return _with_field(head, b"MIME-Version", b"1.0") + blank + body


def _entity(entity: bytes, parent: str, depth: int) -> bytes:
    """Convert a message or a body part within one of the type `parent`."""
    if entity.isascii():
        return entity
    if depth > _DEEPEST:
        raise NotConvertibleError("it is nested too deeply")
    head, blank, body = _divided(entity)
    try:
        described = BytesHeaderParser(policy=compat32).parsebytes(head)
        kind = described.get_content_type()
        encoding = str(described.get("Content-Transfer-Encoding", "")).strip().lower()
        head = _header(head)
        if body.isascii():
            return head + blank + body
        if kind in _SIGNED or _PGP in body:
            raise NotConvertibleError("it is signed or encrypted")
        if encoding in _ENCODED:
            raise NotConvertibleError(f"it holds 8-bit octets and says that it is {encoding}")
        if kind.startswith("multipart/"):
            body = _parts(body, described, kind, depth)
            return _with_field(head, b"Content-Transfer-Encoding", b"7bit", old=True) + blank + body
        if kind == "message/rfc822":
            return _enclosed(head, blank, body, parent, depth)
        if kind.startswith("message/"):
            # A status (RFC 3464), whose fields are ASCII by their standard.
            if kind == "message/global-delivery-status":
                head = _with_field(head, b"Content-Type", b"message/delivery-status")
            head = _with_field(head, b"Content-Transfer-Encoding", b"7bit", old=True)
            return head + blank + _escaped(body)
        return _leaf(head, blank, body, described)
    except (MessageError, LookupError, UnicodeError, RecursionError) as exc:
        raise NotConvertibleError(f"its structure cannot be read: {exc}") from exc


def _divided(entity: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header, blank line and body."""
    if entity.startswith(b"\n"):
        return b"", b"\n", entity[1:]
    head, blank, body = entity.partition(b"\n\n")
    return (head + b"\n", b"\n", body) if blank else (entity, b"", b"")


def _enclosed(head: bytes, blank: bytes, body: bytes, parent: str, depth: int) -> bytes:
    """Convert a message within a message; a report makes do with its header (RFC 6522)."""
    try:
        inner = _entity(body, "", depth + 1)
    except NotConvertibleError:
        if parent != "multipart/report":
            raise
        head = _with_field(head, b"Content-Type", b"text/rfc822-headers; charset=utf-8")
        head = _with_field(head, b"Content-Transfer-Encoding", b"quoted-printable")
        return head + blank + binascii.b2a_qp(_divided(body)[0], istext=True)
    return _with_field(head, b"Content-Transfer-Encoding", b"7bit", old=True) + blank + inner


def _parts(body: bytes, described: Message, kind: str, depth: int) -> bytes:
    """Convert the parts of a multipart body; what is around them is for no reader."""
    boundary = described.get_boundary()
    if not boundary:
        raise NotConvertibleError(f"{kind} without a boundary")
    mark = re.escape(b"--" + boundary.encode("utf-8", "surrogateescape"))
    # The line end before a boundary belongs to the boundary (RFC 2046 section 5.1.1).
    pieces = re.split(rb"((?:\A|\n)" + mark + rb"(?:--)?[ \t]*(?:\n|\Z))", body)
    if len(pieces) == 1:
        raise NotConvertibleError(f"{kind} in which no boundary is found")
    ended = False
    for at, piece in enumerate(pieces):
        if at % 2:
            ended = ended or piece.strip().endswith(b"--")
        elif at == 0 or ended:
            pieces[at] = _escaped(piece)
        else:
            pieces[at] = _entity(piece, kind, depth + 1)
    return b"".join(pieces)


def _escaped(octets: bytes) -> bytes:
    r"""Write characters beyond ASCII as `\x{FC}`, the form of RFC 6533 section 3."""
    return "".join(
        one if one.isascii() else f"\\x{{{ord(one):X}}}" for one in octets.decode(errors="replace")
    ).encode()


def _leaf(head: bytes, blank: bytes, body: bytes, described: Message) -> bytes:
    """Encode a body that is no container."""
    is_text = described.get_content_maintype() == "text"
    if is_text and not described.get_param("charset"):
        try:
            body.decode()
            charset = b"utf-8"
        except UnicodeDecodeError:
            charset = b"unknown-8bit"  # RFC 1428
        if "Content-Type" in described:
            found = str(described["Content-Type"]).encode("ascii", "replace").rstrip(b"; \n")
            head = _with_field(head, b"Content-Type", found + b"; charset=" + charset)
        else:
            head = _with_field(head, b"Content-Type", b"text/plain; charset=" + charset)
    many = len(body.translate(None, bytes(range(128)))) * _MANY > len(body)
    if is_text and not many:
        head = _with_field(head, b"Content-Transfer-Encoding", b"quoted-printable")
        # A dot alone, and `From ` at the start of a line, are changed by some on the way.
        return head + blank + binascii.b2a_qp(body, istext=True)
    head = _with_field(head, b"Content-Transfer-Encoding", b"base64")
    lines = body.replace(b"\n", b"\r\n")
    step = 57
    encoded = [binascii.b2a_base64(lines[at : at + step]) for at in range(0, len(lines), step)]
    return head + blank + b"".join(encoded)


def _with_field(head: bytes, name: bytes, value: bytes, *, old: bool = False) -> bytes:
    """Return a header whose field of this name has this value; with `old` only if it had one."""
    fields = _FIELD.findall(head)
    found = [field for field in fields if _name_of(field) == name.lower()]
    if not found:
        return head if old else head + name + b": " + value + b"\n"
    return head.replace(found[0], name + b": " + value + b"\n", 1)


def _name_of(field: bytes) -> bytes:
    return field.partition(b":")[0].rstrip(b" \t").lower()


def _header(head: bytes) -> bytes:
    """Return a header whose fields are all ASCII."""
    if head.isascii():
        return head
    fields = _FIELD.findall(head)
    if b"".join(fields) != head:
        raise NotConvertibleError("its header has a line that is no field")
    return b"".join(field if field.isascii() else _field(field) for field in fields)


def _field(field: bytes) -> bytes:
    """Write one field anew, with encoded words."""
    name, colon, raw = field.partition(b":")
    try:
        value, charset = raw.decode(), "utf-8"
    except UnicodeDecodeError:
        value, charset = raw.decode("latin-1"), "iso-8859-1"
    value = " ".join(value.split())
    if not colon or not name.isascii():
        raise NotConvertibleError("its header has a name of a field that is not ASCII")
    if name.lower().strip() in _ADDRESSES:
        pairs = getaddresses([value])
        if any(not address.isascii() for _, address in pairs):
            raise NotConvertibleError(f"its field {name.decode()} has an address beyond ASCII")
        written = ",\n ".join(formataddr(pair, charset) for pair in pairs)
    else:
        written = Header(value, charset, header_name=name.decode()).encode()
    return name + b": " + written.encode("ascii") + b"\n"
