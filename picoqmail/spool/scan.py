"""What is due, and what was left over, found without opening a file. Hot; builtins only.

A sidecar's modification time repeats its next_attempt. It is a hint: the claim of the message reads
the sidecar, which overrules it.

A directory may hold a million messages, so what is kept of them is bounded. Of those that are due
the oldest are returned, and the next time continues behind them. Whether each body has its sidecar
is decided by a sum over all names; only where that does not come out even are names remembered, in
another reading of the directory.
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
    SUSPENDED_FRACTION,
    TMP,
    UNDELIVERED,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# A status change from the future means that the clock was set back since: then what the file
# says of the future cannot be trusted either.
_CLOCK_TOLERANCE_SECONDS = 60
# No attempt is planned so far ahead, unless somebody gave a message a time; then each run reads its
# sidecar. A clock that was ahead may have planned it, and a chown may have hidden that.
_FAR_SECONDS = 86400
_BODY_CUT = -len(BODY)
_SIDECAR_CUT = -len(SIDECAR)
_SCAN_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC

DUE_AT_ONCE = 100_000
"""So many due messages are returned at most: their names take 11 MB."""

# The first page of a list is shown at once. Each later one is ten times as long, up to the above.
_FIRST_PAGE = 1000

# So many names are compared with the end of a page in one step.
_NAMES_AT_ONCE = 4096

# Unpaired names are found by groups of names. So many groups there are, and of so many the names
# are remembered at the same time: a quarter of all at most.
_GROUPS = 4096
_GROUPS_AT_ONCE = 1024


_BEHIND_ALL = "\U0010ffff"


class Page:
    """The first of many IDs in their order, as many as a page has: the oldest, or the youngest.

    However many are added, no more than two pages are held.
    """

    __slots__ = ("_backwards", "_behind", "_last", "_most", "_names", "is_cut")

    def __init__(self, most: int, behind: str = "", *, backwards: bool = False) -> None:
        """`behind` is the last ID of the page before, "" for the first page."""
        self._most = most
        self._behind = behind
        self._backwards = backwards
        self._names: list[str] = []
        self._last = ""
        self.is_cut = False
        """Whether IDs were added that come behind this page."""

    def add(self, name: str) -> None:
        """Put an ID in its place; the page may be too short for it."""
        if self._behind and not self._follows(name, self._behind):
            return
        if self._last and self._follows(name, self._last):
            self.is_cut = True
            return
        self._names.append(name)
        if len(self._names) >= 2 * self._most:
            self.names()

    @property
    def last(self) -> str:
        """The last ID of a page that is full; before that one behind which there is none."""
        return self._last or ("" if self._backwards else _BEHIND_ALL)

    def names(self) -> list[str]:
        """Return the IDs of the page, in their order."""
        names = self._names
        names.sort(reverse=self._backwards)
        if len(names) > self._most:
            del names[self._most :]
            self._last = names[-1]
            self.is_cut = True
        return names

    def _follows(self, name: str, other: str) -> bool:
        return name < other if self._backwards else name > other


def walk(spool: str, states: tuple[str, ...], *, backwards: bool) -> Iterator[tuple[str, str]]:
    """Yield all messages with their states, oldest first or youngest first, page by page.

    Of a message in two states, as after a crash, the first of `states` counts. What comes or moves
    meanwhile may be left out. Raises OSError.
    """
    most, behind, before = _FIRST_PAGE, "", ""
    while True:
        page = Page(most, behind, backwards=backwards)
        for order, state in enumerate(reversed(states) if backwards else states):
            _add_names(f"{spool}/{state}", page, f"\0{order}", backwards=backwards)
        names = page.names()
        for name in names:
            stem, _, order_text = name.partition("\0")
            if stem != before:
                number = int(order_text)
                yield stem, states[len(states) - 1 - number if backwards else number]
            before = stem
        if not page.is_cut:
            return
        most, behind = min(most * 10, DUE_AT_ONCE), names[-1]


def _add_names(path: str, page: Page, tag: str, *, backwards: bool) -> None:
    """Put the messages of a directory on a page, each with a tag behind its ID."""
    # Not for cron, which makes no list.
    from itertools import islice

    # By descriptor, because otherwise each entry gets a path of its own.
    directory = posix.open(path, _SCAN_DIRECTORY)
    try:
        with posix.scandir(directory) as entries:
            while names := [entry.name for entry in islice(entries, _NAMES_AT_ONCE)]:
                # Most names of a large directory are passed over by this alone.
                last = page.last
                if backwards:
                    fitting = [name for name in names if name >= last]
                else:
                    fitting = [name for name in names if name <= last]
                if not page.is_cut and len(fitting) < len(names):
                    behind = set(names).difference(fitting)
                    page.is_cut = any(name.endswith(SIDECAR) for name in behind)
                for name in fitting:
                    if name.endswith(SIDECAR):
                        page.add(name[:_SIDECAR_CUT] + tag)
    finally:
        posix.close(directory)


class Sight:
    """What a directory held when it was read."""

    __slots__ = ("bodies", "due", "is_cut", "next_due", "others", "sidecars", "waiting")

    def __init__(self) -> None:
        """Everything is empty."""
        self.due: list[str] = []
        """The IDs of due messages, the oldest first."""
        self.is_cut = False
        """Whether more are due than these, all younger."""
        self.waiting = 0
        """How many messages are not due."""
        self.next_due = HELD_UNTIL
        """When the first of the waiting ones is due, Unix seconds."""
        self.sidecars: set[str] = set()
        """Stems of sidecars without a body beside them; of very many only some."""
        self.bodies: set[str] = set()
        """Stems of bodies without a sidecar beside them; of very many only some."""
        self.others: list[str] = []
        """The names of all other files."""


def look(spool: str, state: str, now: float, *, most: int = DUE_AT_ONCE, after: str = "") -> Sight:
    """Read the directory of `state`: the oldest due messages, and unpaired files. Raises OSError.

    At most the `most` oldest are returned, of those with IDs behind `after`.
    """
    directory = posix.open(f"{spool}/{state}", _SCAN_DIRECTORY)
    try:
        sight = Sight()
        page = Page(most, after)
        if _read_names(directory, sight, page, now if state == CUR else None):
            _find_unpaired(directory, sight)
    finally:
        posix.close(directory)
    sight.due, sight.is_cut = page.names(), page.is_cut
    return sight


def _read_names(directory: int, sight: Sight, due: Page, now: float | None) -> int:
    """Read all names, and the times of sidecars if there is a `now` to compare them with.

    Return the exclusive or of the hashes of all stems: 0 if each body has a sidecar. That it is 0
    by chance would happen once in 2**61 directories.
    """
    # A loop over millions of names: it makes no object that stays, and does little with each name.
    parity = waiting = 0
    next_due = HELD_UNTIL
    future = (now or 0) + _CLOCK_TOLERANCE_SECONDS
    far = (now or 0) + _FAR_SECONDS
    with posix.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(SIDECAR):
                stem = name[:_SIDECAR_CUT]
                parity ^= hash(stem)
                if now is not None:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    due_at = found.st_mtime
                    is_plausible = (
                        due_at <= far or due_at == HELD_UNTIL or due_at % 1 == SUSPENDED_FRACTION
                    )
                    if now < due_at and is_plausible and found.st_ctime <= future:
                        waiting += 1
                        if due_at < next_due:  # noqa: PLR1730 - half as quick by min()
                            next_due = due_at
                        continue
                due.add(stem)
            elif name.endswith(BODY):
                parity ^= hash(name[:_BODY_CUT])
            else:
                sight.others.append(name)
    sight.waiting, sight.next_due = waiting, next_due
    return parity


def _find_unpaired(directory: int, sight: Sight) -> None:
    """Find bodies without sidecar and sidecars without body: of very many only some.

    A second reading finds the groups of names that do not come out even, a third their names.
    """
    parities = [0] * _GROUPS
    with posix.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith((SIDECAR, BODY)):
                value = hash(name.rpartition(".")[0])
                parities[value % _GROUPS] ^= value
    # Hashes differ from process to process: so over some runs every group has its turn.
    odd = {group for group in range(_GROUPS) if parities[group]}
    while len(odd) > _GROUPS_AT_ONCE:
        odd.pop()
    bodies, sidecars = sight.bodies, sight.sidecars
    with posix.scandir(directory) as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.rpartition(".")
            suffix = dot + suffix
            if suffix not in (SIDECAR, BODY) or hash(stem) % _GROUPS not in odd:
                continue
            own, other = (sidecars, bodies) if suffix == SIDECAR else (bodies, sidecars)
            # Of each pair only the half that came first is ever held.
            if stem in other:
                other.discard(stem)
            else:
                own.add(stem)


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
    # Every deferred message has a result there. It is no older than its message, whose ID begins
    # with ten digits of seconds.
    young = str(int(now) - LEFTOVER_AGE_SECONDS)
    with posix.scandir(f"{spool}/{UNDELIVERED}") as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.rpartition(".")
            mask = {BODY: 1, SIDECAR: 2, RESULT: 4}.get(dot + suffix, 0)
            if mask == 4:
                is_young = stem > young and stem.find(".") == len(young)
                if is_young or not is_old(entry.path, now):
                    continue
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
    names = sorted(_reports(spool))
    return [f"{spool}/{REPORTS}/{name}" for name in names if is_report_over(name, now)]


def next_report(spool: str) -> float:
    """Return when the first hour of a file of reports/ is over, Unix seconds. Raises OSError.

    HELD_UNTIL if there is none.
    """
    begins = [_begin_of(name) for name in _reports(spool)]
    return min([begin + REPORT_WINDOW_SECONDS for begin in begins], default=HELD_UNTIL)


def _reports(spool: str) -> list[str]:
    try:
        return posix.listdir(f"{spool}/{REPORTS}")
    except FileNotFoundError:
        return []


def is_report_over(name: str, now: float) -> bool:
    """Say whether the hour of a file of this name is over, or its digest was begun.

    The name is `HASH-BEGIN` or `HASH-BEGIN.ID`; a begin in the future is a clock that was set
    back.
    """
    begin = _begin_of(name)
    return not begin <= now < begin + REPORT_WINDOW_SECONDS


def _begin_of(name: str) -> int:
    """Return when the hour of a file of reports/ began; 0 if its digest was begun."""
    base, dot, _ = name.partition(".")
    begin = base.rpartition("-")[2]
    return 0 if dot or not begin.isdecimal() else int(begin)
