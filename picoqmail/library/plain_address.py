"""Addresses as callers of other mail libraries give them, made those of an envelope.

`Name <a@b>` loses its name, a quoted local part its quotes, and an address without a host gets
the setting defaulthost (or me), as with qmail-inject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.errors import AddressError
from picoqmail.home.control import Control, own_host_name
from picoqmail.message.addresses import read_list, read_one

if TYPE_CHECKING:
    from picoqmail.home.paths import Home

# What a name, a comment or a bracket around an address has, and no address alone.
_DECORATED = frozenset('<>()"')


def plain_address(address: str, index: int | None = None) -> str:
    """Return the raw address of what smtplib takes: perhaps with name, brackets, outer blanks.

    Raises EnvelopeError for what is not one address; AddressError with `index` of the recipient.
    """
    address = address.strip(" \t\r\n")
    if not _DECORATED.isdisjoint(address):
        found = read_list("address", address)
        if len(found) != 1:
            raise AddressError(f"it is {len(found)} addresses, not one", address, index)
        return found[0]
    return read_one(address, index)


def qualified(address: str, home: Home) -> str:
    """Return it with a host, if it had none; "" stays. Raises ConfigurationError."""
    if not address or "@" in address:
        return address
    control = Control(home.control)
    value = control.read("defaulthost")
    return f"{address}@{value.text if value and value.text else own_host_name(control)}"
