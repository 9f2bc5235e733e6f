"""picoqmail-cron: retry what is due; one at a time; take over from a run that hangs.

Silent and 0 when there is nothing to do, also while another run is alive, and whatever became of
the messages: that is in the log. Exit code 78 where a setting is wrong (sysexits.h). What is wrong
is printed once, not in every run: cron would mail it each minute.
"""

from __future__ import annotations

import sys

from picoqmail.delivery.sender import retry
from picoqmail.errors import EX_USAGE


def main(argv: list[str]) -> int:
    """Run the program; return the exit code."""
    if argv:
        asked = argv[0] in ("--help", "-h")
        usage = "usage: picoqmail-cron (no arguments; run it every minute)"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else EX_USAGE
    return retry()
