"""Which relay and address comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.relay.failover import Failover
from picoqmail.relay.lookup import Endpoint, literal_addresses
from picoqmail.smtp.relay_address import parse_relay

if TYPE_CHECKING:
    from picoqmail.relay.lookup import Address

ENDPOINTS = tuple(Endpoint(parse_relay(f"192.0.2.{number}")) for number in (1, 2))


def place(failover: Failover) -> tuple[Endpoint, Address | None, bool]:
    """Return the relay and address in use, and whether they are the last."""
    return failover.endpoint, failover.address, failover.is_last


def test_addresses_then_relays() -> None:
    """All addresses of a relay in turn, then the next relay, which must be looked up first."""
    failover = Failover(ENDPOINTS)
    (one,) = literal_addresses(parse_relay("192.0.2.1:25")) or ()
    (other,) = literal_addresses(parse_relay("192.0.2.1:26")) or ()
    assert (ENDPOINTS[0], None, False) == place(failover)
    failover.found((one, other))
    assert (ENDPOINTS[0], one, False) == place(failover)
    failover.move_on()
    assert (ENDPOINTS[0], other, False) == place(failover)
    failover.move_on()
    assert (ENDPOINTS[1], None, True) == place(failover)


def test_the_last_address_of_the_last_relay() -> None:
    """It is the last only if no other address of it is left."""
    failover = Failover(ENDPOINTS[:1])
    addresses = [literal_addresses(parse_relay(f"192.0.2.1:{port}")) or () for port in (25, 26)]
    failover.found(addresses[0] + addresses[1])
    assert not failover.is_last
    failover.move_on()
    assert failover.is_last


def test_in_clear_holds_for_one_relay() -> None:
    """That TLS failed with one relay is no reason to do without it at the next."""
    failover = Failover(ENDPOINTS)
    failover.in_clear = True
    failover.move_on()
    assert not failover.in_clear
