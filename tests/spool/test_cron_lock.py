"""The cron lock: a live run keeps others out, a dead one never does, a long one no longer does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail.spool import cron_lock
from picoqmail.spool.locks import take_lock

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000.0
LIFETIME = 1800


def acquire(spool: Path, now: float = NOW) -> int:
    """Try to begin a run."""
    return cron_lock.acquire(str(spool), now, lambda: LIFETIME)


def test_a_live_run_keeps_others_out(tmp_path: Path) -> None:
    """Until it ends, or has lasted half an hour."""
    lock = acquire(tmp_path)
    assert lock >= 0
    assert -1 == acquire(tmp_path)
    assert -1 == acquire(tmp_path, NOW + LIFETIME)
    cron_lock.release(lock)
    again = acquire(tmp_path)
    assert again >= 0
    cron_lock.release(again)


def test_the_setting_is_read_only_if_a_run_is_in_the_way(tmp_path: Path) -> None:
    """An idle run does not pay for all settings."""

    def never() -> int:
        pytest.fail("asked for")

    lock = cron_lock.acquire(str(tmp_path), NOW, never)
    cron_lock.release(lock)


def test_a_run_that_hangs_no_longer_does(tmp_path: Path) -> None:
    """The next takes the next slot, and keeps out those after it in turn."""
    hanging = acquire(tmp_path)
    second = acquire(tmp_path, NOW + LIFETIME + 2)
    assert second >= 0
    assert -1 == acquire(tmp_path, NOW + LIFETIME + 60)
    third = acquire(tmp_path, NOW + 2 * LIFETIME + 60)
    assert third >= 0
    assert ["cron.lock", "cron.lock.1", "cron.lock.2"] == sorted(os.listdir(tmp_path))
    # As soon as the first slot is free it is used again.
    cron_lock.release(hanging)
    again = acquire(tmp_path, NOW + 2 * LIFETIME + 61)
    assert again >= 0
    assert int(NOW + 2 * LIFETIME + 61) == cron_lock.stamp(f"{tmp_path}/cron.lock")
    for lock in (second, third, again):
        cron_lock.release(lock)


def test_a_stamp_from_the_future_is_a_jumped_clock(tmp_path: Path) -> None:
    """It does not keep everybody out until that time has come."""
    lock = acquire(tmp_path, NOW + 10**8)
    other = acquire(tmp_path)
    assert other >= 0
    cron_lock.release(other)
    cron_lock.release(lock)


def test_slots_are_bounded(tmp_path: Path) -> None:
    """If every run hangs, there comes an end to new ones."""
    held = []
    for slot in range(cron_lock.SLOTS):
        held.append(take_lock(f"{tmp_path}/cron.lock" + (f".{slot}" if slot else "")))
        os.write(held[-1], b"%d\n" % NOW)
    before = sorted(os.listdir(tmp_path))
    assert -1 == acquire(tmp_path, NOW + 2 * LIFETIME)
    assert before == sorted(os.listdir(tmp_path))
    for lock in held:
        cron_lock.release(lock)


def test_a_dead_run_never_keeps_anybody_out(tmp_path: Path) -> None:
    """Killed without a chance to tidy up: the kernel frees the lock, whatever the stamp says."""
    script = (
        "import sys\n"
        "from picoqmail.spool import cron_lock\n"
        f"assert cron_lock.acquire(sys.argv[1], {NOW}, lambda: {LIFETIME}) >= 0\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert b"locked\n" == process.stdout.readline()
        assert -1 == acquire(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert int(NOW) == cron_lock.stamp(f"{tmp_path}/cron.lock")
    lock = acquire(tmp_path)
    assert lock >= 0
    cron_lock.release(lock)
    assert None is cron_lock.stamp(f"{tmp_path}/cron.lock")
