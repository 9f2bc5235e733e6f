"""The drop of a home for many users: where it is, and how mail leaves it. Hot; builtins only.

`drop/UID/` is a small spool that the program of that user writes to (submission/queue.py). It can
reach nothing else of the spool. The owner of the spool takes the mail from there: collect.py. The
name of the directory says whose mail it is, and only root can make it.

A path may be used here as it stands: `drop/` and `drop/UID/` belong to root. Only what is in
`drop/UID/new` and `drop/UID/tmp` is in the hands of the user.
"""

from __future__ import annotations

import posix

from picoqmail import durable
from picoqmail.layout import BODY, DROP, NEW, SIDECAR, TMP, accepted_at, is_id
from picoqmail.spool.scan import is_old

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def parts(spool: str) -> list[tuple[int, str]]:
    """Return the uid and the directory of each user who has submitted mail. Raises OSError."""
    try:
        names = posix.listdir(f"{spool}/{DROP}")
    except FileNotFoundError:
        return []
    uids = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
    return [(uid, f"{spool}/{DROP}/{uid}") for uid in uids]


def is_waiting(spool: str) -> bool:
    """Say whether there may be mail in the drop. Raises OSError."""
    for _, part in parts(spool):
        try:
            with posix.scandir(f"{part}/{NEW}") as entries:
                if any(entry.name.endswith(SIDECAR) for entry in entries):
                    return True
        except FileNotFoundError:
            continue  # It is being made.
        except PermissionError:
            return True  # Whoever collects reports it.
    return False


def is_name(stem: str) -> bool:
    """Say whether a file's stem can be an ID that our program made."""
    return is_id(stem) and "." in stem and accepted_at(stem) > 0


def drop_leftovers(spool: str, now: float) -> list[str]:
    """Paths that the sweep should look at: everything old in tmp/, and in new/ what is no message.

    Nobody's lock was asked yet. Raises OSError.
    """
    found = []
    for _, part in parts(spool):
        for name in (TMP, NEW):
            directory = f"{part}/{name}"
            try:
                names = set(posix.listdir(directory))
            except OSError:
                continue  # It is being made; or whoever collects reports it.
            for one in names:
                stem, dot, suffix = one.rpartition(".")
                is_half = dot + suffix in (BODY, SIDECAR) and is_name(stem)
                is_message = name == NEW and is_half and stem + SIDECAR in names
                if not is_message and is_old(f"{directory}/{one}", now):
                    found.append(f"{directory}/{one}")
    return found


def leave(spool: str, uid: int, message_id: str) -> None:
    """Remove a message of the spool's new/ from the drop, durably. Raises OSError.

    First new/ is synced: a process that died may have put the message there and gone no further.
    """
    directory = f"{spool}/{DROP}/{uid}/{NEW}"
    if durable.is_there(f"{directory}/{message_id}{SIDECAR}"):
        durable.sync_directory(f"{spool}/{NEW}")
        remove(directory, message_id)
    try:
        durable.sync_directory(directory)
    except FileNotFoundError:
        return  # The home is one for many users no more.


def remove(directory: str, message_id: str) -> None:
    """Unlink a message in a directory of the drop; without its sidecar it is none."""
    durable.unlink_if_there(f"{directory}/{message_id}{SIDECAR}")
    durable.unlink_if_there(f"{directory}/{message_id}{BODY}")


def has(spool: str, message_id: str) -> bool:
    """Say whether a message is in the drop, whoever submitted it. Raises OSError."""
    return any(_directories_of(spool, message_id))


def forget(spool: str, message_id: str) -> None:
    """Remove a message from the drop, whoever submitted it, durably. Raises OSError."""
    for directory in _directories_of(spool, message_id):
        remove(directory, message_id)
        durable.sync_directory(directory)


def _directories_of(spool: str, message_id: str) -> Iterator[str]:
    for _, part in parts(spool):
        directory = f"{part}/{NEW}"
        if durable.is_there(f"{directory}/{message_id}{SIDECAR}"):
            yield directory
