"""Addresses as callers of other mail libraries give them, made those of an envelope.

`Name <a@b>` loses its name, a quoted local part its quotes, and an address without a host gets
the setting defaulthost (or me), as with qmail-inject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.errors import EnvelopeError
from picoqmail.home.control import Control, own_host_name
from picoqmail.message.header_envelope import addresses

if TYPE_CHECKING:
    from picoqmail.home.paths import Home


_SPECIAL = frozenset('<>()"[]\\,;:')


def plain_address(address: str) -> str:
    """The raw address alone, of what smtplib takes: with a name or angle brackets, or without.

    Raises EnvelopeError for a text with brackets or quotes that is not one address.
    """
    if _SPECIAL.isdisjoint(address):
        return address
    found = addresses("address", address.encode("utf-8", "surrogateescape"))
    if len(found) != 1:
        raise EnvelopeError(f"{address!a:.200} is {len(found)} addresses, not one")
    return found[0]


def qualified(address: str, home: Home) -> str:
    """The same with a host, if it had none; the empty address stays. Raises ConfigurationError."""
    if not address or "@" in address:
        return address
    control = Control(home.control)
    value = control.read("defaulthost")
    return f"{address}@{value.text if value and value.text else own_host_name(control)}"
