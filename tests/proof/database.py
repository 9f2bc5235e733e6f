"""The search for lost mail where a database keeps it: a fleet of three hosts, and what befalls it.

The clocks of two hosts are an hour off. Workers are killed, or stopped for longer than their lease;
the line of a host loses what is said in one direction or both, and nobody hangs up; the server
crashes and comes back; its disk is full for a while; a transaction elsewhere stays open and keeps
vacuum from its work. Mail is accepted by the library, by sendmail on each host, and within
transactions that are committed or rolled back. At the end the books must balance by Message-ID:
what was acknowledged was delivered; what was rolled back was not; and every message that came twice
is named in doubt in a log.

    python tests/proof/database.py [--seconds 60] [--seed 1] [--patience 20]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

from attrs import define, field

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import psycopg

import picoqmail
from picoqmail.errors import PicoqmailError
from picoqmail.home.paths import Home
from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.connections import PATIENCE_SECONDS, Link
from picoqmail.postgresql.migration import migrate
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.store.directory import DirectoryStore
from proof.world import Programs
from rig.postgresql import PrivatePostgreSQL, SmallDisk
from rig.recording import RecordingRelay
from rig.statement_line import TO_CLIENT, TO_SERVER, StatementLine
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CLOCKS_SECONDS = (0, 3600, -3600)
"""How far ahead the clock of each host is."""

LEASE_SECONDS = 3
# Longer than a lease, and than the longest pause of a worker after trouble.
_SETTLE_SECONDS = 240
_ENVELOPE = ("a@example.org", "b@example.net")


@define
class Books:
    """What was promised, and what befell: numbers are those in the Message-IDs."""

    acknowledged: dict[int, str] = field(factory=dict)
    """The ID in the store, by number; "" if its program did not say."""
    rolled_back: set[int] = field(factory=set)
    uncertain: set[int] = field(factory=set)
    """Callers that got an error: the message may have been accepted or not."""
    befell: Counter[str] = field(factory=Counter)
    """How often each thing befell the fleet."""
    last: int = 0


@define
class Host:
    """One host: a home, a clock, and a line to the server."""

    made: TemporaryHome
    ahead_seconds: int
    line: StatementLine
    url: str
    patience: float
    worker: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Home:
        """The home as the library has it, with the database behind the host's line."""
        return Home(self.made.root, database=self.url)

    def environment(self) -> dict[str, str]:
        """That of the programs of this host."""
        return self.made.variables(
            PICOQMAIL_SPOOL=self.url, PROOF_PATIENCE_SECONDS=f"{self.patience:g}"
        )

    def command(self, *words: str) -> list[str]:
        """Return the command of picoqmail itself, with the clock of this host."""
        return [*Programs().command(words[0], self.ahead_seconds, through=True), *words[1:]]

    def start_worker(self) -> None:
        """See that there is one."""
        if self.worker is None or self.worker.poll() is not None:
            command = self.command("", "worker")
            self.worker = subprocess.Popen(command, env=self.environment())

    def here(self) -> dict[str, str]:
        """Return what lies in the directory of this host."""
        return DirectoryStore(self.made.spool).names()


