"""`picoqmail list`: the messages of the spool, oldest first or sorted, as many as are asked for."""

from __future__ import annotations

import itertools
import json
import time
from typing import TYPE_CHECKING

from picoqmail.admin import listing, selection, words
from picoqmail.admin.opening import open_whole_home
from picoqmail.cli.output import bold
from picoqmail.cli.spool import add_filters, filter_of
from picoqmail.store.opening import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from picoqmail.admin.selection import Entry
    from picoqmail.store.protocol import Store

_KEYS: dict[str, Callable[[Entry], Any]] = {
    "size": lambda one: one.message.size if one.message else 0,
    "attempts": lambda one: one.message.attempts if one.message else 0,
    "next": lambda one: one.message.next_attempt if one.message else 0,
    "sender": lambda one: one.message.sender if one.message else "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare filters, order and number."""
    add_filters(parser)
    parser.add_argument(
        "--sort",
        choices=["age", *_KEYS],
        default="age",
        help="age: the oldest first, each shown as soon as it is read (the default)",
    )
    parser.add_argument("--reverse", action="store_true", help="in the opposite order")
    parser.add_argument("--limit", metavar="N", type=int, help="at most this many")
    parser.add_argument("--ids", action="store_true", help="only the IDs, one a line")


def run(arguments: argparse.Namespace) -> int:
    """Print the list. Returns 0, also if it is empty."""
    spool = open_store(open_whole_home())
    wanted = filter_of(arguments)
    now = time.time()
    is_by_name = arguments.sort == "age" and not wanted.needs_reading
    if arguments.ids and not arguments.json and is_by_name:
        names = selection.walk(spool, wanted, newest_first=arguments.reverse)
        for stem, _ in itertools.islice(names, arguments.limit):
            print(stem)
        return 0
    entries = itertools.islice(_sorted(spool, wanted, arguments), arguments.limit)
    if arguments.json:
        _print_json(entries, now)
    else:
        found = (one.id for one in entries)
        for line in found if arguments.ids else listing.lines(entries, now, emphasize=bold):
            print(line)
    return 0


def _sorted(
    spool: Store, wanted: selection.Filter, arguments: argparse.Namespace
) -> Iterator[Entry]:
    if arguments.sort == "age":
        return selection.select(spool, wanted, newest_first=arguments.reverse)
    key = _KEYS[arguments.sort]
    return iter(sorted(selection.select(spool, wanted), key=key, reverse=arguments.reverse))


def _print_json(entries: Iterable[Entry], now: float) -> None:
    """Print one document piece by piece: a hundred thousand messages are never held at once."""
    separator = "["
    for entry in entries:
        print(separator, json.dumps(words.document(entry, now)), end="", sep="\n")
        separator = ","
    print("[]" if separator == "[" else "\n]")
