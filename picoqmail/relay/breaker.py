"""The breaker: after a relay has failed, the spool remembers when to try it again.

That stands in a small JSON file in the spool, `relay-down`. An administrator can read it, or remove
it to have the next run try the relay at once. Its modification time repeats when to try again, so
that the runs before cost one stat (spool/relay_down.py). With several routes that time is in the
past unless all of them are down, because mail for the others must go on.
"""

from __future__ import annotations

import json
import os

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import BREAKER, TMP
from picoqmail.spool.relay_down import BREAKER_LIMIT_SECONDS
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

FIRST_DELAY_SECONDS = 3
LONGEST_DELAY_SECONDS = 300
# More than any date: what a file's time can hold.
_MOST_SECONDS = 2**40
assert LONGEST_DELAY_SECONDS < BREAKER_LIMIT_SECONDS  # noqa: S101 - else the delay is no delay


class Outage(Value):
    """One route that is down. Times in Unix seconds: down since, to be tried again at `until`."""

    __slots__ = ("since", "until", "failures", "stage", "reason")

    def __init__(self, since: int, until: int, failures: int, stage: str, reason: str) -> None:
        self.since: Final = since
        self.until: Final = until
        self.failures: Final = failures
        self.stage: Final = stage
        self.reason: Final = reason


def read(spool: str) -> dict[str, Outage]:
    """Return the routes that are down, by name; none if the file makes no sense.

    Raises SpoolError if it cannot be read.
    """
    try:
        with open(f"{spool}/{BREAKER}", "rb") as file:
            routes = json.loads(file.read())["routes"]
        return {
            str(name): Outage(
                int(one["since"]),
                int(one["until"]),
                int(one["failures"]),
                str(one["stage"]),
                str(one["reason"]),
            )
            for name, one in routes.items()
            if 0 <= one["until"] <= _MOST_SECONDS
        }
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise SpoolError("read", f"{spool}/{BREAKER}", exc) from exc
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        # Written by hand, or by another program. To try the relay again is always right.
        return {}


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


def write(spool: str, outages: Mapping[str, Outage], routes: Iterable[str]) -> None:
    """Replace the file, or remove it if nothing is down. Raises SpoolError.

    `routes` are the names of all routes that there are.
    """
    path = f"{spool}/{BREAKER}"
    try:
        if not outages:
            durable.unlink_if_there(path)
            return
        body: dict[str, Any] = {
            name: {
                "since": one.since,
                "until": one.until,
                "failures": one.failures,
                "stage": one.stage,
                "reason": one.reason,
            }
            for name, one in outages.items()
        }
        all_down = all(name in outages for name in routes)
        try_again = min(one.until for one in outages.values()) if all_down else 0
        text = json.dumps({"routes": body}, indent=1, ensure_ascii=False) + "\n"
        # A name of its own for each process: several may find the relay down at the same moment.
        scratch = f"{spool}/{TMP}/{BREAKER}.{os.getpid()}"
        durable.replace(scratch, path, text.encode(), try_again)
    except OSError as exc:
        raise SpoolError("write", path, exc) from exc
