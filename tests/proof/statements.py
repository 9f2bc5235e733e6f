"""Killed, or cut off, at every statement: before the server has it, and before its answer comes.

Each trial runs one program by way of a line that knows where statements begin and end. Then
ordinary programs deliver what is left, and the books are compared.
"""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from picoqmail import Mail, Spool
from picoqmail.home.paths import Home
from picoqmail.store.moving import move
from proof.kill_sweep import sampled
from proof.shared import at, kill
from proof.spools import LATER, NEVER
from rig.statement_line import Strike

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proof.shared import Hall, House

# Over what is held until the commit, and over what one row takes.
_LARGE_OCTETS = 2_300_000
_TWO_CHUNKS_OCTETS = 300_000


@frozen
class Journey:
    """A program that is struck: `prepare` fills its home and database, `run` runs it.

    `run` returns its exit code, and what it said. Of what it was given with `submits`, it told in
    `world.promises` what it has accepted. `statuses` are good exit codes.
    """

    name: str
    run: Callable[[House], tuple[int, str]]
    prepare: Callable[[House], None] = lambda _house: None
    statuses: frozenset[int] = frozenset({0})
    must_accept: bool = False
    """Whether all is accepted although the line is cut once."""


def _submits(
    house: House, *flags: str, count: int = 1, octets: int = 0, keyed: bool = False
) -> tuple[int, str]:
    """Have many.py submit messages; note what it reports as accepted."""
    world = house.world
    promises = [world.promise((), octets, ahead) for ahead in range(count)]
    handed = [
        [one.body.decode("latin-1"), one.sender, one.recipients, one.token if keyed else None]
        for one in promises
    ]
    command = [*world.programs.command("many"), *flags]
    ran = world.run(command, message=json.dumps(handed).encode())
    told = json.loads(ran.stdout or b"[]")
    told = told if len(told) == count else [False] * count
    world.promises += [
        evolve(one, accepted=bool(yes)) for one, yes in zip(promises, told, strict=True)
    ]
    return ran.returncode, ran.stderr.decode(errors="replace")


def _accept_again(house: House) -> tuple[int, str]:
    """Have a message accepted with a key, and once more with that key, if the first time failed."""
    status, said = _submits(house, keyed=True)
    if status not in (0, -signal.SIGKILL):
        return status, said
    promise = house.world.promises[-1]
    mail = Mail(promise.body, promise.sender, promise.recipients, idempotency_key=promise.token)
    (outcome,) = Spool(Home(house.world.root, database=house.url), send=False).enqueue_many([mail])
    if isinstance(outcome, Exception):
        return 1, f"the second call with the key: {outcome}"
    house.world.promises[-1] = evolve(promise, accepted=True)
    return status, said


def _within(house: House) -> tuple[int, str]:
    url = re.sub("&lease=[^&]*", "", house.line.url(house.url))
    return _submits(house, "--within", url, count=2)


def _some(house: House) -> None:
    """Prepare mail that the relay takes, refuses for now, and refuses for good; and a large one."""
    house.accept()
    house.accept(["a@there.test", LATER])
    house.accept([NEVER])
    house.accept(octets=_TWO_CHUNKS_OCTETS)


def _deferred(house: House) -> None:
    """Prepare the same, tried once, and due again; leases that ran out, and what a death left."""
    house.use(house.url)
    _some(house)
    house.run("send")
    house.use(house.line.url(house.url))
    message_id = house.accept()
    claim = house.store.claim(message_id, in_hand=True)
    assert claim is not None
    claim.mark_in_doubt()
    house.store.close()
    house.expire_leases()
    house.accept()


def _local(house: House) -> None:
    """Prepare mail in the host's directory, as if the database had been away."""
    for octets in (0, _TWO_CHUNKS_OCTETS, 0):
        house.world.accept(octets=octets)
    house.accept()


def _moved_in(house: House) -> None:
    """Prepare mail in the database that came from the directory."""
    _local(house)
    move(house.here, house.store)


def _move_out(house: House) -> tuple[int, str]:
    return house.run("main", "move", "--to", house.world.spool)


def _move_in(house: House) -> tuple[int, str]:
    # The home's own store is its directory.
    url = house.line.url(house.url)
    os.unlink(f"{house.world.root}/control/spool")
    status = house.run("main", "move", "--to", url)
    house.use(url)
    return status


def _held(house: House) -> None:
    message_id = house.accept()
    house.accept([LATER])
    claim = house.store.claim(message_id)
    assert claim is not None
    house.store.change(claim, "held", "held", held=True)
    claim.release()


