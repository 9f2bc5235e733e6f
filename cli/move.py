"""`picoqmail move --to STORE`: bring the mail of this home to another store.

Exit codes: 0 all of it went, 75 something was left, 78 one of the stores cannot be used.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from picoqmail.admin.opening import open_whole_home
from picoqmail.cli.output import print_json
from picoqmail.errors import EX_TEMPFAIL, ConfigurationError
from picoqmail.home.paths import absolute, is_database_url
from picoqmail.layout import DIRECTORIES
from picoqmail.store.directory import DirectoryStore
from picoqmail.store.opening import open_database, open_store

if TYPE_CHECKING:
    import argparse

    from picoqmail.store.protocol import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the target."""
    parser.epilog = (
        "It may be ended at any time and run again: no message is lost, and none comes twice. "
        "Messages that another process is sending are left; run it again for them."
    )
    parser.add_argument(
        "--to",
        metavar="STORE",
        required=True,
        help="a spool directory that init made, or postgresql://USER@HOST/DATABASE",
    )


def run(arguments: argparse.Namespace) -> int:
    """Move what there is, and report what was left."""
    from picoqmail.store.moving import move

    source = open_store(open_whole_home())
    target = _target(arguments.to)
    if source.location == target.location:
        raise ConfigurationError("--to", f"names {source.location}, where the mail is already")
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: stop.append(got))
    moved = move(source, target, lambda: bool(stop))
    if arguments.json:
        print_json(
            {
                "from": source.location,
                "to": target.location,
                "moved": moved.gone,
                "busy": moved.busy,
                "refused": moved.refused,
            }
        )
    else:
        print(f"{len(moved.gone)} messages moved from {source.location} to {target.location}")
        for one in moved.busy:
            print(f"{one}: another process is sending it; left where it was")
        for one, why in moved.refused.items():
            print(f"{one}: left where it was: {why}")
        if stop:
            print("ended by a signal; run it again for the rest")
    return EX_TEMPFAIL if moved.busy or moved.refused or stop else 0


def _target(name: str) -> Store:
    if is_database_url(name):
        return open_database(name, "--to")
    store = DirectoryStore(absolute(name))
    try:
        store.names()
    except OSError as exc:
        raise ConfigurationError(
            "--to",
            f"{name} is no spool: {exc}",
            f"name one with {', '.join(DIRECTORIES)}, which picoqmail init makes",
        ) from exc
    return store
