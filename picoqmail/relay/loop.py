"""What all lanes and connections share: the time, the sockets, the deadlines, the lookups.

The rule of this module: it does nothing by itself. The engine turns the loop; lanes and connections
read the time here, register their sockets and announce their deadlines. So none of them has to know
the engine, and no connection its lane.
"""

from __future__ import annotations

import math
import select
import time

from picoqmail.relay.lookup import Lookups

READABLE, WRITABLE = select.POLLIN, select.POLLOUT
"""What to wait for at a socket. Its end and its failure are reported in any case."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from _socket import socket
    from collections.abc import Callable
    from typing import Protocol

    from picoqmail.relay.tls_plan import TlsPlan, TlsPolicy

    class Concerned(Protocol):
        """Whom the events of a socket concern."""

        def on_ready(self, events: int) -> None:
            """Go on, because the socket can be read or written."""

    class Watched(Protocol):
        """A connection, as far as the loop needs to know it."""

        deadline: float

        @property
        def is_closed(self) -> bool:
            """Whether nothing more will come of it."""

        def on_ready(self, events: int) -> None:
            """Go on, because the socket can be read or written."""

        def on_deadline(self) -> None:
            """Go on, because the deadline has passed."""

        def on_stop(self) -> None:
            """End a pause, because nothing new will be begun."""

        def on_login(self) -> None:
            """Go on, if it waited for the end of another connection's login."""

        def discard(self) -> None:
            """Close the socket and do nothing else."""


class Sockets:
    """The sockets that the loop waits for, each with whom it concerns.

    This is poll(2) itself: the module selectors is a part of the sender's start that can be
    noticed, and takes time for each mail.
    """

    __slots__ = ("_concerned", "_poll")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._concerned: dict[int, Concerned] = {}

    def __len__(self) -> int:
        """How many sockets are watched."""
        return len(self._concerned)

    def watch(self, socket: socket, events: int, concerned: Concerned) -> None:
        """Wait for these events at a socket, from now on for no others."""
        number = socket.fileno()
        self._poll.register(number, events)
        self._concerned[number] = concerned

    def forget(self, socket: socket) -> None:
        """Wait for this socket no more; to be called before it is closed."""
        number = socket.fileno()
        self._poll.unregister(number)
        del self._concerned[number]

    def wait(self, seconds: float) -> list[tuple[Concerned, int]]:
        """Wait so long for the first events; return them with those whom they concern."""
        # Rounded up: a wait that ends before its time would only be repeated.
        found = self._poll.poll(math.ceil(seconds * 1000))
        return [(self._concerned[number], events) for number, events in found]


class Loop:
    """The state of one engine's loop.

    ``now`` is the monotonic time at which the loop last woke up, in seconds. ``watched`` are the
    connections that are open. While ``stopping`` is true, lanes begin nothing new. ``check_at`` is
    when the next deadline comes. ``on_event(name, **facts)`` takes what is worth a line of the log.
    """

    __slots__ = (
        "_contexts",
        "check_at",
        "lookups",
        "now",
        "on_event",
        "sockets",
        "stopping",
        "watched",
    )

    def __init__(self, on_event: Callable[..., None]) -> None:
        self.on_event = on_event
        self.now = time.monotonic()
        self.sockets = Sockets()
        self.lookups = Lookups()
        self.watched: set[Watched] = set()
        self.check_at = 0.0
        self.stopping = False
        self._contexts: dict[tuple[TlsPolicy, TlsPlan], ssl.SSLContext] = {}

    def watch(self, deadline: float) -> None:
        """Make sure that the engine checks the deadlines when this one comes."""
        self.check_at = min(self.check_at, deadline)

    def login_ended(self) -> None:
        """Let the connections go on that wait for another one's login."""
        for connection in list(self.watched):
            connection.on_login()

    def tls_context(self, policy: TlsPolicy, plan: TlsPlan) -> ssl.SSLContext:
        """Return the TLS context for a plan. It is made once: reading a CA store takes time.

        Raises OSError where a file of the policy cannot be read.
        """
        key = (policy, plan)
        if key not in self._contexts:
            from picoqmail.relay.tls import make_context

            self._contexts[key] = make_context(policy, plan)
        return self._contexts[key]

    def close(self) -> None:
        """Close all sockets."""
        for connection in list(self.watched):
            connection.discard()
        self.lookups.close()


class Activity:
    """When the relay of a lane last gave us something to do, in the loop's time.

    A lane and its connections share one of these.
    """

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at
