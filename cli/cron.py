"""picoqmail-cron: retry what is due; one at a time; take over from a run that hangs.

Silent and 0 when there is nothing to do, also while another run is alive, and whatever became of
the messages: that is in the log. Exit code 78 where a setting is wrong (sysexits.h).
"""

from __future__ import annotations

import posix
import sys
import time

from picoqmail.cli.sending import complain, complain_of_system
from picoqmail.delivery.sender import Sender
from picoqmail.errors import EX_USAGE, QUEUE_SPOOL, PicoqmailError, SpoolError
from picoqmail.home.control import Control, own_host_name
from picoqmail.home.paths import become_owner, locate
from picoqmail.spool import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home


def main(argv: list[str]) -> int:
    """Run the program; returns the exit code."""
    if argv:
        asked = argv[0] in ("--help", "-h")
        usage = "usage: picoqmail-cron (no arguments; run it every minute)"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else EX_USAGE
    try:
        posix.umask(0o077)
        home = locate()
        become_owner(home)
        own_host_name(Control(home.control))
        lock = _take_turn(home)
        if lock < 0:
            return 0
        sender = Sender(home, "picoqmail-cron")
        sender.retry()
        locks.release_cron_lock(lock)
    except PicoqmailError as exc:
        return complain("picoqmail-cron", exc)
    except OSError as exc:
        return complain_of_system("picoqmail-cron", exc)
    return 0


def _take_turn(home: Home) -> int:
    def lifetime_seconds() -> int:
        from picoqmail.home.settings import load

        return load(home).runlifetime

    try:
        return locks.take_cron_lock(home.spool, time.time(), lifetime_seconds)
    except OSError as exc:
        raise SpoolError("lock the cron run in", home.spool, exc, QUEUE_SPOOL) from exc
