"""The breaker: after a relay has failed, how long to keep away from it.

The rule of this module: it decides, and touches no file. What is noted of a route lies in the spool
(ledger/routes.py).
"""

from __future__ import annotations

from picoqmail.ledger.relay_down import BREAKER_LIMIT_SECONDS
from picoqmail.ledger.routes import Outage

FIRST_DELAY_SECONDS = 3
LONGEST_DELAY_SECONDS = 300
assert LONGEST_DELAY_SECONDS < BREAKER_LIMIT_SECONDS  # noqa: S101 - else the delay is no delay


def is_open(outage: Outage | None, now: float) -> bool:
    """Say whether a route is not to be tried yet.

    A time too far off shows that the clock jumped; then it is tried.
    """
    return outage is not None and now < outage.until <= now + BREAKER_LIMIT_SECONDS


def failed(before: Outage | None, *, now: int, stage: str, reason: str) -> Outage:
    """Return the outage after one more failure; the delay doubles up to five minutes."""
    failures = before.failures + 1 if before else 1
    delay = min(FIRST_DELAY_SECONDS << min(failures - 1, 16), LONGEST_DELAY_SECONDS)
    since = before.since if before else now
    return Outage(since, now + delay, failures, stage, reason)


def probing(outage: Outage, *, now: int) -> Outage:
    """Return the outage while one run tries the route: others keep away for the shortest delay."""
    until = now + FIRST_DELAY_SECONDS
    return Outage(outage.since, until, outage.failures, outage.stage, outage.reason)
