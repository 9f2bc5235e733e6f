"""Power loss: a seeded sample of the states, and tests of the model itself."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from picoqmail import Mail, Receipt, Spool
from proof import power, tracing
from proof.disk import Disk
from proof.kill_sweep import Stage
from proof.operations import Operation
from proof.scenarios import BY_NAME
from proof.world import World, read_sidecar
from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED = int(os.environ.get("PROOF_SEED", "1"))
FILE = ("tmp", "a")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Yield relays and zygotes, and a directory for the homes."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    with Stage(str(tmp_path_factory.mktemp("power"))) as started:
        yield started


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("queue", 0),
        ("inject", 0),
        ("enqueue_many", 100),
        ("enqueue_many, with keys", 100),
        ("enqueue_many, few", 60),
        ("send", 60),
        ("send, some refused", 100),
        ("cron", 60),
        ("send, from the drop", 60),
        ("prepare and commit", 40),
        ("send, after runs that died", 20),
        ("send, one breaks the relay", 30),
        ("send, too many failures to report", 40),
        ("cron, a digest is due", 40),
        ("cron, after a crash", 40),
        ("cron, after a restore", 30),
        ("cron, old failures", 30),
        ("hold", 40),
        ("release", 40),
        ("retry, later", 30),
        ("retry, now", 30),
        ("requeue", 40),
        ("delete", 0),
        ("purge", 0),
        ("check --repair, after a crash", 40),
        ("check --repair, after a restore", 30),
        ("queue, starting the sender", 0),
        ("sendmail, starting the sender", 0),
    ],
)
def test_power_lost_anywhere_loses_nothing(stage: Stage, name: str, sample: int) -> None:
    """Whatever a disk may contain after any operation, cron delivers all accepted mail."""
    report = power.sweep(stage, BY_NAME[name], limit=64, sample=sample, seed=SEED)
    assert [] == report.breaches
    assert report.states >= (sample or 20)


@pytest.mark.parametrize("name", ["enqueue_many, with keys", "enqueue_many, few"])
def test_a_second_try_with_the_same_keys_after_power_loss_adds_nothing(
    stage: Stage, tmp_path: Path, name: str
) -> None:
    """Whatever a journal leaves, a second call with the same key never accepts the mail twice.

    A disk that keeps half a rename is excluded: there the sidecar has no name, as if the message
    had been delivered.
    """
    scenario = BY_NAME[name]
    recording = power.record(stage, scenario)
    report = power.PowerReport()
    work = power.trials(recording, limit=16, most=30, seed=SEED, report=report)
    promises = recording.template.promises
    keyed = promises[::2]
    several = [
        Mail(one.body, one.sender, one.recipients, idempotency_key=one.token) for one in keyed
    ]
    ordered = [one for one in work if one.state.ordered]
    assert len(ordered) >= 60
    repeats = 0
    for number, trial in enumerate(random.Random(SEED).sample(ordered, min(len(ordered), 200))):  # noqa: S311 - a seeded choice
        world = World.begin(str(tmp_path / f"{number}"), stage.good.address)
        shutil.rmtree(world.spool)
        trial.state.materialise(world.spool)
        results = Spool(world.root, send=False).enqueue_many(several)
        assert [] == [one for one in results if isinstance(one, Exception)], trial.place
        repeats += sum(one.repeated for one in results if isinstance(one, Receipt))
        visible = [one["sender"] for one in map(read_sidecar, world.sidecars("new"))]
        for one in keyed:
            assert 1 == visible.count(one.sender), (trial.place, one)
        world.destroy()
    assert repeats
    stage.forget(recording.template)


def states_after(*operations: Operation) -> set[tuple[tuple[str, ...], tuple[bytes, ...]]]:
    """Return the states of the model after these operations: names, and contents by name."""
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return {
        (
            tuple("/".join(key) for key, _ in state.entries),
            tuple(dict(state.data)[inode] for _, inode in state.entries),
        )
        for state in disk.states(limit=1000, seed=0)
    }


def test_an_unsynced_file_may_be_anything() -> None:
    """Without fsync there is no file, or it is empty, cut, zeros, or whole."""
    assert {
        ((), ()),
        (("tmp/a",), (b"",)),
        (("tmp/a",), (b"ab",)),
        (("tmp/a",), (b"\0\0\0\0",)),
        (("tmp/a",), (b"abcd",)),
    } == states_after(
        Operation("open", FILE, handle=1), Operation("write", FILE, data=b"abcd", handle=1)
    )


def test_syncfs_makes_all_durable_at_once() -> None:
    """Data and names of all files are durable after syncfs; later changes stay uncertain."""
    written = (
        Operation("open", FILE, handle=1),
        Operation("write", FILE, data=b"abcd", handle=1),
        Operation("syncfs"),
    )
    assert {(("tmp/a",), (b"abcd",))} == states_after(*written)
    assert {(("tmp/a",), (b"abcd",)), (("new/a", "tmp/a"), (b"abcd", b"abcd"))} == states_after(
        *written, Operation("link", FILE, ("new", "a"))
    )


def test_a_synced_file_may_still_have_no_name() -> None:
    """Fsync of a file does not make its entry durable; fsync of the directory does."""
    written = (
        Operation("open", FILE, handle=1),
        Operation("write", FILE, data=b"abcd", handle=1),
        Operation("sync", FILE, handle=1),
    )
    assert {((), ()), (("tmp/a",), (b"abcd",))} == states_after(*written)
    assert {(("tmp/a",), (b"abcd",))} == states_after(*written, Operation("syncdir", ("tmp", "")))


def test_a_rename_across_directories_may_have_happened_in_one_of_them() -> None:
    """After a rename that was not synced, both names, one of them, or none may exist."""
    assert {("tmp/a",), ("new/a",), ("new/a", "tmp/a"), ()} == {
        names
        for names, _ in states_after(
            Operation("open", FILE, handle=1),
            Operation("sync", FILE, handle=1),
            Operation("syncdir", ("tmp", "")),
            Operation("rename", FILE, ("new", "a")),
        )
    }


def test_a_replaced_file_may_be_the_old_one() -> None:
    """A rename over a name that was not synced leaves the old or the new content, no other."""
    assert {(b"old",), (b"new",)} == {
        contents
        for names, contents in states_after(
            Operation("open", FILE, handle=1),
            Operation("write", FILE, data=b"old", handle=1),
            Operation("sync", FILE, handle=1),
            Operation("syncdir", ("tmp", "")),
            Operation("open", ("cur", "b"), handle=2),
            Operation("write", ("cur", "b"), data=b"new", handle=2),
            Operation("sync", ("cur", "b"), handle=2),
            Operation("rename", ("cur", "b"), FILE),
        )
        if names == ("tmp/a",)
    }
