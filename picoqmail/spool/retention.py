"""How long failures are kept: cron applies the setting keepundelivered once an hour.

Every run asks whether it is time. That costs one search for the setting, and one stat if it is
set. An idle run imports this module; builtins only.
"""

from __future__ import annotations

import posix

from picoqmail.home.control import Control
from picoqmail.layout import PRIVATE_FILE_MODE, PURGED, SIDECAR, UNDELIVERED, accepted_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home

SETTING = "keepundelivered"
PAUSE_SECONDS = 3600


def is_purge_due(home: Home, now: float, control: Control | None = None) -> bool:
    """Say whether it is time to search for old failures. Raises ConfigurationError.

    `control` as for read_limits.
    """
    if (control or Control(home.control)).read(SETTING) is None:
        return False
    try:
        last = posix.stat(f"{home.spool}/{PURGED}").st_mtime
    except FileNotFoundError:
        return True
    return not last <= now < last + PAUSE_SECONDS


def note_purge(spool: str, now: float) -> None:
    """Note that old failures were searched for. Raises OSError."""
    stamp = f"{spool}/{PURGED}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC
    posix.close(posix.open(stamp, flags, PRIVATE_FILE_MODE))
    posix.utime(stamp, (now, now))


def older(spool: str, oldest: float) -> list[str]:
    """Return IDs of what came into undelivered/ before that time. Raises OSError.

    A message that failed after a week in the queue has not lain there for a week: what counts is
    the last change of its sidecar's inode, which moving it there was.
    """
    found = []
    with posix.scandir(f"{spool}/{UNDELIVERED}") as entries:
        for entry in entries:
            stem = entry.name.removesuffix(SIDECAR)
            if stem == entry.name or accepted_at(stem) >= oldest:
                continue
            try:
                if entry.stat(follow_symlinks=False).st_ctime < oldest:
                    found.append(stem)
            except FileNotFoundError:
                continue
    return found
