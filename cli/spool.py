"""What the commands on messages share: filters, IDs, and the question before many are changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.admin import selection
from picoqmail.cli.output import is_terminal
from picoqmail.errors import EX_USAGE, ConfigurationError, NoSuchMessageError
from picoqmail.home.values import duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from picoqmail.store.protocol import Store

MANY = 10
"""If a filter chooses more messages than this, they are changed only after a confirmation."""


class CommandLineError(ConfigurationError):
    """The command line asks for something that cannot be done."""

    sysexit = EX_USAGE


def age(text: str) -> int:
    """Return the seconds of a duration such as 90, 30m, 12h or 7d.

    Raises ValueError, which argparse reports.
    """
    return duration(text)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Declare the filters."""
    group = parser.add_argument_group("filters", "a message must meet all that are given")
    group.add_argument(
        "--state",
        action="append",
        default=[],
        choices=selection.KINDS,
        help="new: accepted, not tried; cur: tried, to be tried again; undelivered: failed for "
        "good; held; in_doubt: may have arrived, and not sent again by itself; damaged; may be "
        "given several times",
    )
    pattern = "an address, @domain, or a pattern with * and ?"
    group.add_argument(
        "--sender", metavar="WHO", default="", help=f"{pattern}; <> is the null sender"
    )
    group.add_argument("--recipient", metavar="WHO", default="", help=pattern)
    group.add_argument("--error", metavar="TEXT", default="", help="a part of what the relay said")
    group.add_argument(
        "--older-than",
        metavar="AGE",
        type=age,
        help="accepted at least this long ago: 90, 30m, 12h, 7d",
    )
    group.add_argument(
        "--younger-than", metavar="AGE", type=age, help="accepted at most this long ago"
    )


def filter_of(arguments: argparse.Namespace) -> selection.Filter:
    """Return the conditions of a command line."""
    return selection.Filter(
        kinds=tuple(arguments.state),
        sender=arguments.sender,
        recipient=arguments.recipient,
        error=arguments.error,
        older_than=arguments.older_than,
        younger_than=arguments.younger_than,
    )


def add_messages(parser: argparse.ArgumentParser) -> None:
    """Declare IDs, filters, and the options for caution."""
    parser.add_argument("id", nargs="*", metavar="ID", help="an ID, or a path of the spool")
    add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every message, without a filter")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    parser.add_argument(
        "--yes", action="store_true", help=f"do not ask, even for more than {MANY} messages"
    )


def meant(
    spool: Store, arguments: argparse.Namespace, always: selection.Filter
) -> tuple[list[str], list[str]]:
    """Return the IDs that a command line means, and an error for each that is none.

    `always` are conditions of the command itself; they count for filters, not for IDs. Raises
    CommandLineError if neither IDs nor filters were given, SpoolError.
    """
    wanted = filter_of(arguments)
    if arguments.id:
        if not wanted.is_empty or arguments.all:
            raise CommandLineError("command line", "names IDs and filters", "give one or the other")
        return _named(spool, arguments.id)
    if wanted.is_empty and not arguments.all:
        raise CommandLineError("command line", "names no message", "give IDs, filters, or --all")
    found = selection.select_ids(spool, wanted)
    if always.kinds:
        states = selection.candidates(spool, always)
        found = [one for one in found if one in states]
    return found, []


def _named(spool: Store, names: Iterable[str]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for name in names:
        try:
            found.append(spool.find(name))
        except NoSuchMessageError as exc:
            missing.append(str(exc))
    return list(dict.fromkeys(found)), missing


def may_go_on(arguments: argparse.Namespace, verb: str, count: int) -> bool:
    """Ask before changing many messages that a filter chose; return the answer.

    If nobody can be asked, `delete` needs --yes (else CommandLineError), and other verbs go on.
    """
    if arguments.yes or arguments.dry_run or arguments.id or count <= MANY:
        return True
    if is_terminal() and not arguments.json:
        return input(f"{verb} {count} messages? [y/N] ").strip().lower() in ("y", "yes")
    if verb == "delete":
        raise CommandLineError(
            "command line",
            f"would delete {count} messages, and there is nobody to ask",
            "add --yes if you mean it, or try it first: --dry-run",
        )
    return True
