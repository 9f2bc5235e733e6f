"""The envelope that a message's own header names, as smtplib.SMTP.send_message finds it.

Sender: the field Sender, else From. Recipients: To, Bcc and Cc, in this order. Where there is a
Resent-Date, the fields that begin with Resent- alone count (RFC 5322 section 3.6.6). A field counts
only if it was understood whole. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from picoqmail.errors import HeaderError
from picoqmail.message.addresses import not_understood, read_list, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from email.message import Message

    from picoqmail.message.content import Field

_SENDERS = ("Sender", "From")
_RECIPIENTS = ("To", "Bcc", "Cc")


class HeaderEnvelope:
    """The addresses of one header. A field is read only if the caller asks for what it names."""

    def __init__(
        self,
        values: dict[str, list[Any]],
        read: Callable[[str, Any], list[str]],
        *,
        resent: int,
    ) -> None:
        """`values` maps lower-case names to values, which `read` reads; `resent` counts dates."""
        self._values = values
        self._read = read
        self._resent = resent

    @classmethod
    def of_fields(cls, fields: Iterable[Field]) -> HeaderEnvelope:
        """Take raw fields."""
        found: dict[str, list[Any]] = {}
        resent = 0
        for name, raw in fields:
            known = name.decode("ascii")
            resent += known == "resent-date"
            if known in _ADDRESS_FIELDS:
                found.setdefault(known, []).append(raw)
        return cls(found, _addresses_of_field, resent=resent)

    @classmethod
    def of_object(cls, message: Message[Any, Any]) -> HeaderEnvelope:
        """Take a message object."""
        found = {name: message.get_all(name, []) for name in _ADDRESS_FIELDS}
        return cls(found, _addresses_of_value, resent=len(message.get_all("Resent-Date", ())))

    def sender(self) -> str:
        """Return the first address of the sender's field.

        Raises HeaderError if there is none, or the field is no list of addresses.
        """
        for name in _SENDERS:
            found = self._addresses(name)
            if found:
                return found[0]
        fields = " nor ".join(self._shown(name) for name in _SENDERS)
        raise HeaderError(f"no sender was given, and the header has neither {fields}")

    def recipients(self) -> list[str]:
        """Return all recipients, duplicates kept.

        Raises HeaderError if there is none, or one of the fields is no list of addresses.
        """
        found = [address for name in _RECIPIENTS for address in self._addresses(name)]
        if not found:
            fields = ", ".join(self._shown(name) for name in _RECIPIENTS)
            raise HeaderError(f"no recipient was given, and none is in {fields} of the header")
        return found

    def _shown(self, name: str) -> str:
        if self._resent > 1:
            raise HeaderError(
                "the header was resent more than once, so that it names no one envelope; "
                "give sender and recipients"
            )
        return f"Resent-{name}" if self._resent else name

    def _addresses(self, name: str) -> list[str]:
        known = self._shown(name).lower()
        return [one for value in self._values.get(known, ()) for one in self._read(known, value)]


_ADDRESS_FIELDS = frozenset(
    prefix + name.lower() for name in (*_SENDERS, *_RECIPIENTS) for prefix in ("", "resent-")
)


def _shown(name: str) -> str:
    return f"header field {name.title()}"


def _addresses_of_field(name: str, raw: bytes) -> list[str]:
    return read_list(_shown(name), raw.partition(b":")[2].decode("utf-8", "surrogateescape"))


def _addresses_of_value(name: str, value: Any) -> list[str]:  # noqa: ANN401 - as email has it
    """Return the raw addresses of one header of an object, whatever its policy made of it."""
    where = _shown(name)
    parsed = getattr(value, "addresses", None)
    if parsed is not None:
        return _of_parsed(where, value, parsed)
    encode = getattr(value, "encode", None)
    if encode is not None and not isinstance(value, str):
        # An email.header.Header. Encoded, a comma in a name stays in the name; but some programs
        # encode a whole field, addresses and all.
        try:
            return read_list(where, encode(maxlinelen=0))
        except HeaderError:
            return read_list(where, str(value))
    return read_list(where, str(value))


def _of_parsed(where: str, value: Any, parsed: Any) -> list[str]:  # noqa: ANN401 - as email has it
    """Return the addresses of a header that the email package has parsed.

    The package keeps what it understood, and notes the rest as defects. If a defect is more than
    one of taste, our own reading of what will be written has to agree.
    """
    if not all(hasattr(one, "addr_spec") for one in parsed):
        # Made from a list of strings: they are joined as smtplib joins them.
        return read_list(where, str(value))
    found = [one.username + ("@" + one.domain if one.domain else "") for one in parsed]
    if all(isinstance(one, _harmless()) for one in value.defects):
        return seen(where, str(value), found)
    from email.policy import SMTPUTF8

    text = value.fold(policy=SMTPUTF8.clone(max_line_length=None))
    text = text.partition(":")[2]
    is_hidden = any("@" in one.username and not one.domain for one in parsed)
    if is_hidden or found != read_list(where, text):
        raise not_understood(where, text)
    return found


def _harmless() -> tuple[type[Exception], ...]:
    from email.errors import NonASCIILocalPartDefect, ObsoleteHeaderDefect

    return (ObsoleteHeaderDefect, NonASCIILocalPartDefect)
