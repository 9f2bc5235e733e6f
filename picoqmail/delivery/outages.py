"""Which routes are down, as far as one run knows, and what it leaves to the runs after it.

The rule of this module: routes are names here, and no message is touched. How long to keep away
from a relay is relay/breaker.py's; what is noted of a route lies in the store.
"""

from __future__ import annotations

from picoqmail.errors import SpoolError
from picoqmail.relay import breaker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from picoqmail.ledger.routes import Outage
    from picoqmail.log.logger import Log
    from picoqmail.relay.lane_options import LaneSummary
    from picoqmail.store.protocol import Routes

TOO_FAST = "pace"
"""The stage of an outage that is none: the relay serves us, but wants us to pause."""

SESSION = "session"
"""The stage of an outage in which the relay refused our login, our host, or a lack of TLS."""


class Outages:
    """The outages of one run. `closed` are the routes that it must not use."""

    def __init__(
        self, routes: Routes, log: Log, clock: Callable[[], float], *, forced: bool
    ) -> None:
        """A `forced` run heeds no outage and announces no probe.

        Raises SpoolError where what is noted of the routes cannot be read.
        """
        self._routes = routes
        self._log = log
        self._clock = clock
        self._forced = forced
        self._probed: set[str] = set()
        self._known = routes.read()
        self.closed: set[str] = set()
        if not forced:
            now = clock()
            self.closed = {name for name, one in self._known.items() if breaker.is_open(one, now)}

    def probe(self, names: Iterable[str]) -> dict[str, Outage]:
        """Return those of these routes that were down, and announce that they are tried now.

        Other runs then keep away from them for a moment. A route that another run tries already is
        closed for this one.
        """
        probed = {name: self._known[name] for name in names if name in self._known}
        for name in probed.keys() - self._probed:
            if self._forced or self._announce(name):
                self._probed.add(name)
            else:
                del probed[name]
                self.closed.add(name)
        return probed

    def _announce(self, name: str) -> bool:
        """Note that this run tries a route now; False if another run does."""
        now = self._clock()
        mine = True

        def how(outage: Outage | None) -> Outage | None:
            nonlocal mine
            mine = outage is None or not breaker.is_open(outage, now)
            return breaker.probing(outage, now=int(now)) if outage and mine else outage

        try:
            noted = self._routes.change(name, how)
        except SpoolError as exc:
            self._complain(exc)
            return True
        if noted is not None:
            self._known[name] = noted
        return mine

    def note(self, summaries: Iterable[LaneSummary]) -> dict[str, str]:
        """Log and remember which routes are down, and which are up again.

        Returns the reasons of those that are down.
        """
        down = {}
        for summary in summaries:
            is_down, stage, reason = _why_down(summary)
            if is_down:
                self.closed.add(summary.name)
                if reason:
                    down[summary.name] = reason
                    self._note_down(summary, stage, reason)
            elif summary.reached:
                self._note_up(summary.name)
        return down

    def _note_down(self, summary: LaneSummary, stage: str, reason: str) -> None:
        name = summary.name
        now = int(self._clock())
        known: Outage | None = None

        def how(outage: Outage | None) -> Outage | None:
            nonlocal known
            known = outage
            # What another process has noted since this run began is the same failure.
            if outage is not None and name not in self._probed:
                return outage
            return breaker.failed(outage, now=now, stage=stage, reason=reason)

        try:
            outage = self._routes.change(name, how)
        except SpoolError as exc:
            self._complain(exc)
            outage = breaker.failed(known, now=now, stage=stage, reason=reason)
        if outage is not None:
            self._known[name] = outage
            if outage is not known:
                is_new = known is None or known.stage != stage
                self._log_down(name, outage, _level(summary, is_new=is_new))

    def _note_up(self, name: str) -> None:
        known: Outage | None = self._known.pop(name, None)

        def how(outage: Outage | None) -> None:
            nonlocal known
            known = outage

        try:
            # Nothing is locked for a route that nobody has noted.
            if known is not None or name in self._routes.read():
                self._routes.change(name, how)
        except SpoolError as exc:
            self._complain(exc)
        if known is not None:
            now = int(self._clock())
            self._log.event("relay_up", relay=name, down_seconds=now - known.since)

    def knows(self, name: str) -> bool:
        """Say whether a route is down, or was until now."""
        return name in self._known

    def tried_seconds(self, name: str) -> int:
        """Return how long a route has been tried in vain, by the number of its failures.

        Its times say more where the clock jumped. At most five minutes lie between two failures.
        """
        outage = self._known.get(name)
        return outage.failures * breaker.LONGEST_DELAY_SECONDS if outage else 0

    def _log_down(self, name: str, outage: Outage, level: str) -> None:
        self._log.event(
            "relay_down",
            level=level,
            relay=name,
            stage=outage.stage,
            reason=outage.reason,
            failures=outage.failures,
            look_again=outage.until,
        )

    def _complain(self, exc: SpoolError) -> None:
        # At worst the next run tries the relay again.
        self._log.event("error", level="error", error=str(exc))


def _level(summary: LaneSummary, *, is_new: bool) -> str:
    """Return how loud an outage is: where an administrator has to act, that is said once."""
    fault = summary.fault
    if fault is None or not (fault.is_session or fault.stage == "auth"):
        return "warning"
    return "error" if is_new else "info"


def _why_down(summary: LaneSummary) -> tuple[bool, str, str]:
    """Return whether a route is down; if known, also the stage and the reason."""
    if summary.throttled:
        return True, TOO_FAST, summary.throttled
    fault = summary.fault
    is_down = summary.gave_up or (fault is not None and not summary.reached)
    if fault is None:
        return is_down, "", ""
    return is_down, SESSION if fault.is_session else fault.stage, fault.text
