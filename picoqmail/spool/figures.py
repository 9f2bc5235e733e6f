"""How much mail is in a store, and the same of a spool directory, by names and file times.

No message is opened: names have the ages, file times the rest, so that a million messages cost the
time of as many stats, and no memory. No lock is taken.
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

SAMPLED_FROM = 20_000
"""Behind so many bodies of a state only some are asked for their size: each is one more stat."""

_ONE_IN = 32
_DAY_SECONDS = 86400
_SECONDS_DIGITS = 10
_NEVER = "\x7f"  # behind every age
_OF_TEN_DIGITS = "1"  # what sorts before it is the age of an odd name
_FIGURES_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Heap:
    """The messages in one state; `octets` are those of the bodies.

    `oldest` is Unix seconds or None; `fresh` counts the messages accepted within the last day.
    `octets` is `estimated` if there are many bodies (SAMPLED_FROM) and not each was asked.
    """

    __slots__ = ("messages", "octets", "oldest", "fresh", "estimated")

    def __init__(
        self, messages: int = 0, octets: int = 0, oldest: int | None = None, fresh: int = 0
    ) -> None:
        self.messages = messages
        self.octets = octets
        self.oldest = oldest
        self.fresh = fresh
        self.estimated = False


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
    try:
        directory = os.open(f"{spool}/{state}", _FIGURES_DIRECTORY)
        try:
            return _read(directory, figures, is_timed=state == CUR)
        finally:
            os.close(directory)
    except OSError as exc:
        raise SpoolError("read", f"{spool}/{state}", exc, QUEUE_SPOOL) from exc


def _read(directory: int, figures: Figures, *, is_timed: bool) -> Heap:
    """Read one directory; with `is_timed` sidecars have the time at which they are due."""
    # A loop over millions of names. Ages are compared as text, because that takes half the time,
    # and that a name begins with one is checked only where it would count.
    heap = Heap()
    now = figures.now
    day_ago = _seconds_text(int(now) - _DAY_SECONDS)
    oldest, next_due = _NEVER, HELD_UNTIL
    messages = held = in_doubt = due = fresh = bodies = octets = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(SIDECAR):
                messages += 1
                if name > day_ago or name < oldest or oldest < _OF_TEN_DIGITS:
                    created = _age(name)
                    fresh += created > day_ago
                else:
                    created = _NEVER
                if is_timed:
                    due_at = _due_time(entry)
                    is_held = due_at == HELD_UNTIL
                    if is_held or due_at % 1 == SUSPENDED_FRACTION:
                        held += is_held
                        in_doubt += not is_held
                        continue
                    due += due_at <= now
                    if due_at < next_due:  # noqa: PLR1730 - half as quick by min()
                        next_due = due_at
                if created < oldest:  # noqa: PLR1730 - the same
                    oldest = created
            elif name.endswith(BODY):
                bodies += 1
                if bodies <= SAMPLED_FROM:
                    octets += _size(entry)
                elif not bodies % _ONE_IN:
                    octets += _size(entry) * _ONE_IN
    if is_timed:
        figures.held, figures.in_doubt, figures.due = held, in_doubt, due
        figures.next_attempt = int(next_due) if messages > held + in_doubt else None
    heap.messages, heap.fresh, heap.octets = messages, fresh, octets
    heap.estimated = bodies > SAMPLED_FROM
    heap.oldest = int(oldest) if oldest != _NEVER else None
    return heap


def _age(name: str) -> str:
    """Return when a message was accepted as text that sorts as IDs do."""
    seconds = name[:_SECONDS_DIGITS]
    is_plain = seconds.isdecimal() and name.find(".") == _SECONDS_DIGITS
    return seconds if is_plain else _seconds_text(accepted_at(name))


def _seconds_text(seconds: int) -> str:
    """Return a time as the ten digits that IDs begin with until the year 2286."""
    return str(max(seconds, 0)).zfill(_SECONDS_DIGITS)


def _due_time(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return HELD_UNTIL - 1  # Delivered after the directory was read.


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0  # Delivered after the directory was read.
