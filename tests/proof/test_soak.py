"""The soak for some seconds; `python tests/proof` runs it for an hour."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from proof.soak import soak

if TYPE_CHECKING:
    from proof.kill_sweep import Stage

SEED = int(os.environ.get("PROOF_SEED", "1"))
SECONDS = 15


@pytest.mark.slow
def test_an_administrator_at_work_loses_no_mail(stage: Stage) -> None:
    """Commands, copies, restores and new installations beside a crowd that is killed at random."""
    report = soak(stage, seconds=SECONDS, seed=SEED)
    assert [] == report.breaches
    assert report.accepted > 0
    assert report.delivered > 0
    assert report.killed > 0
    assert sum(report.commands.values()) > 0
