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

    __slots__ = ("_endpoints", "_further", "_number", "address", "in_clear")

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = endpoints
        self._number = 0
        self._further: tuple[Address, ...] = ()
        self.address: Address | None = None
        self.in_clear = False

    @property
    def endpoint(self) -> Endpoint:
        """The relay in use."""
        return self._endpoints[self._number]

    @property
    def is_last(self) -> bool:
        """Whether there is nothing to move on to."""
        return not self._further and self._number + 1 >= len(self._endpoints)

    def found(self, addresses: tuple[Address, ...]) -> None:
        """Use these addresses of the relay in turn; there must be one at least."""
        self.address, self._further = addresses[0], addresses[1:]

    def move_on(self) -> None:
        """Use the next address from now on, or else the next relay."""
        if self._further:
            self.found(self._further)
            return
        self._number += 1
        self.address = None
        self.in_clear = False
