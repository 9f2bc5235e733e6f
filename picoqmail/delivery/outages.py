"""Which routes are down, as far as one run knows, and what it leaves to the runs after it.

The rule of this module: routes are names here, and no message is touched. The file between runs,
and how long to keep away from a relay, are relay/breaker.py's.
"""

from __future__ import annotations

from picoqmail.errors import SpoolError
from picoqmail.relay import breaker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from picoqmail.log.logger import Log
    from picoqmail.relay.breaker import Outage
    from picoqmail.relay.lane_options import LaneSummary

TOO_FAST = "pace"
"""The stage of an outage that is none: the relay serves us, but wants us to pause."""

SESSION = "session"
"""The stage of an outage in which the relay refused our login, our host, or a lack of TLS."""


class Outages:
    """The outages of one run. `closed` are the routes that it must not use."""

    def __init__(
        self,
        spool: str,
        routes: Sequence[str],
        log: Log,
        clock: Callable[[], float],
        *,
        forced: bool,
    ) -> None:
        """`routes` are all that there are. A `forced` run heeds no outage and announces no probe.

        Raises SpoolError where the breaker's file cannot be read.
        """
        self._spool = spool
        self._routes = routes
        self._log = log
        self._clock = clock
        self._forced = forced
        self._probed: set[str] = set()
        self._known = breaker.read(spool)
        self.closed: set[str] = set()
        if not forced:
            now = clock()
            self.closed = {name for name, one in self._known.items() if breaker.is_open(one, now)}

    def probe(self, routes: Iterable[str]) -> dict[str, Outage]:
        """Return those of these routes that were down, and announce that they are tried now.

        Other runs then keep away from them for a moment.
        """
        probed = {name: self._known[name] for name in routes if name in self._known}
        self._probed |= probed.keys()
        if probed and not self._forced:
            now = int(self._clock())
            for name, outage in probed.items():
                self._known[name] = breaker.probing(outage, now=now)
            self._write(self._known)
        return probed

    def note(self, summaries: Iterable[LaneSummary]) -> dict[str, str]:
        """Log and remember which routes are down, and which are up again.

        Returns the reasons of those that are down. Raises SpoolError where the breaker's file
        cannot be read.
        """
        outages = breaker.read(self._spool)
        before = dict(outages)
        down = {}
        now = int(self._clock())
        for summary in summaries:
            name = summary.name
            known = outages.get(name)
            is_down, stage, reason = _why_down(summary)
            if is_down:
                self.closed.add(name)
            if known is not None and summary.reached and not is_down:
                del outages[name]
                self._log.event("relay_up", relay=name, down_seconds=now - known.since)
            elif is_down and reason:
                down[name] = reason
                # What another process has noted since this run began is the same failure.
                if known is None or name in self._probed:
                    outages[name] = breaker.failed(known, now=now, stage=stage, reason=reason)
                    is_new = known is None or known.stage != stage
                    self._log_down(name, outages[name], _level(summary, is_new=is_new))
        if outages != before:
            self._write(outages)
        self._known = outages
        return down

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

    def _write(self, outages: dict[str, Outage]) -> None:
        try:
            breaker.write(self._spool, outages, self._routes)
        except SpoolError as exc:
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
