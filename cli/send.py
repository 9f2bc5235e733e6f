"""picoqmail-send: the first attempt, and attempts at messages that are named.

Without arguments: all of new/ that nobody is sending. With IDs or paths: these, due or not, also
past an open breaker. Exit codes (sysexits.h): 0 all delivered, 75 something was deferred, 69
something failed for good, 66 no such message, 78 configuration.
"""

from __future__ import annotations

import posix
import sys

from picoqmail.cli.sending import complain, complain_of_system
from picoqmail.delivery.sender import Sender
from picoqmail.errors import (
    EX_IOERR,
    EX_NOINPUT,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EX_USAGE,
    PicoqmailError,
)
from picoqmail.home.control import Control, own_host_name
from picoqmail.home.paths import become_owner, locate
from picoqmail.submission.start_sender import LOCK_DESCRIPTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.delivery.deliver import Summary

_LOCK_OPTION = "--lock="
_USAGE = "usage: picoqmail-send [ID or PATH ...]"


def main(argv: list[str]) -> int:
    """Run the program; returns the exit code."""
    inherited = _take_inherited(argv)
    try:
        posix.umask(0o077)
        names = [word for word in argv if not word.startswith(_LOCK_OPTION)]
        if any(word.startswith("-") for word in names):
            asked = names[0] in ("--help", "-h")
            print(_USAGE, file=sys.stdout if asked else sys.stderr)
            return 0 if asked else EX_USAGE
        home = locate()
        become_owner(home)
        own_host_name(Control(home.control))
        sender = Sender(home, "picoqmail-send")
        if names:
            return _send_named(sender, names)
        left = sender.send_new(inherited)
        return _status(sender.run.summary) if sender.has_run else EX_TEMPFAIL if left else 0
    except PicoqmailError as exc:
        return complain("picoqmail-send", exc)
    except OSError as exc:
        return complain_of_system("picoqmail-send", exc)


def _take_inherited(argv: list[str]) -> int:
    """Keep the lock that launch.py handed over, if it did, and close everything else above 2."""
    lock = -1
    if argv and argv[0] == f"{_LOCK_OPTION}{LOCK_DESCRIPTOR}":
        lock = LOCK_DESCRIPTOR
        posix.set_inheritable(lock, False)  # noqa: FBT003 - it takes no keywords
        posix.chdir("/")
    if lock >= 0:
        posix.closerange(lock + 1, posix.sysconf("SC_OPEN_MAX"))
    return lock


def _send_named(sender: Sender, names: list[str]) -> int:
    found, refused = sender.run.find(names)
    for _, why in refused:
        print(f"picoqmail-send: {why}", file=sys.stderr)
    for busy in sorted(sender.run.deliver(found, forced=True)):
        print(f"picoqmail-send: {busy}: another process is sending it", file=sys.stderr)
        sender.run.summary.left += 1
    return EX_NOINPUT if refused else _status(sender.run.summary)


def _status(summary: Summary) -> int:
    if summary.failed or summary.damaged:
        return EX_UNAVAILABLE
    if summary.errors:
        return EX_IOERR
    return EX_TEMPFAIL if summary.deferred or summary.left else 0
