"""The home of an administrator's command, with all mail of users in its spool."""

from __future__ import annotations

import sys

from picoqmail.errors import PicoqmailError
from picoqmail.home.limits import read_limits
from picoqmail.home.opening import open_home
from picoqmail.spool import drop
from picoqmail.store.directory import DirectoryStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home

_MOST_OF_A_USER = 10_000


def open_whole_home() -> Home:
    """Open the home, and take what waits in the drop, so that a command sees all mail.

    Without that, mail would be in no list until a sender or cron has run. What prevents it is
    reported on standard error, and the command goes on. Raises what `open_home` raises.
    """
    home = open_home()
    try:
        if drop.is_waiting(home.spool):
            DirectoryStore(home.spool).collect(read_limits(home), _MOST_OF_A_USER, _report)
    except (PicoqmailError, OSError) as exc:
        _report(str(exc))
    return home


def _report(text: str) -> None:
    sys.stderr.write(f"picoqmail: mail that users handed in is not all here: {text}\n")
