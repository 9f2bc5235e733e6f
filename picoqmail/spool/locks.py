"""All locks on files: one module, so that one page says how they work. Hot; builtins only.

A lock is the kernel's (flock(2)) on an open file. The kernel frees it when the last process that
has the file open ends, so no lock outlives its holder.

- A lock that is tried at once, or that others keep for microseconds only, is taken by flock alone.
- A lock that is waited for with a time limit is portalocker's business. It is imported only when
  somebody else has the lock, because its import takes longer than sending a mail.
- After a wait the file may have lost its name: its holder unlinked or renamed it. A lock on such a
  file does not keep others out, so `is_at` is asked once the lock is there.
- The lock files `sender.lock` and `cron.lock` are never unlinked: then somebody could wait for the
  old file while others lock the new one.
"""

from __future__ import annotations

import fcntl
import posix
import time

from picoqmail import durable
from picoqmail.layout import CRON_LOCK, PRIVATE_FILE_MODE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_OPEN_OR_CREATE = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
_BEGINNING = 0  # SEEK_SET of lseek(2)
_LARGEST_OCTETS = 65536

CRON_SLOTS = 16
# Between taking the lock and stamping it a run needs microseconds; the stamp that another sees
# meanwhile may be that of a dead one.
_STAMPING_SECONDS = 0.1
_STAMP_OCTETS = 32

# A holder of such a lock uses the disk for a few milliseconds.
_CHECK_SECONDS = 0.005

LOCKS = "/proc/locks"


