"""Sweeping: leftovers that no process holds and no message owns are unlinked.

Only unlinked: nothing is ever promoted, because only what was renamed into a state was accepted.
"""

from __future__ import annotations

import os

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import BODY, PROGRESS, RESULT, SIDECAR
from picoqmail.spool.files import READ_FLAGS, is_same_file
from picoqmail.spool.locks import try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.spool.files import SpoolFiles


def sweep_files(files: SpoolFiles, paths: Iterable[str]) -> tuple[list[str], list[SpoolError]]:
    """Unlink what is a leftover among candidates that scan.leftovers found old enough.

    Return the paths that were unlinked, and the errors: a leftover that cannot be removed stops
    neither the others nor mail.
    """
    gone, errors = [], []
    for path in paths:
        try:
            if _unlink_unowned(files, path):
                gone.append(path)
        except OSError as exc:
            errors.append(SpoolError("sweep", path, exc))
    return gone, errors


def _unlink_unowned(files: SpoolFiles, path: str) -> bool:
    if _is_owned(files, path) or not os.path.isfile(path) or os.path.islink(path):
        return False
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return False
    try:
        # Checked again under the lock: meanwhile its last holder may have made it a message, or
        # moved the message here.
        if not try_lock(descriptor) or _is_owned(files, path):
            return False
        return durable.unlink_if_there(path)
    finally:
        os.close(descriptor)


def _is_owned(files: SpoolFiles, path: str) -> bool:
    """Say whether there is a sidecar that this file belongs to.

    A second name of a body, left by a crash in a move, belongs to none: the message has the name
    beside its sidecar, and the process that moves it has its lock.
    """
    stem, suffix = os.path.splitext(os.path.basename(path))
    directory = os.path.basename(os.path.dirname(path))
    if suffix in (BODY, RESULT):
        # Twice: a message that is being moved may have been missed between two directories.
        states = files.where(stem) or files.where(stem)
        return bool(states) and not (
            suffix == BODY
            and directory not in states
            and any(is_same_file(path, files.join(state, stem + BODY)) for state in states)
        )
    return suffix == PROGRESS and durable.is_there(files.join(directory, stem + SIDECAR))
