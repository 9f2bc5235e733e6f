"""picoqmail-send: the first attempt, and attempts at messages that are named.

Without arguments: all of new/ that nobody is sending. With IDs or paths: these, due or not, also
past an open breaker. Exit codes (sysexits.h): 0 all delivered, 75 something was deferred, 69
something failed for good, 66 no such message, 78 configuration.
"""

from __future__ import annotations

import sys

from picoqmail.delivery.sender import send
from picoqmail.errors import EX_USAGE
from picoqmail.submission.start_sender import LOCK_OPTION

_USAGE = "usage: picoqmail-send [ID or PATH ...]"


def main(argv: list[str]) -> int:
    """Run the program; return the exit code."""
    has_lock = argv[:1] == [LOCK_OPTION]
    names = argv[1:] if has_lock else argv
    if any(word.startswith("-") for word in names):
        asked = names[0] in ("--help", "-h")
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else EX_USAGE
    return send(names, has_lock=has_lock)
