"""The kill sweep: a program killed before each of its calls, then recovered by cron.

strace sends SIGKILL on entry to the call, so the call itself is not made.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, evolve, field

from proof import invariant, tracing
from proof.scenarios import MOODY, SCENARIOS
from proof.world import LedgerRelay, Programs, World
from proof.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from proof.scenarios import Scenario
    from rig.received import Received

WORKERS = 3
Item = TypeVar("Item")


@define
class Report:
    """The figures of a sweep, and all breaches."""

    tried: dict[str, int] = field(factory=dict)
    missed: int = 0
    breaches: list[str] = field(factory=list)

    @property
    def total(self) -> int:
        """The number of trials: crash points, or injected errors."""
        return sum(self.tried.values())


@define
class SweepReport(Report):
    """The figures of the kill sweep."""

    missed_places: list[str] = field(factory=list)
    duplicates: int = 0
    delivered: int = 0
    first_only: bool = False
    """One breach is enough: what comes after it is not tried."""


@define
class Stage:
    """Shared by the sweeps: two relays, a zygote for the recoveries, a directory for the homes."""

    root: str
    programs: Programs = field(factory=Programs)
    good: LedgerRelay = field(factory=LedgerRelay)
    moody: LedgerRelay = field(factory=lambda: LedgerRelay(MOODY))
    zygotes: list[Zygote] = field(factory=list)
    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))

    def __enter__(self) -> Self:
        self.good.__enter__()
        self.moody.__enter__()
        self.zygotes = [Zygote() for _ in range(WORKERS)]
        return self

    def __exit__(self, *_: object) -> None:
        for zygote in self.zygotes:
            zygote.close()
        self.moody.__exit__()
        self.good.__exit__()

    def path(self) -> str:
        """Return a path for another home."""
        return f"{self.root}/h{next(self._numbers)}"

    def template(self, scenario: Scenario) -> World:
        """Return a home that is prepared for a scenario; its clones are struck."""
        world = World.begin(self.path(), self.moody.address, self.programs)
        scenario.prepare(world, self.zygotes[0], self.moody.address)
        world.before = self.moody.ledger.of(world.name)
        return world

    def received(self, world: World) -> list[Received]:
        """Return the mail of a home at both relays."""
        ledgers = self.moody.ledger, self.good.ledger
        return world.before + [mail for one in ledgers for mail in one.of(world.name)]

    def forget(self, world: World) -> None:
        """Remove a home and its traces at the relays."""
        self.moody.ledger.forget(world.name)
        self.good.ledger.forget(world.name)
        world.destroy()


def record(stage: Stage, scenario: Scenario, template: World) -> list[tracing.Call]:
    """Return the calls of an undisturbed run. Raises AssertionError if it ends wrongly.

    The second run counts: in the first one Python may compile modules, with calls that no later run
    makes.
    """
    _calls_of_a_run(stage, scenario, template)
    return _calls_of_a_run(stage, scenario, template)


def _calls_of_a_run(stage: Stage, scenario: Scenario, template: World) -> list[tracing.Call]:
    world = template.clone(stage.path())
    output = f"{world.root}.trace"
    ran = scenario.run(
        world, scenario.promises(world), lambda command: tracing.record_command(output, command)
    )
    assert ran.returncode in scenario.statuses, (scenario.name, ran)
    calls = tracing.read_calls(output)
    os.unlink(output)
    found = [evolve(call, rest=call.rest.replace(world.root, "HOME")) for call in calls]
    stage.forget(world)
    return found


def sweep(
    stage: Stage,
    names: Sequence[str] = (),
    *,
    sample: int = 0,
    seed: int = 0,
    first_only: bool = False,
    step: Callable[[], None] = lambda: None,
    announce: Callable[[int], None] = lambda _total: None,
) -> SweepReport:
    """Kill each scenario's program at each point, or at `sample` of those that write or send."""
    report = SweepReport(first_only=first_only)
    chosen = [one for one in SCENARIOS if not names or one.name in names]
    work = []
    for scenario in chosen:
        template = stage.template(scenario)
        calls = record(stage, scenario, template)
        places = tracing.places(calls, "HOME", looking=not sample)
        places = sampled(places, sample, f"{seed} {scenario.name}")
        report.tried[scenario.name] = len(places)
        work += [(scenario, template, place) for place in places]
    strike_all(stage, work, _strike, report, announce=announce, step=step)
    return report


def sampled(items: list[Item], sample: int, seed: str) -> list[Item]:
    """Return so many of the items, the same ones for the same seed; all if `sample` is 0."""
    if not sample or sample >= len(items):
        return items
    return random.Random(seed).sample(items, sample)  # noqa: S311 - a seeded choice


def strike_all(
    stage: Stage,
    work: list[Any],
    strike: Callable[..., None],
    report: Report,
    *,
    announce: Callable[[int], None],
    step: Callable[[], None],
) -> None:
    """Make all trials, several at a time. Each item of `work` has the arguments of one."""
    announce(len(work))
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [
            pool.submit(strike, stage, stage.zygotes[i % WORKERS], *one, report)
            for i, one in enumerate(work)
        ]
        for job in jobs:
            job.result()
            step()


def _strike(
    stage: Stage,
    zygote: Zygote,
    scenario: Scenario,
    template: World,
    place: tracing.Call,
    report: SweepReport,
) -> None:
    if report.first_only and report.breaches:
        return
    world = template.clone(stage.path())
    promises = scenario.promises(world)
    ran = scenario.run(
        world, promises, lambda command: tracing.strike_command(place, "signal=KILL", command)
    )
    if ran.returncode != -signal.SIGKILL:
        report.missed += 1
        report.missed_places.append(f"{scenario.name}: {place.place} {place.rest[:60]}")
    world.promises += scenario.told(promises, ran)
    # What a crash or a restore had left before is no fault of this run.
    left = invariant.half_visible(template)
    breaches = [one for one in invariant.half_visible(world) if one not in left]
    succeeded = ran.returncode in scenario.statuses
    breaches += scenario.recover(world, zygote, stage.good.address, succeeded=succeeded)
    finding = scenario.judge(world, stage.received(world))
    breaches += finding.breaches
    report.duplicates += finding.duplicates
    report.delivered += finding.delivered
    if finding.duplicates > _most_in_doubt(scenario):
        breaches.append(f"{finding.duplicates} recipients twice: more than one message in doubt")
    if breaches:
        report.breaches += [f"{scenario.name}, killed before {place.place}: {b}" for b in breaches]
    else:
        stage.forget(world)


def _most_in_doubt(scenario: Scenario) -> int:
    """Return the recipients of the largest transaction: the most that may be in doubt."""
    return 100 if "recipients" in scenario.name else 2
