"""Locks: who has one keeps others out, a dead process never does, and no wait lasts for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from picoqmail.spool import locks
from picoqmail.spool.locks import LockedDirectory, LockedFile, take_lock
from proof import tracing
from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = 1_700_000_000.0
LIFETIME = 1800


def acquire(spool: Path, now: float = NOW) -> int:
    """Try to begin a run."""
    return locks.take_cron_lock(str(spool), now, lambda: LIFETIME)


def test_a_live_run_keeps_others_out(tmp_path: Path) -> None:
    """Until it ends, or has lasted half an hour."""
    lock = acquire(tmp_path)
    assert lock >= 0
    assert -1 == acquire(tmp_path)
    assert -1 == acquire(tmp_path, NOW + LIFETIME + 1)
    locks.release_cron_lock(lock)
    again = acquire(tmp_path)
    assert again >= 0
    locks.release_cron_lock(again)


def test_the_setting_is_read_only_if_a_run_is_in_the_way(tmp_path: Path) -> None:
    """An idle run does not pay for all settings."""

    def never() -> int:
        pytest.fail("asked for")

    lock = locks.take_cron_lock(str(tmp_path), NOW, never)
    locks.release_cron_lock(lock)


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
    locks.release_cron_lock(hanging)
    again = acquire(tmp_path, NOW + 2 * LIFETIME + 61)
    assert again >= 0
    assert int(NOW + 2 * LIFETIME + 61) == locks.cron_stamp(f"{tmp_path}/cron.lock")
    for lock in (second, third, again):
        locks.release_cron_lock(lock)


def test_a_stamp_from_the_future_is_a_jumped_clock(tmp_path: Path) -> None:
    """It does not keep everybody out until that time has come."""
    lock = acquire(tmp_path, NOW + 10**8)
    other = acquire(tmp_path)
    assert other >= 0
    locks.release_cron_lock(other)
    locks.release_cron_lock(lock)


@pytest.mark.parametrize("is_stamped", [False, True])
def test_a_stamp_is_looked_at_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_stamped: bool
) -> None:
    """A run that has taken the lock of a dead one, and stamps it only now, is young."""
    before = acquire(tmp_path, NOW - 2 * LIFETIME)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if is_stamped:
            locks.rewrite(before, b"%d\n" % int(NOW))

    monkeypatch.setattr(time, "sleep", wait)
    lock = acquire(tmp_path)
    assert [0.1] == waits
    assert (lock == -1) == is_stamped
    for one in (before, lock):
        if one >= 0:
            locks.release_cron_lock(one)


@pytest.mark.slow
def test_slots_are_bounded(tmp_path: Path) -> None:
    """If every run hangs, there comes an end to new ones."""
    held = []
    for slot in range(locks.CRON_SLOTS):
        held.append(take_lock(f"{tmp_path}/cron.lock" + (f".{slot}" if slot else "")))
        os.write(held[-1], b"%d\n" % NOW)
    before = sorted(os.listdir(tmp_path))
    assert -1 == acquire(tmp_path, NOW + 2 * LIFETIME)
    assert before == sorted(os.listdir(tmp_path))
    for lock in held:
        locks.release_cron_lock(lock)


def test_a_dead_run_never_keeps_anybody_out(tmp_path: Path) -> None:
    """Killed without a chance to tidy up: the kernel frees the lock, whatever the stamp says."""
    script = (
        "import sys\n"
        "from picoqmail.spool import locks\n"
        f"assert locks.take_cron_lock(sys.argv[1], {NOW}, lambda: {LIFETIME}) >= 0\n"
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
    assert int(NOW) == locks.cron_stamp(f"{tmp_path}/cron.lock")
    lock = acquire(tmp_path)
    assert lock >= 0
    locks.release_cron_lock(lock)
    assert None is locks.cron_stamp(f"{tmp_path}/cron.lock")


@contextmanager
def locked_elsewhere(path: str, then: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Have another process lock a file; it goes on with `then` when it gets a line."""
    script = (
        "import os, sys\n"
        "from picoqmail.spool import locks\n"
        "path = sys.argv[1]\n"
        "lock = locks.take_lock(path)\n"
        "print(lock, flush=True)\n"
        f"sys.stdin.readline()\n{then}\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= 0
        yield process
        process.stdin.close()
        assert 0 == process.wait(20)


def test_a_wait_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """Another process has the lock and does not let it go."""
    path = f"{tmp_path}/lock"
    with locked_elsewhere(path):
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="too long"):
            locks.wait_for_lock(path, 0.2)
        assert 0.2 <= time.monotonic() - begun


