"""Mistakes that nothing noticed once: each trial finds its mistake, and nothing without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proof import tracing
from proof.kill_sweep import Stage
from proof.mistakes import MISTAKES, Mistake
from proof.planted import plant
from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRIALS = list(dict.fromkeys(one.trial for one in MISTAKES))


def breaches(stage: Stage, trial: Callable[[Stage], list[str]]) -> list[str]:
    """Return what a trial finds; skip it where the host lacks something."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    try:
        return trial(stage)
    except NotImplementedError as exc:
        missing(str(exc))
        raise


@pytest.mark.parametrize("trial", TRIALS, ids=lambda one: one.__name__)
def test_the_trial_finds_nothing_in_the_programs(
    stage: Stage, trial: Callable[[Stage], list[str]]
) -> None:
    """What each trial is about holds."""
    assert [] == breaches(stage, trial)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.name)
def test_the_trial_finds_the_mistake(tmp_path: Path, mistake: Mistake) -> None:
    """With the mistake in a copy of the package, the same trial reports a breach."""
    with Stage(str(tmp_path), plant(mistake.plant, str(tmp_path / "copy"))) as stage:
        assert breaches(stage, mistake.trial)
