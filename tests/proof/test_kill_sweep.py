"""A seeded sample of the kill sweep; `python tests/proof` runs it all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from proof import tracing
from proof.kill_sweep import Stage, sweep
from proof.scenarios import SCENARIOS
from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = 8
SEED = int(os.environ.get("PROOF_SEED", "1"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Relays and zygotes, and a place for the homes."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    with Stage(str(tmp_path_factory.mktemp("kill"))) as started:
        yield started


@pytest.mark.parametrize("name", [one.name for one in SCENARIOS])
def test_killed_anywhere_loses_nothing_and_halves_nothing(stage: Stage, name: str) -> None:
    """Whatever call a program dies before, cron delivers all accepted mail, once or marked."""
    report = sweep(stage, [name], sample=SAMPLE, seed=SEED)
    assert [] == report.breaches
    assert SAMPLE == report.total
    # A point that was not reached proves nothing; times and random names move a few points.
    assert report.missed <= 2
    assert [] == stage.good.complaints
