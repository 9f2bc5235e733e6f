"""Totals of results since the spool was made, for `status` and for monitoring.

One small JSON file in the spool, `counters`. It is for people and graphs, so it is not fsynced. If
it cannot be understood it begins again at zero, which monitoring takes for a restart.
"""

from __future__ import annotations

from picoqmail.spool.json_reading import read_json
from picoqmail.spool.locks import LockedFile
from picoqmail.spool.sidecar import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTERS = "counters"
LAST_DELIVERY = "last_delivery"
NAMES = ("delivered", "deferred", "failed", "damaged", "bounced")
_LONGEST_OCTETS = 4096


class DirectoryTotals:
    """The totals of one spool."""

    __slots__ = ("_path",)

    def __init__(self, spool: str) -> None:
        """Nothing is opened."""
        self._path = f"{spool}/{COUNTERS}"

    def read(self) -> dict[str, int]:
        """Return all counters, and `last_delivery` in Unix seconds, 0 if there was none."""
        try:
            with open(self._path, "rb") as file:
                return _parse(file.read(_LONGEST_OCTETS))
        except OSError:
            # Not there, or not ours to read: nothing is known.
            return _parse(b"")

    def add(self, counts: Mapping[str, int], now: int) -> None:
        """Add to the counters; `now` becomes the last delivery if anything was delivered.

        Raises OSError. The caller logs it and goes on.
        """
        if not any(counts.values()):
            return
        with LockedFile(self._path) as file:
            totals = _parse(file.read())
            for name, count in counts.items():
                totals[name] += count
            if counts.get("delivered"):
                totals[LAST_DELIVERY] = now
            file.rewrite(to_json(totals).encode() + b"\n")


def _parse(data: bytes) -> dict[str, int]:
    totals = dict.fromkeys((*NAMES, LAST_DELIVERY), 0)
    try:
        found = read_json(data.decode())
        return {name: max(int(found.get(name, 0)), 0) for name in totals}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return totals
