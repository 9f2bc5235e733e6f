"""Mistakes with a database, each with a trial of its own: planted, every one must be found.

A trial finds nothing in the programs as they are, and a breach in a copy that has the mistake.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from proof import statements
from proof.planted import Plant
from proof.scenarios import MOODY
from proof.shared import Hall, House, first, kill
from proof.spools import LATER
from proof.world import LedgerRelay, World
from rig import faults
from rig.postgresql import PrivatePostgreSQL
from rig.statement_line import Strike
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rig.faults import Fault, Line

_PATIENCE_SECONDS = 60
_HOUR = 3600
_CRASHES = 3


@frozen
class DatabaseMistake:
    """One mistake: `bad` replaces `good`, which the package holds once; `trial` notices it.

    With `crashes` the trial has a server of its own, which writes down in its own time only what
    it is not told to write at once.
    """

    name: str
    good: str
    bad: str
    trial: Callable[[Hall], list[str]]
    crashes: bool = False

    @property
    def plant(self) -> Plant:
        """The mistake as a bug to be planted."""
        return Plant(self.name, self.good, self.bad, "", "")


def lazy_server() -> PrivatePostgreSQL:
    """Return a server that writes nothing down for ten seconds unless a commit waits for it."""
    return PrivatePostgreSQL(wal_writer_delay="10s", wal_writer_flush_after="128MB")


def notice(mistake: DatabaseMistake, hall: Hall) -> list[str]:
    """Return what the trial of a mistake finds in a copy that has it.

    The server writes down even what nobody waits for now and then, so a crash may come too late:
    then it is tried again.
    """
    for _ in range(_CRASHES if mistake.crashes else 1):
        if found := mistake.trial(hall):
            return found
    return []


@define
class _Gate:
    """A fault that keeps a client waiting for the reply of a step until it is opened."""

    then: Fault | None = None
    arrived: threading.Event = field(factory=threading.Event)
    opened: threading.Event = field(factory=threading.Event)

    def __call__(self, line: Line, ordinary: bytes) -> bool:
        """Note the client, and wait."""
        self.arrived.set()
        self.opened.wait(_PATIENCE_SECONDS)
        if self.then is not None:
            return self.then(line, ordinary)
        line.send(ordinary)
        return True

    def await_client(self) -> None:
        """Wait until a client is there. Raises TimeoutError."""
        if not self.arrived.wait(_PATIENCE_SECONDS):
            raise TimeoutError("no client came to the step")


@contextmanager
def _relay(
    house: House, these: Mapping[str, Fault | Sequence[Fault | None]]
) -> Iterator[LedgerRelay]:
    """Give the home a relay of its own with these faults; what it got counts with the others'."""
    with LedgerRelay(these) as relay:
        house.world.relay(relay.address)
        yield relay
    for mail in relay.ledger.of(house.world.name):
        house.hall.moody.ledger.put(mail)


def _start(house: House, *words: str) -> subprocess.Popen[bytes]:
    world = house.world
    return subprocess.Popen(
        [*world.programs.command("send"), *words],
        env=world.variables(),
        stderr=subprocess.DEVNULL,
    )


# --- Leases ------------------------------------------------------------------------------------


def a_worker_that_was_stopped(hall: Hall) -> list[str]:
    """It was stopped before the end of the data, and another worker sends that message now."""
    mine, theirs = _Gate(), _Gate()
    with hall.house() as house:
        with _relay(house, {"DATA": [mine, theirs]}):
            house.accept()
            stopped = _start(house)
            mine.await_client()
            stopped.send_signal(signal.SIGSTOP)
            house.expire_leases()
            other = _start(house)
            theirs.await_client()
            mine.opened.set()
            stopped.send_signal(signal.SIGCONT)
            stopped.wait(_PATIENCE_SECONDS)
            theirs.opened.set()
            other.wait(_PATIENCE_SECONDS)
        return house.finish()


def a_record_of_a_worker_that_was_stopped(hall: Hall) -> list[str]:
    """It has an outcome to record, and another worker has recorded its own meanwhile."""
    mine = _Gate(faults.reply("451 4.3.0 later"))
    with hall.house() as house:
        with _relay(house, {**MOODY, "MAIL": [mine]}):
            house.accept(["now@there.test", LATER])
            stopped = _start(house)
            mine.await_client()
            stopped.send_signal(signal.SIGSTOP)
            house.expire_leases()
            _start(house).wait(_PATIENCE_SECONDS)
            mine.opened.set()
            stopped.send_signal(signal.SIGCONT)
            stopped.wait(_PATIENCE_SECONDS)
        return house.finish()


def a_message_that_a_worker_has(hall: Hall) -> list[str]:
    """No other worker begins with it."""
    mine = _Gate()
    with hall.house() as house:
        with _relay(house, {"DATA": [mine]}) as relay:
            message_id = house.accept()
            busy = _start(house)
            mine.await_client()
            _start(house, message_id).wait(_PATIENCE_SECONDS)
            begun = relay.verbs().count("MAIL")
            mine.opened.set()
            busy.wait(_PATIENCE_SECONDS)
        found = [f"{begun} workers sent one message at a time"] if begun != 1 else []
        return found + house.finish()


