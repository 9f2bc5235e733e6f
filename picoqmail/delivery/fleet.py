"""What picoqmail-send, picoqmail-cron and `picoqmail worker` do where a database keeps the mail.

Any number of processes on any hosts do this at once. What keeps them apart is in the database:
leases of messages, the breaker, the pace. The sender's lock of this host only saves starts: a burst
of mail starts one sender here, not one for each mail. As with a directory, its holder releases it
and then looks once more (sender.py, INTERNALS.md).

A run takes the next messages that are due, some at a time, so that its memory does not grow with
the backlog, and mail that comes meanwhile has its turn.
"""

from __future__ import annotations

import gc
import os
import random
import time
from functools import partial

from picoqmail.errors import SpoolError
from picoqmail.layout import CUR, NEW, SENDER_LOCK
from picoqmail.spool.locks import take_lock, unlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.delivery.run import Run
    from picoqmail.home.paths import Home

# So many messages are asked for at once.
BATCH_MESSAGES = 500
# Workers see the same messages as due, and would ask for each of them, one after the other. So each
# takes a share at a time, from a place that it draws, and then sees what is left. A share grows
# while nobody else has any of it: one worker alone is quicker with many at once.
FIRST_SHARE_MESSAGES = 50
_LEAST_SHARE_MESSAGES = 25
_MOST_BUSY = 0.1
# How long a worker waits for a wake-up before it looks again; jitter keeps workers apart.
_POLL_SECONDS = 5.0
# Leftovers are removed, and mail of this host is brought in, so often.
_HOUSE_SECONDS = 60.0
# After the database was away, a worker tries again after a pause that doubles up to this.
_LONGEST_PAUSE_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 1.0


class FleetSender:
    """One program's work on the store of one home, beside those of other hosts."""

    def __init__(self, home: Home, program: str) -> None:
        """`program` is named in the log. Raises ConfigurationError."""
        gc.disable()
        from picoqmail.delivery.run import Run

        gc.freeze()
        gc.enable()
        self.home = home
        self.run: Run = Run(home, program)
        self._share: WorkerShare | None = None

    def send_new(self, lock: int = -1) -> bool:
        """Deliver what has not been tried yet; with the lock also what comes meanwhile.

        `lock` is the sender's lock of this host if it was handed over. Returns whether anything was
        left because its relay is down. Raises SpoolError.
        """
        if lock < 0:
            lock = self._take_lock()
        tried: set[str] = set()
        while True:
            self.run.collect()
            is_left = self._deliver((NEW,), tried)
            if lock < 0:
                return is_left
            unlock(lock)
            os.close(lock)
            if is_left or self.run.stopped:
                return is_left
            if not self.run.spool.due(1, (NEW,), tried):
                return False
            lock = self._take_lock()
            if lock < 0:
                return False

    def _take_lock(self) -> int:
        """Take the sender's lock of this host; -1 if another process has it, or there is none."""
        try:
            return take_lock(f"{self.home.spool}/{SENDER_LOCK}")
        except OSError:
            # A host without a directory: then each mail starts a sender of its own.
            return -1

    def retry(self) -> None:
        """Do what cron does: bring in mail of this host, clean up, deliver what is due.

        Raises SpoolError, but only after all mail was tried.
        """
        trouble = self.keep_house()
        self._deliver((NEW, CUR), set())
        if trouble is not None:
            raise trouble

    def keep_house(self) -> SpoolError | None:
        """Bring in mail of this host, and clean up; return what prevented that."""
        run = self.run
        try:
            run.collect()
            run.sweep(())
            run.make_digests()
            run.purge()
        except SpoolError as exc:
            return exc
        return None

    def _deliver(self, states: Iterable[str], tried: set[str]) -> bool:
        """Deliver what is due, some at a time; return whether any was left for want of a relay.

        The messages that were taken are added to `tried`.
        """
        run = self.run
        states = tuple(states)
        run.look = partial(self._fresh, tried)
        try:
            while not run.stopped:
                ids = self._take(run.spool.due(BATCH_MESSAGES, states, tried))
                if not ids:
                    break
                tried.update(ids)
                before = run.summary.left
                busy = run.deliver(run.take_turns(ids))
                if self._share is not None:
                    self._share.learn(len(ids), len(busy))
                if run.summary.left - before >= len(ids):
                    # Their relays are down, and those of what is due after them as well, or they
                    # come with the next run.
                    return True
        finally:
            run.look = None
        return False

    def _take(self, ids: list[str]) -> list[str]:
        return ids if self._share is None else self._share.of(ids)

    def _fresh(self, tried: set[str]) -> list[str]:
        """Return what has come since, for a run whose relay is slow."""
        ids = self._take(self.run.spool.due(BATCH_MESSAGES, (NEW,), tried))
        tried.update(ids)
        return ids

    def work(self) -> None:
        """Deliver what is due until a signal ends it; survives that the database is away.

        SIGTERM and SIGINT finish what is in hand. Raises ConfigurationError.
        """
        run = self.run
        self._share = WorkerShare()
        pause = _FIRST_PAUSE_SECONDS
        house = 0.0
        while not self._is_stopped():
            try:
                now = time.monotonic()
                if now >= house:
                    house = now + _HOUSE_SECONDS
                    trouble = self.keep_house()
                    if trouble is not None:
                        raise trouble
                self._deliver((NEW, CUR), set())
                pause = _FIRST_PAUSE_SECONDS
                self._wait(_POLL_SECONDS)
            except SpoolError as exc:
                run.log.event("error", level="error", error=str(exc))
                time_left = time.monotonic() + pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                while not self._is_stopped() and time.monotonic() < time_left:
                    time.sleep(0.1)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait for mail, at most so long, or until the next message is due."""
        due = self.run.spool.next_due()
        if due is not None:
            seconds = min(seconds, max(0.0, due - self.run.spool.clock()))
        # Workers that look at the same moment would all find the same.
        seconds = max(0.05, seconds) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        self.run.spool.wait(seconds, self._is_stopped)

    def _is_stopped(self) -> bool:
        return self.run.stopped


class WorkerShare:
    """How much of what is due one of several workers takes at a time."""

    def __init__(self) -> None:
        self.messages = FIRST_SHARE_MESSAGES

    def of(self, ids: list[str]) -> list[str]:
        """Return the share of some messages: neighbours, from a place that is drawn."""
        most = len(ids) - self.messages
        if most <= 0:
            return ids
        first = random.randrange(0, most + 1)  # noqa: S311 - no secret
        return ids[first : first + self.messages]

    def learn(self, taken: int, busy: int) -> None:
        """Take less if other workers had much of what was taken, and more if they had nothing."""
        if busy > taken * _MOST_BUSY:
            self.messages = max(self.messages // 2, _LEAST_SHARE_MESSAGES)
        elif not busy:
            self.messages = min(self.messages * 2, BATCH_MESSAGES)
