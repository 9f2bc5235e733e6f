"""Which relay of a list is used now, and which of its addresses.

The rule of this module: it only moves on in the list, so failures never lead in a circle.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.relay.lookup import Address, Endpoint


class Failover:
    """A place in a list of relays.

    ``address`` is where to connect; None until `found` was called for the relay in use.
    ``in_clear``: TLS has failed with this relay, and connections do without it.
    """

    __slots__ = ("_endpoints", "_further", "_is_settled", "_number", "address", "in_clear")

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = endpoints
        self._number = 0
        self._further: tuple[Address, ...] = ()
        self._is_settled = False
        self.address: Address | None = None
        self.in_clear = False

    @property
    def endpoint(self) -> Endpoint:
        """The relay in use."""
        return self._endpoints[self._number]

    @property
    def candidates(self) -> tuple[Address, ...]:
        """Where the next connection may go, in order: one address once one has answered."""
        if self.address is None:
            return ()
        return (self.address,) if self._is_settled else (self.address, *self._further)

    @property
    def is_last(self) -> bool:
        """Whether there is nothing to move on to."""
        return not self._further and self.is_last_relay

    @property
    def is_last_relay(self) -> bool:
        """Whether there is no relay to move on to."""
        return self._number + 1 >= len(self._endpoints)

    def found(self, addresses: tuple[Address, ...]) -> None:
        """Use these addresses of the relay in turn; there must be one at least."""
        self.address, self._further = addresses[0], addresses[1:]
        self._is_settled = False

    def settle(self, address: Address) -> None:
        """Use this one of the candidates from now on, because it has answered first."""
        others = [one for one in self.candidates if one is not address]
        if len(others) < len(self.candidates):
            self.found((address, *(others or self._further)))
            self._is_settled = True

    def move_on(self) -> None:
        """Use the next address from now on, or else the next relay."""
        if self._further:
            self.found(self._further)
        else:
            self.next_relay()

    def next_relay(self) -> None:
        """Use the next relay from now on; there must be one."""
        self._number += 1
        self._further = ()
        self.address = None
        self.in_clear = False
