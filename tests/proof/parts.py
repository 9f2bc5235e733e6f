"""The parts of a whole run, and what the page says of each kind.

The rule of this module: a part is the smallest thing that is run again after an interruption. It
returns its row of the table and its breaches.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from proof import database, device, error_sweep, idling, kill_sweep, power, races, soak, statements
from proof.database_mistakes import MISTAKES as DATABASE_MISTAKES
from proof.database_mistakes import DatabaseMistake, lazy_server, notice
from proof.forwarder import forward_and_kill
from proof.kill_sweep import Stage
from proof.mistakes import MISTAKES, Mistake
from proof.page import plain
from proof.planted import PLANTS, Plant, plant
from proof.scenarios import BY_NAME, SCENARIOS, Scenario
from proof.shared import Hall
from proof.world import Programs
from rig.postgresql import PrivatePostgreSQL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proof.device import FileSystem

Found = tuple[list[str], list[str]]
"""A row, and breaches."""

# The model of a disk holds the spool and follows one process; these need more.
_NOT_MODELLED = frozenset({"queue, starting the sender", "import-config"})
POWER_SCENARIOS = tuple(one for one in SCENARIOS if one.name not in _NOT_MODELLED)
DEVICE_SCENARIOS = tuple(
    BY_NAME[name]
    for name in (
        "queue",
        "enqueue_many",
        "enqueue_many, with keys",
        "prepare and commit",
        "send",
        "send, some refused",
        "send, too many failures to report",
        "send, 231 recipients",
        "send, from the drop",
        "send, one breaks the relay",
        "cron",
        "cron, a digest is due",
        "cron, after a crash",
        "cron, after a restore",
        "cron, old failures",
        "hold",
        "release",
        "retry, later",
        "requeue",
        "delete",
        "check --repair, after a crash",
    )
)
# Of the fleet, the trial that takes longest.
FLEET_SECONDS = 600
FORWARDER_KILLS = 60
# Less than the queue's lifetime: a clock that jumps further would rightly expire messages.
JUMP_SECONDS = 300000.0
_CROWDS: tuple[tuple[str, bool, tuple[float, ...]], ...] = (
    ("one host", False, ()),
    ("each process number 1 of its own PID namespace", True, ()),
    ("cron with a clock that jumps by days", False, (0, JUMP_SECONDS, -JUMP_SECONDS)),
)
_LONG_STEPS = "ramfs, where time has long steps"
_IDLE = ("that of this run", _LONG_STEPS)


@frozen
class Size:
    """How much is tried. All of it, or with `quick` a sample that `seed` chooses."""

    quick: bool
    seed: int
    soak_seconds: int

    def sample(self, quick: int) -> int:
        """Return how many are tried of many: `quick` of them, or 0 for all."""
        return quick if self.quick else 0

    @property
    def seconds(self) -> int:
        """Return for how long a crowd runs."""
        return 5 if self.quick else 45

    def __str__(self) -> str:
        """Name it."""
        return f"seed {self.seed}" if self.quick else "all"


@frozen
class Bar:
    """What a part says of how far it is."""

    announce: Callable[[int], None] = lambda _total: None
    step: Callable[[], None] = lambda: None


@frozen
class Part:
    """One part: `run` takes a directory of its own and a bar; `size` is its size if it has one."""

    name: str
    run: Callable[[str, Bar], Found]
    size: str = ""


@frozen
class Kind:
    """The parts of one kind, and their section of the page."""

    name: str
    title: str
    text: str
    head: tuple[str, ...]
    parts: Sequence[Part] = field(factory=list)


def kinds(size: Size) -> list[Kind]:
    """Return everything that a whole run consists of."""
    return [
        Kind(
            "planted",
            "Planted bugs",
            "Bugs are planted into a copy of the package; the trials must find each of them.",
            ("Planted bug", "Found by", "Program", "First breach"),
            [
                *[Part(bug.name, partial(_planted, bug)) for bug in PLANTS],
                *[Part(one.name, partial(_mistake, one)) for one in MISTAKES],
            ],
        ),
        Kind(
            "kill",
            "Killed at every call",
            "The program gets SIGKILL before each system call that concerns the home or the relay. "
            "One ordinary cron run recovers the spool. *Twice* counts recipients that got a mail "
            "twice; the log marks each of them as `in_doubt`, unless an old copy was restored.",
            ("Program", "Points", "Missed", "Twice", "Lost or altered"),
            [Part(one.name, partial(_kill, size, one)) for one in SCENARIOS],
        ),
        Kind(
            "errors",
            "An error at every call",
            "Each call on the home fails once with each error that it can return, of "
            f"{', '.join(error_sweep.ERRORS)}. "
            "Success requires three good fsyncs (message, sidecar, directory); a group may replace "
            "the first two by one syncfs. A failure leaves nothing behind, has the right exit "
            "code, and is explained in a line. The spool is usable afterwards.",
            ("Program", "Errors", "Missed", "Refused", "Breaches"),
            [Part(one.name, partial(_errors, size, one)) for one in SCENARIOS],
        ),
        Kind(
            "power",
            "Power loss, modelled",
            "Tried are all states that a disk may be in after every operation of a recorded run. "
            "Data that were not fsynced may be missing, empty, cut or zeros. Directory entries "
            "that were not fsynced may be old or new, in any order: where there are more than "
            "64 such combinations after one operation, 64 of them, and those that a journal can "
            "leave. *Repeats* counts states in "
            "which a mail came twice because the run that delivered it had not ended. *False "
            "alarms* counts states in which a mail that was never accepted is put aside as "
            "damaged; they need a disk that reorders directory entries.",
            ("Program", "Operations", "States", "Repeats", "False alarms", "Lost"),
            [Part(one.name, partial(_power, size, one)) for one in POWER_SCENARIOS],
        ),
        Kind(
            "device",
            "Power loss, on real file systems",
            "A loop-mounted image is copied at the moment when the program dies before a call that "
            "writes or sends, and after success. Then the copy is mounted, its journal is "
            "replayed, and its spool is recovered.",
            ("File system and program", "Cuts", "Repeats", "Lost"),
            [
                Part(f"{system.name}: {one.name}", partial(_device, size, system, one))
                for system in device.FILE_SYSTEMS
                for one in DEVICE_SCENARIOS
            ],
        ),
        Kind(
            "races",
            "Races",
            "Queue programs, senders and cron runs share one spool and are killed at random, while "
            "the relay fails at random. In the end all accepted mail must have arrived unaltered.",
            ("Crowd", "Programs", "Killed", "Accepted", "Delivered", "Twice, marked", "Breaches"),
            [Part(one[0], partial(_races, size, *one)) for one in _CROWDS],
        ),
        Kind(
            "idle",
            "Idle runs",
            "An idle run notes that nothing is due, while another process changes the spool. No "
            "change may hide behind a note.",
            ("File system", "Notes", "Made void by a change", "Hidden changes"),
            [Part(one, partial(_idle, size, one)) for one in _IDLE],
        ),
        Kind(
            "soak",
            "Soak",
            "The same crowd, in a home whose administrator does everything that he can do, at "
            "random: hold, release, retry, requeue, delete, purge, `check --repair`, reinstall the "
            "package, restore a copy of the spool. His commands are killed at random, too. By "
            "Message-ID: what was accepted was delivered, is stored, or was removed by name; it "
            "came twice only if it is marked as in doubt, or an old copy of it was restored.",
            soak.HEAD,
            [Part(soak.NAME, partial(_soak, size), f"{size.soak_seconds} seconds")],
        ),
        Kind(
            "database",
            "A database",
            "The same promise where PostgreSQL keeps the mail. Programs are killed, and their "
            "lines cut, before each statement and before its answer; a forwarder is killed again "
            "and again while the server is restarted; and a fleet on three hosts, the clocks of "
            "two of them an hour off, meets everything at random: kills, suspensions, lines that "
            "go silent, crashes of the server, a full disk, callers that roll back. Bugs are "
            "planted here, too.",
            ("Trial", "Tried", "Missed", "Twice, marked", "What befell, or the first breach"),
            [
                *[
                    Part(f"at every statement: {one.name}", partial(_statements, size, one))
                    for one in statements.JOURNEYS
                ],
                Part("the forwarder, killed again and again", partial(_forwarder, size)),
                Part("a fleet", partial(_fleet, size)),
                *[
                    Part(f"planted: {one.name}", partial(_database_mistake, one))
                    for one in DATABASE_MISTAKES
                ],
            ],
        ),
    ]


def _row(*cells: object) -> list[str]:
    return [str(cell) for cell in cells]


def _planted(bug: Plant, root: str, _bar: Bar) -> Found:
    where = f"{root}/{bug.scenario}"
    if bug.found_by == "idle" and (reason := idling.why_not(where)):
        return _row(bug.name, bug.found_by, bug.scenario, f"not tried: {reason}"), []
    with Stage(root, plant(bug, f"{root}/copy")) as stage:
        if bug.found_by == "idle":
            found = idling.find(where, stage.programs.copy).breaches
        elif bug.found_by == "power":
            found = power.sweep(
                stage, BY_NAME[bug.scenario], limit=32, sample=2000, first_only=True
            ).breaches
        else:
            found = kill_sweep.sweep(stage, [bug.scenario], sample=2000, first_only=True).breaches
    breaches = [] if found else [f"the planted bug '{bug.name}' was not found"]
    first = found[0].rpartition("/spool/")[2] if found else "NOTHING"
    return _row(bug.name, bug.found_by, bug.scenario, plain(first)), breaches


def _mistake(mistake: Mistake, root: str, _bar: Bar) -> Found:
    """Run the trial of a mistake on the programs as they are, and on a copy that has it."""
    os.mkdir(f"{root}/as they are")
    with Stage(f"{root}/as they are") as stage:
        breaches = mistake.trial(stage)
    with Stage(root, plant(mistake.plant, f"{root}/copy")) as stage:
        found = mistake.trial(stage)
    if not found:
        breaches = [*breaches, f"the mistake '{mistake.name}' was not found"]
    trial = mistake.trial.__name__.replace("_", " ")
    return _row(
        mistake.name, "a trial of its own", trial, plain((found or ["NOTHING"])[0])
    ), breaches


def _kill(size: Size, scenario: Scenario, root: str, bar: Bar) -> Found:
    with Stage(root) as stage:
        report = kill_sweep.sweep(
            stage,
            [scenario.name],
            sample=size.sample(15),
            seed=size.seed,
            announce=bar.announce,
            step=bar.step,
        )
    figures = report.total, report.missed, report.duplicates, len(report.breaches)
    return _row(scenario.name, *figures), report.breaches


def _errors(size: Size, scenario: Scenario, root: str, bar: Bar) -> Found:
    with Stage(root) as stage:
        report = error_sweep.sweep(
            stage,
            [scenario.name],
            sample=size.sample(15),
            seed=size.seed,
            announce=bar.announce,
            step=bar.step,
        )
    figures = report.total, report.missed, report.refused, len(report.breaches)
    return _row(scenario.name, *figures), report.breaches


def _power(size: Size, scenario: Scenario, root: str, bar: Bar) -> Found:
    with Stage(root) as stage:
        report = power.sweep(
            stage,
            scenario,
            limit=64,
            sample=size.sample(60),
            seed=size.seed,
            announce=bar.announce,
            step=bar.step,
        )
    counts = report.prefixes - 1, report.states, report.repeats, report.false_alarms
    return _row(scenario.name, *counts, len(report.breaches)), report.breaches


def _device(size: Size, system: FileSystem, scenario: Scenario, _root: str, bar: Bar) -> Found:
    # In memory, because images are copied at every cut.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    name = f"{system.name}: {scenario.name}"
    with tempfile.TemporaryDirectory(dir=memory) as root, Stage(root) as stage:
        reason = device.why_not(system, root)
        if reason:
            return _row(name, f"skipped: {reason}"), []
        cutter = device.Cutter(stage, system, root)
        cutter.sweep(
            scenario, sample=size.sample(4), seed=size.seed, announce=bar.announce, step=bar.step
        )
    report = cutter.report
    return _row(name, report.cuts, report.repeats, len(report.breaches)), report.breaches


def _races(
    size: Size,
    name: str,
    namespaces: bool,  # noqa: FBT001 - of a table
    jumps: tuple[float, ...],
    root: str,
    bar: Bar,
) -> Found:
    if namespaces and not races.namespaces_work():
        return _row(name, "skipped: no PID namespaces here"), []
    bar.announce(1)
    with Stage(root) as stage:
        found = races.race(
            stage, seconds=size.seconds, seed=size.seed, namespaces=namespaces, jumps=jumps
        )
    bar.step()
    figures: tuple[Any, ...] = found.programs, found.killed, found.accepted, found.delivered
    return _row(name, *figures, found.duplicates, len(found.breaches)), found.breaches


def _idle(size: Size, name: str, root: str, _bar: Bar) -> Found:
    where = f"{root}/spools"
    with contextlib.ExitStack() as mounted:
        if name == _LONG_STEPS:
            if reason := idling.why_not(where):
                return _row(name, f"skipped: {reason}"), []
            mounted.enter_context(idling.long_steps(where))
        else:
            os.mkdir(where)
        report = idling.race(f"{where}/race", size.seconds)
    return _row(name, report.noted, report.void, report.hidden), report.breaches


def _soak(size: Size, root: str, bar: Bar) -> Found:
    with Stage(root) as stage:
        report = soak.soak(
            stage, seconds=size.soak_seconds, seed=size.seed, announce=bar.announce, step=bar.step
        )
    return report.row(), report.breaches


def _statements(size: Size, journey: statements.Journey, root: str, bar: Bar) -> Found:
    with Hall(root) as hall:
        report = statements.sweep(
            hall,
            [journey.name],
            sample=size.sample(8),
            seed=size.seed,
            announce=bar.announce,
            step=bar.step,
        )
    figures = report.points, report.missed, report.duplicates
    return _row(f"at every statement: {journey.name}", *figures), report.breaches


def _forwarder(size: Size, root: str, bar: Bar) -> Found:
    kills = 10 if size.quick else FORWARDER_KILLS
    bar.announce(kills)
    with lazy_server() as server, Hall(root, Programs(), server) as hall:
        report = forward_and_kill(
            hall, kills=kills, restarts=kills // 5, seed=size.seed, step=bar.step
        )
    befell = f"{report.messages} messages, {report.restarts} restarts of the server"
    return _row(
        "the forwarder, killed again and again", report.kills, 0, report.duplicates, befell
    ), report.breaches


def _fleet(size: Size, _root: str, bar: Bar) -> Found:
    bar.announce(1)
    books, breaches = database.search(10 if size.quick else FLEET_SECONDS, size.seed)
    bar.step()
    befell = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in books.befell.items())
    told = f"{len(books.acknowledged)} accepted, {len(books.rolled_back)} rolled back"
    twice = books.befell["came twice, in doubt"]
    return _row("a fleet", books.last, 0, twice, f"{told}; {befell}"), breaches


def _database_mistake(mistake: DatabaseMistake, root: str, _bar: Bar) -> Found:
    """Run the trial of a mistake on the programs as they are, and on a copy that has it."""
    os.mkdir(f"{root}/as they are")
    with lazy_server() if mistake.crashes else PrivatePostgreSQL() as server:
        with Hall(f"{root}/as they are", Programs(), server) as hall:
            breaches = mistake.trial(hall)
        copy = plant(mistake.plant, f"{root}/copy", compiled=False)
        with Hall(f"{root}/copy", copy, server) as hall:
            found = notice(mistake, hall)
    if not found:
        breaches = [*breaches, f"the mistake '{mistake.name}' was not found"]
    first = plain((found or ["NOTHING"])[0])
    return _row(f"planted: {mistake.name}", 1, 0, 0, first), breaches