@define
class Fleet:
    """A server, a relay, and hosts. `disk` has the tables, if there may be such a disk here."""

    server: PrivatePostgreSQL
    relay: RecordingRelay
    hosts: list[Host]
    url: str
    draw: random.Random
    disk: SmallDisk | None = None
    books: Books = field(factory=Books)
    is_up: bool = True
    _elsewhere: psycopg.Connection[Any] | None = None

    def a_host(self) -> Host:
        """Choose one."""
        return self.draw.choice(self.hosts)

    def message(self) -> tuple[int, bytes]:
        """A message with the next number."""
        self.books.last += 1
        number = self.books.last
        text = f"Message-ID: <{number}@proof.test>\nSubject: {number}\n\n"
        return number, text.encode() + b"x" * self.draw.choice([0, 100, 5000])

    # --- What befalls ---

    def accept(self) -> None:
        """An application puts mail in."""
        spool = picoqmail.Spool(self.hosts[0].home, send=False)
        for _ in range(self.draw.randrange(1, 8)):
            number, text = self.message()
            try:
                receipt = spool.enqueue(text, _ENVELOPE[0], [_ENVELOPE[1]])
            except PicoqmailError:
                self.books.uncertain.add(number)
            else:
                self.books.acknowledged[number] = receipt.id

    def submit(self) -> None:
        """A program of some host hands in mail by sendmail."""
        host = self.a_host()
        number, text = self.message()
        ran = subprocess.run(
            host.command("sendmail", "-f", _ENVELOPE[0], _ENVELOPE[1]),
            input=text,
            env=host.environment(),
            check=False,
            stderr=subprocess.DEVNULL,
        )
        if ran.returncode:
            self.books.uncertain.add(number)
        else:
            self.books.acknowledged[number] = ""

    def accept_within(self) -> None:
        """An application puts mail into its own transaction, and commits it or not."""
        if not self.is_up:
            return
        spool = picoqmail.Spool(self.hosts[0].home, send=False)
        number, text = self.message()
        commits = self.draw.random() < 0.5
        try:
            with psycopg.connect(self.url.partition("&lease")[0]) as connection:
                receipt = spool.enqueue(text, _ENVELOPE[0], [_ENVELOPE[1]], connection=connection)
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
        host = self.a_host()
        if host.worker is not None and host.worker.poll() is None:
            host.worker.kill()
            host.worker.wait()
        host.start_worker()

    def stop_worker(self) -> None:
        """Stop one for longer than its lease: a host that was suspended."""
        worker = self.a_host().worker
        if worker is not None and worker.poll() is None:
            worker.send_signal(signal.SIGSTOP)
            time.sleep(LEASE_SECONDS + 1)
            worker.send_signal(signal.SIGCONT)

    def cut_line(self) -> None:
        """Lose what a host and the server say to each other, in one direction or both."""
        line = self.a_host().line
        line.silence(*self.draw.choice([(TO_SERVER,), (TO_CLIENT,), (TO_SERVER, TO_CLIENT)]))
        # Mail is accepted meanwhile, perhaps on that host.
        self.accept()
        time.sleep(self.draw.random() * LEASE_SECONDS)
        line.restore()

    def crash_server(self) -> None:
        """The server dies at once; mail is accepted meanwhile; it recovers."""
        self.server.stop(signal.SIGQUIT)
        self.is_up = False
        self.accept()
        self.server.start()
        self.is_up = True

    def fill_disk(self) -> None:
        """The disk of the tables is full for a while; mail is accepted meanwhile."""
        if self.disk is None:
            return
        with self.disk.full():
            for _ in range(3):
                self.accept()
                self.accept_within()

    def idle_elsewhere(self) -> None:
        """An application leaves a transaction open, which keeps vacuum from its work."""
        self.end_elsewhere()
        self._elsewhere = psycopg.connect(self.url.partition("&lease")[0])
        self._elsewhere.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self._elsewhere.execute("SELECT pg_current_xact_id(), count(*) FROM picoqmail.message")

    def end_elsewhere(self) -> None:
        """That application goes away."""
        if self._elsewhere is not None:
            with contextlib.suppress(psycopg.Error):
                self._elsewhere.close()
            self._elsewhere = None

    def run(self, seconds: float) -> None:
        """Let things befall the fleet for so long, at random."""
        things: list[tuple[Callable[[], None], int]] = [
            (self.idle_elsewhere, 1),
            (self.accept, 12),
            (self.submit, 4),
            (self.accept_within, 6),
            (self.kill_worker, 5),
            (self.cut_line, 2),
            (self.fill_disk, 1),
            (self.stop_worker, 1),
            (self.crash_server, 1),
        ]
        end = time.monotonic() + seconds
        for host in self.hosts:
            host.start_worker()
        # Each kind at least once, whatever the seed.
        for thing, _ in things:
            self.befalls(thing)
        while time.monotonic() < end:
            (thing,) = self.draw.choices([one for one, _ in things], [often for _, often in things])
            self.befalls(thing)
            time.sleep(self.draw.random() * 0.2)
        self.settle()

    def befalls(self, thing: Callable[[], None]) -> None:
        """Let one thing befall the fleet, and count it."""
        thing()
        self.books.befell[thing.__name__] += 1

    def settle(self) -> None:
        """Let the fleet finish: nothing is left in the database, nor in a host's directory."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        store = open_postgresql(self.url)
        self.end_elsewhere()
        try:
            while left := [*store.names(), *(one for host in self.hosts for one in host.here())]:
                if time.monotonic() > deadline:
                    raise AssertionError(f"left: {left}")
                for host in self.hosts:
                    host.start_worker()
                    if host.here():
                        subprocess.run(
                            host.command("cron"),
                            env=host.environment(),
                            check=False,
                            stderr=subprocess.DEVNULL,
                        )
                time.sleep(0.2)
        finally:
            store.close()
            for host in self.hosts:
                if host.worker is not None:
                    host.worker.send_signal(signal.SIGTERM)
            for host in self.hosts:
                if host.worker is not None:
                    host.worker.wait(120)

    # --- The books ---

    def breaches(self) -> list[str]:
        """Return what is wrong with the books; nothing if they balance."""
        arrived: Counter[int] = Counter()
        ids: dict[int, str] = {}
        for one in self.relay.messages:
            found = re.search(rb"^Message-ID: <(\d+)@proof\.test>", one.content, re.MULTILINE)
            named = re.search(rb"^Received: by \S+ \(.*?\) id ([^ ;]+);", one.content, re.MULTILINE)
            assert found is not None
            assert named is not None
            arrived[int(found[1])] += 1
            ids[int(found[1])] = named[1].decode()
        doubted: set[str] = set()
        for host in self.hosts:
            with open(f"{host.made.spool}/log", encoding="utf-8") as log:
                doubted |= set(re.findall(r"in_doubt .*?\bid=(\S+)", log.read()))
        books = self.books
        wrong = [
            f"{n} was acknowledged and never came" for n in books.acknowledged if not arrived[n]
        ]
        wrong += [f"{n} was rolled back and came" for n in books.rolled_back if arrived[n]]
        wrong += [
            f"{number} came {count} times, and no log names it in doubt"
            for number, count in arrived.items()
            if count > 1 and ids[number] not in doubted
        ]
        books.befell["came twice, in doubt"] = sum(count > 1 for count in arrived.values())
        known = books.acknowledged.keys() | books.rolled_back | books.uncertain
        return wrong + [f"{number} was never handed in" for number in arrived.keys() - known]


def search(
    seconds: float, seed: int, patience: float = PATIENCE_SECONDS
) -> tuple[Books, list[str]]:
    """Run a fleet for so long; return what befell it, and the breaches of the promise.

    `patience` is for how long (seconds) programs wait for an answer that does not come.
    """
    with ExitStack() as opened:
        directory = opened.enter_context(tempfile.TemporaryDirectory())
        server = opened.enter_context(
            PrivatePostgreSQL(durable=True, autovacuum="on", autovacuum_naptime="1s")
        )
        relay = opened.enter_context(RecordingRelay())
        usual, Link.patience = Link.patience, patience
        opened.callback(setattr, Link, "patience", usual)
        disk = opened.enter_context(SmallDisk(server)) if SmallDisk.why_not() is None else None
        tablespace = disk.tablespace() if disk else ""
        url = server.url(server.make_database(tablespace=tablespace), lease=LEASE_SECONDS)
        migrate(read_url(url))
        hosts = []
        for number, ahead in enumerate(CLOCKS_SECONDS):
            line = opened.enter_context(StatementLine(f"{server.directory}/.s.PGSQL.5432"))
            made = TemporaryHome(f"{directory}/host{number}").make(
                f"host{number}.test", f"127.0.0.1:{relay.port}"
            )
            made.setting("log", f"{made.spool}/log")
            hosts.append(Host(made, ahead, line, line.url(url), patience))
        draw = random.Random(seed)  # noqa: S311 - repeatable
        fleet = Fleet(server, relay, hosts, url, draw, disk)
        fleet.run(seconds)
        return fleet.books, fleet.breaches()


def main() -> int:
    """Run the search, and print what it found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS)
    arguments = parser.parse_args()
    books, wrong = search(arguments.seconds, arguments.seed, arguments.patience)
    befell = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in books.befell.items())
    sys.stdout.write(
        f"{len(books.acknowledged)} acknowledged, {len(books.rolled_back)} rolled back, "
        f"{len(books.uncertain)} refused; {befell}\n"
        + ("\n".join(wrong) or "nothing lost, nothing twice without doubt")
        + "\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
