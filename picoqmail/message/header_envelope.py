"""The envelope that a message's own header names, as smtplib.SMTP.send_message finds it.

Sender: the field Sender, else From. Recipients: To, Bcc and Cc, in this order. Where there is a
Resent-Date, the fields that begin with Resent- alone count (RFC 5322 section 3.6.6). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from picoqmail.errors import EnvelopeError
from picoqmail.message.tokens import (
    AT,
    ATOM,
    COMMENT,
    DOT,
    LITERAL,
    QUOTE,
    address_list,
    parse,
    unquote,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message

    from picoqmail.message.content import Field
    from picoqmail.message.tokens import Token

_SENDERS = ("Sender", "From")
_RECIPIENTS = ("To", "Bcc", "Cc")
_ADDRESS_KINDS = frozenset((ATOM, QUOTE, LITERAL, COMMENT, AT, DOT))


class HeaderEnvelope:
    """The addresses of one header, by field; asked for only as far as the caller gave none."""

    def __init__(self, fields: dict[str, list[str]], *, resent: int) -> None:
        """`fields` maps lower-case names to raw addresses; `resent` counts Resent-Date fields."""
        self._fields = fields
        self._resent = resent

    @classmethod
    def of_fields(cls, fields: Iterable[Field]) -> HeaderEnvelope:
        """Read raw fields. Raises EnvelopeError for an address field that is none."""
        found: dict[str, list[str]] = {}
        resent = 0
        for name, raw in fields:
            known = name.decode("ascii")
            resent += known == "resent-date"
            if known in _ADDRESS_FIELDS:
                found.setdefault(known, []).extend(
                    addresses(f"header field {known.title()}", raw.partition(b":")[2])
                )
        return cls(found, resent=resent)

    @classmethod
    def of_object(cls, message: Message[Any, Any]) -> HeaderEnvelope:
        """Read a message object. Raises EnvelopeError for an address field that is none."""
        found: dict[str, list[str]] = {}
        for name in _ADDRESS_FIELDS:
            for value in message.get_all(name, ()):
                found.setdefault(name, []).extend(_addresses_of_value(name, value))
        return cls(found, resent=len(message.get_all("Resent-Date", ())))

    def sender(self) -> str:
        """The first address of the sender's field. Raises EnvelopeError if there is none."""
        for name in _SENDERS:
            found = self._fields.get(self._name(name))
            if found:
                return found[0]
        fields = " nor ".join(self._shown(name) for name in _SENDERS)
        raise EnvelopeError(f"no sender was given, and the header has neither {fields}")

    def recipients(self) -> list[str]:
        """All recipients, duplicates kept. Raises EnvelopeError if there is none."""
        found = [
            address for name in _RECIPIENTS for address in self._fields.get(self._name(name), ())
        ]
        if not found:
            fields = ", ".join(self._shown(name) for name in _RECIPIENTS)
            raise EnvelopeError(f"no recipient was given, and none is in {fields} of the header")
        return found

    def _shown(self, name: str) -> str:
        if self._resent > 1:
            raise EnvelopeError(
                "the header was resent more than once, so that it names no one envelope; "
                "give sender and recipients"
            )
        return f"Resent-{name}" if self._resent else name

    def _name(self, name: str) -> str:
        return self._shown(name).lower()


_ADDRESS_FIELDS = frozenset(
    prefix + name.lower() for name in (*_SENDERS, *_RECIPIENTS) for prefix in ("", "resent-")
)


def _addresses_of_value(name: str, value: Any) -> list[str]:  # noqa: ANN401 - as email has it
    """The raw addresses of one header of an object, whatever its policy made of it."""
    parsed = getattr(value, "addresses", None)
    if parsed is not None:
        return [raw_address("" if a.addr_spec == "<>" else a.addr_spec) for a in parsed]
    text = str(value)
    try:
        return addresses(f"header field {name.title()}", text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as exc:
        raise EnvelopeError(f"the header field {name} is no Unicode text: {exc}") from exc


def addresses(name: str, value: bytes) -> list[str]:
    """The raw addresses of a list of RFC 5322; `name` is for the EnvelopeError of what is none."""
    found: list[bytes] = []
    wrong: list[Token] = []

    def gather(address: list[Token]) -> None:
        wrong.extend(one for one in address if one[0] not in _ADDRESS_KINDS)
        found.append(unquote(address[::-1]))

    tokens = parse(b"To:" + value)
    if tokens is None or address_list(tokens, gather) is None or wrong:
        shown = value.strip()[:200].decode("utf-8", "backslashreplace")
        raise EnvelopeError(f"the {name} is no list of addresses: {shown!a}; correct it")
    return [one.decode("utf-8", "surrogateescape") for one in reversed(found)]


def raw_address(address: str) -> str:
    """An address as RFC 5321 writes it becomes one as qmail keeps it: without quotes.

    Only a local part that is a quoted string is changed: `"a b"@example.org` is `a b@example.org`.
    """
    if not address.startswith('"'):
        return address
    tokens = parse(address.encode("utf-8", "surrogateescape"))
    if tokens is None:
        return address
    return unquote(tokens).decode("utf-8", "surrogateescape")
