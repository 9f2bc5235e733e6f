"""`picoqmail status`: does mail flow, and if not, what stands in its way?

Exit code 0 whatever the answer is; `picoqmail check` judges.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from picoqmail.admin import status, words
from picoqmail.admin.opening import open_whole_home
from picoqmail.admin.words import printable
from picoqmail.cli.output import bold, print_json
from picoqmail.cli.spool import age
from picoqmail.home import settings
from picoqmail.home.values import rough_duration
from picoqmail.layout import CUR, NEW, UNDELIVERED
from picoqmail.store.opening import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from picoqmail.admin.status import Status

_GROWING = 100
"""From this many failures in undelivered/ on, status says how to delete them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --watch."""
    parser.add_argument(
        "--watch",
        metavar="EVERY",
        nargs="?",
        const=2,
        type=age,
        help="print it again and again until interrupted; every 2 seconds by default",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the spool."""
    home = open_whole_home()
    keeps = settings.examine(home).settings
    while True:
        store = open_store(home)
        now = status.gather(home, store)
        if arguments.json:
            print_json(now.document())
        else:
            if arguments.watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            print("\n".join(_lines(store.location, now)))
            if keeps is None:
                print("settings   wrong: see picoqmail config")
        if not arguments.watch:
            return 0
        sys.stdout.flush()
        time.sleep(arguments.watch)


def _lines(spool: str, now: Status) -> Iterator[str]:
    free = "" if now.free_octets is None else f", {words.size(now.free_octets)} free"
    yield f"{bold('spool')}      {printable(spool)}{free}"
    yield f"{bold('mail')}       {_summary(now)}"
    for name, what in (
        (NEW, "accepted, not tried yet"),
        (CUR, "tried, and to be tried again"),
        (UNDELIVERED, "failed for good"),
    ):
        heap = now.heaps[name]
        oldest = ""
        if heap.oldest:
            oldest = f", the oldest {rough_duration(now.taken - heap.oldest)} old"
        yield (
            f"  {name:12} {words.count(heap.messages, 'message')}, "
            f"{'about ' if heap.estimated else ''}{words.size(heap.octets)}{oldest}   ({what})"
        )
    if now.held:
        yield f"  {'held':12} {words.count(now.held, 'message')} of cur"
    if now.in_doubt:
        what = words.count(now.in_doubt, "message")
        yield f"  {'in doubt':12} {what} of cur: they may have arrived, and are not sent again"
        yield f"  {'':12} by themselves; see: picoqmail list --state in_doubt"
    if now.writing:
        yield f"  {'arriving':12} {words.count(now.writing, 'message')}"
    yield f"{bold('next try')}   {_next(now)}"
    yield f"{bold('last sent')}  {_ago(now.last_delivery, now)}"
    yield from _relays(now)
    yield f"{bold('at work')}    {_workers(now)}"
    kept = now.heaps[UNDELIVERED]
    if kept.messages >= _GROWING:
        yield (
            f"{bold('note')}       undelivered/ keeps {kept.messages} messages, {kept.fresh} of "
            "the last day; see: picoqmail list --state undelivered; drop old ones: "
            "picoqmail purge --older-than 30d, or the setting keepundelivered"
        )


def _summary(now: Status) -> str:
    if not now.waiting:
        return "nothing waits"
    waits = f"{words.count(now.waiting, 'message')} to send"
    oldest = now.oldest_waiting
    return f"{waits}, the oldest {rough_duration(now.taken - oldest)} old" if oldest else waits


def _next(now: Status) -> str:
    if not now.waiting - now.held - now.in_doubt:
        return "nothing to try"
    down = [one.until for one in now.outages.values() if one.until > now.taken]
    wait = rough_duration(min(down, default=now.taken) - now.taken)
    later = f"; relays that are down are tried again in {wait}"
    if now.due:
        return f"{words.count(now.due, 'message')} due now" + (later if down else "")
    if now.next_attempt is None:
        return "nothing to try"
    return f"in {rough_duration(now.next_attempt - now.taken)}" + (later if down else "")


def _ago(when: int | None, now: Status) -> str:
    if when is None:
        return "never, as far as this spool knows"
    return f"{rough_duration(now.taken - when)} ago, {words.moment(when)}"


def _relays(now: Status) -> Iterator[str]:
    if not now.outages:
        yield f"{bold('relays')}     none is known to be down"
    for name, one in now.outages.items():
        since = rough_duration(now.taken - one.since)
        failures = words.count(one.failures, "failure")
        yield (
            f"{bold('relays')}     {printable(name)} is down for {since}, {failures}, "
            f"at {one.stage}: {printable(one.reason)}"
        )


def _workers(now: Status) -> str:
    found = []
    if now.sender is not None:
        found.append(f"a sender (pid {now.sender or 'unknown'})")
    if now.cron is not None:
        since = f", for {rough_duration(now.taken - now.cron_since)}" if now.cron_since else ""
        found.append(f"a run of cron (pid {now.cron or 'unknown'}{since})")
    return " and ".join(found) or "nothing"
