"""picoqmail-sendmail: parse the flags and do the one thing that they ask for.

Exit codes are those of inject: 0, 100 and 111.
"""

from __future__ import annotations

import posix
import sys

from picoqmail.message.completion import UnparsableError
from picoqmail.submission.caller import ACCEPTED, PERMANENT, TEMPORARY, octets, read_stdin, say
from picoqmail.submission.flags import UsageError
from picoqmail.submission.handover import named_program
from picoqmail.submission.inject import run
from picoqmail.submission.sendmail import (
    ALIASES,
    DELIVER,
    LIST,
    RUN_QUEUE,
    SUBMISSION,
    stop_at_dot,
    understand,
)


def main(arguments: list[str]) -> int:
    """Run the program; `arguments` are those after its name."""
    # Ours: under a caller's 0777 nobody could read what was accepted.
    posix.umask(0o077)
    name, *words = octets([sys.argv[0].rpartition("/")[2], *arguments])
    environ = dict(posix.environ)
    try:
        found = understand(name, words, qmail_words=bool(named_program(environ)))
        if found.mode == DELIVER:
            found.adjust(environ)
    except (UsageError, UnparsableError) as exc:
        say(f"sendmail: {exc}")
        return PERMANENT
    if found.mode == ALIASES:
        # There are no aliases to build; package scripts run this and must not fail.
        return ACCEPTED
    if found.mode == LIST:
        return _list()
    if found.mode == RUN_QUEUE:
        return _run_queue()
    if found.mode == SUBMISSION:
        from picoqmail.submission.smtp_server import serve_stdin

        return serve_stdin(environ)
    reader = read_stdin if found.ignore_dots else stop_at_dot(read_stdin)
    return run(found.request, environ, reader)


def _list() -> int:
    """Print the messages that wait, in the form that monitoring reads."""
    from picoqmail.admin import listing
    from picoqmail.cli.output import report_errors

    def print_all() -> int:
        for line in listing.mailq():
            print(line)
        return ACCEPTED

    return TEMPORARY if report_errors("sendmail", print_all) else ACCEPTED


def _run_queue() -> int:
    """Send what waits and what is due; mail that is deferred again does not make -q fail."""
    from picoqmail.delivery.sender import run_queue

    return TEMPORARY if run_queue() else ACCEPTED
