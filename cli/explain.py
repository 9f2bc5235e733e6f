"""`picoqmail explain ID`: where a mail is, why, and what happens next, in sentences.

Exit codes: 0; 66 no such message.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from picoqmail.admin import words
from picoqmail.admin.explain import explain_message, is_in_doubt
from picoqmail.admin.opening import open_whole_home
from picoqmail.admin.words import printable
from picoqmail.cli.output import complain, print_json
from picoqmail.errors import EX_NOINPUT, NoSuchMessageError
from picoqmail.store.opening import open_store

if TYPE_CHECKING:
    import argparse

    from picoqmail.admin.selection import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the IDs."""
    parser.add_argument("id", nargs="+", metavar="ID", help="an ID, or a path of the spool")


def run(arguments: argparse.Namespace) -> int:
    """Print the story of each message."""
    spool = open_store(open_whole_home())
    documents = []
    missing = 0
    for name in arguments.id:
        try:
            entry, text = explain_message(spool, spool.find(name), spool.clock())
        except NoSuchMessageError as exc:
            complain(printable(str(exc)))
            complain("a delivered message is no longer in the spool: see the log")
            missing += 1
            continue
        if arguments.json:
            documents.append(_document(entry, text))
        else:
            lines = [printable(line) for line in text.split("\n")]
            print("\n".join(lines), end="\n\n" if name is not arguments.id[-1] else "\n")
    if arguments.json:
        print_json(documents)
    return EX_NOINPUT if missing else 0


def _document(entry: Entry, text: str) -> dict[str, object]:
    now = time.time()
    message = entry.message
    document = words.document(entry, now)
    document["text"] = text
    document["history"] = [dict(one) for one in message.history] if message else []
    document["maybe_duplicate"] = is_in_doubt(message) if message else None
    return document
