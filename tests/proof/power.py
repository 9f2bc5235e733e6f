"""Power loss: every disk state that a run may leave at every point, recovered by cron."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from attrs import define, evolve, field

from proof import invariant, tracing
from proof.disk import Disk
from proof.kill_sweep import WORKERS, Stage
from proof.operations import Operation, read_operations
from proof.world import World, read_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable

    from proof.disk import State
    from proof.scenarios import Scenario
    from proof.zygote import Zygote
    from rig.received import Received

_END_OF_DATA = b"\r\n.\r\n"
_MOST_OF_A_GROUP = 200


@define
class PowerReport:
    """The figures of the trials, and all breaches."""

    prefixes: int = 0
    states: int = 0
    repeats: int = 0
    """Messages that came twice because the session that removed them had not ended."""
    false_alarms: int = 0
    """States of disks that reorder entries where what was never accepted is told as damaged.

    Its sidecar's entry was on disk, and of its body neither that in new/ nor that in tmp/.
    """
    breaches: list[str] = field(factory=list)
    first_only: bool = False
    """One breach is enough: what comes after it is not tried."""


@define
class _Trial:
    """One disk state, with what the world knew when the power failed."""

    place: str
    state: State
    accepted: bool
    arrived: list[Received]
    ended: bool


@define
class Recording:
    """A run of a scenario as operations on a disk, with its mail at the relay."""

    template: World
    disk: Disk
    operations: list[Operation]
    arrived: list[Received]
    accepted: bool
    ids: dict[int, str] = field(factory=dict)


def record(stage: Stage, scenario: Scenario) -> Recording:
    """Run a scenario undisturbed and record it."""
    template = stage.template(scenario)
    template.setting("concurrencyremote", "1")
    world = template.clone(stage.path())
    promises = scenario.promises(world)
    disk = Disk.load(world.spool)
    output = f"{world.root}.trace"
    ran = scenario.run(world, promises, lambda command: tracing.record_command(output, command))
    assert ran.returncode in scenario.statuses, (scenario.name, ran)
    operations = read_operations(tracing.read_calls(output), world.spool)
    os.unlink(output)
    arrived = stage.moody.ledger.of(world.name)
    told = scenario.told(promises, ran)
    assert all(one.accepted for one in told), (scenario.name, ran)
    world.promises += told
    return Recording(world, disk, operations, arrived, accepted=bool(told))


def trials(
    recording: Recording, *, limit: int, most: int, seed: int, report: PowerReport
) -> list[_Trial]:
    """Yield the distinct states at every prefix of the operations, `most` for each prefix."""
    found: dict[object, _Trial] = {}
    disk = recording.disk
    sent = b""
    last = len(recording.operations)
    for number, operation in enumerate([Operation("start"), *recording.operations]):
        if operation.kind not in ("start", "sent", "heard"):
            disk.apply(operation)
        sent += operation.data if operation.kind == "sent" else b""
        arrived = recording.arrived[: sent.count(_END_OF_DATA)]
        ended = number == last
        report.prefixes += 1
        states = list(disk.states(limit=limit, seed=seed))
        if most and len(states) > most:
            states = random.Random(f"{seed} {number}").sample(states, most)  # noqa: S311 - a seeded choice
        for state in states:
            known = (state, len(arrived), ended)
            if known in found:
                if state.ordered:
                    found[known].state = state
                continue
            found[known] = _Trial(
                f"after {number} of {last} ({operation.kind} {'/'.join(operation.key)})",
                state,
                recording.accepted and ended,
                arrived,
                ended,
            )
    return list(found.values())


def sweep(
    stage: Stage,
    scenario: Scenario,
    *,
    limit: int,
    seed: int = 0,
    sample: int = 0,
    first_only: bool = False,
    step: Callable[[], None] = lambda: None,
    announce: Callable[[int], None] = lambda _total: None,
) -> PowerReport:
    """Record a scenario and try all its states, or `sample` of them with all of the last prefix."""
    report = PowerReport(first_only=first_only)
    recording = record(stage, scenario)
    # A group that is half done has many thousands of states that show nothing new.
    most = _MOST_OF_A_GROUP if scenario.messages > 1 else 0
    work = trials(recording, limit=limit, most=most, seed=seed, report=report)
    if sample and len(work) > sample:
        chance = random.Random(seed)  # noqa: S311 - a seeded choice
        ends = [one for one in work if one.ended]
        others = [one for one in work if not one.ended]
        ends = chance.sample(ends, min(len(ends), sample // 2))
        work = ends + chance.sample(others, min(len(others), sample - len(ends)))
    report.states = len(work)
    announce(len(work))
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [
            pool.submit(_try, stage, stage.zygotes[i % WORKERS], scenario, recording, trial, report)
            for i, trial in enumerate(work)
        ]
        for job in jobs:
            job.result()
            step()
    stage.forget(recording.template)
    return report


def _try(
    stage: Stage,
    zygote: Zygote,
    scenario: Scenario,
    recording: Recording,
    trial: _Trial,
    report: PowerReport,
) -> None:
    if report.first_only and report.breaches:
        return
    source = recording.template
    world = World.begin(stage.path(), stage.good.address, source.programs)
    os.system(f"rm -rf '{world.spool}'")  # noqa: S605 - a path of ours
    trial.state.materialise(world.spool)
    world.take_settings_of(source)
    world.before = source.before
    world.promises = [
        evolve(one, accepted=trial.accepted)
        if index >= len(source.promises) - _new(scenario)
        else one
        for index, one in enumerate(source.promises)
    ]
    complaints = scenario.recover(world, zygote, stage.good.address, succeeded=trial.ended)
    received = [*trial.arrived, *stage.received(world)]
    arrived_tokens = {invariant.token_of(mail.unix) for mail in trial.arrived}
    may_repeat = arrived_tokens if not trial.ended else set()
    finding = scenario.judge(world, received, may_repeat)
    breaches = complaints + finding.breaches
    if breaches and not trial.state.ordered and _is_false_alarm(breaches, world):
        report.false_alarms += 1
        breaches = []
    report.repeats += bool(finding.duplicates)
    if breaches:
        report.breaches += [
            f"{scenario.name}, power lost {trial.place}"
            f"{'' if trial.state.ordered else ', entries in any order'}: {one}"
            for one in breaches
        ]
    else:
        stage.forget(world)


def _new(scenario: Scenario) -> int:
    return scenario.messages if scenario.submits else 0


def _is_false_alarm(breaches: list[str], world: World) -> bool:
    """Say whether the only breaches are sidecars without bodies that were put aside, not accepted.

    For a report this holds if it was never tried: another report reaches its addressee, or
    `breaches` contains more than this.
    """
    told = {one.split(": ")[1] for one in breaches if one.startswith("half visible: undelivered/")}
    if not told or len(told) != len(breaches):
        return False
    harmless = {one.recipients for one in world.promises if not one.accepted}
    for name in told:
        try:
            record = cast("dict[str, Any]", read_sidecar(f"{world.spool}/{name}"))
        except ValueError:
            return False
        is_report = not record["sender"] and not record["attempts"]
        if not is_report and tuple(o["address"] for o in record["recipients"]) not in harmless:
            return False
    return True
