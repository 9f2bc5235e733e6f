"""A home whose mail a database keeps, for trials that strike its programs at a statement.

The rule of this module: it prepares, runs, recovers and judges; the trials say what befalls.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from picoqmail import Spool
from picoqmail.home.paths import Home
from picoqmail.layout import CUR, NEW
from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.migration import migrate
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.store.directory import DirectoryStore
from proof.invariant import token_of
from proof.scenarios import MOODY
from proof.world import LedgerRelay, Programs, World
from proof.zygote import Zygote
from rig.postgresql import PrivatePostgreSQL
from rig.statement_line import StatementLine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any, Self

    from picoqmail.postgresql.store import PostgresStore

_RECOVERIES = 6


@define
class Hall:
    """A server and what all homes of it share: relays, a zygote, the programs under trial."""

    root: str
    programs: Programs = field(factory=Programs)
    server: PrivatePostgreSQL = field(factory=PrivatePostgreSQL)
    moody: LedgerRelay = field(factory=lambda: LedgerRelay(MOODY))
    good: LedgerRelay = field(factory=LedgerRelay)
    _zygote: Zygote | None = None
    _template: str = ""
    _opened: ExitStack = field(factory=ExitStack)
    _homes: int = 0

    def __enter__(self) -> Self:
        for one in (self.moody, self.good):
            self._opened.enter_context(one)
        if not self.server.directory:
            self._opened.enter_context(self.server)
        self._template = self.server.make_database()
        migrate(read_url(self.server.url(self._template)))
        return self

    def __exit__(self, *_: object) -> None:
        if self._zygote is not None:
            self._zygote.close()
        self._opened.close()

    @property
    def zygote(self) -> Zygote:
        """What runs programs of this package; made when it is first needed."""
        if self._zygote is None:
            self._zygote = Zygote(self.programs.copy)
        return self._zygote

    @contextmanager
    def house(self, *, lease: float = 60) -> Iterator[House]:
        """Lend an empty database, with a home of it."""
        self._homes += 1
        database = self.server.lend_database(self._template)
        with StatementLine(f"{self.server.directory}/.s.PGSQL.5432") as line:
            world = World.begin(f"{self.root}/h{self._homes}", self.moody.address, self.programs)
            url = self.server.url(database, lease=f"{lease:g}")
            house = House(self, world, database, url, line)
            house.use(line.url(url))
            try:
                yield house
            finally:
                house.store.close()
                for relay in (self.moody, self.good):
                    relay.ledger.forget(world.name)
                world.destroy()
                self.server.take_back(database)


@define
class House:
    """One home and its database; `line` is between them, `url` goes past it."""

    hall: Hall
    world: World
    database: str
    url: str
    line: StatementLine
    removed: set[str] = field(factory=set)
    """Tokens of messages that an administrator removed."""
    _store: PostgresStore | None = None

    def use(self, url: str) -> None:
        """Have the programs of this home use a URL."""
        self.world.setting("spool", url)

    @property
    def store(self) -> PostgresStore:
        """The store, past the line."""
        if self._store is None:
            self._store = open_postgresql(self.url)
        return self._store

    @property
    def here(self) -> DirectoryStore:
        """The directory of this host."""
        return DirectoryStore(self.world.spool)

    def execute(self, text: str) -> list[tuple[Any, ...]]:
        """Run a statement in the database."""
        return self.hall.server.execute(text, self.database)

    def accept(self, recipients: Collection[str] = (), octets: int = 0) -> str:
        """Put a message into the database; return its ID."""
        world = self.world
        promise = world.promise(tuple(recipients), octets)
        home = Home(world.root, database=self.url)
        spool = Spool(home, send=False)
        receipt = spool.enqueue(promise.body, promise.sender, promise.recipients)
        world.promises.append(evolve(promise, accepted=True))
        return receipt.id

    def run(self, program: str, *arguments: str) -> tuple[int, str]:
        """Run a program of this home; its exit code (negative: a signal) and what it said."""
        return self.hall.zygote.run(self.world.root, program, *arguments)

    def expire_leases(self) -> None:
        """Let all leases run out, as time does."""
        self.execute(
            "UPDATE picoqmail.message SET leased_until = now() - interval '1s'"
            " WHERE leased_until > '-infinity'"
        )

    def recover(self) -> list[str]:
        """Deliver all that is left, by ordinary programs past the line; return complaints.

        Time passes in between: leases run out, and what was deferred is due.
        """
        self.use(self.url)
        self.world.relay(self.hall.good.address)
        complaints = []
        for _ in range(_RECOVERIES):
            self.expire_leases()
            status, said = self.run("cron")
            if status or said:
                complaints.append(f"cron: exit {status}: {said[-500:]}")
            there = [one for one, state in self.store.names().items() if state in (NEW, CUR)]
            if not there and not self.here.names():
                break
            self.expire_leases()
            self.run("send", *there)
            # What is held, or was in doubt as often as it may be, waits for an administrator.
            self.run("main", "release", "--all")
            self.run("main", "retry", "--all", "--later")
        left = {**self.store.names(), **self.here.names()}
        waiting = [one for one, state in left.items() if state in (NEW, CUR)]
        return complaints + [f"left: {one} in {left[one]}" for one in waiting]

    def arrivals(self) -> Counter[tuple[str, str]]:
        """How often each message has come to each recipient: by token and address."""
        found: Counter[tuple[str, str]] = Counter()
        for relay in (self.hall.moody, self.hall.good):
            for mail in relay.ledger.of(self.world.name):
                token = token_of(mail.unix)
                if token and mail.sender and (mail.reply or "2").startswith("2"):
                    found.update((token, one) for one in mail.recipients)
        return found

    def doubted(self) -> set[str]:
        """Return the IDs that the log names in doubt."""
        log = "\n".join(self.world.events())
        return set(re.findall(r"in_doubt .*?\bid=(\S+)", log))

    def ids(self) -> dict[str, str]:
        """Return the IDs of the messages that came, by token."""
        found = {}
        for relay in (self.hall.moody, self.hall.good):
            for mail in relay.ledger.of(self.world.name):
                line = re.match(rb"Received: by [^\n]* id ([^ ;\n]+);", mail.unix)
                if mail.sender and line:
                    found[token_of(mail.unix)] = line[1].decode()
        return found

    def judge(self, may_fail: Collection[str] = ()) -> list[str]:
        """Compare promises and arrivals after recovery; return the breaches.

        What was accepted has come to each recipient, but those of `may_fail`; what came twice is
        named in doubt; what was never handed in has not come.
        """
        arrived, ids, doubted = self.arrivals(), self.ids(), self.doubted()
        promises = {one.token: one for one in self.world.promises}
        found = []
        for token, promise in promises.items():
            missing = [
                one
                for one in promise.recipients
                if not arrived[token, one] and one not in may_fail and token not in self.removed
            ]
            if promise.accepted and missing:
                found.append(f"LOST: {token} for {missing}, although accepted")
        for (token, recipient), count in arrived.items():
            if token not in promises:
                found.append(f"{token} came, and nobody handed it in")
            elif count > 1 and ids.get(token) not in doubted:
                found.append(f"{token} came {count} times to {recipient}, unmarked")
        return found

    def finish(self, may_fail: Collection[str] = ()) -> list[str]:
        """Recover and judge; return complaints and breaches."""
        return self.recover() + self.judge(may_fail)


def kill(pid: int) -> None:
    """Kill a client."""
    os.kill(pid, signal.SIGKILL)


def at(number: int) -> Callable[[int, str], bool]:
    """Choose one statement by its number."""
    return lambda count, _text: count == number


def first(words: str) -> Callable[[int, str], bool]:
    """Choose the first statement that holds some text."""
    return lambda _count, text: words in text
