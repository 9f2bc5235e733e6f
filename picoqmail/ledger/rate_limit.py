"""The setting `ratelimit`: so many messages in so many seconds, over all runs and processes.

The count is kept in a small JSON file in the spool, `rate`: how many messages were begun in each
sixtieth of the period. An administrator may read or remove it. It is not made durable: power loss
makes it forget a few messages that were sent, but loses no mail.
"""

from __future__ import annotations

import time

from picoqmail.errors import SpoolError
from picoqmail.spool.json_reading import read_json
from picoqmail.spool.locks import LockedFile
from picoqmail.spool.sidecar import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.home.values import RateLimit

RATE = "rate"
"""The name of the file in the spool."""

SLICES = 60
"""So many slices make a period; the count forgets the past one slice at a time."""


class RateLimiter:
    """Allows one message after another; to be called as `LaneOptions.rate_limit`.

    No more than `limit.messages` are begun in any `limit.seconds`. A slice counts until all of it
    has left the period, so the true rate stays a little below the limit. Bursts are allowed.
    """

    def __init__(
        self,
        path: str,
        limit: RateLimit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`path` is the file; it is made when first needed. `clock` returns Unix seconds."""
        self._path = path
        self._limit = limit
        self._clock = clock

    def __call__(self) -> float:
        """Count one message and return 0.0, or return the seconds to wait before asking again.

        Raises SpoolError if the file cannot be opened, read or written.
        """
        try:
            with LockedFile(self._path) as file:
                return self._count_one(file)
        except OSError as exc:
            raise SpoolError("count messages", self._path, exc) from exc

    def _count_one(self, file: LockedFile) -> float:
        width = self._limit.seconds / SLICES
        now = self._clock()
        this = int(now // width)
        # Slices of the future were counted before the clock was set back. They would wait for ever.
        counts = {
            number: count
            for number, count in self._parse(file.read()).items()
            if this - SLICES <= number <= this
        }
        if sum(counts.values()) >= self._limit.messages:
            return max((min(counts) + SLICES + 1) * width - now, 0.001)
        counts[this] = counts.get(this, 0) + 1
        kept = {"seconds": self._limit.seconds, "slices": sorted(counts.items())}
        file.rewrite(to_json(kept).encode() + b"\n")
        return 0.0

    def _parse(self, data: bytes) -> dict[int, int]:
        try:
            kept = read_json(data.decode())
            if kept["seconds"] != self._limit.seconds:
                return {}  # the setting was changed: these are slices of another width
            return {int(number): int(count) for number, count in kept["slices"]}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            # Empty, foreign, or half written when the power was lost: start to count anew.
            return {}
