"""One cron run at a time, without a lock that outlives its run. Hot; builtins only.

The kernel frees the lock of a dead run. A live one keeps others out for the setting runlifetime
(30 minutes); after that the next run takes the next slot, `cron.lock.1` and so on, and leaves the
old one alone: the locks of the messages keep the two apart.
"""

from __future__ import annotations

import posix
import time

from picoqmail.layout import CRON_LOCK
from picoqmail.spool.locks import take_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS = 16
_STAMP_OCTETS = 32
# Between taking the lock and stamping it a run needs microseconds; the stamp that another sees
# meanwhile may be that of a dead one.
_STAMPING_SECONDS = 0.1


def acquire(spool: str, now: float, lifetime_seconds: Callable[[], int]) -> int:
    """Take the first slot whose run is not alive and young: its descriptor, -1 if one is.

    `lifetime_seconds` is only asked if somebody else has a slot. Raises OSError.
    """
    for slot in range(SLOTS):
        path = f"{spool}/{CRON_LOCK}" + (f".{slot}" if slot else "")
        lock = take_lock(path)
        if lock >= 0:
            posix.ftruncate(lock, 0)
            posix.pwrite(lock, b"%d\n" % int(now), 0)
            return lock
        if not is_overdue(path, now, lifetime_seconds()):
            return -1
        time.sleep(_STAMPING_SECONDS)
        if not is_overdue(path, now, lifetime_seconds()):
            return -1
    return -1


def is_overdue(path: str, now: float, lifetime_seconds: int) -> bool:
    """Say whether the run that stamped this lock began too long ago, or in the future."""
    started = stamp(path)
    return started is not None and not 0 <= now - started <= lifetime_seconds + 1


def stamp(path: str) -> int | None:
    """When the run that has or last had this lock began, Unix seconds; None if it ended well."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        text = posix.read(descriptor, _STAMP_OCTETS)
    finally:
        posix.close(descriptor)
    return int(text) if text.strip().isdigit() else None


def release(lock: int) -> None:
    """End the run: the stamp goes, then the lock."""
    posix.ftruncate(lock, 0)
    posix.close(lock)
