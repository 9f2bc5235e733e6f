"""The file of the breaker: which routes are down, and when to try them again.

That stands in a small JSON file in the spool, `relay-down`. An administrator can read it, or remove
it to have the next run try the relay at once. Its modification time repeats when to try again, so
that the runs before cost one stat (relay_down.py). With several routes that time is in the past
unless all of them are down, because mail for the others must go on.

Each change is that of one route, under the lock of the spool's directory: no run overwrites what
another has just noted of another route. What a failure means is decided in relay/breaker.py.
"""

from __future__ import annotations

import posix

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import BREAKER, TMP
from picoqmail.spool.json_reading import read_json
from picoqmail.spool.locks import LockedDirectory
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

# More than any date: what a file's time can hold.
_MOST_SECONDS = 2**40


class Outage(Value):
    """One route that is down. Times in Unix seconds: down since, to be tried again at `until`."""

    __slots__ = ("since", "until", "failures", "stage", "reason")

    def __init__(self, since: int, until: int, failures: int, stage: str, reason: str) -> None:
        self.since: Final = since
        self.until: Final = until
        self.failures: Final = failures
        self.stage: Final = stage
        self.reason: Final = reason


class DirectoryRoutes:
    """The routes of one spool that are down."""

    __slots__ = ("_names", "_path", "_spool")

    def __init__(self, spool: str, names: Sequence[str] = ()) -> None:
        """`names` are all routes that there are; who only reads needs none."""
        self._spool = spool
        self._names = names
        self._path = f"{spool}/{BREAKER}"

    def read(self) -> dict[str, Outage]:
        """Return the routes that are down, by name; none if the file makes no sense.

        Raises SpoolError if it cannot be read.
        """
        try:
            with open(self._path, "rb") as file:
                routes = read_json(file.read().decode())["routes"]
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
            raise SpoolError("read", self._path, exc) from exc
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            # Written by hand, or by another program. To try the relay again is always right.
            return {}

    def change(self, name: str, how: Callable[[Outage | None], Outage | None]) -> Outage | None:
        """Replace what is noted of a route by what `how` makes of it, and return that.

        None means that the route is not down. No other process changes it meanwhile. Raises
        SpoolError.
        """
        try:
            with LockedDirectory(self._spool):
                outages = self.read()
                before = outages.pop(name, None)
                after = how(before)
                if after is not None:
                    outages[name] = after
                if after != before:
                    self._write(outages)
                return after
        except SpoolError:
            raise
        except OSError as exc:
            raise SpoolError("write", self._path, exc) from exc

    def _write(self, outages: Mapping[str, Outage]) -> None:
        if not outages:
            durable.unlink_if_there(self._path)
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
        all_down = all(name in outages for name in self._names)
        try_again = min(one.until for one in outages.values()) if all_down else 0
        from picoqmail.importing import importing

        with importing:
            import json

        text = json.dumps({"routes": body}, indent=1, ensure_ascii=False) + "\n"
        # A name of its own for each process: a run that was killed here may have left one.
        scratch = f"{self._spool}/{TMP}/{BREAKER}.{posix.getpid()}"
        durable.replace(scratch, self._path, text.encode(), try_again)
