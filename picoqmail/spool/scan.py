"""What is due, and what was left over, found without opening a file. Hot; builtins only.

An idle run is this module and nothing else. A sidecar's modification time repeats its
next_attempt. It is a hint: the claim of the message reads the sidecar, which overrules it.
"""

from __future__ import annotations

import posix

from picoqmail.home.paths import exists
from picoqmail.layout import (
    BODY,
    CUR,
    HELD_UNTIL,
    LEFTOVER_AGE_SECONDS,
    NEW,
    REPORTS,
    RESULT,
    SIDECAR,
    TMP,
    UNDELIVERED,
)

# A status change from the future means that the clock was set back since: then what the file
# says of the future cannot be trusted either.
_CLOCK_TOLERANCE_SECONDS = 60
# No attempt is planned so far ahead, unless somebody gave a message a time; then each run reads its
# sidecar. A clock that was ahead may have planned it, and a chown may have hidden that.
_FAR_SECONDS = 86400
_BODY_CUT = -len(BODY)
_SIDECAR_CUT = -len(SIDECAR)


class Sight:
    """What a directory held when it was read: stems that are due, and files without partner."""

    __slots__ = ("bodies", "due", "others", "sidecars", "waiting")

    def __init__(self) -> None:
        """Everything is empty; `waiting` counts messages that are not due."""
        self.due: list[str] = []
        self.waiting = 0
        self.sidecars: set[str] = set()
        self.bodies: set[str] = set()
        self.others: list[str] = []


def look(spool: str, state: str, now: float) -> Sight:
    """Read the directory of `state`: due messages sorted by age, unpaired files. Raises OSError."""
    sight = Sight()
    due, bodies, sidecars = sight.due, sight.bodies, sight.sidecars
    hinted = state == CUR
    future = now + _CLOCK_TOLERANCE_SECONDS
    far = now + _FAR_SECONDS
    with posix.scandir(f"{spool}/{state}") as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(SIDECAR):
                stem = name[:_SIDECAR_CUT]
                # Of each pair only the half that came first is ever held: memory stays small.
                if stem in bodies:
                    bodies.discard(stem)
                else:
                    sidecars.add(stem)
                if hinted:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    due_at = found.st_mtime
                    is_plausible = due_at <= far or due_at == HELD_UNTIL
                    if now < due_at and is_plausible and found.st_ctime <= future:
                        sight.waiting += 1
                        continue
                due.append(stem)
            elif name.endswith(BODY):
                stem = name[:_BODY_CUT]
                if stem in sidecars:
                    sidecars.discard(stem)
                else:
                    bodies.add(stem)
            else:
                sight.others.append(name)
    due.sort()
    return sight


def is_old(path: str, now: float) -> bool:
    """Say whether a leftover may go: last written over 36 hours ago. False if it is gone.

    A clock that jumped may be wrong here; the sweep also checks the lock.
    """
    try:
        found = posix.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return now - found.st_mtime > LEFTOVER_AGE_SECONDS


def leftovers(spool: str, now: float, sights: dict[str, Sight]) -> list[str]:
    """Return paths that the sweep should check: old enough, and not of a message in `sights`.

    `sights` are what `look` returned for new/ and cur/. Locks were not checked yet. Raises OSError.
    """
    found = []
    with posix.scandir(f"{spool}/{TMP}") as entries:
        found += [entry.path for entry in entries if is_old(entry.path, now)]
    for state, sight in sights.items():
        candidates = [stem + BODY for stem in sight.bodies] + sight.others
        paths = [f"{spool}/{state}/{name}" for name in candidates]
        found += [path for path in paths if is_old(path, now)]
    return found


def undelivered_leftovers(spool: str, now: float) -> list[str]:
    """Return the same for undelivered/: bodies and results without a sidecar."""
    return look_at_undelivered(spool, now)[0]


def look_at_undelivered(spool: str, now: float) -> tuple[list[str], list[str]]:
    """Return leftovers there, and stems of messages whose body is still where they came from.

    After power loss the move to undelivered/ may have made the sidecar's entry durable, and not yet
    the body's. The claim of such a message finishes the move. Raises OSError.
    """
    stems: dict[str, int] = {}
    with posix.scandir(f"{spool}/{UNDELIVERED}") as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.rpartition(".")
            mask = {BODY: 1, SIDECAR: 2, RESULT: 4}.get(dot + suffix, 0)
            if mask:
                stems[stem] = stems.get(stem, 0) | mask
    found, halves = [], []
    for stem, mask in stems.items():
        if mask & 2:
            if not mask & 1 and any(exists(f"{spool}/{one}/{stem}{BODY}") for one in (NEW, CUR)):
                halves.append(stem)
            continue
        elsewhere = any(exists(f"{spool}/{state}/{stem}{SIDECAR}") for state in (NEW, CUR))
        for bit, suffix in ((1, BODY), (4, RESULT)):
            path = f"{spool}/{UNDELIVERED}/{stem}{suffix}"
            if mask & bit and not (elsewhere and bit == 4) and is_old(path, now):
                found.append(path)
    return found, halves


REPORT_WINDOW_SECONDS = 3600


def overdue_reports(spool: str, now: float) -> list[str]:
    """Return paths of files of reports/ whose hour is over (report_limit.py). Raises OSError."""
    directory = f"{spool}/{REPORTS}"
    try:
        names = posix.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in sorted(names) if is_report_over(name, now)]


def is_report_over(name: str, now: float) -> bool:
    """Say whether the hour of a file of this name is over, or its digest was begun.

    The name is `HASH-BEGIN` or `HASH-BEGIN.ID`; a begin in the future is a clock that was set
    back.
    """
    base, dot, _ = name.partition(".")
    begin = base.rpartition("-")[2]
    if dot or not begin.isdecimal():
        return True
    return not int(begin) <= now < int(begin) + REPORT_WINDOW_SECONDS
