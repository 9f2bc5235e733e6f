"""The file `idle`: what cron's last complete look found, if that was nothing. Hot; builtins only.

A complete look reads every name of cur/ and the time of every sidecar. What it found stays true
until a directory changes or a message becomes due. So a look that found nothing to do notes when
the directories had last changed, and when the next message is due. As long as both hold, a run of
cron opens no directory.

The directories are observed *before* the look: what changes during the look, or after it, changes
their times. Only one thing could hide a change: the kernel counts time in steps, so that two
changes may have the same time. Therefore nothing is noted unless the directories have been left
alone for longer than any such step.

The file is written without a sync, and nothing that it holds is an error. A file that is lost, cut,
copied from elsewhere or made by another user only costs a look.
"""

from __future__ import annotations

import posix

from picoqmail import durable
from picoqmail.home.hands import is_plain_file
from picoqmail.layout import CUR, IDLE, NEW, REPORTS, TMP

LOOK_SECONDS = 600
"""A complete look is taken at least so often: for the sweep, and for times of sidecars that
somebody else changed, which changes no directory."""

STEP_SECONDS = 2
"""Longer than the steps in which file systems count time. Some count whole seconds."""

LOCAL = frozenset(
    (
        *("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs"),
        *("reiserfs", "tmpfs", "xfs", "zfs"),
    )
)
"""File systems whose times are those of this kernel, and which no other host can change."""

_HINT_VERSION = 1
_HINT_OCTETS = 2048
_HINT_READING = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
_HINT_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
_WATCHED = (CUR, NEW, REPORTS)
_OTHERS_MAY_WRITE = 0o022


class Observation:
    """What the watched directories were at one moment: `marks` are compared as a whole."""

    __slots__ = ("changed_ns", "marks")

    def __init__(self, marks: str, changed_ns: int) -> None:
        """`changed_ns` is when the last of them changed, nanoseconds of Unix time."""
        self.marks = marks
        self.changed_ns = changed_ns


def observe(spool: str) -> Observation:
    """Note what the directories are, before they are read. Raises OSError."""
    marks = []
    changed_ns = 0
    for name in _WATCHED:
        try:
            found = posix.stat(f"{spool}/{name}")
        except FileNotFoundError:
            marks.append("none")
            continue
        # A program that copies or restores can set the time of a change, but not that of the
        # last change of the inode.
        times = found.st_mtime_ns, found.st_ctime_ns
        marks.append(":".join(map(str, (found.st_dev, found.st_ino, *times))))
        changed_ns = max(changed_ns, *times)
    return Observation(" ".join(marks), changed_ns)


def is_idle(spool: str, now: float) -> bool:
    """Say whether nothing is due, and nothing has changed since a look found that. Raises nothing.

    `now` is Unix seconds. A clock that was set back since that look is a reason to look again.
    """
    try:
        descriptor = posix.open(f"{spool}/{IDLE}", _HINT_READING)
    except OSError:
        return False  # There is none, or none that could be read.
    try:
        status = posix.fstat(descriptor)
        if (
            not is_plain_file(status)
            or status.st_uid != posix.geteuid()
            or status.st_mode & _OTHERS_MAY_WRITE
        ):
            return False
        first, _, second = posix.read(descriptor, _HINT_OCTETS).partition(b"\n")
        # The line stands there twice: a part of it, or a bit that the disk changed, is no hint.
        if second != first + b"\n":
            return False
        version, noted, until, marks = first.decode("ascii").split(" ", 3)
        return (
            int(version) == _HINT_VERSION
            and int(noted) <= now < int(until) <= int(noted) + LOOK_SECONDS
            and marks == observe(spool).marks
        )
    except (OSError, ValueError):
        return False  # Unreadable, or no line of ours.
    finally:
        posix.close(descriptor)


def note_idle(spool: str, now: float, before: Observation, next_due: float) -> None:
    """Note that a look found nothing due at `now`, and nothing to be due before `next_due`.

    `before` was observed before that look, and after `now` was read. Nothing is noted if a change
    could be hidden. Raises nothing: without the note the next run looks again.
    """
    is_settled = before.changed_ns <= (now - STEP_SECONDS) * 1e9
    if not is_settled or not _is_local(f"{spool}/{CUR}"):
        return
    until = min(int(next_due), int(now) + LOOK_SECONDS)
    line = f"{_HINT_VERSION} {int(now)} {until} {before.marks}\n"
    try:
        durable.replace_unsynced(
            f"{spool}/{TMP}/{IDLE}.{posix.getpid()}", f"{spool}/{IDLE}", (line * 2).encode()
        )
    except OSError:
        return  # The disk is full, or there is a directory in its place.


def _is_local(path: str) -> bool:
    """Say whether the times of a directory are this kernel's; False if that cannot be known."""
    from picoqmail.spool.mounts import type_of

    try:
        descriptor = posix.open(path, _HINT_DIRECTORY)
    except OSError:
        return False
    try:
        return type_of(descriptor) in LOCAL
    finally:
        posix.close(descriptor)
