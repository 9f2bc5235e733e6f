"""Where a relay is: one line of ``relayip`` as a value.

The rule of this module: it reads and writes the name of a relay, and looks nothing up.
"""

from __future__ import annotations

import re

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465, "lmtp": 24, "lmtp+unix": 0}
"""The schemes that a relay may have, each with its port if none is given."""

ALLOWED = (
    "host, host:port, [v6 address]:port, or one of smtp://, smtp+starttls://, smtps://, lmtp:// "
    "with these, or lmtp+unix:///path; each with user@ before the host if it wants a login"
)
"""What a relay may look like, for the text of an error."""

_HOST_PATTERN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_HIGHEST_PORT = 65535


class RelayAddressError(ValueError):
    """This text names no relay; the text of the error says what is allowed."""


class Relay(Value):
    """One relay, not looked up yet.

    ``scheme`` is a key of PORTS, ``host`` a name or an address without brackets. Only ``lmtp+unix``
    has a ``path``. ``user`` is ``""`` if no login is wanted.
    """

    __slots__ = ("scheme", "host", "port", "user", "path")

    def __init__(self, scheme: str, host: str, port: int, user: str = "", path: str = "") -> None:
        self.scheme: Final = scheme
        self.host: Final = host
        self.port: Final = port
        self.user: Final = user
        self.path: Final = path

    @property
    def is_lmtp(self) -> bool:
        """Whether the relay speaks LMTP (RFC 2033)."""
        return self.scheme.startswith("lmtp")

    def __str__(self) -> str:
        """Return the relay as it is written in logs and in the history: no user, no secret."""
        if self.path:
            return f"{self.scheme}://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        prefix = "" if self.scheme == "smtp" else f"{self.scheme}://"
        return f"{prefix}{host}:{self.port}"


def parse_relay(text: str) -> Relay:
    """Return the relay that one line of ``relayip`` names.

    Raises RelayAddressError, whose text names what is allowed.
    """
    text = text.strip()
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "smtp", text
    if scheme not in PORTS:
        raise _error(text, f"the scheme {scheme!r} is none of {', '.join(PORTS)}")
    user, at, rest = rest.rpartition("@")
    if at and not user:
        raise _error(text, "the user before the @ is empty")
    # With "user:secret@" a password would get into a file that anybody can read.
    if scheme != "lmtp+unix" and ":" in user:
        raise _error("...", "no password belongs here, put it into relaypass")
    if scheme == "lmtp+unix":
        if not rest.startswith("/"):
            raise _error(text, "an lmtp+unix relay wants an absolute path")
        return Relay(scheme, "", 0, user, rest)
    host, port = _host_and_port(text, rest.removesuffix("/") if mark else rest)
    return Relay(scheme, host, port or PORTS[scheme], user)


def _host_and_port(text: str, rest: str) -> tuple[str, int]:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        host = host.removeprefix("IPv6:")
        if not bracket or (tail and not tail.startswith(":")):
            raise _error(text, "the bracket is not closed before the port")
        if ":" in host:
            _check_ipv6(text, host)
        elif not _HOST_PATTERN.fullmatch(host):
            raise _error(text, "this is no host")
        return host, _port(text, tail[1:]) if tail else 0
    if rest.count(":") > 1:
        _check_ipv6(text, rest)
        return rest, 0
    host, colon, port = rest.partition(":")
    if not _HOST_PATTERN.fullmatch(host):
        raise _error(text, "this is no host")
    return host, _port(text, port) if colon else 0


def _check_ipv6(text: str, host: str) -> None:
    from ipaddress import AddressValueError, IPv6Address

    try:
        IPv6Address(host)
    except AddressValueError:
        raise _error(text, "this is no IPv6 address") from None


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= _HIGHEST_PORT):
        raise _error(text, f"the port must be a number from 1 to {_HIGHEST_PORT}")
    return int(port)


def _error(text: str, reason: str) -> RelayAddressError:
    return RelayAddressError(f"{text!r} names no relay: {reason}. Allowed: {ALLOWED}")
