"""Does mail flow? The figures behind `status`, `check` and monitoring, gathered without a lock.

What may live here: reading of names and file times. No message is opened: names have the ages, file
times the rest, so that a hundred thousand messages cost the time of as many stats.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from attrs import asdict, define, field, frozen

from picoqmail import value
from picoqmail.admin.selection import created_by
from picoqmail.errors import QUEUE_SPOOL, SpoolError
from picoqmail.layout import (
    BODY,
    CUR,
    HELD_UNTIL,
    NEW,
    SENDER_LOCK,
    SIDECAR,
    TMP,
    UNDELIVERED,
)
from picoqmail.relay import breaker, notes
from picoqmail.spool import counters, locks

if TYPE_CHECKING:
    from typing import Any

    from picoqmail.relay.breaker import Outage

_DAY_SECONDS = 86400


@define
class Heap:
    """The messages in one state; `octets` are those of the bodies.

    `oldest` is Unix seconds or None; `fresh` counts the messages accepted within the last day.
    """

    messages: int = 0
    octets: int = 0
    oldest: int | None = None
    fresh: int = 0


@frozen
class Status:
    """A spool at one moment; times in Unix seconds, None if there is none.

    `lessons` has for each relay what was learnt of it, in sentences without a subject.

    `next_attempt` is when the next message of cur/ is due, in the past if one is due now. `sender`
    and `cron` are the pids of active programs; 0 is a process of another PID namespace.
    """

    taken: int
    heaps: dict[str, Heap]
    held: int
    due: int
    next_attempt: int | None
    writing: int
    outages: dict[str, Outage]
    lessons: dict[str, list[str]]
    sender: int | None
    cron: int | None
    cron_since: int | None
    totals: dict[str, int]
    free_octets: int
    free_inodes: int

    @property
    def waiting(self) -> int:
        """How many messages are still to be sent, held ones included."""
        return self.heaps[NEW].messages + self.heaps[CUR].messages

    @property
    def oldest_waiting(self) -> int | None:
        """When the oldest message that waits was accepted; held ones do not count."""
        ages = [heap.oldest for heap in (self.heaps[NEW], self.heaps[CUR]) if heap.oldest]
        return min(ages, default=None)

    @property
    def last_delivery(self) -> int | None:
        """When a relay last took a message."""
        return self.totals[counters.LAST_DELIVERY] or None

    def document(self) -> dict[str, Any]:
        """Return the same for JSON."""
        return {
            "taken": self.taken,
            "states": {name: asdict(heap) for name, heap in self.heaps.items()},
            "waiting": self.waiting,
            "held": self.held,
            "due": self.due,
            "oldest_waiting": self.oldest_waiting,
            "oldest_age": _since(self.oldest_waiting, self.taken),
            "next_attempt": self.next_attempt,
            "being_written": self.writing,
            "last_delivery": self.last_delivery,
            "last_delivery_age": _since(self.last_delivery, self.taken),
            "relays_down": {name: value.asdict(one) for name, one in self.outages.items()},
            "relays_learnt": self.lessons,
            "sender_pid": self.sender,
            "cron_pid": self.cron,
            "cron_since": self.cron_since,
            "totals": {name: self.totals[name] for name in counters.NAMES},
            "free_octets": self.free_octets,
            "free_inodes": self.free_inodes,
        }


@define
class _Gathered:
    """The sums of the walks over the states."""

    now: float
    held: int = 0
    due: int = 0
    next_attempt: int | None = None
    heaps: dict[str, Heap] = field(factory=dict)


def gather(spool: str, now: float | None = None) -> Status:
    """Gather the figures of a spool. Raises SpoolError."""
    gathered = _Gathered(time.time() if now is None else now)
    for state in (NEW, CUR, UNDELIVERED):
        gathered.heaps[state] = _walk(spool, state, gathered)
    try:
        space = os.statvfs(spool)
        writing = sum(name.endswith(BODY) for name in os.listdir(f"{spool}/{TMP}"))
    except OSError as exc:
        raise SpoolError("read", spool, exc, QUEUE_SPOOL) from exc
    cron, cron_since = _cron(spool)
    return Status(
        taken=int(gathered.now),
        heaps=gathered.heaps,
        held=gathered.held,
        due=gathered.due + gathered.heaps[NEW].messages,
        next_attempt=gathered.next_attempt,
        writing=writing,
        outages=breaker.read(spool),
        lessons={
            relay: words
            for relay, facts in notes.read_notes(spool, gathered.now).items()
            if (words := notes.describe_notes({name: fact[0] for name, fact in facts.items()}))
        },
        sender=_holder(f"{spool}/{SENDER_LOCK}"),
        cron=cron,
        cron_since=cron_since,
        totals=counters.read_counters(spool),
        free_octets=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail,
    )


def _walk(spool: str, state: str, gathered: _Gathered) -> Heap:
    heap = Heap()
    day_ago = gathered.now - _DAY_SECONDS
    try:
        with os.scandir(f"{spool}/{state}") as entries:
            for entry in entries:
                if entry.name.endswith(BODY):
                    heap.octets += _stat(entry)[0]
                elif entry.name.endswith(SIDECAR):
                    heap.messages += 1
                    created = created_by(entry.name)
                    heap.fresh += created > day_ago
                    if state == CUR and _note_due(entry, gathered):
                        continue
                    if heap.oldest is None or created < heap.oldest:
                        heap.oldest = created
    except OSError as exc:
        raise SpoolError("read", f"{spool}/{state}", exc, QUEUE_SPOOL) from exc
    return heap


def _note_due(entry: os.DirEntry[str], gathered: _Gathered) -> bool:
    """Note when a message of cur/ is due, by its file's time; return whether it is held."""
    due = _stat(entry)[1]
    if due == HELD_UNTIL:
        gathered.held += 1
        return True
    gathered.due += due <= gathered.now
    if gathered.next_attempt is None or due < gathered.next_attempt:
        gathered.next_attempt = int(due)
    return False


def _stat(entry: os.DirEntry[str]) -> tuple[int, float]:
    """Return the size and the modification time."""
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        # Delivered after the directory was read.
        return 0, HELD_UNTIL - 1
    return found.st_size, found.st_mtime


def _holder(path: str) -> int | None:
    try:
        return locks.holder(path)
    except OSError:
        # There is no /proc (a container may hide it): then it is unknown.
        return None


def _cron(spool: str) -> tuple[int | None, int | None]:
    """Return the pid of the run of cron that is alive, and since when it runs."""
    for slot in range(locks.CRON_SLOTS):
        path = locks.cron_lock(spool, slot)
        try:
            pid = locks.holder(path)
            if pid is not None:
                return pid, locks.cron_stamp(path)
            if not os.path.lexists(path):
                break
        except OSError:
            break
    return None, None


def _since(when: int | None, now: int) -> int | None:
    return None if when is None else max(now - when, 0)
