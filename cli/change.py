"""`picoqmail retry`, `hold`, `release`, `requeue`, `delete`, `purge`: verbs on many messages.

Exit codes: 0 all done; 66 there is no such message; 75 a message is being sent; 65 something could
not be done to a message; 64 a wrong command line.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from attrs import asdict

from picoqmail.admin import change, selection
from picoqmail.admin.opening import open_whole_home
from picoqmail.admin.words import printable
from picoqmail.cli.output import complain, print_json
from picoqmail.cli.progress import progress
from picoqmail.cli.spool import (
    CommandLineError,
    add_messages,
    filter_of,
    may_go_on,
    meant,
)
from picoqmail.errors import EX_DATAERR, EX_NOINPUT, EX_TEMPFAIL
from picoqmail.home.limits import read_limits
from picoqmail.layout import CUR, NEW, UNDELIVERED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from picoqmail.admin.change import Admin, VerbResult

# What a filter of each verb looks at, if it names no state itself.
_STATES = {
    "retry": (NEW, CUR),
    "hold": (NEW, CUR),
    "release": (CUR,),
    "requeue": (UNDELIVERED,),
    "delete": (),
    "purge": (UNDELIVERED,),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the messages, and the options of the verb."""
    verb = _verb(parser)
    add_messages(parser)
    parser.set_defaults(verb=verb)
    if verb == "retry":
        parser.add_argument(
            "--later", action="store_true", help="only make them due; cron sends them"
        )
    if verb == "requeue":
        parser.add_argument(
            "--all-recipients",
            action="store_true",
            help="also for recipients that have the message already; they get it twice",
        )


def _verb(parser: argparse.ArgumentParser) -> str:
    return parser.prog.rpartition(" ")[2]


def run(arguments: argparse.Namespace) -> int:
    """Apply one verb to the messages."""
    verb = arguments.verb
    if verb == "purge" and arguments.older_than is None:
        raise CommandLineError(
            "command line", "does not say how old", "give --older-than, such as 30d"
        )
    home = open_whole_home()
    tool = change.Admin.of(home, read_limits(home).queuelifetime)
    states = () if filter_of(arguments).kinds else _STATES[verb]
    ids, missing = meant(tool.spool, arguments, selection.Filter(kinds=states))
    if not may_go_on(arguments, verb, len(ids)):
        complain("nothing was done")
        return 0
    if arguments.dry_run:
        outcomes = [_intended(tool, one, verb) for one in ids]
    else:
        outcomes = _do_all(tool, ids, _action(tool, arguments), verb)
        if verb == "retry" and not arguments.later:
            outcomes = change.send_now(home, tool, outcomes)
    _print_results(arguments, outcomes, missing)
    return _status(outcomes, missing)


def _action(tool: Admin, arguments: argparse.Namespace) -> Callable[[str], VerbResult]:
    if arguments.verb == "requeue":
        return lambda one: tool.requeue(one, all_recipients=arguments.all_recipients)
    actions = {
        "retry": tool.retry,
        "hold": tool.hold,
        "release": tool.release,
        "delete": tool.delete,
        "purge": tool.delete,
    }
    return actions[arguments.verb]


def _do_all(
    tool: Admin, ids: list[str], action: Callable[[str], VerbResult], verb: str
) -> list[VerbResult]:
    outcomes = []
    try:
        for message_id in progress(ids, verb):
            outcomes.append(action(message_id))  # noqa: PERF401 - the results so far are kept if it is interrupted
    finally:
        tool.finish()
    return outcomes


def _intended(tool: Admin, message_id: str, verb: str) -> VerbResult:
    states = tool.spool.where(message_id)
    return change.VerbResult(message_id, "dry-run", f"would {verb}", states[0] if states else "")


def _print_results(
    arguments: argparse.Namespace, outcomes: list[VerbResult], missing: list[str]
) -> None:
    for text in missing:
        complain(printable(text))
    if arguments.json:
        print_json(
            {
                "verb": arguments.verb,
                "messages": [asdict(one) for one in outcomes],
                "missing": missing,
            }
        )
        return
    for one in outcomes:
        where = f" ({one.state})" if one.state else ""
        trouble = one.result in (change.REFUSED, change.BUSY)
        line = f"{one.id} {printable(one.detail)}{where}"
        print(line, file=sys.stderr if trouble else sys.stdout)
    if not outcomes and not missing:
        print("no message matches")


def _status(outcomes: list[VerbResult], missing: list[str]) -> int:
    results = {one.result for one in outcomes}
    if missing:
        return EX_NOINPUT
    if change.REFUSED in results:
        return EX_DATAERR
    if results & {change.BUSY, change.DEFERRED}:
        return EX_TEMPFAIL
    if outcomes and results == {change.GONE}:
        return EX_NOINPUT
    return 0
