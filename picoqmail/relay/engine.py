"""Many SMTP sessions at once, in one process and one loop, without a thread for each.

The rule of this module: it waits, and calls the lane or connection that something has happened to.
What is said to a relay is decided by the conversation, what becomes of a message by the source.
Nothing is logged here; the engine takes a function for events.

A *lane* is a list of relays in order, and a source of messages for them. It opens its first
connection when it has a message. It opens more only if the relay leaves it waiting, and if enough
messages wait to make another connection worth its greeting.
"""

from __future__ import annotations

import math
import time

from picoqmail.relay.lane import Lane
from picoqmail.relay.loop import READABLE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.relay.lane_options import LaneOptions, LaneSummary

_IDLE_SECONDS = 3600.0
_LOOK_SECONDS = 1.0


def _ignore(_name: str, **_facts: object) -> None:
    """Take an event that nobody wants."""


class Engine:
    """Drives lanes until none of them has anything left to do.

    ``on_event(name, **facts)`` is called for the events ``connected``, ``tls``, ``relay_greeted``,
    ``pace`` and ``connection_lost`` (see picoqmail/log/events.py); it must not raise. An exception
    out of a source ends ``serve``, with all sockets closed. While a relay leaves a lane waiting
    that has nothing more to send, ``look`` is called once a second; it returns whether any source
    has something new. With ``is_shared`` it is called also while there is more to send: what is new
    may be another user's, whose turn it is.
    """

    def __init__(
        self,
        lanes: Sequence[LaneOptions],
        *,
        on_event: Callable[..., None] = _ignore,
        look: Callable[[], bool] | None = None,
        is_shared: bool = False,
    ) -> None:
        self._loop = Loop(on_event)
        self._look = look
        self._is_shared = is_shared
        self._looked_at = self._loop.now
        self._lanes = [Lane(options, self._loop) for options in lanes]

    def serve(self) -> tuple[LaneSummary, ...]:
        """Serve all lanes to their end and say how each ended, in the order given.

        Blocks; the time limits of the lanes bound it.
        """
        loop = self._loop
        loop.sockets.watch(loop.lookups.reader, READABLE, loop.lookups)
        try:
            for lane in self._lanes:
                lane.go_on()
            while not all(lane.finished for lane in self._lanes):
                self._turn()
        finally:
            loop.close()
        return tuple([lane.summary() for lane in self._lanes])

    def stop(self) -> None:
        """Take no more messages and finish what is under way. A signal handler may call it."""
        self._loop.stopping = True
        self._loop.lookups.wake()

    def _turn(self) -> None:
        loop = self._loop
        wake_at = loop.check_at
        for lane in self._lanes:
            wake_at = min(wake_at, lane.grow_at)
        wake_at = min(wake_at, self._look_at)
        ready = loop.sockets.wait(max(0.0, wake_at - loop.now))
        loop.now = time.monotonic()
        for concerned, events in ready:
            concerned.on_ready(events)
        # The time that we needed ourselves does not count as waiting for a relay.
        busy = -loop.now
        loop.now = time.monotonic()
        busy += loop.now
        for lane in self._lanes:
            lane.activity.at += busy
            if lane.may_grow_at(loop.now):
                lane.grow()
        if loop.stopping:
            for connection in list(loop.watched):
                connection.on_stop()
        if loop.now >= loop.check_at:
            self._check_deadlines()
        # Quick where a look was taken within this second.
        if loop.now >= self._looked_at + _LOOK_SECONDS and loop.now >= self._look_at:
            self._look_for_more()

    @property
    def _look_at(self) -> float:
        """When to look for new messages, if nothing comes from the relays until then."""
        if self._look is None or self._loop.stopping:
            return math.inf
        if self._is_shared:
            return self._looked_at + _LOOK_SECONDS
        stalled_at = min([lane.stalled_at for lane in self._lanes])
        return max(stalled_at, self._looked_at + _LOOK_SECONDS)

    def _look_for_more(self) -> None:
        """Take what has come meanwhile: it does not wait for the slowest reply."""
        self._looked_at = self._loop.now
        if self._look is not None and self._look():
            for lane in self._lanes:
                lane.resume()

    def _check_deadlines(self) -> None:
        loop = self._loop
        loop.check_at = loop.now + _IDLE_SECONDS
        for connection in list(loop.watched):
            if connection.deadline <= loop.now:
                connection.on_deadline()
            if not connection.is_closed:
                loop.watch(connection.deadline)
        for lane in self._lanes:
            lane.check_lookup()