def test_a_wait_ends_with_the_lock(tmp_path: Path) -> None:
    """Its holder dies while we wait: then the lock is ours, and others find it taken."""
    path = f"{tmp_path}/lock"
    with locked_elsewhere(path) as process:
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(locks.wait_for_lock, path, 60)
            assert process.stdin is not None
            process.stdin.close()
            lock = waiting.result()
        assert locks.is_at(path, lock)
        assert -1 == take_lock(path)
        os.close(lock)


@pytest.mark.parametrize("then", ["os.unlink(path)", "os.rename(path, path + '.x')"])
def test_a_lock_on_a_file_that_lost_its_name_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Its holder unlinked or renamed it: whoever waited for it looks again what is there."""
    path = f"{tmp_path}/lock"
    is_waiting = threading.Event()
    sleep = time.sleep

    def wait(seconds: float) -> None:
        # Between two tries: now it has this very file open.
        is_waiting.set()
        sleep(seconds)

    with locked_elsewhere(path, then) as process, ThreadPoolExecutor() as pool:
        monkeypatch.setattr(time, "sleep", wait)
        waiting = pool.submit(locks.wait_for_lock, path, 60)
        assert is_waiting.wait(60)
        assert process.stdin is not None
        process.stdin.close()
        assert -1 == waiting.result()
    lock = locks.wait_for_lock(path, 0)
    assert lock >= 0
    os.close(lock)


def test_a_name_is_of_this_file_of_another_or_of_none(tmp_path: Path) -> None:
    """By device and inode: a file that was put in its place is another."""
    path = f"{tmp_path}/lock"
    lock = take_lock(path)
    assert True is locks.is_at(path, lock)
    os.unlink(path)
    assert None is locks.is_at(path, lock)
    other = take_lock(path)
    assert False is locks.is_at(path, lock)
    os.close(lock)
    os.close(other)


def test_nothing_is_imported_for_a_lock_that_is_free(tmp_path: Path) -> None:
    """Portalocker is there for waiting; also where no temporary file can be made."""
    script = (
        "import os, sys\n"
        "from picoqmail.spool import locks\n"
        "os.close(locks.wait_for_lock(sys.argv[1], 1))\n"
        "assert 'portalocker' not in sys.modules\n"
        "held = locks.take_lock(sys.argv[1])\n"
        "import tempfile\n"
        "tempfile._get_default_tempdir = None\n"
        "try:\n"
        "    locks.wait_for_lock(sys.argv[1], 0.01)\n"
        "except TimeoutError:\n"
        "    assert 'portalocker' in sys.modules\n"
        "    assert tempfile.tempdir is None\n"
        "    print('in time')\n"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/lock"]
    ran = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (b"in time\n", b"") == (ran.stdout, ran.stderr)


def test_a_small_file_is_rewritten_by_one_at_a_time(tmp_path: Path) -> None:
    """Four processes count to a thousand together: none is lost."""
    path = f"{tmp_path}/count"
    script = (
        "import sys\n"
        "from picoqmail.spool.locks import LockedFile\n"
        "for _ in range(250):\n"
        "    with LockedFile(sys.argv[1]) as file:\n"
        "        file.rewrite(b'%d\\n' % (int(file.read() or b'0') + 1))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(4)]
    assert [0, 0, 0, 0] == [process.wait(60) for process in running]
    with open(path, "rb") as file:
        assert b"1000\n" == file.read()
    assert 0o600 == os.stat(path).st_mode & 0o777


def test_a_lock_is_looked_for_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder has it for milliseconds, so whoever waits must not sleep for long."""
    path = f"{tmp_path}/lock"
    lock = take_lock(path)
    waits: list[float] = []
    sleep = time.sleep

    def wait(seconds: float) -> None:
        waits.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(TimeoutError):
        locks.wait_for_lock(path, 0.1)
    assert waits
    assert max(waits) <= 0.005
    os.close(lock)


