"""Races for some seconds; `python tests/proof` runs them for longer, with more seeds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from proof.races import namespaces_work, race

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proof.kill_sweep import Stage

SEED = int(os.environ.get("PROOF_SEED", "1"))
SECONDS = 6
HALF_A_WEEK = 300000.0


@pytest.mark.parametrize(
    ("namespaces", "jumps"),
    [(False, ()), (True, ()), (False, (0, HALF_A_WEEK, -HALF_A_WEEK))],
    ids=["one host", "containers, everybody is process 1", "cron with a clock that jumps"],
)
def test_a_crowd_on_one_spool(stage: Stage, *, namespaces: bool, jumps: Sequence[float]) -> None:
    """Many programs at once, killed at random, with a relay that fails at random, lose no mail."""
    if namespaces and not namespaces_work():
        pytest.skip("PID namespaces (unshare --fork --pid --mount-proc) are not permitted here")
    report = race(stage, seconds=SECONDS, seed=SEED, namespaces=namespaces, jumps=jumps)
    assert [] == report.breaches
    assert report.accepted > 0
    assert report.killed > 0
    assert report.sweeps > 0