def lock_at_once(descriptor: int) -> None:
    """Lock an open file. Raises BlockingIOError if another process has it, and OSError."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def try_lock(descriptor: int) -> bool:
    """Lock an open file at once; False if another process has it. Raises OSError."""
    try:
        lock_at_once(descriptor)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Let the lock of an open file go, also for processes that share the descriptor.

    To close it is not enough: a child that an application forked meanwhile has the file open too,
    and would keep the lock for as long as it lives. Raises OSError.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_at(path: str, descriptor: int) -> bool | None:
    """Say whether an open file still has this name; None where no file has it. Raises OSError."""
    try:
        there = posix.lstat(path)
    except FileNotFoundError:
        return None
    ours = posix.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def take_lock(path: str, *, any_umask: bool = False) -> int:
    """Take a lock file without waiting: its descriptor, or -1 if another process has it.

    `any_umask` as for durable.create. Raises OSError.
    """
    lock = _open(path, any_umask=any_umask)
    try:
        if try_lock(lock):
            return lock
    except BaseException:
        posix.close(lock)
        raise
    posix.close(lock)
    return -1


def wait_for_lock(path: str, seconds: float, *, any_umask: bool = False) -> int:
    """Take a file's lock, waiting at most `seconds` for the process that has it.

    Returns its descriptor, or -1 if the file has lost its name meanwhile: then there may be another
    one to lock. The file is made if it is not there; `any_umask` as for durable.create. Raises
    TimeoutError if the time is over, and OSError.
    """
    lock = take_lock(path, any_umask=any_umask)
    if lock < 0:
        lock = _wait(path, seconds, any_umask=any_umask)
    try:
        if is_at(path, lock):
            return lock
    except BaseException:
        posix.close(lock)
        raise
    posix.close(lock)
    return -1


def _open(path: str, *, any_umask: bool = False) -> int:
    descriptor = posix.open(path, _OPEN_OR_CREATE, PRIVATE_FILE_MODE)
    if any_umask:
        try:
            durable.restore_rights(descriptor)
        except BaseException:
            posix.close(descriptor)
            raise
    return descriptor


def _wait(path: str, seconds: float, *, any_umask: bool) -> int:
    import errno

    from picoqmail.importing import importing

    with importing:
        import tempfile

        # portalocker asks for the directory of temporary files while it is imported, for locks
        # that we do not use. Where none is writable, as in a container with a read-only root, that
        # would fail. So it is given one for that moment; nothing is written there.
        before = tempfile.tempdir
        tempfile.tempdir = before or "/tmp"  # noqa: S108 - nothing is written there
        try:
            import portalocker
        finally:
            tempfile.tempdir = before
    waiting = portalocker.Lock(
        path,
        "rb+",
        timeout=seconds,
        check_interval=_CHECK_SECONDS,
        buffering=0,
        opener=lambda name, _flags: _open(name, any_umask=any_umask),
    )
    try:
        file = waiting.acquire()
    except portalocker.LockException as exc:
        text = "another process has held it for too long"
        raise TimeoutError(errno.ETIMEDOUT, text) from exc
    with file:
        return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)


class _Locked:
    """Something that is locked while it is open: a context manager.

    A process holds the lock for microseconds only, so entering waits without a time limit.
    """

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def _open_it(self) -> int:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._descriptor = self._open_it()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            posix.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            unlock(self._descriptor)
        finally:
            posix.close(self._descriptor)


class LockedFile(_Locked):
    """A small file that one process at a time reads and rewrites; it is locked while it is open.

    The file at `path` is made if it is not there. Nothing is synced: a crash may leave the file
    empty or cut, and its readers must take that for a file that says nothing. Raises OSError.
    """

    __slots__ = ()

    def _open_it(self) -> int:
        return _open(self._path)

    def read(self) -> bytes:
        """Return what the file holds, at most 64 KiB."""
        return posix.pread(self._descriptor, _LARGEST_OCTETS, 0)

    def rewrite(self, data: bytes) -> None:
        """Replace what the file holds."""
        rewrite(self._descriptor, data)


def rewrite(descriptor: int, data: bytes) -> None:
    """Replace what an open and locked file holds. Raises OSError.

    Cut at the end only: on a full disk, what fits into the file's own blocks can still be written.
    """
    posix.lseek(descriptor, 0, _BEGINNING)
    durable.write_all(descriptor, data)
    posix.ftruncate(descriptor, len(data))


class LockedDirectory(_Locked):
    """A directory, which must be there, that one process at a time changes small files of.

    A file that is replaced whole cannot have a lock of its own: its next holder would lock a file
    without a name. Raises OSError.
    """

    __slots__ = ()

    def _open_it(self) -> int:
        return posix.open(self._path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)


# --- one run of cron at a time ---


def cron_lock(spool: str, slot: int) -> str:
    """Return the path of a lock file of cron: `cron.lock`, `cron.lock.1` and so on."""
    return f"{spool}/{CRON_LOCK}" + (f".{slot}" if slot else "")


def take_cron_lock(spool: str, now: float, lifetime_seconds: Callable[[], int]) -> int:
    """Take the first slot that no young run has: its descriptor, -1 if a young run has one.

    A run keeps others out for the setting runlifetime. After that the next run takes the next slot
    and leaves the old one alone: the locks of the messages keep the two apart. `lifetime_seconds`
    is only asked if another run has a slot. Raises OSError.
    """
    for slot in range(CRON_SLOTS):
        path = cron_lock(spool, slot)
        lock = take_lock(path)
        if lock >= 0:
            rewrite(lock, b"%d\n" % int(now))
            return lock
        if not _is_overdue(path, now, lifetime_seconds()):
            return -1
        time.sleep(_STAMPING_SECONDS)
        if not _is_overdue(path, now, lifetime_seconds()):
            return -1
    return -1


def _is_overdue(path: str, now: float, lifetime_seconds: int) -> bool:
    """Say whether the run that stamped this lock began too long ago, or in the future."""
    started = cron_stamp(path)
    return started is not None and not 0 <= now - started <= lifetime_seconds + 1


def cron_stamp(path: str) -> int | None:
    """Return when the latest run with this lock began, Unix seconds; None if it ended well."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        text = posix.read(descriptor, _STAMP_OCTETS)
    finally:
        posix.close(descriptor)
    return int(text) if text.strip().isdigit() else None


def release_cron_lock(lock: int) -> None:
    """End the run: the stamp goes, then the lock."""
    posix.ftruncate(lock, 0)
    posix.close(lock)


# --- who has a lock ---


def holder(path: str, locks: str = LOCKS) -> int | None:
    """Return the pid that holds a file's lock; 0 if of another PID namespace; None if none does.

    By /proc/locks (proc_locks(5)), without touching the lock: a queue program that finds the
    sender's lock taken relies on its holder to send the mail. Raises OSError where the kernel does
    not say.
    """
    try:
        found = posix.lstat(path)
    except FileNotFoundError:
        return None
    major, minor = posix.major(found.st_dev), posix.minor(found.st_dev)
    wanted = f"{major:02x}:{minor:02x}:{found.st_ino}"
    with open(locks, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            # `1: FLOCK  ADVISORY  WRITE 708 00:13:8460 0 EOF`; `->` marks one that waits.
            if len(words) > 5 and words[1] == "FLOCK" and words[5] == wanted:
                return max(int(words[4]), 0)
    return None