def test_descriptor_0_is_one_like_the_others(tmp_path: Path) -> None:
    """A program may be started without standard input: then its first lock has that number."""
    script = (
        "import os, sys\n"
        "from picoqmail.spool import locks\n"
        "os.close(0)\n"
        "print(locks.wait_for_lock(sys.argv[1] + '/lock', 1))\n"
        "os.close(0)\n"
        "print(locks.take_cron_lock(sys.argv[1], 1, lambda: 1))\n"
        "assert ['cron.lock', 'lock'] == sorted(os.listdir(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (b"0\n0\n", b"") == (ran.stdout, ran.stderr)


def test_a_small_file_is_not_read_without_end(tmp_path: Path) -> None:
    """64 KiB of it, whatever somebody has made of it."""
    path = f"{tmp_path}/count"
    with LockedFile(path) as file:
        file.rewrite(b"x" * 65537)
        assert 65536 == len(file.read())


def test_what_is_no_directory_is_not_locked_as_one(tmp_path: Path) -> None:
    """Its lock would keep nobody out."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), LockedDirectory(f"{tmp_path}/file"):
        pass


def test_a_small_file_becomes_shorter(tmp_path: Path) -> None:
    """What stood there before is gone to its end."""
    path = f"{tmp_path}/count"
    with LockedFile(path) as file:
        assert b"" == file.read()
        file.rewrite(b"a long text\n")
    with LockedFile(path) as file:
        file.rewrite(b"short\n")
        assert b"short\n" == file.read()
        file.rewrite(b"again\n")
        assert b"again\n" == file.read()
        assert -1 == take_lock(path)
    lock = take_lock(path)
    assert lock >= 0
    os.close(lock)


def test_the_holder_of_a_lock_is_known_without_touching_it(tmp_path: Path) -> None:
    """By /proc/locks; nobody, if the file is free or not there."""
    path = f"{tmp_path}/lock"
    assert None is locks.holder(path)
    with locked_elsewhere(path) as process:
        assert process.pid == locks.holder(path)
    assert None is locks.holder(path)
    with pytest.raises(FileNotFoundError):
        locks.holder(path, f"{tmp_path}/no-such-file")


@pytest.mark.parametrize(
    ("pid", "lines"),
    [
        (708, "1: FLOCK ADVISORY WRITE 708 {file}"),
        (708, "\n1: FLOCK\n1: FLOCK ADVISORY WRITE 707\n2: FLOCK ADVISORY WRITE 708 {file} 0 EOF"),
        (0, "1: FLOCK  ADVISORY  WRITE 0 {file} 0 EOF"),
        (0, "1: FLOCK  ADVISORY  WRITE -1 {file} 0 EOF"),
        (None, "1: -> FLOCK  ADVISORY  WRITE 708 {file} 0 EOF"),
        (None, "1: POSIX  ADVISORY  WRITE 708 {file} 0 EOF"),
        (None, "1: FLOCK  ADVISORY  WRITE 708 {file}1 0 EOF"),
    ],
)
def test_what_the_kernel_says_of_locks(tmp_path: Path, pid: int | None, lines: str) -> None:
    """As proc_locks(5) has it: one that waits is no holder; -1 is of another PID namespace."""
    path = tmp_path / "lock"
    path.touch()
    found = path.stat()
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    (tmp_path / "locks").write_text(lines.format(file=name) + "\n", encoding="ascii")
    assert pid == locks.holder(str(path), f"{tmp_path}/locks")


def test_a_link_is_no_lock_file(tmp_path: Path) -> None:
    """Somebody who may make names there has us make or lock no file elsewhere."""
    os.symlink(tmp_path / "elsewhere", tmp_path / "lock")
    with pytest.raises(OSError, match="symbolic links"):
        take_lock(f"{tmp_path}/lock")
    with pytest.raises(OSError, match="symbolic links"), LockedFile(f"{tmp_path}/lock"):
        pass
    assert ["lock"] == os.listdir(tmp_path)


@pytest.mark.parametrize("take", ["take_lock", "wait_for_lock", "wait for one that is taken"])
def test_an_odd_umask_withholds_a_lock_from_nobody_if_so_told(tmp_path: Path, take: str) -> None:
    """An application may have a umask that denies the file to its owner; our programs have none."""
    modes = []
    told: dict[str, bool]
    before = os.umask(0o777)
    try:
        for told in ({}, {"any_umask": True}):
            path = f"{tmp_path}/{len(told)}"
            if take == "take_lock":
                lock = take_lock(path, **told)
            else:
                lock = locks.wait_for_lock(path, 1, **told)
            modes.append(os.stat(path).st_mode & 0o777)
            if take == "wait for one that is taken":
                with pytest.raises(TimeoutError):
                    locks.wait_for_lock(path, 0.05, **told)
                assert modes[-1] == os.stat(path).st_mode & 0o777
            os.close(lock)
    finally:
        os.umask(before)
    assert [0, 0o600] == modes


def test_no_descriptor_is_left_where_a_lock_is_not_taken(tmp_path: Path) -> None:
    """It is taken already, it is waited for in vain, or its file has another name by then."""
    path = f"{tmp_path}/lock"
    lock = take_lock(path)
    before = sorted(os.listdir("/proc/self/fd"))
    assert -1 == take_lock(path)
    assert -1 == acquire_beside(tmp_path, lock)
    with pytest.raises(TimeoutError):
        locks.wait_for_lock(path, 0.05)
    with LockedFile(f"{tmp_path}/file") as file:
        file.rewrite(b"x")
    assert before == sorted(os.listdir("/proc/self/fd"))
    os.close(lock)


@pytest.mark.parametrize("answer", [False, None, PermissionError("no")])
def test_no_descriptor_is_left_of_a_file_without_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, answer: bool | OSError | None
) -> None:
    """It was replaced or removed while we waited, or nobody can tell."""

    def is_at(_path: str, _descriptor: int) -> bool | None:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(locks, "is_at", is_at)
    before = sorted(os.listdir("/proc/self/fd"))
    if isinstance(answer, OSError):
        with pytest.raises(PermissionError):
            locks.wait_for_lock(f"{tmp_path}/lock", 1)
    else:
        assert -1 == locks.wait_for_lock(f"{tmp_path}/lock", 1)
    assert before == sorted(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_of_a_file_without_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the umask withheld could not be given back: that is an error."""

    def refuse(_descriptor: int) -> None:
        raise PermissionError

    monkeypatch.setattr("picoqmail.durable.restore_rights", refuse)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError):
        take_lock(f"{tmp_path}/lock", any_umask=True)
    assert before == sorted(os.listdir("/proc/self/fd"))


