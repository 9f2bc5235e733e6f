"""Many conversations at once: one process, one loop, no thread a connection.

The rule of this module: it waits, and tells lanes and links what happened. What is said to a relay
is the conversation's, what becomes of a message the source's. Nothing is logged here; whoever
wants to know what happens passes a function for events.

A *lane* is a list of relays in order, and a source of messages for them. A *link* is one
connection of a lane. A lane opens its first link when it has a message, and more of them only
while the first ones leave it waiting, and enough messages wait to make another worth its greeting.
"""

from __future__ import annotations

import selectors
import time

from picoqmail.relay.failover import LaneRun, SourceFailedError
from picoqmail.relay.lane import Lane, LaneSummary, RunSummary
from picoqmail.relay.lookup import Lookups

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from picoqmail.relay.connection import Link
    from picoqmail.relay.tls_plan import TlsPlan, TlsPolicy

__all__ = ["Engine", "Lane", "LaneSummary", "RunSummary"]


def _ignore(_name: str, **_facts: object) -> None:
    """Take an event that nobody wants."""


class Engine:
    """Drives lanes until none of them has anything left to do.

    ``on_event(name, **facts)`` is told ``connected``, ``tls``, ``relay_up``, ``relay_down``,
    ``pace``; it must not raise. An exception out of a source ends the run, with all sockets closed.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        on_event: Callable[..., None] = _ignore,
    ) -> None:
        self.on_event = on_event
        self.now = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.lookups = Lookups()
        self._lanes = [LaneRun(self, lane) for lane in lanes]
        self._links: set[Link] = set()
        self._contexts: dict[tuple[TlsPolicy, TlsPlan], ssl.SSLContext] = {}
        self._check_at = 0.0
        self._stopping = False

    def run(self) -> RunSummary:
        """Serve all lanes to their end and return how each ended. Blocks; bounded in time."""
        self.selector.register(self.lookups.reader, selectors.EVENT_READ, None)
        try:
            for lane in self._lanes:
                lane.go_on()
            while any(not lane.finished for lane in self._lanes):
                self._turn()
        except SourceFailedError as error:
            raise error.__cause__ or error from None
        finally:
            for link in list(self._links):
                link.discard()
            self.lookups.close()
            self.selector.close()
        return RunSummary(tuple(lane.summary() for lane in self._lanes))

    def stop(self) -> None:
        """Take no more messages and finish what is under way. A signal handler may call it."""
        self._stopping = True
        self.lookups.wake()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def context(self, policy: TlsPolicy, plan: TlsPlan) -> ssl.SSLContext:
        """Return the TLS context for a plan, made once: reading a CA store takes its time."""
        key = (policy, plan)
        if key not in self._contexts:
            from picoqmail.relay.tls import make_context

            self._contexts[key] = make_context(policy, plan)
        return self._contexts[key]

    def add(self, link: Link) -> None:
        """Watch a link."""
        self._links.add(link)

    def remove(self, link: Link) -> None:
        """Forget a link."""
        self._links.discard(link)

    def watch(self, deadline: float) -> None:
        """Make sure that the clock is looked at when this deadline comes."""
        self._check_at = min(self._check_at, deadline)

    def _turn(self) -> None:
        wake_at = self._check_at
        for lane in self._lanes:
            wake_at = min(wake_at, lane.grow_at)
        events = self.selector.select(max(0.0, wake_at - self.now))
        self.now = time.monotonic()
        for key, mask in events:
            if key.data is None:
                self._take_lookups()
            else:
                key.data.on_ready(mask)
        # Time that we needed ourselves is not time that a relay let us wait.
        busy = -self.now
        self.now = time.monotonic()
        busy += self.now
        for lane in self._lanes:
            lane.active_at += busy
            if lane.may_grow_at(self.now):
                lane.grow()
        if self._stopping:
            for link in list(self._links):
                link.on_stop()
        if self.now >= self._check_at:
            self._check_deadlines()

    def _take_lookups(self) -> None:
        for key, answer in self.lookups.answers():
            for lane in self._lanes:
                lane.take_lookup(key, answer)

    def _check_deadlines(self) -> None:
        self._check_at = self.now + 3600.0
        for link in list(self._links):
            if link.deadline <= self.now:
                link.on_deadline()
            if not link.is_closed:
                self.watch(link.deadline)
        for lane in self._lanes:
            lane.check_lookup()
