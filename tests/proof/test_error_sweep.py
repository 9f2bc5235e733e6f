"""A seeded sample of the error sweep, and real short writes; `python tests/proof` runs it all."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.message import envelope
from picoqmail.spool.syncfs import LEAST_MESSAGES
from proof import tracing
from proof.error_sweep import WRITE_ERRORS, sweep
from proof.scenarios import SCENARIOS
from proof.world import World
from rig.programs import missing

if TYPE_CHECKING:
    from proof.kill_sweep import Stage

SEED = int(os.environ.get("PROOF_SEED", "1"))


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("queue", 40),
        ("sendmail", 20),
        ("enqueue_many", 20),
        ("enqueue_many, with keys", 12),
        ("enqueue_many, few", 12),
        ("send", 12),
        ("send, some refused", 12),
        ("cron", 12),
        ("send, from the drop", 16),
        ("prepare and commit", 20),
        ("send, after runs that died", 20),
        ("send, one breaks the relay", 10),
        ("send, too many failures to report", 12),
        ("cron, a digest is due", 12),
        ("cron, after a crash", 12),
        ("cron, after a restore", 10),
        ("cron, old failures", 10),
        ("hold", 12),
        ("release", 12),
        ("retry, later", 12),
        ("retry, now", 10),
        ("requeue", 12),
        ("delete", 12),
        ("purge", 12),
        ("check --repair, after a crash", 12),
        ("check --repair, after a restore", 12),
        ("import-config", 20),
        ("queue, starting the sender", 16),
        ("sendmail, starting the sender", 16),
    ],
)
def test_an_error_at_any_call_is_no_yes_and_no_loss(stage: Stage, name: str, sample: int) -> None:
    """Whatever call fails, the exit code and message are right, and the spool stays usable."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    report = sweep(stage, [name], sample=sample, seed=SEED)
    assert [] == report.breaches
    assert report.missed <= sample // 3


@pytest.mark.parametrize("call", ["syncfs", "fsync"])
def test_an_error_of_a_shared_sync_refuses_the_whole_group(stage: Stage, call: str) -> None:
    """A sync of a group fails, with any of its errors: no success, nothing left, no retry."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    report = sweep(stage, ["enqueue_many"], only=(call,), seed=SEED)
    assert [] == report.breaches
    assert 0 == report.missed
    assert len(WRITE_ERRORS) == report.total
    assert len(WRITE_ERRORS) * LEAST_MESSAGES == report.refused


def test_an_error_of_the_sync_of_the_keys_refuses_who_has_one(stage: Stage) -> None:
    """If the second syncfs of a group with keys fails, messages without keys are accepted."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    report = sweep(stage, ["enqueue_many, with keys"], only=("syncfs",), seed=SEED)
    assert [] == report.breaches
    assert 0 == report.missed
    assert 2 * len(WRITE_ERRORS) == report.total
    assert len(WRITE_ERRORS) * (LEAST_MESSAGES + LEAST_MESSAGES // 2) == report.refused


def test_a_lock_that_fails_is_an_error_of_the_disk(stage: Stage) -> None:
    """No lock of another process, and no unexpected exception."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    scenarios = ["send, some refused", "cron"]
    report = sweep(stage, scenarios, errors=("EIO", "ENOLCK"), only=("flock",), seed=SEED)
    assert [] == report.breaches
    assert report.missed <= report.total // 3


def test_a_look_that_fails_is_not_taken_for_an_absence(stage: Stage) -> None:
    """An error of stat(2) does not mean that a file is missing; this once lost a moving body."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    report = sweep(
        stage,
        ["send, some refused"],
        errors=("EIO",),
        only=("newfstatat",),
        sample=24,
        seed=SEED,
    )
    assert [] == report.breaches


@pytest.mark.parametrize("room", [0, 1, 100, 137, 138, 4096, 70000, 70100])
def test_a_write_that_comes_to_less_than_it_was_given(stage: Stage, room: int) -> None:
    """A write that the kernel cuts (at a file size limit) is continued; the error is reported."""
    world = World.begin(stage.path(), stage.good.address)
    promise = world.promise(octets=70000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    message, enveloped = os.memfd_create("message"), os.memfd_create("envelope")
    for descriptor, data in (
        (message, promise.body),
        (enveloped, envelope.encode_envelope(promise.sender, promise.recipients)),
    ):
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    ran = subprocess.run(
        world.programs.command("queue"),
        stdin=message,
        stdout=enveloped,
        stderr=subprocess.PIPE,
        env=world.variables(),
        preexec_fn=limit,
        check=False,
    )
    os.close(message)
    os.close(enveloped)
    assert 53 == ran.returncode
    assert b"File too large" in ran.stderr
    assert [] == [name for _, _, names in os.walk(world.spool) for name in names]


@pytest.mark.parametrize("name", ["queue", "sendmail", "enqueue_many", "enqueue_many, with keys"])
@pytest.mark.parametrize("call", ["unlink", "flock", "close", "fchmod"])
def test_after_the_last_sync_nothing_turns_success_into_failure(
    stage: Stage, name: str, call: str
) -> None:
    """The file system turns read-only just then: the caller hears of success, and mail is there.

    All calls of that name fail from the first one on that follows the directory's sync and close.
    """
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    scenario = next(one for one in SCENARIOS if name == one.name)
    world = World.begin(stage.path(), stage.good.address)
    world.setting("relayip", "127.0.0.1:1")
    promises = scenario.promises(world)
    output = f"{world.root}/calls"
    ran = scenario.run(world, promises, lambda command: tracing.record_command(output, command))
    assert 0 == ran.returncode
    calls = tracing.read_calls(output)
    syncs = [index for index, one in enumerate(calls) if one.name == "fsync"]
    # The close of the directory that was synced is part of the acceptance.
    closed = next(i for i, one in enumerate(calls) if i > syncs[-1] and one.name == "close")
    later = [one for one in calls[closed + 1 :] if call == one.name]
    if not later:
        pytest.skip(f"no {call} follows there")
    world = World.begin(stage.path(), "127.0.0.1:1")
    promises = scenario.promises(world)
    strike = f"inject={call}:error=EROFS:when={later[0].ordinal}+"
    command = ["strace", "-o", "/dev/null", "-e", f"trace={call}", "-e", strike]
    ran = scenario.run(world, promises, lambda words: [*command, *words])
    assert all(one.accepted for one in scenario.told(promises, ran)), (ran.returncode, ran.stderr)
    assert len(promises) == len(world.sidecars("new"))
