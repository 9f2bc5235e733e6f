"""Real file systems, cut off at some calls and after success; `python tests/proof`: at all."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from proof import tracing
from proof.device import FILE_SYSTEMS, Cutter, FileSystem, why_not
from proof.kill_sweep import Stage
from proof.planted import PLANTS, plant
from proof.scenarios import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = int(os.environ.get("PROOF_SEED", "1"))
# Images are copied at every cut; in memory a copy takes milliseconds.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


@pytest.fixture
def root() -> Iterator[str]:
    """Return a directory in memory, if there is one."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield directory


def cutter_for(stage: Stage, system: FileSystem, root: str) -> Cutter:
    """Return a cutter, or skip the test with the reason."""
    reason = why_not(system, root)
    if not reason and not tracing.is_there():
        reason = "no strace that may trace here: apt-get install strace"
    if reason:
        pytest.skip(reason)
    return Cutter(stage, system, root)


@pytest.mark.parametrize("system", FILE_SYSTEMS, ids=lambda one: one.name)
def test_a_real_file_system_cut_off_loses_nothing(root: str, system: FileSystem) -> None:
    """After the journal of the copied image was replayed, cron delivers all accepted mail."""
    with Stage(root) as stage:
        cutter = cutter_for(stage, system, root)
        cutter.sweep(BY_NAME["queue"], sample=5, seed=SEED)
        cutter.sweep(BY_NAME["enqueue_many"], sample=5, seed=SEED)
        cutter.sweep(BY_NAME["send, some refused"], sample=5, seed=SEED)
    assert [] == cutter.report.breaches
    assert 18 == cutter.report.cuts


@pytest.mark.parametrize(
    "name", ["no fsync of the directory", "no syncfs before a group's renames"]
)
def test_a_real_file_system_finds_a_missing_sync(root: str, name: str) -> None:
    """Without the sync of the directory or of a group, ext4 loses a mail right after success."""
    (bug,) = [one for one in PLANTS if one.name == name]
    with Stage(root, plant(bug, f"{root}/copy")) as stage:
        cutter = cutter_for(stage, FILE_SYSTEMS[0], root)
        cutter.sweep(BY_NAME[bug.scenario], sample=1, seed=SEED)
    assert any("LOST" in one or "stuck" in one for one in cutter.report.breaches)
