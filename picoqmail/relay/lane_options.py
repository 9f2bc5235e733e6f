"""What a lane is given, and what it says at its end. Values only."""

from __future__ import annotations

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from picoqmail.relay.lookup import Endpoint
    from picoqmail.smtp.lessons import Lessons
    from picoqmail.smtp.transaction import RelayFault, Transaction, Verdict

    class Source(Protocol):
        """Where a lane's messages come from, and where the verdicts on them go.

        What its methods raise ends the engine's work.
        """

        def take(self) -> Transaction | None:
            """Return the next message, or None if there is nothing for this lane now."""

        def done(self, transaction: Transaction, verdict: Verdict) -> None:
            """Record how a message ended. Called at once, before anything more is sent."""

        def backlog(self) -> int:
            """Return about how many more there are to take; 0 only if there is nothing now."""


class LaneOptions(Value):
    """The messages of one source, for the first of some relays that takes them.

    ``concurrency`` is the most connections at once, ``messages`` the most messages on one
    connection. ``timeout_connect`` (lookup, connect, TLS) and ``timeout_remote`` (each step, each
    transaction) are seconds. ``rate_limit`` is called before each message. It returns 0 to allow
    that one message, or the seconds until it should be asked again. With ``probe`` the lane opens
    one connection only until a relay has let us in. ``was_throttled``: in the last run a relay said
    that we were too fast, and that ended the lane. ``mechanisms`` are the logins that may be used,
    in upper case, all where there is none. ``lessons`` are what is known of relays, by name; the
    lane adds to them.
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
        "rate_limit",
        "probe",
        "was_throttled",
        "use_pipelining",
        "use_chunking",
        "mechanisms",
        "lessons",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        name: str,
        endpoints: tuple[Endpoint, ...],
        source: Source,
        helo: str,
        *,
        concurrency: int = 20,
        messages: int = 500,
        timeout_connect: float = 60.0,
        timeout_remote: float = 1200.0,
        source_ip: str = "",
        cleartext_auth: bool = False,
        rate_limit: Callable[[], float] | None = None,
        probe: bool = False,
        was_throttled: bool = False,
        use_pipelining: bool = True,
        use_chunking: bool = True,
        mechanisms: tuple[str, ...] = (),
        lessons: dict[str, Lessons] | None = None,
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
        self.rate_limit: Final = rate_limit
        self.probe: Final = probe
        self.was_throttled: Final = was_throttled
        self.use_pipelining: Final = use_pipelining
        self.use_chunking: Final = use_chunking
        self.mechanisms: Final = mechanisms
        self.lessons: Final = {} if lessons is None else lessons


class LaneSummary(Value):
    """How a lane ended.

    ``reached``: some relay let us in. ``gave_up``: the lane ended because no relay was left.
    ``fault``: the last fault of a relay, or None. ``connections``: how many were opened.
    ``too_fast``: a relay asked us to slow down. ``throttled`` is what it said when the lane ended
    because of that, else ``""``.
    """

    __slots__ = ("name", "reached", "gave_up", "fault", "connections", "too_fast", "throttled")

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        name: str,
        *,
        reached: bool,
        gave_up: bool,
        fault: RelayFault | None,
        connections: int,
        too_fast: bool,
        throttled: str = "",
    ) -> None:
        self.name: Final = name
        self.reached: Final = reached
        self.gave_up: Final = gave_up
        self.fault: Final = fault
        self.connections: Final = connections
        self.too_fast: Final = too_fast
        self.throttled: Final = throttled
