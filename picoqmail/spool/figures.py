"""How much mail is in a store, and the same of a spool directory, by names and file times.

No message is opened: names have the ages, file times the rest, so that a hundred thousand messages
cost the time of as many stats. No lock is taken.
"""

from __future__ import annotations

import os

from picoqmail.errors import QUEUE_SPOOL, SpoolError
from picoqmail.layout import (
    BODY,
    CUR,
    HELD_UNTIL,
    NEW,
    SIDECAR,
    SUSPENDED_FRACTION,
    TMP,
    UNDELIVERED,
    accepted_at,
)

_DAY_SECONDS = 86400


class Heap:
    """The messages in one state; `octets` are those of the bodies.

    `oldest` is Unix seconds or None; `fresh` counts the messages accepted within the last day.
    """

    __slots__ = ("messages", "octets", "oldest", "fresh")

    def __init__(
        self, messages: int = 0, octets: int = 0, oldest: int | None = None, fresh: int = 0
    ) -> None:
        self.messages = messages
        self.octets = octets
        self.oldest = oldest
        self.fresh = fresh


class Figures:
    """The messages of a store at `now`, Unix seconds.

    `in_doubt` counts those of cur/ that doubtlimit keeps from being sent again to some recipients.
    `due` counts the others of cur/; `next_attempt` is when the next of them is due, in the past if
    one is due now, None if none waits. `writing` counts messages that are being accepted. Free
    space is 0 where it is not known.
    """

    __slots__ = (
        "free_inodes",
        "free_octets",
        "heaps",
        "held",
        "in_doubt",
        "due",
        "next_attempt",
        "now",
        "writing",
    )

    def __init__(self, now: float) -> None:
        self.now = now
        self.held = 0
        self.in_doubt = 0
        self.due = 0
        self.next_attempt: int | None = None
        self.heaps: dict[str, Heap] = {}
        self.writing = 0
        self.free_octets = 0
        self.free_inodes = 0


def figures_of(spool: str, now: float) -> Figures:
    """Gather the figures of a spool directory. Raises SpoolError."""
    figures = Figures(now)
    for state in (NEW, CUR, UNDELIVERED):
        figures.heaps[state] = _walk(spool, state, figures)
    try:
        space = os.statvfs(spool)
        figures.writing = sum(name.endswith(BODY) for name in os.listdir(f"{spool}/{TMP}"))
    except OSError as exc:
        raise SpoolError("read", spool, exc, QUEUE_SPOOL) from exc
    figures.free_octets = space.f_bavail * space.f_frsize
    figures.free_inodes = space.f_favail
    return figures


def _walk(spool: str, state: str, figures: Figures) -> Heap:
    heap = Heap()
    day_ago = figures.now - _DAY_SECONDS
    try:
        with os.scandir(f"{spool}/{state}") as entries:
            for entry in entries:
                if entry.name.endswith(BODY):
                    heap.octets += _stat(entry)[0]
                elif entry.name.endswith(SIDECAR):
                    heap.messages += 1
                    created = accepted_at(entry.name)
                    heap.fresh += created > day_ago
                    if state == CUR and _note_due(entry, figures):
                        continue
                    if heap.oldest is None or created < heap.oldest:
                        heap.oldest = created
    except OSError as exc:
        raise SpoolError("read", f"{spool}/{state}", exc, QUEUE_SPOOL) from exc
    return heap


def _note_due(entry: os.DirEntry[str], figures: Figures) -> bool:
    """Note when a message of cur/ is due, by its file's time; True if it is held or in doubt."""
    due = _stat(entry)[1]
    if due == HELD_UNTIL:
        figures.held += 1
        return True
    if due % 1 == SUSPENDED_FRACTION:
        figures.in_doubt += 1
        return True
    figures.due += due <= figures.now
    if figures.next_attempt is None or due < figures.next_attempt:
        figures.next_attempt = int(due)
    return False


def _stat(entry: os.DirEntry[str]) -> tuple[int, float]:
    """Return the size and the modification time."""
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        # Delivered after the directory was read.
        return 0, HELD_UNTIL - 1
    return found.st_size, found.st_mtime
