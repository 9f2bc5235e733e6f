"""Tests of the trials: bugs planted into a copy of the package, each of which must be found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proof import idling, kill_sweep, power, tracing
from proof.kill_sweep import Stage
from proof.planted import PLANTS, Plant, plant
from proof.scenarios import BY_NAME
from rig.programs import missing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("bug", PLANTS, ids=lambda one: one.name)
def test_a_planted_bug_is_found(tmp_path: Path, bug: Plant) -> None:
    """The sweep for this kind of bug reports a breach."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    programs = plant(bug, str(tmp_path / "copy"))
    if bug.found_by == "idle":
        if reason := idling.why_not(str(tmp_path / bug.scenario)):
            missing(reason)
        assert idling.find(str(tmp_path / bug.scenario), programs.copy).breaches
        return
    with Stage(str(tmp_path), programs) as stage:
        assert find(stage, bug)


def find(stage: Stage, bug: Plant) -> list[str]:
    """Return the breaches of the bug's sweep; the sample grows until there are any."""
    scenario = BY_NAME[bug.scenario]
    if bug.found_by == "power":
        return power.sweep(stage, scenario, limit=32, sample=2000, first_only=True).breaches
    # Samples leave out calls that only read, because a kill before such a call shows nothing.
    return kill_sweep.sweep(stage, [bug.scenario], sample=2000, first_only=True).breaches
