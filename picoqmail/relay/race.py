"""Connecting to the first of several addresses that answers (RFC 8305, "Happy Eyeballs").

The rule of this module: sockets on their way, and nothing of what is said over them. The addresses
are tried in the order given. Each next one starts after a quarter of a second, or at once when the
one before it has failed, and the first connection that stands wins.
"""

from __future__ import annotations

import _socket
import posix
from collections import deque

from picoqmail.relay.lookup import open_socket
from picoqmail.relay.loop import WRITABLE
from picoqmail.relay.transport import reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.relay.lookup import Address
    from picoqmail.relay.loop import Loop

STAGGER_SECONDS = 0.25
"""RFC 8305 5: the pause before the next address is tried as well."""


class Race:
    """Attempts to connect to some addresses; ends with one call of the two functions it is given.

    ``on_connected(socket, address)``, or ``on_failed(failures)`` with each address and why.
    ``deadline``: when `on_deadline` is to be called next, in the loop's time.
    """

    def __init__(  # noqa: PLR0913 - what it needs, and the two ways back
        self,
        loop: Loop,
        addresses: Sequence[Address],
        source_ip: str,
        timeout: float,
        *,
        on_connected: Callable[[_socket.socket, Address], None],
        on_failed: Callable[[list[tuple[Address, str]]], None],
    ) -> None:
        """Nothing is begun before `start`. `timeout` seconds are for all of them together."""
        self.deadline = loop.now + timeout
        self._loop = loop
        self._waiting = deque(addresses)
        self._source_ip = source_ip
        self._until = self.deadline
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._attempts: list[_Attempt] = []
        self._failures: list[tuple[Address, str]] = []

    def start(self) -> None:
        """Begin with the first address."""
        self._go_on()

    def on_deadline(self) -> None:
        """Try the next address as well, or give up where there is none."""
        if self._waiting and self._loop.now < self._until:
            self._go_on()
            return
        late = [(one.address, "no connection in time") for one in self._attempts]
        self._fail(self._failures + late)

    def discard(self) -> None:
        """Close all sockets and do nothing else."""
        while self._attempts:
            connecting = self._attempts.pop().socket
            self._loop.sockets.forget(connecting)
            connecting.close()

    def _go_on(self) -> None:
        while self._waiting:
            address = self._waiting.popleft()
            try:
                connecting = open_socket(address, self._source_ip)
            except OSError as exc:
                self._failures.append((address, reason_of(exc)))
                continue
            attempt = _Attempt(connecting, address, self._ended)
            self._loop.sockets.watch(connecting, WRITABLE, attempt)
            self._attempts.append(attempt)
            break
        if not self._attempts:
            self._fail(self._failures)
            return
        self.deadline = self._until
        if self._waiting:
            self.deadline = min(self._until, self._loop.now + STAGGER_SECONDS)
        self._loop.watch(self.deadline)

    def _fail(self, failures: list[tuple[Address, str]]) -> None:
        self.discard()
        self._on_failed(failures)

    def _ended(self, attempt: _Attempt) -> None:
        """Take an attempt whose socket is connected or has failed."""
        if attempt not in self._attempts:
            return  # another one has won within the same turn of the loop
        self._attempts.remove(attempt)
        self._loop.sockets.forget(attempt.socket)
        status = attempt.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if status:
            attempt.socket.close()
            self._failures.append((attempt.address, posix.strerror(status)))
            self._go_on()
            return
        self.discard()
        self._on_connected(attempt.socket, attempt.address)


class _Attempt:
    """One socket on its way; what the loop calls."""

    __slots__ = ("_ended", "address", "socket")

    def __init__(
        self, connecting: _socket.socket, address: Address, ended: Callable[[_Attempt], None]
    ) -> None:
        self.socket = connecting
        self.address = address
        self._ended = ended

    def on_ready(self, _events: int) -> None:
        """Go on, because the socket is connected, or cannot be."""
        self._ended(self)