def a_lease_of_a_slow_worker(hall: Hall) -> list[str]:
    """It is renewed as long as the worker lives, however slow the relay is."""
    mine = _Gate()
    with hall.house(lease=2) as house:
        with _relay(house, {"DATA": [mine]}):
            house.accept()
            busy = _start(house)
            mine.await_client()
            ((until,),) = house.execute("SELECT leased_until FROM picoqmail.message")

            def is_decided() -> bool:
                ((now, left),) = house.execute(
                    "SELECT leased_until, leased_until - now() FROM picoqmail.message"
                )
                return bool((now - until).total_seconds() > 2 or left.total_seconds() < 0)

            wait_until(is_decided, "the lease was renewed, or ran out")
            ((has_ended,),) = house.execute("SELECT leased_until < now() FROM picoqmail.message")
            mine.opened.set()
            busy.wait(_PATIENCE_SECONDS)
        return (["the lease of a worker ran out while it was at work"] if has_ended else []) + (
            house.finish()
        )


# --- The ledger --------------------------------------------------------------------------------


def a_forwarder_that_is_killed(hall: Hall) -> list[str]:
    """Killed between commit there and removal here, while a worker delivers there."""
    with hall.house() as house:
        world = house.world
        message_id = world.accept()
        begun: list[str] = []

        def is_commit(_number: int, text: str) -> bool:
            begun.extend(["arrived"] if "INSERT INTO picoqmail.ledger" in text else [])
            return bool(begun) and text.startswith("COMMIT")

        house.line.strike = Strike(is_commit, kill, answered=True)
        status, said = house.run("cron")
        assert status == -signal.SIGKILL, (status, said)
        assert (set(house.store.names()), set(house.here.names())) == ({message_id},) * 2
        _elsewhere(house, message_id)
        return house.finish()


def _elsewhere(house: House, message_id: str) -> None:
    """Deliver a message by a worker of another host; it must go."""
    world = house.world
    other = World.begin(f"{world.root}-other", house.hall.good.address, world.programs)
    other.setting("me", world.name)
    other.setting("spool", house.url)
    house.expire_leases()
    status, said = house.hall.zygote.run(other.root, "send", message_id)
    assert (status, said) == (0, ""), (status, said)
    assert message_id not in house.store.names()
    other.destroy()


def an_answer_that_is_lost(hall: Hall) -> list[str]:
    """A message was committed, its caller does not learn that, and a worker delivers it."""
    with hall.house() as house:

        def deliver(_pid: int) -> None:
            (message_id,) = house.store.names()
            _elsewhere(house, message_id)

        house.line.strike = Strike(first("COMMIT"), deliver, answered=True)
        status, said = statements.BY_NAME["accept"].run(house)
        assert status == 0, said
        assert house.line.was_struck.is_set()
        return house.finish()


def mail_that_is_brought_over(hall: Hall) -> list[str]:
    """Killed at any statement of the forwarder: nothing is lost, nothing comes twice."""
    return statements.sweep(hall, ["forward"], sample=24, first_only=True).breaches


# --- Crashes of the server ---------------------------------------------------------------------


def a_yes_before_a_crash(hall: Hall) -> list[str]:
    """What was accepted is there after a crash of the server that follows at once."""
    with hall.house() as house:
        house.use(house.url)
        status, said = statements.BY_NAME["accept, a group"].run(house)
        hall.server.restart(signal.SIGQUIT)
        assert status == 0, said
        return house.finish()


def a_mark_before_a_crash(hall: Hall) -> list[str]:
    """The end of the data went out, then worker and server die: the message is in doubt."""
    mine = _Gate(faults.drop())
    with hall.house() as house:
        house.accept()
        house.execute("CHECKPOINT")
        with _relay(house, {".": [mine]}):
            sender = _start(house)
            mine.await_client()
            sender.kill()
            sender.wait()
            hall.server.restart(signal.SIGQUIT)
            mine.opened.set()
        return house.finish()


# --- Clocks and callers ------------------------------------------------------------------------


def hosts_whose_clocks_differ(hall: Hall) -> list[str]:
    """A host an hour behind sends what is due; what one an hour ahead defers is due in time."""
    found = []
    with hall.house() as house:
        house.world.setting("retryschedule", "60")
        message_id = house.accept([LATER])
        hall.zygote.run(house.world.root, "send", offset=_HOUR)
        _, message = house.store.read(message_id)
        wait = message.next_attempt - house.store.clock()
        if not 0 < wait <= 60:
            found.append(f"a host an hour ahead tries again in {wait:.0f} seconds, not in 60")
        house.execute(
            "UPDATE picoqmail.message SET due = due - 120,"  # noqa: S608 - two numbers
            " sidecar = convert_to(replace(convert_from(sidecar, 'UTF8'),"
            f" '{message.next_attempt}', '{message.next_attempt - 120}'), 'UTF8')"
        )
        hall.zygote.run(house.world.root, "cron", offset=-_HOUR)
        _, message = house.store.read(message_id)
        if message.attempts != 2:
            found.append(f"a host an hour behind made {message.attempts} attempts, not 2")
        return found + house.finish()


