"""The envelope on the wire of the qmail-queue interface, both directions. Pure.

`F sender NUL (T recipient NUL)* NUL` (qmail-queue(8)). Addresses are raw, as qmail has them:
octets without quoting, `""` the null sender, `#@[]` the double bounce.
"""

from __future__ import annotations

from picoqmail.errors import (
    AddressError,
    AddressTooLongError,
    EnvelopeError,
    TruncatedEnvelopeError,
)
from picoqmail.layout import DOUBLE_BOUNCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ADDRESS_LIMIT_OCTETS = 1002
_NO_ADDRESSES = (b"", DOUBLE_BOUNCE.encode())
_UNSENDABLE_IN_DOMAIN = " <>"
# Unicode's own line and paragraph separators: control characters in all but name.
_LINE_ENDS = "\u2028\u2029"


class EnvelopeParser:
    """Takes the envelope in pieces of any size; memory is bounded by the addresses themselves."""

    __slots__ = ("_rest", "finished", "recipients", "sender")

    def __init__(self) -> None:
        """Nothing is known yet; `sender` is None until its NUL was seen."""
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        self.finished = False
        self._rest = b""

    def feed(self, data: bytes) -> bool:
        """Take more octets; True once the final NUL was seen (what follows it is ignored).

        Raises EnvelopeError for a malformed envelope, AddressTooLongError for an address over
        1002 octets; whichever comes first in the data.
        """
        parts = (self._rest + data).split(b"\0")
        rest = parts.pop()
        for part in parts:
            letter = part[:1]
            if self.sender is None:
                if letter != b"F":
                    raise EnvelopeError("the envelope does not begin with F and the sender")
            elif not letter:
                self.finished = True
                return True
            elif letter != b"T":
                raise EnvelopeError("the envelope has something that is no T and recipient")
            if len(part) > ADDRESS_LIMIT_OCTETS + 1:
                raise AddressTooLongError("an address is longer than 1002 bytes")
            if self.sender is None:
                self.sender = part[1:]
            else:
                self.recipients.append(part[1:])
        if rest:
            if rest[:1] != (b"F" if self.sender is None else b"T"):
                raise EnvelopeError("the envelope has something that is no F or T and address")
            if len(rest) > ADDRESS_LIMIT_OCTETS + 1:
                raise AddressTooLongError("an address is longer than 1002 bytes")
        self._rest = rest
        return False

    def close(self) -> None:
        """Say that no more comes. Raises TruncatedEnvelopeError if the final NUL is missing."""
        if not self.finished:
            raise TruncatedEnvelopeError("the envelope ended before its final NUL")


def encode_envelope(sender: str, recipients: Iterable[str]) -> bytes:
    """Return the envelope as `EnvelopeParser` reads it. Addresses must have been checked."""
    pieces = ["F", sender, "\0"]
    for recipient in recipients:
        pieces += ("T", recipient, "\0")
    pieces.append("\0")
    return "".join(pieces).encode()


def decode_sender(raw: bytes) -> str:
    """Check and decode a sender. Raises AddressError, AddressTooLongError."""
    if raw in _NO_ADDRESSES:
        return raw.decode()
    return _decode_address(raw, None)


def decode_recipients(raw: Iterable[bytes]) -> list[str]:
    """Check and decode recipients, order and duplicates kept; one bad among good refuses all."""
    return [_decode_address(address, index) for index, address in enumerate(raw)]


def check_sender(sender: str) -> str:
    """Check like decode_sender, but text that never was octets. Raises AddressError."""
    return decode_sender(_octets(sender, None))


def check_recipients(recipients: Iterable[str]) -> list[str]:
    """Check like decode_recipients, but text. Raises AddressError."""
    return decode_recipients(_octets(one, index) for index, one in enumerate(recipients))


def _octets(address: str, index: int | None) -> bytes:
    try:
        return address.encode()
    except UnicodeEncodeError:
        raise AddressError("it is not valid Unicode text", address, index) from None


def _decode_address(raw: bytes, index: int | None) -> str:
    try:
        address = raw.decode()
    except UnicodeDecodeError:
        shown = raw.decode("latin-1")
        raise AddressError("it is not UTF-8", shown, index) from None
    if len(raw) > ADDRESS_LIMIT_OCTETS:
        raise AddressTooLongError(f"the address {address[:60]!a}... is longer than 1002 bytes")
    local, at, domain = address.rpartition("@")
    # isprintable accepts most addresses quickly; others are checked character by character.
    if not address.isprintable():
        if any(c < " " or "\x7f" <= c <= "\x9f" or c in _LINE_ENDS for c in address):
            raise AddressError("it holds a control character", address, index)
        if any(c.isspace() for c in domain):
            raise AddressError("its domain holds a space, < or >", address, index)
    if not domain or not at:
        why = "it has no domain after an @" if address else "it is empty"
        raise AddressError(why, address, index)
    if not local:
        raise AddressError("it has nothing before its @", address, index)
    for character in _UNSENDABLE_IN_DOMAIN:
        if character in domain:
            raise AddressError("its domain holds a space, < or >", address, index)
    # RFC 1035 section 2.3.1; `a@.` would otherwise be two of them. A literal has no labels.
    if (".." in domain or domain[0] == "." or domain[-1] == ".") and domain[0] != "[":
        raise AddressError("its domain has an empty label: a dot too many", address, index)
    return address
