"""What a run of the engine is given, and what it says at its end: values only."""

from __future__ import annotations

from picoqmail.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from picoqmail.relay.lookup import Endpoint
    from picoqmail.smtp.transaction import RelayFault, Source

    class LaneSource(Source, Protocol):
        """Where a lane's messages come from: a source that knows how many there are."""

        def backlog(self) -> int:
            """About how many more there are to take; 0 only if there is nothing now."""


class Lane(Record):
    """Messages of one source, for the first of some relays that takes them.

    ``concurrency`` is the most links at once, ``messages`` the most messages on one link.
    ``timeout_connect`` (lookup, connect, TLS) and ``timeout_remote`` (each step, each transaction)
    are seconds. ``pace`` is asked before each message, and returns the seconds to wait until it
    may begin; 0 is the leave for one message. ``probe`` allows one link only until a relay has
    greeted and let us in. ``was_throttled``: the last run ended because a relay said "too fast".
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    source: LaneSource
    helo: str
    concurrency: int = 20
    messages: int = 500
    timeout_connect: float = 60.0
    timeout_remote: float = 1200.0
    source_ip: str = ""
    cleartext_auth: bool = False
    pace: Callable[[], float] | None = None
    probe: bool = False
    was_throttled: bool = False
    use_pipelining: bool = True
    use_chunking: bool = True


class LaneSummary(Record):
    """How a lane ended.

    ``reached``: some relay let us in. ``fault``: the last fault of a relay, or None. ``gave_up``:
    the lane stopped because no relay was left. ``answered``: transactions
    that came to an end without a fault. ``pace``: a relay asked us to be slower. ``throttled`` is
    what it said when the lane ended because of that, else ``""``.
    """

    name: str
    reached: bool
    gave_up: bool
    fault: RelayFault | None
    relay: str
    answered: int
    links: int
    pace: bool
    throttled: str = ""


class RunSummary(Record):
    """How a run ended, lane by lane in the order given."""

    lanes: tuple[LaneSummary, ...] = ()