_ROLLS_BACK = """
import sys
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
import psycopg
import picoqmail
with psycopg.connect(sys.argv[2]) as connection:
    picoqmail.enqueue(b"X-Token: no\\n\\n", "a@here.test", ["b@there.test"], connection=connection)
    connection.rollback()
"""


def a_caller_that_rolls_back(hall: Hall) -> list[str]:
    """Nothing of its mail is left."""
    with hall.house() as house:
        url = house.url.partition("&lease")[0]
        house.world.run([sys.executable, "-I", "-c", _ROLLS_BACK, hall.programs.copy, url])
        left = house.store.names()
        return [f"rolled back, and accepted: {left}"] if left else []


MISTAKES: Sequence[DatabaseMistake] = (
    DatabaseMistake(
        "no fencing: the mark of doubt goes to a message that another worker has",
        "    SET doubt = true, leased_until = clock_timestamp() + %(lease)s * interval '1 second'\n"
        "    WHERE id = %(id)s AND fence = %(fence)s RETURNING id\n",
        "    SET doubt = true, leased_until = clock_timestamp() + %(lease)s * interval '1 second'\n"
        "    WHERE id = %(id)s RETURNING id\n",
        a_worker_that_was_stopped,
    ),
    DatabaseMistake(
        "the mark of doubt finds no row, and the end of the data goes out",
        '        if not self._leases.connections.run("mark the message", _MARK, values,'
        " durable=True):\n            raise self._leases.lost(lease)\n",
        '        self._leases.connections.run("mark the message", _MARK, values, durable=True)\n',
        a_worker_that_was_stopped,
    ),
    DatabaseMistake(
        "no fencing: the record of a worker that has lost its lease",
        "        WHERE id = %(id)s AND fence = %(fence)s\n"
        "        RETURNING id\n    ), gone AS (\n        DELETE FROM picoqmail.progress",
        "        WHERE id = %(id)s\n"
        "        RETURNING id\n    ), gone AS (\n        DELETE FROM picoqmail.progress",
        a_record_of_a_worker_that_was_stopped,
    ),
    DatabaseMistake(
        "a message is claimed that another worker has",
        "            AND (leased_until <= clock_timestamp() OR fence = %(fence)s)\n",
        "",
        a_message_that_a_worker_has,
    ),
    DatabaseMistake(
        "leases are not renewed",
        "                self.renew()\n",
        "                pass\n",
        a_lease_of_a_slow_worker,
    ),
    DatabaseMistake(
        "no ledger of the IDs that arrived",
        "        ON CONFLICT (id) DO NOTHING RETURNING id\n    )\n"
        "    INSERT INTO picoqmail.message",
        "        ON CONFLICT (id) DO UPDATE SET forgotten_at = excluded.forgotten_at"
        " RETURNING id\n    )\n    INSERT INTO picoqmail.message",
        a_forwarder_that_is_killed,
    ),
    DatabaseMistake(
        "the forwarder removes before it commits",
        "    target.bring_in(_due_by(target, claim.message), claim.state, claim, result)\n"
        "    source.hand_over(claim)\n",
        "    source.hand_over(claim)\n"
        "    target.bring_in(_due_by(target, claim.message), claim.state, claim, result)\n",
        mail_that_is_brought_over,
    ),
    DatabaseMistake(
        "nobody asks whether a message was committed before it is put in again",
        "            if is_repeated and transaction.run(",
        "            if not is_repeated and transaction.run(",
        an_answer_that_is_lost,
    ),
    DatabaseMistake(
        "asynchronous commit",
        '_DURABLE = "SET LOCAL synchronous_commit = on; "\n',
        '_DURABLE = "SET LOCAL synchronous_commit = off; "\n',
        a_yes_before_a_crash,
        crashes=True,
    ),
    DatabaseMistake(
        "the mark of doubt is not durable",
        '"mark the message", _MARK, values, durable=True)',
        '"mark the message", _MARK, values)',
        a_mark_before_a_crash,
        crashes=True,
    ),
    DatabaseMistake(
        "the time is that of the host",
        "        return time.time() if offset is None else _uptime() + offset\n",
        "        return time.time()\n",
        hosts_whose_clocks_differ,
    ),
    DatabaseMistake(
        "mail within a transaction is committed by itself",
        "        with connection.transaction():\n            yield connection.execute\n"
        "    else:\n        yield connection.execute\n",
        "        with connection.transaction():\n            yield connection.execute\n"
        "    else:\n        yield connection.execute\n        connection.commit()\n",
        a_caller_that_rolls_back,
    ),
)
