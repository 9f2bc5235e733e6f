"""The way to a relay: its addresses, and a socket that connects to one of them.

The rule of this module: no SMTP. Only the lookup of a name blocks. So it runs in a thread of its
own, and nobody waits for a thread that does not finish.

Sockets are those of `_socket`, which socket wraps. Importing socket would be a tenth of the
sender's start: it makes hundreds of constants into members of enums.
"""

from __future__ import annotations

import _socket
import errno
import posix
import sys
from collections import deque

from picoqmail.relay.tls_plan import DEFAULT_POLICY
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from picoqmail.relay.tls_plan import TlsPolicy
    from picoqmail.smtp.relay_address import Relay
    from picoqmail.smtp.sasl import Credentials

    Found = tuple["Address", ...] | OSError
    """What a lookup found: addresses, or why there are none."""

_UNDER_WAY = (0, errno.EINPROGRESS, errno.EAGAIN, errno.EWOULDBLOCK)


class Endpoint(Value):
    """A relay, and what the settings say about TLS and the login there."""

    __slots__ = ("relay", "tls", "credentials")

    def __init__(
        self,
        relay: Relay,
        tls: TlsPolicy = DEFAULT_POLICY,
        credentials: Credentials | None = None,
    ) -> None:
        self.relay: Final = relay
        self.tls: Final = tls
        self.credentials: Final = credentials


class Address(Value):
    """Where a socket can connect to: family, argument of connect(), and its name in logs."""

    __slots__ = ("family", "target", "text")

    def __init__(self, family: int, target: tuple[object, ...] | str, text: str) -> None:
        self.family: Final = family
        self.target: Final = target
        self.text: Final = text


def literal_addresses(relay: Relay) -> tuple[Address, ...] | None:
    """Return the address of a relay that needs no lookup; None if it needs one."""
    if relay.path:
        return (Address(_socket.AF_UNIX, relay.path, relay.path),)
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, relay.host)
        except OSError:
            continue
        target = (relay.host, relay.port)
        return (Address(family, target, _text(relay.host, relay.port)),)
    return None


def look_up(relay: Relay) -> tuple[Address, ...]:
    """Return all addresses of a relay in the system's order (RFC 6724). Blocks.

    Raises OSError (socket.gaierror is one) if there is none.
    """
    literal = literal_addresses(relay)
    if literal is not None:
        return literal
    # An application's socket, if it has imported that: gevent puts a resolver of its own there.
    resolver = sys.modules.get("socket", _socket)
    try:
        found = resolver.getaddrinfo(relay.host, relay.port, type=_socket.SOCK_STREAM)
    except UnicodeError as exc:  # a label that is empty or too long
        raise OSError(errno.EINVAL, f"not a host name: {exc}") from None
    addresses = {}
    for family, _, _, _, target in found:
        if family in (_socket.AF_INET, _socket.AF_INET6):
            host = str(target[0])
            address = Address(family, (host, *target[1:]), _text(host, relay.port))
            addresses[address.text] = address
    return tuple(addresses.values())


def interleaved(addresses: tuple[Address, ...], first: str = "") -> tuple[Address, ...]:
    """Return addresses in the order in which to try them (RFC 8305 4): the families in turn.

    The family of the first one comes first, and `first`, the text of one that served, before all.
    """
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    ordered: list[Address] = []
    while any(families.values()):
        ordered += [family.pop(0) for family in families.values() if family]
    ordered.sort(key=lambda address: address.text != first)
    return tuple(ordered)


class Lookups:
    """Lookups in threads of their own; a loop that waits on sockets fetches what they found."""

    def __init__(self) -> None:
        # Of a deque, append and popleft need no lock.
        self._finished: deque[tuple[Callable[[Found], None], Found]] = deque()
        self.reader, self._writer = _socket.socketpair()
        self.reader.setblocking(False)  # noqa: FBT003 - the module's own way
        self._writer.setblocking(False)  # noqa: FBT003 - the module's own way

    def ask(self, endpoint: Endpoint, take: Callable[[Found], None]) -> None:
        """Start to look a relay up. `on_ready` will call `take` with what was found."""
        from picoqmail.importing import importing

        with importing:
            import threading

        # A daemon: a resolver that hangs must not keep the program from ending.
        threading.Thread(target=self._work, args=(endpoint, take), daemon=True).start()

    def on_ready(self, _events: int) -> None:
        """Hand over what has been found; to be called when `reader` can be read."""
        try:
            self.reader.recv(4096)
        except BlockingIOError:
            return  # It was read before.
        # No more than there is now: who is called may ask again.
        for _ in range(len(self._finished)):
            take, found = self._finished.popleft()
            take(found)

    def wake(self) -> None:
        """Make `reader` readable. A signal handler may call this."""
        try:
            self._writer.send(b".")
        except OSError:
            return  # Closed: nobody waits any more. Full: the reader is awake already.

    def close(self) -> None:
        """Forget the threads that have not finished."""
        self.reader.close()
        self._writer.close()

    def _work(self, endpoint: Endpoint, take: Callable[[Found], None]) -> None:
        found: Found
        try:
            if endpoint.credentials is not None:
                # A password command may take its time; run here, it keeps no connection waiting.
                # The secret remembers the result, good or bad.
                _try_to_reveal(endpoint.credentials)
            found = look_up(endpoint.relay)
        except OSError as exc:
            found = exc
        self._finished.append((take, found))
        self.wake()


def _try_to_reveal(credentials: Credentials) -> None:
    try:
        credentials.secret.reveal()
    except OSError:
        return  # AUTH asks for it again, and reports this.


def open_socket(address: Address, source_ip: str) -> _socket.socket:
    """Return a socket that does not block, and that has begun to connect to an address.

    ``source_ip`` is the local address to use, if it is of the same family. Raises OSError.
    """
    connecting = _socket.socket(address.family, _socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)  # noqa: FBT003 - the module's own way
        if address.family != _socket.AF_UNIX:
            # Each group of commands is one write. Nagle's algorithm would only delay it.
            connecting.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            is_ipv6 = address.family == _socket.AF_INET6
            if source_ip and (":" in source_ip) == is_ipv6:
                connecting.bind((source_ip, 0))
        status = connecting.connect_ex(address.target)
        if status not in _UNDER_WAY:
            raise OSError(status, posix.strerror(status))  # noqa: TRY301 - one way out for all
    except OSError:
        connecting.close()
        raise
    return connecting


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
