"""Does mail flow? The figures behind `status`, `check` and monitoring, gathered without a lock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail import value
from picoqmail.layout import CUR, NEW, SENDER_LOCK
from picoqmail.ledger import counters
from picoqmail.ledger.relay_notes import describe_notes
from picoqmail.spool import locks
from picoqmail.store.directory import DirectoryStore

if TYPE_CHECKING:
    from typing import Any

    from picoqmail.home.paths import Home
    from picoqmail.ledger.routes import Outage
    from picoqmail.spool.figures import Heap
    from picoqmail.store.protocol import Store


@frozen
class Status:
    """A spool at one moment; times in Unix seconds, None if there is none.

    `lessons` has for each relay what was learnt of it, in sentences without a subject.

    `in_doubt` counts the messages that may have arrived, and that doubtlimit keeps from being sent
    again. `next_attempt` is when the next other message of cur/ is due, in the past if one is due
    now. `sender` and `cron` are the pids of active programs; 0 is a process of another PID
    namespace. What is free is None where a database keeps the mail, and this host has no directory
    for it.
    """

    taken: int
    heaps: dict[str, Heap]
    held: int
    in_doubt: int
    due: int
    next_attempt: int | None
    writing: int
    outages: dict[str, Outage]
    lessons: dict[str, list[str]]
    sender: int | None
    cron: int | None
    cron_since: int | None
    totals: dict[str, int]
    free_octets: int | None
    free_inodes: int | None

    @property
    def waiting(self) -> int:
        """How many messages are still to be sent, held ones included."""
        return self.heaps[NEW].messages + self.heaps[CUR].messages

    @property
    def oldest_waiting(self) -> int | None:
        """When the oldest message that waits was accepted, of those neither held nor in doubt."""
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
            "states": {name: value.asdict(heap) for name, heap in self.heaps.items()},
            "waiting": self.waiting,
            "held": self.held,
            "in_doubt": self.in_doubt,
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


def gather(home: Home, store: Store, now: float | None = None) -> Status:
    """Gather the figures of a home and its store. Raises SpoolError.

    The programs that are active are those of this host.
    """
    now = store.clock() if now is None else now
    figures = store.figures(now)
    free: tuple[int, int] | tuple[None, None] = figures.free_octets, figures.free_inodes
    if not isinstance(store, DirectoryStore):
        free = _free(home.spool)
    cron, cron_since = _cron(home.spool)
    return Status(
        taken=int(now),
        heaps=figures.heaps,
        held=figures.held,
        in_doubt=figures.in_doubt,
        due=figures.due + figures.heaps[NEW].messages,
        next_attempt=figures.next_attempt,
        writing=figures.writing,
        outages=store.routes().read(),
        lessons={
            relay: words
            for relay, facts in store.notes.read(now).items()
            if (words := describe_notes({name: fact[0] for name, fact in facts.items()}))
        },
        sender=_holder(f"{home.spool}/{SENDER_LOCK}"),
        cron=cron,
        cron_since=cron_since,
        totals=store.totals.read(),
        free_octets=free[0],
        free_inodes=free[1],
    )


def _free(directory: str) -> tuple[int, int] | tuple[None, None]:
    """Return what is free where this host keeps mail while the database is away; None if nowhere.

    Octets and inodes.
    """
    try:
        space = os.statvfs(directory)
    except OSError:
        return None, None
    return space.f_bavail * space.f_frsize, space.f_favail


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
