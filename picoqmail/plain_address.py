"""Addresses as callers of other mail libraries give them, made those of an envelope.

`Name <a@b>` loses its name, a quoted local part its quotes, and an address without a host gets
the setting defaulthost (or me), as with qmail-inject.
"""

from __future__ import annotations

from email.utils import parseaddr
from typing import TYPE_CHECKING

from picoqmail.control import Control, host_name
from picoqmail.header_envelope import raw_address

if TYPE_CHECKING:
    from picoqmail.home import Home


def plain_address(address: str) -> str:
    """The raw address alone, of what smtplib takes: with a name or angle brackets, or without."""
    if "<" in address or "(" in address:
        address = parseaddr(address)[1] or ("" if address.strip() == "<>" else address)
    return raw_address(address)


def qualified(address: str, home: Home) -> str:
    """The same with a host, if it had none; the empty address stays. Raises ConfigurationError."""
    if not address or "@" in address:
        return address
    control = Control(home.control)
    value = control.read("defaulthost")
    return f"{address}@{value.text if value and value.text else host_name(control)}"
