"""What a run of the engine is given, and what it says at its end: values only."""

from __future__ import annotations

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from picoqmail.relay.lookup import Endpoint
    from picoqmail.smtp.transaction import RelayFault, Source

    class LaneSource(Source, Protocol):
        """Where a lane's messages come from: a source that knows how many there are."""

        def backlog(self) -> int:
            """About how many more there are to take; 0 only if there is nothing now."""


class Lane(Value):
    """Messages of one source, for the first of some relays that takes them.

    ``concurrency`` is the most links at once, ``messages`` the most messages on one link.
    ``timeout_connect`` (lookup, connect, TLS) and ``timeout_remote`` (each step, each transaction)
    are seconds. ``pace`` is asked before each message, and returns the seconds to wait until it
    may begin; 0 is the leave for one message. ``probe`` allows one link only until a relay has
    greeted and let us in. ``was_throttled``: the last run ended because a relay said "too fast".
    """

    __slots__ = (
        "name",
        "endpoints",
        "source",
        "helo",
        "concurrency",
        "messages",
        "timeout_connect",
        "timeout_remote",
        "source_ip",
        "cleartext_auth",
        "pace",
        "probe",
        "was_throttled",
        "use_pipelining",
        "use_chunking",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        name: str,
        endpoints: tuple[Endpoint, ...],
        source: LaneSource,
        helo: str,
        *,
        concurrency: int = 20,
        messages: int = 500,
        timeout_connect: float = 60.0,
        timeout_remote: float = 1200.0,
        source_ip: str = "",
        cleartext_auth: bool = False,
        pace: Callable[[], float] | None = None,
        probe: bool = False,
        was_throttled: bool = False,
        use_pipelining: bool = True,
        use_chunking: bool = True,
    ) -> None:
        self.name: Final = name
        self.endpoints: Final = endpoints
        self.source: Final = source
        self.helo: Final = helo
        self.concurrency: Final = concurrency
        self.messages: Final = messages
        self.timeout_connect: Final = timeout_connect
        self.timeout_remote: Final = timeout_remote
        self.source_ip: Final = source_ip
        self.cleartext_auth: Final = cleartext_auth
        self.pace: Final = pace
        self.probe: Final = probe
        self.was_throttled: Final = was_throttled
        self.use_pipelining: Final = use_pipelining
        self.use_chunking: Final = use_chunking


class LaneSummary(Value):
    """How a lane ended.

    ``reached``: some relay let us in. ``fault``: the last fault of a relay, or None. ``gave_up``:
    the lane stopped because no relay was left. ``answered``: transactions
    that came to an end without a fault. ``pace``: a relay asked us to be slower. ``throttled`` is
    what it said when the lane ended because of that, else ``""``.
    """

    __slots__ = (
        "name",
        "reached",
        "gave_up",
        "fault",
        "relay",
        "answered",
        "links",
        "pace",
        "throttled",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        name: str,
        *,
        reached: bool,
        gave_up: bool,
        fault: RelayFault | None,
        relay: str,
        answered: int,
        links: int,
        pace: bool,
        throttled: str = "",
    ) -> None:
        self.name: Final = name
        self.reached: Final = reached
        self.gave_up: Final = gave_up
        self.fault: Final = fault
        self.relay: Final = relay
        self.answered: Final = answered
        self.links: Final = links
        self.pace: Final = pace
        self.throttled: Final = throttled


class RunSummary(Value):
    """How a run ended, lane by lane in the order given."""

    __slots__ = ("lanes",)

    def __init__(self, lanes: tuple[LaneSummary, ...] = ()) -> None:
        self.lanes: Final = lanes