def acquire_beside(spool: Path, lock: int) -> int:
    """Try to begin a run of cron while a young one has the lock."""
    assert lock >= 0
    young = acquire(spool)
    try:
        return acquire(spool)
    finally:
        locks.release_cron_lock(young)


def test_a_lock_is_let_go_although_a_child_has_the_file_open(tmp_path: Path) -> None:
    """A forked child shares the open file: closing ours alone would leave it locked."""
    path = f"{tmp_path}/lock"
    lock = take_lock(path)
    shared = [os.dup(lock)]
    locks.unlock(lock)
    os.close(lock)
    for locked in (LockedFile(path), LockedDirectory(str(tmp_path))):
        with locked:
            shared.append(os.dup(locked._descriptor))
            shared.append(os.open(locked._path, os.O_RDONLY))
            with pytest.raises(BlockingIOError):
                locks.lock_at_once(shared[-1])
    again = take_lock(path)
    assert again >= 0
    for descriptor in (again, *shared):
        os.close(descriptor)


def test_a_lock_that_fails_is_an_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    """A kernel without room for locks is not another process that has the lock."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    script = (
        "import errno, os, sys\n"
        "from picoqmail.spool import locks\n"
        "os.chdir(sys.argv[1])\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for call in (\n"
        "    lambda: locks.take_lock('lock'),\n"
        "    lambda: locks.wait_for_lock('lock', 1),\n"
        "    locks.LockedFile('lock').__enter__,\n"
        "    locks.LockedDirectory('.').__enter__,\n"
        "):\n"
        "    try:\n"
        "        print('taken', call())\n"
        "    except OSError as exc:\n"
        "        print(errno.errorcode[exc.errno], len(os.listdir('/proc/self/fd')) - before)\n"
    )
    strace = ["strace", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    ran = subprocess.run(
        [*strace, sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    assert ["ENOLCK 0"] * 4 == ran.stdout.splitlines()
