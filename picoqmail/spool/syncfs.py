"""All of a file system made durable at once: the only module that calls syncfs(2).

What may live here: when that call can be trusted, and when it is worth its price. It does for every
file at once what fsync does for one, and the journal is written once for all of them: for a group
of mail it is a hundred times cheaper. It can be trusted only if all of this holds; otherwise each
file is synced by itself (durable.py):

- The kernel is Linux 5.17 or later. From 5.8 on syncfs reports data that could not be written
  (sync(2), NOTES). From 5.17 on it also reports a journal that could not be written, and a disk
  that did not flush its cache (commit 5679897eb104, "vfs: make sync_filesystem return errors from
  ->sync_fs"). A distribution may have added that to an older kernel, but its number does not show
  it.
- Its descriptor was opened before the first of the data was written: it reports the errors since
  then. It may also report an older error of another program that was not reported yet. Then a group
  is refused once without need.
- The file system is one of those below. Overlayfs reports errors of the layer below only to
  processes that have the file open there. Ext2 does not flush the disk's cache. What NFS, FUSE or
  9p do depends on another program or host.
  Ext4 without a journal flushes the disk's cache before the last blocks of directories are written
  (fs/sync.c). The fsync of a directory that follows, before success is reported, flushes it again.
- After an error the descriptor is never used again: the kernel reports an error only once.

A file system that became read-only, or was shut down, may report success without doing anything
(sync_filesystem in fs/sync.c; ext4_sync_fs before 6.12). So success counts only if names can be
changed there afterwards: otherwise the renames of acceptance fail.
"""

from __future__ import annotations

import os
from contextlib import suppress

from picoqmail.importing import importing
from picoqmail.spool.mounts import type_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TRUSTED = frozenset(("btrfs", "ext4", "tmpfs", "xfs"))
LEAST_RELEASE = (5, 17)
# Fewer messages than this gain a few milliseconds at most, and would wait for others' data.
LEAST_MESSAGES = 8
# It waits for all that any program wrote. More than this may take longer than what it saves: half
# a second on a disk that writes 256 MB in one. (A fast one took 45 ms, as a group by fsync does.)
MOST_DIRTY_OCTETS = 128 * 1024 * 1024

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KIB = 1024


class FileSystemSync:
    """A way to make durable what is written from now on, of one thread; `close` it."""

    __slots__ = ("_call", "_descriptor", "_spent")

    def __init__(self, descriptor: int, call: Callable[[int], int]) -> None:
        """`call` is syncfs; the descriptor becomes ours."""
        self._descriptor = descriptor
        self._call = call
        self._spent = False

    def pays(self, messages: int) -> bool:
        """Say whether `sync` may be called, and is quicker than to sync so many messages alone."""
        return (
            messages >= LEAST_MESSAGES and not self._spent and dirty_octets() <= MOST_DIRTY_OCTETS
        )

    def sync(self) -> None:
        """Make durable all that was written since this was made: data, entries, modes and times.

        Raises OSError; what was not durable before may not be so now, whatever is tried.
        """
        # Spent unless it succeeds, and also if it is interrupted.
        self._spent = True
        number = self._call(self._descriptor)
        if number:
            raise OSError(number, os.strerror(number))
        self._spent = False

    def close(self) -> None:
        """Close the descriptor. Raises nothing: `sync` has reported every error."""
        with suppress(OSError):
            os.close(self._descriptor)


def open_for_sync(directory: str) -> FileSystemSync | None:
    """Examine the file system of a directory; None if its syncfs cannot be trusted.

    To be called before anything of what it is to make durable is written.
    """
    call = _syncfs()
    if call is None:
        return None
    try:
        descriptor = os.open(directory, _DIRECTORY)
    except OSError:
        # The writes there will fail, with a better error.
        return None
    if type_of(descriptor) in TRUSTED:
        return FileSystemSync(descriptor, call)
    os.close(descriptor)
    return None


def dirty_octets() -> int:
    """Return how much is written by programs and not by the disks yet; a lot if unknown."""
    # The values of proc_meminfo(5).
    try:
        with open("/proc/meminfo", "rb") as file:
            found = [
                int(line.split()[1]) for line in file if line.startswith((b"Dirty:", b"Writeback:"))
            ]
    except (OSError, ValueError, IndexError):
        found = []
    return sum(found) * _KIB if len(found) == 2 else MOST_DIRTY_OCTETS + 1


_calls: list[Callable[[int], int] | None] = []


def _syncfs() -> Callable[[int], int] | None:
    """Return the call, returning an errno or 0; None where there is none, or none to be trusted."""
    if not _calls:
        _calls.append(_find_syncfs())
    return _calls[0]


def _find_syncfs() -> Callable[[int], int] | None:
    if not is_recent(os.uname()):
        return None
    try:
        with importing:
            import ctypes
            import errno

        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (ImportError, OSError, AttributeError):
        # A Python without ctypes, or a C library without the call.
        return None

    def call(descriptor: int) -> int:
        # The other threads go on meanwhile.
        return ctypes.get_errno() if function(descriptor) else 0

    # A sandbox may forbid it: then this is not the answer (EBADF, syncfs(2)).
    return call if call(-1) == errno.EBADF else None


def is_recent(system: os.uname_result) -> bool:
    """Say whether a kernel is a Linux that reports all errors of syncfs(2)."""
    if system.sysname != "Linux":
        return False
    major, _, rest = system.release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0].rstrip("+")
    if not (major.isdecimal() and minor.isdecimal()):
        return False
    return (int(major), int(minor)) >= LEAST_RELEASE
