"""The directory store: one spool directory, as protocol.py wants a store.

Order and durability of each step: spool/transitions.py and INTERNALS.md.
"""

from __future__ import annotations

import posix
import time

from picoqmail import durable
from picoqmail.errors import QUEUE_SPOOL, DamagedMessageError, NoSuchMessageError, SpoolError
from picoqmail.layout import (
    BLOCK_OCTETS,
    BODY,
    CUR,
    NEW,
    PROGRESS,
    RESULT,
    SIDECAR,
    STATES,
    TMP,
    UNDELIVERED,
    is_id,
)
from picoqmail.ledger.counters import DirectoryTotals
from picoqmail.ledger.rate_limit import RATE, RateLimiter
from picoqmail.ledger.relay_notes import DirectoryNotes
from picoqmail.ledger.routes import DirectoryRoutes
from picoqmail.spool import drop, retention, scan
from picoqmail.spool.claim import Claimer, check_size, verify_body
from picoqmail.spool.files import NO_BODY, SpoolFiles, read_whole
from picoqmail.spool.incoming import Incoming
from picoqmail.spool.locks import try_lock
from picoqmail.spool.message import Event
from picoqmail.spool.progress import append_progress, drop_progress, read_doubts
from picoqmail.value import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from picoqmail.home.limits import Limits
    from picoqmail.home.values import RateLimit
    from picoqmail.ledger.report_limit import DirectoryReportLimit
    from picoqmail.spool.claim import Damage
    from picoqmail.spool.figures import Figures
    from picoqmail.spool.message import Message
    from picoqmail.store.protocol import ClaimedMessage


def nothing(_what: object) -> None:
    """Do nothing with it."""


