"""Locks on files, all of them by flock(2). Hot; builtins only.

The kernel frees a lock when its last holder dies. No lock file is ever unlinked: somebody might be
waiting for the old inode.
"""

from __future__ import annotations

import fcntl
import posix

from picoqmail.durable import restore_rights
from picoqmail.layout import PRIVATE_FILE_MODE

_OPEN_LOCK = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC


def take_lock(path: str, *, any_umask: bool = False) -> int:
    """Take a lock file without waiting: its descriptor, or -1 if somebody has it.

    `any_umask` as for durable.create. Raises OSError.
    """
    lock = posix.open(path, _OPEN_LOCK, PRIVATE_FILE_MODE)
    try:
        if any_umask:
            restore_rights(lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        posix.close(lock)
        return -1
    except BaseException:
        posix.close(lock)
        raise
    return lock
