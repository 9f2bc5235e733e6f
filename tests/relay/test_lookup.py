"""Reaching a relay: addresses, and lookups that nobody has to wait for."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING

import pytest

from picoqmail.relay.lookup import Endpoint, Lookups, literal_addresses, look_up, open_socket
from picoqmail.smtp.relay_address import Relay, parse_relay

if TYPE_CHECKING:
    from picoqmail.relay.lookup import Found


@pytest.mark.parametrize(
    ("text", "family", "target"),
    [
        ("192.0.2.1:26", socket.AF_INET, ("192.0.2.1", 26)),
        ("[2001:db8::1]", socket.AF_INET6, ("2001:db8::1", 25)),
        ("lmtp+unix:///run/x", socket.AF_UNIX, "/run/x"),
    ],
)
def test_literal(text: str, family: int, target: object) -> None:
    """An address needs no lookup."""
    addresses = literal_addresses(parse_relay(text))
    assert addresses is not None
    assert [(family, target)] == [(address.family, address.target) for address in addresses]


def test_name_is_not_literal() -> None:
    """A name has to be looked up."""
    assert literal_addresses(parse_relay("localhost")) is None


def test_look_up() -> None:
    """All addresses of a name, each once, as logs name them."""
    texts = [address.text for address in look_up(parse_relay("localhost:26"))]
    assert "127.0.0.1:26" in texts
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".invalid"])
def test_look_up_nothing(host: str) -> None:
    """A name without an address, or that cannot be a name, is an OSError with a reason."""
    with pytest.raises(OSError, match=r".+"):
        look_up(Relay("smtp", host, 25))


def test_lookups() -> None:
    """When the reader can be read, what was found is given to the function for it."""
    lookups = Lookups()
    taken: list[Found] = []
    lookups.ask(Endpoint(parse_relay("localhost:26")), taken.append)
    assert select.select([lookups.reader], [], [], 10)[0]
    lookups.on_ready(select.POLLIN)
    (addresses,) = taken
    assert not isinstance(addresses, OSError)
    assert "127.0.0.1:26" in [address.text for address in addresses]
    lookups.close()


def test_lookups_closed_early() -> None:
    """A run that ends first leaves a thread behind that troubles nobody."""
    lookups = Lookups()
    lookups.ask(Endpoint(parse_relay("localhost:26")), lambda _found: None)
    lookups.close()


def test_socket_without_nagle() -> None:
    """Small writes are not held back."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (address,) = look_up(Relay("smtp", "127.0.0.1", server.getsockname()[1]))
        with contextlib.closing(open_socket(address, "")) as connecting:
            assert connecting.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not connecting.getblocking()