class DirectoryStore:
    """One spool directory.

    `clock` gives Unix seconds. `on_damage` is called for each message that is put aside, `on_copy`
    with the path of each body that was unlinked because it was a damaged copy of a whole one.
    """

    def __init__(
        self,
        path: str,
        clock: Callable[[], float] = time.time,
        on_damage: Callable[[Damage], None] = nothing,
        on_copy: Callable[[str], None] = nothing,
    ) -> None:
        """Nothing is opened yet."""
        self.path = path
        self.clock = clock
        self._on_damage = on_damage
        self._files = SpoolFiles(path)
        self._claimer = Claimer(self._files, clock, on_damage, on_copy)
        self.collected = self._claimer.collected
        self.notes = DirectoryNotes(path)
        self.totals = DirectoryTotals(path)

    @property
    def location(self) -> str:
        """What people are shown."""
        return self.path

    # --- Reading, without a lock -------------------------------------------------------------

    def look(self, state: str, most: int = scan.DUE_AT_ONCE) -> scan.Sight:
        """Return what is due in a state, the oldest `most` of it. Raises SpoolError."""
        try:
            return scan.look(self.path, state, self.clock(), most=most)
        except OSError as exc:
            raise SpoolError("read", self._files.join(state), exc, QUEUE_SPOOL) from exc

    def find(self, name: str) -> str:
        """Return the ID that an ID or a path of the spool names. Raises NoSuchMessageError."""
        stem = name.rpartition("/")[2]
        for suffix in (SIDECAR, BODY, RESULT):
            stem = stem.removesuffix(suffix)
        if not is_id(stem) or not self._files.where(stem):
            raise NoSuchMessageError(f"{name}: no such message in {self.path}")
        return stem

    def where(self, message_id: str) -> list[str]:
        """Return the states that a message has a sidecar in; more than one only after a crash.

        Raises SpoolError where that cannot be known.
        """
        return self._files.where(message_id)

    def is_whole(self, message_id: str) -> bool:
        """Say whether a message has a sidecar in a state, and a body. Raises SpoolError.

        Where its acceptance was never made durable, power loss may have left one of them alone.
        """
        try:
            return bool(self.where(message_id)) and not self._files.body_is_nowhere(message_id)
        except OSError as exc:
            raise SpoolError("look for", f"{self.path}/*/{message_id}", exc) from exc

    def read(self, message_id: str, hint: str = "") -> tuple[str, Message]:
        """Return state and message as they are at this moment, for people.

        `hint` is the state to look in first. Raises NoSuchMessageError, DamagedMessageError,
        SpoolError.
        """
        for _ in range(3):
            for state in (hint, *STATES) if hint else STATES:
                try:
                    return state, self._files.read_sidecar(state, message_id)
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    raise SpoolError("read", self._files.join(state, message_id), exc) from exc
        raise NoSuchMessageError(f"{message_id}: no such message in {self.path}")

    def sidecar(self, message_id: str, state: str) -> bytes | None:
        """Return a sidecar's octets, damaged or not; None if it is not there. Raises SpoolError."""
        path = self._files.join(state, message_id + SIDECAR)
        try:
            return read_whole(path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SpoolError("read", path, exc) from exc

    def body(self, message_id: str) -> Iterator[bytes]:
        """Yield the body's octets, damaged or not, for people.

        Raises DamagedMessageError if there is none, SpoolError.
        """
        descriptor = self._files.open_body(message_id)
        if descriptor < 0:
            raise DamagedMessageError(NO_BODY)
        with open(descriptor, "rb", buffering=0) as file:
            while block := file.read(BLOCK_OCTETS):
                yield block

    def check_body(self, message: Message) -> None:
        """Compare a body with what was accepted. Raises DamagedMessageError, SpoolError."""
        descriptor = self._files.open_body(message.id)
        if descriptor < 0:
            raise DamagedMessageError(NO_BODY)
        try:
            check_size(message, posix.fstat(descriptor).st_size)
            verify_body(message, descriptor)
        finally:
            posix.close(descriptor)

    def read_result(self, message_id: str) -> str:
        """Return what relays have said of a message, "" if nothing was written. Raises OSError."""
        return self._files.read_result(message_id)

    def names(self) -> dict[str, str]:
        """Return the states of all messages by ID, oldest first, without opening a file.

        Raises SpoolError.
        """
        found: dict[str, str] = {}
        for state in STATES:
            path = self._files.join(state)
            try:
                entries = posix.listdir(path)
            except OSError as exc:
                raise SpoolError("read", path, exc, QUEUE_SPOOL) from exc
            for name in entries:
                if name.endswith(SIDECAR):
                    # After a crash a message has two sidecars; STATES has the order of recovery.
                    found.setdefault(name[: -len(SIDECAR)], state)
        return {stem: found[stem] for stem in sorted(filter(is_id, found))}

    def walk(self, *, newest_first: bool = False) -> Iterator[tuple[str, str]]:
        """Yield the IDs of all messages and their states, oldest first; no file is opened.

        Each page of names is another reading of the directories. Raises SpoolError.
        """
        try:
            for message_id, state in scan.walk(self.path, STATES, backwards=newest_first):
                if is_id(message_id):
                    yield message_id, state
        except OSError as exc:
            # What cannot be read to its end is known by a descriptor only.
            path = exc.filename if isinstance(exc.filename, str) else self.path
            raise SpoolError("read", path, exc, QUEUE_SPOOL) from exc

    def figures(self, now: float) -> Figures:
        """Return how much mail there is; no file is opened. Raises SpoolError."""
        from picoqmail.spool.figures import figures_of

        return figures_of(self.path, now)

    # --- The way in --------------------------------------------------------------------------

    def incoming(
        self, limits: Limits, *, program: str, uid: int, pid: int, now_ns: int = 0
    ) -> Incoming:
        """Begin a message. `now_ns` is Unix time in nanoseconds, 0 for now. Raises SpoolError."""
        return Incoming(self.path, limits, program=program, uid=uid, pid=pid, now_ns=now_ns)

    # --- The drop of a home for many users --------------------------------------------------------

    def collect(self, limits: Limits, most: int, on_trouble: Callable[[str], None]) -> list[str]:
        """Take at most so many messages of each user from the drop into new/; return their IDs.

        What must not be sent is put aside, and `on_damage` is called. Raises SpoolError.
        """
        from picoqmail.spool.collect import Collector

        collector = Collector(self._files, limits, self.clock, self._on_damage, on_trouble)
        taken = collector.collect(most)
        self.collected.update(taken)
        return taken

    def bring_in(
        self, message: Message, state: str, body: ClaimedMessage, result: str = ""
    ) -> bool:
        """Put a message of another store into a state, durably; False if it has arrived before.

        Raises SpoolError.
        """
        from picoqmail.spool.arrival import bring_in

        return bring_in(
            self.path, message, state, body.blocks(), result, in_doubt=body.was_in_doubt
        )

    # --- What is due -------------------------------------------------------------------------

    def due(self, most: int, states: Iterable[str], skip: Iterable[str] = ()) -> list[str]:
        """Return the next messages that are due, oldest first, without a lock.

        Those of `skip` are left out. What another process has is not known before it is claimed.
        Raises SpoolError.
        """
        seen = frozenset(skip)
        found = {
            one
            for state in states
            for one in self.look(state, most + len(seen)).due
            if one not in seen
        }
        return sorted(found)[:most]

    def next_due(self) -> float | None:
        """Return when the next message is due, None if none waits. Raises SpoolError."""
        now = self.clock()
        if self.look(NEW).due:
            return now
        return self.figures(now).next_attempt

    def wait(self, seconds: float, is_stopped: Callable[[], bool]) -> None:
        """Wait so long, or until `is_stopped`: nobody says that there is mail."""
        end = time.monotonic() + seconds
        while not is_stopped() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    # --- Delivery ----------------------------------------------------------------------------

    def claim(
        self,
        message_id: str,
        states: Iterable[str] = (NEW, CUR),
        *,
        in_hand: bool = False,
        suspects: bool = False,
    ) -> ClaimedMessage | None:
        """Take a message for this process; None if another has it, or it is in no such state.

        A damaged one is put aside, `on_damage` is called, and it is None too. Raises SpoolError
        where the disk, not the message, is the trouble.

        `in_hand` marks it until its release, for runs that might die of it. Raises RunDiedError if
        one did, unless that is known and `suspects` says that such messages are wanted.
        """
        return self._claimer.claim(message_id, states, in_hand=in_hand, suspects=suspects)

    def renew(self) -> None:
        """Do nothing: the kernel keeps the lock of a claim for as long as its process lives."""

    def remove(self, claim: ClaimedMessage) -> None:
        """Remove a message: without its sidecar it is gone; `flush` removes its other files.

        Durable at the latest with `flush`. Raises SpoolError.
        """
        message_id = claim.message.id
        try:
            durable.unlink(self._files.join(claim.state, message_id + SIDECAR))
        except OSError as exc:
            raise SpoolError("remove", self._files.join(claim.state, message_id), exc) from exc
        claim.has_survived(is_removed=True)
        self._files.sync_later(claim.state)
        self._files.doom(self._files.join(claim.state, message_id + BODY))
        if claim.has_progress:
            self._files.doom(self._files.join(claim.state, message_id + PROGRESS))
        if claim.message.history or claim.state == UNDELIVERED:
            self._files.doom(self._files.join(UNDELIVERED, message_id + RESULT))
        self._files.make_many_durable()

    def hand_over(self, claim: ClaimedMessage) -> None:
        """Remove a message that another store has now; it may come back here. Raises SpoolError.

        Durable at the latest with `flush`.
        """
        from picoqmail.spool.arrival import forget_arrival

        # First: a record without its message would refuse it if it came back.
        forget_arrival(self.path, claim.message.id)
        self.remove(claim)

    def record(
        self, claim: ClaimedMessage, message: Message, state: str, result: str = ""
    ) -> ClaimedMessage:
        """Replace the sidecar, durably, in `state`; move the message there if it is elsewhere.

        `result` is appended to ID.result. Return the claim of the message as it is now. Raises
        SpoolError; then the message is as it was, or as it should be.
        """
        message_id = message.id
        try:
            if result:
                self._files.append_result(message_id, result)
            if state != claim.state:
                self._files.carry_body(message_id, state)
            durable.replace(
                self._files.join(TMP, message_id + SIDECAR),
                self._files.join(state, message_id + SIDECAR),
                message.sidecar_blocks(),
                message.due_hint,
            )
            durable.sync_directory(self._files.join(state))
            if state != claim.state:
                self._files.sync_later(claim.state)
                durable.unlink(self._files.join(claim.state, message_id + SIDECAR))
                self._files.drop_body(message_id, claim.state)
            if claim.has_progress:
                drop_progress(self._files, message_id, claim.state)
            # What an earlier run left in doubt is forgotten only once it is counted.
            if not claim.was_in_doubt and claim.is_marked:
                claim.clear_doubt()
            claim.has_survived()
        except OSError as exc:
            raise SpoolError("record", self._files.join(state, message_id), exc) from exc
        return evolve(claim, message=message, state=state, has_progress=False)

    def note_progress(
        self,
        claim: ClaimedMessage,
        results: Mapping[int, tuple[str, str]],
        *,
        is_synced: bool = True,
    ) -> ClaimedMessage:
        """Note outcomes of some recipients of a message that takes several transactions.

        `results` are pairs of state and reply by index. Raises SpoolError.
        """
        append_progress(
            self._files,
            claim.message,
            claim.state,
            results,
            is_first=not claim.has_progress,
            is_synced=is_synced,
        )
        return evolve(claim, has_progress=True)

    def doubts(self, claim: ClaimedMessage) -> dict[int, int]:
        """Return whose transactions an earlier run left without a reply: how many, by index.

        Empty where that was not noted, as for a message of one transaction. Raises SpoolError.
        """
        try:
            return read_doubts(self._files, claim.message, claim.state)
        except OSError as exc:
            raise SpoolError("read", self._files.join(claim.state, claim.message.id), exc) from exc

    def flush(self) -> None:
        """Make every removal and move so far durable. Raises SpoolError.

        Done at the end of a run, and within a long one now and then.
        """
        self._files.make_durable()

    def sync(self, state: str) -> None:
        """Make sure that what can be seen in a state is also on disk. Raises SpoolError."""
        self._files.sync(state)

    def gather(self, claim: ClaimedMessage) -> None:
        """Bring a claimed message's body to where its sidecar is. Raises SpoolError."""
        message_id = claim.message.id
        try:
            self._files.carry_body(message_id, claim.state)
            durable.sync_directory(self._files.join(claim.state))
            for state in STATES:
                if state != claim.state:
                    self._files.drop_body(message_id, state)
                    self._files.sync_later(state)
        except OSError as exc:
            raise SpoolError("gather", self._files.join(claim.state, message_id), exc) from exc

    def put_off(self, message_id: str, when: int) -> None:
        """Let runs pass over a message until `when` (Unix seconds), by the hint, in cur/.

        It is not read, and nothing is written into it. Raises SpoolError.
        """
        try:
            self._claimer.put_off(message_id, when)
        except SpoolError:
            raise
        except OSError as exc:
            raise SpoolError("put off", f"{self.path}/*/{message_id}", exc) from exc

    def repeat_due_time(self, claim: ClaimedMessage) -> None:
        """Correct the hint of a sidecar whose times were lost (by a copy, a restore)."""
        path = self._files.join(claim.state, claim.message.id + SIDECAR)
        due = claim.message.due_hint
        try:
            if posix.stat(path, follow_symlinks=False).st_mtime != due:
                posix.utime(path, (due, due), follow_symlinks=False)
                self._files.show_new_time(claim.state)
        except OSError as exc:
            raise SpoolError("touch", path, exc) from exc

    # --- Administration ----------------------------------------------------------------------

    def change(self, claim: ClaimedMessage, outcome: str, note: str, **fields: object) -> Message:
        """Rewrite a claimed message as an administrator wants it, with a line in its history."""
        now = int(self.clock())
        revised = claim.message.with_event(
            Event(now, "", outcome, note), revision=claim.message.revision + 1, **fields
        )
        state = CUR if claim.state in (UNDELIVERED, NEW) else claim.state
        self.record(claim, revised, state)
        return revised

    def destroy(self, message_id: str) -> bool:
        """Remove all of a message as an administrator wants it, damaged or not.

        False if another process has it. Durable with `flush`. Raises NoSuchMessageError,
        SpoolError.
        """
        descriptor = self._files.open_body(message_id)
        has_body = descriptor >= 0
        if not has_body:
            descriptor = self._files.open_sidecar(message_id)
        try:
            if has_body and self._claimer.lock_body(descriptor, message_id) is None:
                return False
            if not has_body and not try_lock(descriptor):
                return False
            drop.forget(self.path, message_id)
            for state in (*STATES, TMP):
                if durable.unlink_if_there(self._files.join(state, message_id + SIDECAR)):
                    self._files.sync_later(state)
                for suffix in (PROGRESS, BODY, RESULT):
                    self._files.doom(self._files.join(state, message_id + suffix))
        except OSError as exc:
            raise SpoolError("remove", f"{self.path}/*/{message_id}", exc) from exc
        finally:
            posix.close(descriptor)
        return True

    def purge(self, seconds: float) -> int:
        """Delete messages that have lain in undelivered/ for so long; return how many went.

        What another process has is left for the next time. Raises SpoolError.
        """
        gone = 0
        try:
            for message_id in retention.older(self.path, self.clock() - seconds):
                try:
                    gone += self.destroy(message_id)
                except NoSuchMessageError:
                    continue  # It was deleted since the directory was read.
            self.flush()
            retention.note_purge(self.path, self.clock())
        except OSError as exc:
            if isinstance(exc, SpoolError):
                raise
            raise SpoolError("purge", self._files.join(UNDELIVERED), exc) from exc
        return gone

    # --- What runs leave for later runs ------------------------------------------------------

    def routes(self, names: Sequence[str] = ()) -> DirectoryRoutes:
        """Return the breaker's notes; `names` are all routes that there are."""
        return DirectoryRoutes(self.path, names)

    def pace(self, limit: RateLimit) -> RateLimiter:
        """Return what counts a message and says how many seconds to wait first."""
        return RateLimiter(f"{self.path}/{RATE}", limit, self.clock)

    def report_limit(self, most: int) -> DirectoryReportLimit:
        """Return the limit of reports; 0 means none."""
        from picoqmail.ledger.report_limit import DirectoryReportLimit

        return DirectoryReportLimit(self.path, most)

    # --- Cleaning ----------------------------------------------------------------------------

    def sweep(self, paths: Iterable[str]) -> tuple[list[str], list[SpoolError]]:
        """Unlink leftovers; return the paths that went, and errors (sweep.py)."""
        from picoqmail.spool.sweep import sweep_files

        return sweep_files(self._files, paths)
