"""Locks on open files, by portalocker: the one place that knows how it is imported and fails.

What may live here: that. portalocker asks for the directory of temporary files while it is
imported, for locks that we do not use; where none can be written to, as in a container with a
read-only root, that fails, and no mail would be sent. So it is told one for that moment.
"""

from __future__ import annotations

import tempfile

_before = tempfile.tempdir
tempfile.tempdir = _before or "/tmp"  # noqa: S108 - nothing is written there
try:
    import portalocker
finally:
    tempfile.tempdir = _before

_WAITING = portalocker.LockFlags.EXCLUSIVE
_AT_ONCE = _WAITING | portalocker.LockFlags.NON_BLOCKING


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file for us alone; False if another process has it and we do not `wait`.

    Raises OSError where the system will not: no locks on this file system (flock(2)), a disk that
    fails. portalocker tells that by exceptions of its own, which are no OSError.
    """
    try:
        portalocker.lock(descriptor, _WAITING if wait else _AT_ONCE)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as exc:
        cause = exc.args[0] if exc.args and isinstance(exc.args[0], OSError) else None
        raise cause or OSError(0, f"no lock: {exc}") from exc
    return True