def _administer(house: House) -> tuple[int, str]:
    """Hold all, release all, and have all retried now."""
    for words in (("hold", "--all", "--yes"), ("release", "--all"), ("retry", "--all", "--later")):
        status, said = house.run("main", *words)
        if status:
            return status, said
    return 0, ""


# 75: something was deferred; 69: something failed for good; 74: an error with the store.
_SENT = frozenset({0, 69, 75})

JOURNEYS: Sequence[Journey] = (
    Journey("accept", _submits, must_accept=True),
    Journey("accept, large", lambda house: _submits(house, octets=_LARGE_OCTETS), must_accept=True),
    Journey("accept, a group", lambda house: _submits(house, count=5), must_accept=True),
    Journey("accept, with a key", _accept_again),
    Journey("prepare and commit", lambda house: _submits(house, "--prepared", count=3)),
    Journey("within a transaction", _within),
    Journey("send", lambda house: house.run("send"), _some, _SENT),
    Journey("cron", lambda house: house.run("cron"), _deferred),
    Journey("forward", lambda house: house.run("cron"), _local),
    Journey("move in", _move_in, _local),
    Journey("move out", _move_out, _moved_in),
    Journey("hold, release, retry", _administer, _held),
)
BY_NAME = {one.name: one for one in JOURNEYS}


@frozen
class Point:
    """Where a program is struck, and how: killed, or only its line cut."""

    number: int
    text: str
    answered: bool
    kills: bool

    def __str__(self) -> str:
        """Name it for people."""
        how = "killed" if self.kills else "cut off"
        when = "before the answer to" if self.answered else "before"
        return f"{how} {when} statement {self.number} ({' '.join(self.text.split())[:60]})"


@define
class StatementReport:
    """The figures of a sweep, and all breaches."""

    points: int = 0
    missed: int = 0
    duplicates: int = 0
    breaches: list[str] = field(factory=list)


def points_of(hall: Hall, journey: Journey) -> list[Point]:
    """Run a journey undisturbed, and return each way to strike it. Raises AssertionError."""
    with hall.house() as house:
        journey.prepare(house)
        before = len(house.line.statements)
        status, said = journey.run(house)
        assert status in journey.statuses, (journey.name, status, said)
        texts = house.line.statements[before:]
        assert [] == house.finish(may_fail=(NEVER,)), journey.name
    return [
        Point(number, text, answered, kills)
        for number, text in enumerate(texts, 1)
        for kills in (True, False)
        for answered in (False, True)
    ]


def sweep(
    hall: Hall,
    names: Sequence[str] = (),
    *,
    sample: int = 0,
    seed: int = 0,
    first_only: bool = False,
    announce: Callable[[int], None] = lambda _total: None,
    step: Callable[[], None] = lambda: None,
) -> StatementReport:
    """Strike each journey at each point, or at `sample` of all of them together."""
    report = StatementReport()
    work = [
        (journey, point)
        for journey in JOURNEYS
        if not names or journey.name in names
        for point in points_of(hall, journey)
    ]
    work = sampled(work, sample, f"{seed}")
    announce(len(work))
    for journey, point in work:
        _strike(hall, journey, point, report)
        step()
        if first_only and report.breaches:
            break
    return report


def _strike(hall: Hall, journey: Journey, point: Point, report: StatementReport) -> None:
    report.points += 1
    with hall.house() as house:
        journey.prepare(house)
        before = len(house.line.statements)
        act = kill if point.kills else _nothing
        house.line.strike = Strike(at(before + point.number), act, answered=point.answered)
        status, said = journey.run(house)
        report.missed += not house.line.was_struck.is_set()
        found = house.finish(may_fail=(NEVER,))
        if not point.kills:
            found += _grievances(house, journey, status, said)
        report.duplicates += sum(count > 1 for count in house.arrivals().values())
    report.breaches += [f"{journey.name}, {point}: {one}" for one in found]


def _grievances(house: House, journey: Journey, status: int, said: str) -> list[str]:
    """What a program may not do because its line was cut once: die, or refuse mail for that."""
    found = []
    if status < 0 or ("Traceback" in said and journey.name != "within a transaction"):
        found.append(f"it died: {status} {said[-500:]}")
    if journey.must_accept and not all(one.accepted for one in house.world.promises):
        found.append(f"mail was refused: {status} {said[-500:]}")
    return found


def _nothing(_pid: int) -> None:
    """Let the client live."""
