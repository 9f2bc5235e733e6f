"""The search for lost mail where a database keeps it: a fleet of workers, and all that befalls it.

Workers are killed, or stopped for longer than their lease; the server crashes and comes back; mail
is accepted by the library, by sendmail, and within transactions that are committed or rolled back.
At the end the books must balance by Message-ID: what was acknowledged was delivered; what was
rolled back was not; and every message that came twice is named in doubt in a log.

    python tests/proof/database.py [--seconds 60] [--seed 1]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import psycopg

import picoqmail
from picoqmail.errors import PicoqmailError
from picoqmail.home.paths import Home
from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.migration import migrate
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.store.directory import DirectoryStore
from rig.postgresql import PrivatePostgreSQL
from rig.recording import RecordingRelay
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = 3
LEASE_SECONDS = 3
# Longer than a lease, and than the longest pause of a worker after trouble.
_SETTLE_SECONDS = 180


@define
class Books:
    """What was promised, and what befell: numbers are those in the Message-IDs."""

    acknowledged: dict[int, str] = field(factory=dict)
    """The ID in the store, by number."""
    rolled_back: set[int] = field(factory=set)
    uncertain: set[int] = field(factory=set)
    """Callers that got an error: the message may have been accepted or not."""
    kills: int = 0
    stops: int = 0
    crashes: int = 0
    last: int = 0


@define
class Fleet:
    """A server, a relay, a home of a host, and workers."""

    server: PrivatePostgreSQL
    relay: RecordingRelay
    home: Home
    command: list[str]
    draw: random.Random
    books: Books = field(factory=Books)
    workers: list[subprocess.Popen[bytes]] = field(factory=list)
    is_up: bool = True

    def start_workers(self) -> None:
        """See that there are as many as there should be."""
        self.workers = [one for one in self.workers if one.poll() is None]
        while len(self.workers) < WORKERS:
            self.workers.append(subprocess.Popen(self.command, env=self.environment()))

    def environment(self) -> dict[str, str]:
        """That of the programs of this host."""
        return {
            "PATH": os.environ["PATH"],
            "PICOQMAIL_HOME": self.home.root,
            "PICOQMAIL_SPOOL": self.home.database,
            "PICOQMAIL_SEND": "off",
        }

    def message(self) -> tuple[int, bytes]:
        """A message with the next number."""
        self.books.last += 1
        number = self.books.last
        text = f"Message-ID: <{number}@proof.test>\nSubject: {number}\n\n"
        return number, text.encode() + b"x" * self.draw.choice([0, 100, 5000])

    # --- What befalls ---

    def accept(self) -> None:
        """An application puts mail in."""
        spool = picoqmail.Spool(self.home, send=False)
        for _ in range(self.draw.randrange(1, 8)):
            number, text = self.message()
            try:
                receipt = spool.enqueue(text, "a@example.org", ["b@example.net"])
            except PicoqmailError:
                self.books.uncertain.add(number)
            else:
                self.books.acknowledged[number] = receipt.id

    def accept_within(self) -> None:
        """An application puts mail into its own transaction, and commits it or not."""
        if not self.is_up:
            return
        spool = picoqmail.Spool(self.home, send=False)
        number, text = self.message()
        commits = self.draw.random() < 0.5
        try:
            with psycopg.connect(self.home.database.partition("&lease")[0]) as connection:
                receipt = spool.enqueue(
                    text, "a@example.org", ["b@example.net"], connection=connection
                )
                if not commits:
                    connection.rollback()
        except (PicoqmailError, psycopg.Error):
            self.books.uncertain.add(number)
            return
        if commits:
            self.books.acknowledged[number] = receipt.id
        else:
            self.books.rolled_back.add(number)

    def kill_worker(self) -> None:
        """Kill one with no warning; another takes its place."""
        one = self.draw.choice(self.workers)
        if one.poll() is None:
            one.kill()
            one.wait()
            self.books.kills += 1
        self.start_workers()

    def stop_worker(self) -> None:
        """Stop one for longer than its lease: a host that was suspended."""
        one = self.draw.choice(self.workers)
        if one.poll() is None:
            one.send_signal(signal.SIGSTOP)
            time.sleep(LEASE_SECONDS + 1)
            one.send_signal(signal.SIGCONT)
            self.books.stops += 1

    def crash_server(self) -> None:
        """The server dies at once; mail is accepted meanwhile; it recovers."""
        self.server.stop(signal.SIGQUIT)
        self.is_up = False
        self.accept()
        self.server.start()
        self.is_up = True
        self.books.crashes += 1

    def run(self, seconds: float) -> None:
        """Let things befall the fleet for so long, at random."""
        things: list[tuple[Callable[[], None], int]] = [
            (self.accept, 12),
            (self.accept_within, 6),
            (self.kill_worker, 5),
            (self.stop_worker, 1),
            (self.crash_server, 1),
        ]
        end = time.monotonic() + seconds
        self.start_workers()
        # Each kind at least once, whatever the seed.
        for thing, _ in things:
            thing()
        while time.monotonic() < end:
            (thing,) = self.draw.choices([one for one, _ in things], [often for _, often in things])
            thing()
            time.sleep(self.draw.random() * 0.2)
        self.settle()

    def settle(self) -> None:
        """Let the fleet finish: nothing is left in the database, nor in the host's directory."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        store = open_postgresql(self.home.database)
        here = DirectoryStore(self.home.spool)
        try:
            while store.names() or here.names():
                if time.monotonic() > deadline:
                    raise AssertionError(f"left: {store.names()} {here.names()}")
                self.start_workers()
                if here.names():
                    cron = f"{self.command[0]}-cron"
                    subprocess.run([cron], env=self.environment(), check=False)
                time.sleep(0.2)
        finally:
            store.close()
            for one in self.workers:
                one.send_signal(signal.SIGTERM)
            for one in self.workers:
                one.wait(120)

    # --- The books ---

    def breaches(self) -> list[str]:
        """Return what is wrong with the books; nothing if they balance."""
        arrived: Counter[int] = Counter()
        for one in self.relay.messages:
            found = re.search(rb"^Message-ID: <(\d+)@proof\.test>", one.content, re.MULTILINE)
            assert found is not None
            arrived[int(found[1])] += 1
        with open(f"{self.home.spool}/log", encoding="utf-8") as log:
            doubted = set(re.findall(r"in_doubt .*?\bid=(\S+)", log.read()))
        books = self.books
        wrong = [
            f"{n} was acknowledged and never came" for n in books.acknowledged if not arrived[n]
        ]
        wrong += [f"{n} was rolled back and came" for n in books.rolled_back if arrived[n]]
        wrong += [
            f"{number} came {count} times, and no log names it in doubt"
            for number, count in arrived.items()
            if count > 1
            and books.acknowledged.get(number, "?") not in doubted
            and number not in books.uncertain
        ]
        known = books.acknowledged.keys() | books.rolled_back | books.uncertain
        return wrong + [f"{number} was never handed in" for number in arrived.keys() - known]


