"""What picoqmail-send and picoqmail-cron do: look for work, and deliver only if there is some.

Cheap to import. start_sender.py and INTERNALS.md explain the sender's lock and how it is handed
over. Its holder here keeps the promise that goes with it: release it, read new/ once more, and
take it again if there is a message that no other process will send.
"""

from __future__ import annotations

import gc
import posix
import sys
import time

from picoqmail.durable import replace, unlink_if_there
from picoqmail.errors import (
    EX_CONFIG,
    EX_IOERR,
    EX_NOINPUT,
    EX_OSERR,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    QUEUE_SPOOL,
    ConfigurationError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.home.control import Control, own_host_name
from picoqmail.home.database import database_of
from picoqmail.home.owner import become_owner
from picoqmail.home.paths import exists, locate
from picoqmail.layout import (
    BODY,
    CRON_COMPLAINT,
    CUR,
    DROP,
    IDEMPOTENCY,
    NEW,
    SENDER_LOCK,
    accepted_at,
)
from picoqmail.ledger.relay_down import relay_is_down
from picoqmail.spool import drop, idle, retention, scan
from picoqmail.spool.locks import (
    release_cron_lock,
    take_cron_lock,
    take_lock,
    try_lock,
    unlock,
)
from picoqmail.submission.start_sender import keep_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.delivery.deliver import Summary
    from picoqmail.delivery.run import Run
    from picoqmail.home.paths import Home

# A sender that hangs keeps its lock. Mail that has waited in new/ for so long is not left to it.
PATIENCE_SECONDS = 300

_MOST_PASSES = 100

_SEND = "picoqmail-send"
_CRON = "picoqmail-cron"
_WORKER = "picoqmail worker"
# Longer than the steps in which file systems count time.
_CHANGE_SECONDS = 2


class Sender:
    """One program's work on one home. It makes a run only if there is something to deliver."""

    def __init__(self, home: Home, program: str, control: Control | None = None) -> None:
        """`program` is named in the log; `control` as for read_limits."""
        self.home = home
        self._control = control
        self.program = program
        self._run: Run | None = None
        self._changed_ns = 0

    @property
    def run(self) -> Run:
        """The run. It is made when first needed, because it imports all that delivery needs."""
        if self._run is None:
            # All that imports make stays. To search it for garbage takes 6 ms of 100.
            gc.disable()
            from picoqmail.delivery.run import Run

            gc.freeze()
            gc.enable()
            self._run = Run(self.home, self.program, control=self._control)
        return self._run

    @property
    def has_run(self) -> bool:
        """Whether there was anything to deliver."""
        return self._run is not None

    def look(self, state: str, after: str = "") -> scan.Sight:
        """Read one directory; due messages are the oldest behind `after`. Raises SpoolError."""
        try:
            return scan.look(self.home.spool, state, time.time(), after=after)
        except OSError as exc:
            raise SpoolError("read", f"{self.home.spool}/{state}", exc, QUEUE_SPOOL) from exc

    def is_stopped(self) -> bool:
        """Say whether a signal asked this program to end."""
        return self._run is not None and self._run.stopped

    def send_new(self, lock: int = -1) -> bool:
        """Deliver all of new/ that no process sends; with the lock also what arrives meanwhile.

        `lock` is the sender's lock if it was handed over. Returns whether anything was left because
        the relay is down. Raises SpoolError.
        """
        if lock < 0:
            lock = self.take_lock()
        tried: set[str] = set()
        again: set[str] = set()
        while True:
            busy: set[str] = set()
            while due := self._due_in_new(tried | busy):
                if relay_is_down(self.home.spool, time.time()) or self.is_stopped():
                    break
                tried.update(due)
                busy |= self._deliver(due, tried if lock >= 0 else None)
                tried -= busy
            if lock < 0:
                return bool(due)
            # The program that accepted the mail may have forked while it handed the lock over.
            unlock(lock)
            posix.close(lock)
            lock = -1
            if due:
                return True
            free = {one for one in self._due_in_new(tried) if self.is_free(one)}
            # A message that was not taken twice, although it is free, waits for something that no
            # further attempt would change: a report, for example, waits for its message.
            tried |= free & again
            again |= free
            if free - tried:
                lock = self.take_lock()
            if lock < 0:
                return False

    def _deliver(self, due: list[str], tried: set[str] | None) -> set[str]:
        """Deliver messages; with the sender's lock also what comes to new/ while a relay is slow.

        With the lock `tried` are the messages that need not be taken from new/, and those that are
        taken are added. Returns the messages that another process has. Raises SpoolError.
        """
        if tried is not None:
            self.run.look = lambda: self._fresh(tried)
        try:
            return self.run.deliver(due)
        finally:
            self.run.look = None

    def _fresh(self, tried: set[str]) -> list[str]:
        now = time.time()
        self.collect()
        try:
            changed_ns = posix.stat(f"{self.home.spool}/{NEW}").st_mtime_ns
        except OSError as exc:
            raise SpoolError("look at", f"{self.home.spool}/{NEW}", exc, QUEUE_SPOOL) from exc
        # A directory that was changed just now may change again without another time.
        is_old = changed_ns < (now - _CHANGE_SECONDS) * 1e9
        if (is_old and changed_ns == self._changed_ns) or relay_is_down(self.home.spool, now):
            return []
        self._changed_ns = changed_ns
        due = self._due_in_new(tried)
        tried.update(due)
        return due

    def collect(self, *, everything: bool = False) -> None:
        """Take mail from the drop into new/: a share of each user's, or all of it.

        Raises ConfigurationError, SpoolError.
        """
        try:
            # A user who submits faster than this goes on must not keep us here for ever.
            for _ in range(_MOST_PASSES if everything else 1):
                if not (drop.is_waiting(self.home.spool) and self.run.collect()):
                    break
        except OSError as exc:
            raise SpoolError("look at", f"{self.home.spool}/{DROP}", exc, QUEUE_SPOOL) from exc

    def _due_in_new(self, seen: set[str]) -> list[str]:
        self.collect()
        sight = self.look(NEW)
        found = [one for one in sight.due if one not in seen]
        while sight.is_cut and not found:
            sight = self.look(NEW, sight.due[-1])
            found = [one for one in sight.due if one not in seen]
        return found

    def take_lock(self) -> int:
        """Take the sender's lock: a descriptor, or -1. Raises SpoolError."""
        path = f"{self.home.spool}/{SENDER_LOCK}"
        try:
            return take_lock(path)
        except OSError as exc:
            raise SpoolError("lock", path, exc, QUEUE_SPOOL) from exc

    def is_free(self, message_id: str) -> bool:
        """Say whether no process has a message of new/ locked."""
        try:
            descriptor = posix.open(f"{self.home.spool}/{NEW}/{message_id}{BODY}", posix.O_RDONLY)
        except OSError:
            # It is gone, or cannot be read: another attempt would not send it.
            return False
        try:
            return try_lock(descriptor)
        except OSError:
            return False
        finally:
            posix.close(descriptor)

    def _sweep_keys(self, now: float) -> None:
        """Remove idempotency keys that have expired; costs one stat if there are none."""
        if exists(f"{self.home.spool}/{IDEMPOTENCY}"):
            from picoqmail.spool import keys

            keys.sweep(self.home.spool, now)

    def retry(self) -> None:
        """Do what cron does: sweep, then deliver what is due, and new/ if its sender is gone.

        Raises SpoolError, but only after all mail was tried.
        """
        now = time.time()
        trouble = self._purge(now)
        self.collect(everything=True)
        if not relay_is_down(self.home.spool, now) and not idle.is_idle(self.home.spool, now):
            before = self._observe()
            new, cur = self.look(NEW), self.look(CUR)
            found = self._keep_house(now, new, cur)
            if not (found or new.due or cur.due or cur.sidecars):
                self._note_idle(now, before, cur.next_due)
            trouble = found or trouble
            self._deliver_due(now, new, cur)
        if trouble is not None:
            raise trouble

    def _observe(self) -> idle.Observation:
        try:
            return idle.observe(self.home.spool)
        except OSError as exc:
            raise SpoolError("look at", exc.filename, exc, QUEUE_SPOOL) from exc

    def _note_idle(self, now: float, before: idle.Observation, next_due: float) -> None:
        """Spare the next runs this look. `before` was observed after `now` and before the look."""
        try:
            next_due = min(next_due, scan.next_report(self.home.spool))
        except OSError:
            return  # The next run looks again, and reports it.
        # If the clock was set back meanwhile, a change could have the time of an earlier one.
        if time.time() >= now:
            idle.note_idle(self.home.spool, now, before, next_due)

    def _purge(self, now: float) -> SpoolError | None:
        try:
            if retention.is_purge_due(self.home, now, self._control):
                self.run.purge()
        except SpoolError as exc:
            # It is raised at the end, because it must not keep mail back.
            return exc
        return None

    def _keep_house(self, now: float, new: scan.Sight, cur: scan.Sight) -> SpoolError | None:
        """Sweep leftovers and make digests; return what prevented that, because mail must go on."""
        try:
            # Before tmp/: its leftovers say what the keys of callers that died stand for.
            self._sweep_keys(now)
            dropped = drop.drop_leftovers(self.home.spool, now)
            old = scan.leftovers(self.home.spool, now, {NEW: new, CUR: cur})
            gone, halves = scan.look_at_undelivered(self.home.spool, now)
            overdue = scan.overdue_reports(self.home.spool, now)
        except OSError as exc:
            return SpoolError("read", exc.filename or self.home.spool, exc, QUEUE_SPOOL)
        try:
            if dropped:
                self.run.sweep_drop(dropped)
            if halves:
                self.run.settle(halves)
            if old or gone:
                self.run.sweep(old + gone)
            if overdue:
                self.run.make_digests()
        except SpoolError as exc:
            return exc
        return None

    def _deliver_due(self, now: float, new: scan.Sight, cur: scan.Sight) -> None:
        # A sidecar without a body beside it is not left until its time has come.
        due = {*cur.due, *cur.sidecars}
        lock = self.take_lock() if new.due else -1
        if lock < 0:
            due.update(one for one in new.due if now - accepted_at(one) > PATIENCE_SECONDS)
        tried: set[str] | None = set() if lock >= 0 else None
        while due:
            self._deliver(sorted(due), tried)
            if not cur.is_cut or self.is_stopped() or relay_is_down(self.home.spool, time.time()):
                break
            cur = self.look(CUR, cur.due[-1])
            due = set(cur.due)
        if lock >= 0:
            self.send_new(lock)


# --- The programs --------------------------------------------------------------------------------


def send(names: list[str], *, has_lock: bool = False) -> int:
    """Do what picoqmail-send does; return its exit code (sysexits.h).

    `names` are IDs or paths: send these messages, due or not, also past an open breaker. Without
    names send all of new/ that nobody is sending. `has_lock` says that this process was started
    with the sender's lock (start_sender.py). 0: all delivered; 75: something was deferred; 69:
    something failed for good; 66: no such message; 78: wrong configuration.
    """
    try:
        lock = keep_lock() if has_lock else -1
        home, control = _open_home()
        if database_of(home, control)[0]:
            return _send_by_fleet(home, names, lock)
        sender = Sender(home, _SEND, control)
        if names:
            return _send_named(sender.run, names)
        left = sender.send_new(lock)
        return _status(sender.run.summary) if sender.has_run else EX_TEMPFAIL if left else 0
    except (PicoqmailError, OSError) as exc:
        return _complain(_SEND, exc)


def retry() -> int:
    """Do what picoqmail-cron does; return its exit code (sysexits.h).

    0 also while another run is alive, and whatever became of the messages: that is in the log. 78:
    wrong configuration. What is wrong is printed once, not in each run.
    """
    complaint = ""
    try:
        complaint = f"{locate().spool}/{CRON_COMPLAINT}"
        home, control = _open_home()
        lock = _take_turn(home)
        if lock >= 0:
            if database_of(home, control)[0]:
                from picoqmail.delivery.fleet import FleetSender

                FleetSender(home, _CRON).retry()
            else:
                Sender(home, _CRON, control).retry()
            unlink_if_there(complaint)
            release_cron_lock(lock)
    except (PicoqmailError, OSError) as exc:
        return _complain(_CRON, exc, is_told=bool(complaint) and _is_repeated(complaint, exc))
    return 0


def _is_repeated(path: str, exc: PicoqmailError | OSError) -> bool:
    """Say whether the run before reported the same, so that it need not be printed again.

    Cron mails what its jobs print, and would do so each minute, into the very spool that cannot
    send. So the error is noted in the spool. At a terminal it is always printed. If it cannot be
    noted it is printed each time; then the spool takes no mail of cron's either.
    """
    data = str(exc).encode("utf-8", "replace")
    try:
        with open(path, "rb") as file:
            before = file.read()
    except OSError:
        before = b""  # There was none; or it cannot be replaced either.
    if before == data:
        return not posix.isatty(2)
    try:
        replace(f"{path}.{posix.getpid()}", path, data)
    except OSError:
        return False  # Said each time.
    return False


def work() -> int:
    """Do what `picoqmail worker` does, until a signal ends it; return its exit code."""
    try:
        home, control = _open_home()
        url, _ = database_of(home, control)
        if not url:
            raise ConfigurationError(
                home.spool,
                "is a directory, and no database for workers",
                "run picoqmail-cron each minute instead, or name a database: PICOQMAIL_SPOOL",
            )
        from picoqmail.delivery.fleet import FleetSender

        FleetSender(home, _WORKER).work()
    except (PicoqmailError, OSError) as exc:
        return _complain(_WORKER, exc)
    return 0


def run_queue() -> int:
    """Send what waits and what is due; return 78 for a wrong configuration, else 0."""
    return EX_CONFIG if EX_CONFIG in (send([]), retry()) else 0


def _open_home() -> tuple[Home, Control]:
    """Find the home and its settings, and become the owner of its spool.

    Raises ConfigurationError, OSError.
    """
    posix.umask(0o077)
    home = locate()
    become_owner(home)
    # Root that is still root has just judged the way to its own home.
    control = Control(home.control, is_checked=posix.geteuid() == 0)
    own_host_name(control)
    return home, control


def _take_turn(home: Home) -> int:
    """Take the lock of cron's runs: a descriptor, -1 if another run is alive. Raises SpoolError."""

    def lifetime_seconds() -> int:
        from picoqmail.home.settings import load

        return load(home).runlifetime

    try:
        return take_cron_lock(home.spool, time.time(), lifetime_seconds)
    except OSError as exc:
        raise SpoolError("lock the cron run in", home.spool, exc, QUEUE_SPOOL) from exc


def _send_by_fleet(home: Home, names: list[str], lock: int) -> int:
    from picoqmail.delivery.fleet import FleetSender

    sender = FleetSender(home, _SEND)
    if names:
        return _send_named(sender.run, names)
    left = sender.send_new(lock)
    return _status(sender.run.summary) or (EX_TEMPFAIL if left else 0)


def _send_named(run: Run, names: list[str]) -> int:
    found, refused = run.find(names)
    for _, why in refused:
        _print(f"{_SEND}: {why}")
    for busy in sorted(run.deliver(found, forced=True)):
        _print(f"{_SEND}: {busy}: another process is sending it")
        run.summary.left += 1
    return EX_NOINPUT if refused else _status(run.summary)


def _status(summary: Summary) -> int:
    if summary.failed or summary.damaged:
        return EX_UNAVAILABLE
    if summary.errors:
        return EX_IOERR
    return EX_TEMPFAIL if summary.deferred or summary.left else 0


def _complain(program: str, exc: PicoqmailError | OSError, *, is_told: bool = False) -> int:
    """Report an error on standard error; return the exit code for it. The mail stays as it is.

    `is_told`: it was reported before, and only the exit code is wanted.
    """
    if isinstance(exc, PicoqmailError):
        line = f"{program}: {exc}"
        code = EX_CONFIG if isinstance(exc, ConfigurationError) else exc.sysexit
    else:
        where = f": {exc.filename}" if exc.filename else ""
        line = f"{program}: system error: {exc.strerror or exc}{where}"
        code = EX_OSERR
    if not is_told:
        _print(line)
    return code


def _print(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201 - what these programs say to their caller