def search(seconds: float, seed: int, command: list[str]) -> tuple[Books, list[str]]:
    """Run a fleet for so long; return what befell it, and the breaches of the promise.

    `command` starts a worker.
    """
    with (
        tempfile.TemporaryDirectory() as directory,
        PrivatePostgreSQL(durable=True) as server,
        RecordingRelay() as relay,
    ):
        made = TemporaryHome(f"{directory}/home").make(relay=f"127.0.0.1:{relay.port}")
        made.setting("log", f"{made.spool}/log")
        url = server.url(server.make_database(), lease=LEASE_SECONDS)
        migrate(read_url(url))
        home = Home(made.root, database=url)
        fleet = Fleet(server, relay, home, command, random.Random(seed))  # noqa: S311 - repeatable
        fleet.run(seconds)
        return fleet.books, fleet.breaches()


def main() -> int:
    """Run the search, and print what it found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tool = f"{os.path.dirname(sys.executable)}/picoqmail"
    books, wrong = search(arguments.seconds, arguments.seed, [tool, "worker"])
    sys.stdout.write(
        f"{len(books.acknowledged)} acknowledged, {len(books.rolled_back)} rolled back, "
        f"{len(books.uncertain)} refused, {books.kills} kills, {books.stops} stops, "
        f"{books.crashes} crashes of the server\n"
        + ("\n".join(wrong) or "nothing lost, nothing twice without doubt")
        + "\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
