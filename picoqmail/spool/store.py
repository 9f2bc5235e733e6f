"""The spool as delivery uses it: claim, record, retire, quarantine, sweep.

What delivery asks of a spool is this handful of verbs, so that another engine could stand in for
the directories. Order and durability of each step: layout.py and INTERNALS.md.

A message's lock is the kernel's lock (flock) on its body, whose inode stays the same all its
life, wherever it is moved and however often the sidecar is replaced; where there is no body, on
its sidecar. It is freed when its holder dies, whatever kills it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from zlib import crc32

from picoqmail import durable
from picoqmail.errors import (
    QUEUE_SPOOL,
    DamagedMessageError,
    NoSuchMessageError,
    SpoolError,
)
from picoqmail.layout import (
    BODY,
    CUR,
    DIRECTORIES,
    IN_DOUBT_BIT,
    NEW,
    PRIVATE_FILE_MODE,
    PROGRESS,
    RESULT,
    SIDECAR,
    STATES,
    TMP,
    UNDELIVERED,
    is_id,
)
from picoqmail.spool import scan
from picoqmail.spool.locks import is_at, try_lock
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Event, Message
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Final

BLOCK_OCTETS = 262144
# Most sidecars have less; room for more costs more than the reading.
_SMALL_OCTETS = 4096
RESULT_LIMIT_OCTETS = 65536
# Bodies of delivered messages wait for one sync of their directory: so many share it.
DOOMED_LIMIT = 200
# The modification time of a held sidecar: no idle run need open it (2100-01-01).
HELD_UNTIL = 4102444800.0
# O_NONBLOCK is for what should not be there at all: opening a FIFO must not wait for a writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Where a body is looked for. Everybody's order must be the same: the first is what is locked.
_BODY_ORDER = (NEW, CUR, UNDELIVERED, TMP)


class Damage(Value):
    """A message that was put aside: its ID and why."""

    __slots__ = ("id", "reason")

    def __init__(self, id: str, reason: str) -> None:  # noqa: A002 - the sidecar's name for it
        self.id: Final = id
        self.reason: Final = reason


class Claim:
    """A message that this process alone may touch, until `release` or the end of the process.

    `state` is its directory; `newlines` counts its LF, `eight_bit` says whether an octet is over
    127 (both are what a relay must be told); `was_in_doubt` that an earlier sender died between
    the end of the data and the answer.
    """

    __slots__ = (
        "message",
        "state",
        "_descriptor",
        "_data",
        "newlines",
        "eight_bit",
        "was_in_doubt",
        "has_progress",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        message: Message,
        state: str,
        descriptor: int,
        data: bytes | None,
        *,
        newlines: int,
        eight_bit: bool,
        was_in_doubt: bool,
        has_progress: bool,
    ) -> None:
        self.message: Final = message
        self.state: Final = state
        self._descriptor: Final = descriptor
        self._data: Final = data
        self.newlines: Final = newlines
        self.eight_bit: Final = eight_bit
        self.was_in_doubt: Final = was_in_doubt
        self.has_progress: Final = has_progress

    @property
    def size(self) -> int:
        """Octets of the body as spooled."""
        return self.message.size

    def blocks(self) -> Iterator[bytes]:
        """The body's octets, one block for a small mail. Raises OSError."""
        if self._data is not None:
            yield self._data
            return
        offset = 0
        while block := os.pread(self._descriptor, BLOCK_OCTETS, offset):
            offset += len(block)
            yield block

    def mark_in_doubt(self) -> None:
        """Leave a mark that survives kill -9: the end of the data goes out now."""
        os.fchmod(self._descriptor, PRIVATE_FILE_MODE | IN_DOUBT_BIT)

    def clear_doubt(self) -> None:
        """Take the mark back: the answer came and is recorded."""
        os.fchmod(self._descriptor, PRIVATE_FILE_MODE)

    def release(self) -> None:
        """Let the message go; the claim is of no more use."""
        os.close(self._descriptor)


class _BusyError(Exception):
    """Another process has a second body of the message."""


def _nothing(_what: object) -> None:
    """Tell nobody."""


class Store:
    """One spool directory.

    `clock` gives Unix seconds; `on_damage` hears of what is put aside, `on_copy` of the path of a
    body that was unlinked because it was a damaged copy of one that is whole.
    """

    def __init__(
        self,
        path: str,
        clock: Callable[[], float] = time.time,
        on_damage: Callable[[Damage], None] = _nothing,
        on_copy: Callable[[str], None] = _nothing,
    ) -> None:
        """Nothing is opened yet."""
        self.path = path
        self.clock = clock
        self.on_damage = on_damage
        self.on_copy = on_copy
        self._unsynced: set[str] = set()
        self._doomed: list[str] = []

    # --- Looking -----------------------------------------------------------------------------

    def look(self, state: str) -> scan.Sight:
        """What is due in a state. Raises SpoolError."""
        try:
            return scan.look(self.path, state, self.clock())
        except OSError as exc:
            raise SpoolError("look at", self._join(state), exc, QUEUE_SPOOL) from exc

    def find(self, name: str) -> str:
        """The ID that an ID or a path of the spool names. Raises NoSuchMessageError."""
        stem = os.path.basename(name)
        for suffix in (SIDECAR, BODY, RESULT):
            stem = stem.removesuffix(suffix)
        if not is_id(stem) or not self.where(stem):
            raise NoSuchMessageError(f"{name}: no such message in {self.path}")
        return stem

    def where(self, message_id: str) -> list[str]:
        """The states that a message has a sidecar in; more than one only after a crash.

        Raises SpoolError where that cannot be known.
        """
        try:
            return [s for s in STATES if durable.is_there(self._join(s, message_id + SIDECAR))]
        except OSError as exc:
            raise SpoolError("look for", f"{self.path}/*/{message_id}", exc) from exc

    def is_whole(self, message_id: str) -> bool:
        """Say whether a message has a sidecar in a state, and a body. Raises SpoolError.

        Where its acceptance was never made durable, power loss may have left one of them alone.
        """
        try:
            return bool(self.where(message_id)) and not self._body_is_nowhere(message_id)
        except OSError as exc:
            raise SpoolError("look for", f"{self.path}/*/{message_id}", exc) from exc

    def read(self, message_id: str, hint: str = "") -> tuple[str, Message]:
        """State and message, without a lock: a moment's truth, for people.

        `hint` is the state to look in first. Raises NoSuchMessageError, DamagedMessageError,
        SpoolError.
        """
        for _ in range(3):
            for state in (hint, *STATES) if hint else STATES:
                try:
                    return state, self._read_sidecar(state, message_id)
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    raise SpoolError("read", self._join(state, message_id), exc) from exc
        raise NoSuchMessageError(f"{message_id}: no such message in {self.path}")

    def body(self, message_id: str) -> Iterator[bytes]:
        """The body's octets, without a lock, for people; damaged or not.

        Raises DamagedMessageError where there is none, SpoolError.
        """
        descriptor = self._open_body(message_id)
        if descriptor < 0:
            raise DamagedMessageError("its body is missing")
        with open(descriptor, "rb", buffering=0) as file:
            while block := file.read(BLOCK_OCTETS):
                yield block

    def check_body(self, message: Message) -> None:
        """Compare a body with what was accepted, without a lock.

        Raises DamagedMessageError, SpoolError.
        """
        descriptor = self._open_body(message.id)
        if descriptor < 0:
            raise DamagedMessageError("its body is missing")
        try:
            _check_size(message, os.fstat(descriptor).st_size)
            self._verify(message, descriptor)
        finally:
            os.close(descriptor)

    # --- Claiming ----------------------------------------------------------------------------

    def claim(self, message_id: str, states: Iterable[str] = (NEW, CUR)) -> Claim | None:
        """Take a message for this process; None if another has it, or it is in no such state.

        What is damaged is put aside and told to `on_damage`, and is None too. Raises SpoolError
        where the disk, not the message, is the trouble.
        """
        descriptor = self._open_body(message_id)
        if descriptor < 0:
            self._claim_without_body(message_id)
            return None
        kept = False
        try:
            if not self._lock_fairly(descriptor, message_id):
                return None
            state = self._settle(message_id, descriptor)
            if state is None or state not in states:
                return None
            claim = self._examine(message_id, state, descriptor)
            kept = claim is not None
        except _BusyError:
            return None
        except OSError as exc:
            raise SpoolError("claim", f"{self.path}/*/{message_id}", exc) from exc
        finally:
            if not kept:
                os.close(descriptor)
        return claim

    def _open_body(self, message_id: str) -> int:
        """Open the body: beside the sidecar as a rule, anywhere else after a crash; -1 if gone."""
        for directory in _BODY_ORDER:
            path = self._join(directory, message_id + BODY)
            try:
                return os.open(path, _READ)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("open", path, exc) from exc
        return -1

    def _lock_fairly(self, descriptor: int, message_id: str) -> bool:
        """Lock a body; False if another process has it or it is not the message's any more."""
        if not try_lock(descriptor):
            return False
        # Whoever had it may have finished the message meanwhile: a lock on a file that has no
        # name any more is a lock on nothing.
        if os.fstat(descriptor).st_nlink == 0:
            return False
        for directory in _BODY_ORDER:
            found = is_at(self._join(directory, message_id + BODY), descriptor)
            if found is not None:
                return found
        return False

    def _settle(self, message_id: str, descriptor: int) -> str | None:
        """The state of a locked message, None if it has no sidecar.

        After a crash between two states the later revision stays, and the other sidecar goes.
        """
        found = self.where(message_id)
        if len(found) <= 1:
            return found[0] if found else None
        revisions = {}
        for state in found:
            try:
                revisions[state] = self._read_sidecar(state, message_id).revision
            except DamagedMessageError:
                revisions[state] = -1
        # `found` has the order of recovery, and max keeps the first of equals.
        best = max(found, key=lambda state: revisions[state])
        try:
            self._verify_any(self._read_sidecar(best, message_id), descriptor)
            is_whole = True
        except DamagedMessageError:
            # Who examines it tells. No body makes way for another that is no better.
            is_whole = False
        if is_whole:
            # The name of the body may be what did not get there.
            self._carry_body(message_id, best)
        durable.sync_directory(self._join(best))
        for state in found:
            if state != best:
                durable.unlink(self._join(state, message_id + SIDECAR))
                if is_whole:
                    self._drop_body(message_id, state)
                self._unsynced.add(state)
        return best

    def _examine(self, message_id: str, state: str, descriptor: int) -> Claim | None:
        """Read a locked message and compare its body with what was accepted."""
        try:
            message = self._read_sidecar(state, message_id)
            mode, data, newlines, eight_bit = self._verify_any(message, descriptor)
        except DamagedMessageError as exc:
            self._quarantine(message_id, state, str(exc))
            return None
        message, has_progress = self._merge_progress(message, state)
        in_doubt = bool(mode & IN_DOUBT_BIT)
        return Claim(
            message,
            state,
            descriptor,
            data,
            newlines=newlines,
            eight_bit=eight_bit,
            was_in_doubt=in_doubt,
            has_progress=has_progress,
        )

    def _verify_any(self, message: Message, descriptor: int) -> tuple[int, bytes | None, int, bool]:
        """Check a locked body; if it is damaged, go on with a whole one that lies elsewhere.

        `descriptor` is of that one then, locked, and what is in its way is unlinked: a copy or a
        restore that was cut leaves a part of a body where it is looked for first. Returns the
        body's mode, and what `_verify` says. Raises DamagedMessageError if there is no whole one,
        _BusyError.
        """
        before = os.fstat(descriptor)
        try:
            _check_size(message, before.st_size)
            return before.st_mode, *self._verify(message, descriptor)
        except DamagedMessageError as exc:
            reason = exc
        in_the_way = []
        for directory in _BODY_ORDER:
            path = self._join(directory, message.id + BODY)
            try:
                other = os.open(path, _READ)
            except FileNotFoundError:
                continue
            try:
                found = os.fstat(other)
                if os.path.samestat(before, found):
                    in_the_way.append(path)
                    continue
                if not try_lock(other):
                    raise _BusyError
                try:
                    _check_size(message, found.st_size)
                    verified = self._verify(message, other)
                except DamagedMessageError:
                    in_the_way.append(path)
                    continue
                if before.st_mode & IN_DOUBT_BIT:
                    os.fchmod(other, PRIVATE_FILE_MODE | IN_DOUBT_BIT)
                for damaged in in_the_way:
                    durable.unlink_if_there(damaged)
                    self.on_copy(damaged)
                os.dup2(other, descriptor, inheritable=False)
                return os.fstat(descriptor).st_mode, *verified
            finally:
                os.close(other)
        raise reason

    @staticmethod
    def _verify(message: Message, descriptor: int) -> tuple[bytes | None, int, bool]:
        """Check the body's CRC; returns its octets if they are few, LF count, any 8-bit octet."""
        checksum, newlines, eight_bit, offset = 0, 0, False, 0
        data = b""
        while offset < message.size:
            # One octet more than there should be shows most bodies that are too long. To ask for
            # much more costs a small mail a twentieth of its time: buffers come from the kernel.
            wanted = min(BLOCK_OCTETS, message.size - offset + 1)
            data = os.pread(descriptor, wanted, offset)
            if not data:
                break
            offset += len(data)
            checksum = crc32(data, checksum)
            newlines += data.count(b"\n")
            eight_bit = eight_bit or not data.isascii()
        if checksum != message.crc32 or offset != message.size:
            raise DamagedMessageError(
                f"its body is not what was accepted: CRC-32 {checksum}, not {message.crc32}"
            )
        return (data if offset == len(data) else None), newlines, eight_bit

    def _claim_without_body(self, message_id: str) -> None:
        """Put aside a sidecar whose body is nowhere, under the sidecar's own lock."""
        for state in (NEW, CUR):
            path = self._join(state, message_id + SIDECAR)
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("open", path, exc) from exc
            try:
                if not try_lock(descriptor):
                    continue
                # The body may have come into sight since (a move, a restore from backup).
                if self._body_is_nowhere(message_id) and is_at(path, descriptor):
                    self._quarantine(message_id, state, "its body is missing")
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("put aside", path, exc) from exc
            finally:
                os.close(descriptor)

    def _body_is_nowhere(self, message_id: str) -> bool:
        return not any(durable.is_there(self._join(d, message_id + BODY)) for d in DIRECTORIES)

    def _quarantine(self, message_id: str, state: str, reason: str) -> None:
        """Move a message that must not be sent to undelivered/, its octets untouched."""
        damage = Damage(message_id, reason)
        if state != UNDELIVERED:
            self._append_result(message_id, f"{_stamp(self.clock())} not sent: {reason}\n")
            self._carry_body(message_id, UNDELIVERED)
            source = self._join(state, message_id + SIDECAR)
            _link_or_rename(source, self._join(UNDELIVERED, message_id + SIDECAR))
            durable.sync_directory(self._join(UNDELIVERED))
            durable.unlink_if_there(source)
            # Where there are several, all damaged, each is kept: a person may repair one of them.
            body = message_id + BODY
            if _is_same_file(self._join(state, body), self._join(UNDELIVERED, body)):
                self._drop_body(message_id, state)
            self._unsynced.add(state)
        self.on_damage(damage)

    # --- Recording ---------------------------------------------------------------------------

    def remove(self, claim: Claim) -> None:
        """Remove a message: with its sidecar it is gone; what hung on it goes with `flush`.

        Durable at the latest with `flush`. Raises SpoolError.
        """
        message_id = claim.message.id
        try:
            durable.unlink(self._join(claim.state, message_id + SIDECAR))
        except OSError as exc:
            raise SpoolError("remove", self._join(claim.state, message_id), exc) from exc
        self._unsynced.add(claim.state)
        self._doomed.append(self._join(claim.state, message_id + BODY))
        if claim.has_progress:
            self._doomed.append(self._join(claim.state, message_id + PROGRESS))
        if claim.message.history or claim.state == UNDELIVERED:
            self._doomed.append(self._join(UNDELIVERED, message_id + RESULT))
        if len(self._doomed) >= DOOMED_LIMIT:
            self.flush()

    def record(self, claim: Claim, message: Message, state: str, result: str = "") -> Claim:
        """Replace the sidecar, durably, in `state`; moves the message there if it is elsewhere.

        `result` is appended to ID.result. Returns the claim of the message as it is now.
        Raises SpoolError; then the message is as it was, or as it should be.
        """
        message_id = message.id
        try:
            if result:
                self._append_result(message_id, result)
            if state != claim.state:
                self._carry_body(message_id, state)
            durable.replace(
                self._join(TMP, message_id + SIDECAR),
                self._join(state, message_id + SIDECAR),
                message.to_sidecar(),
                HELD_UNTIL if message.held else message.next_attempt,
            )
            durable.sync_directory(self._join(state))
            if state != claim.state:
                self._unsynced.add(claim.state)
                durable.unlink(self._join(claim.state, message_id + SIDECAR))
                self._drop_body(message_id, claim.state)
            if claim.has_progress:
                self._drop_progress(message_id, claim.state)
            if claim.was_in_doubt or os.fstat(claim._descriptor).st_mode & IN_DOUBT_BIT:  # noqa: SLF001 - a friend
                claim.clear_doubt()
        except OSError as exc:
            raise SpoolError("record", self._join(state, message_id), exc) from exc
        return evolve(claim, message=message, state=state, was_in_doubt=False, has_progress=False)

    def note_progress(self, claim: Claim, results: Mapping[int, tuple[str, str]]) -> Claim:
        """Note outcomes of some recipients of a message that takes several transactions.

        `results` are pairs of state and reply by index. Appended and synced, so that the cost is
        that of the recipients it is about, and a crash repeats none of them. Raises SpoolError.
        """
        path = self._join(claim.state, claim.message.id + PROGRESS)
        # A line of its own also where a crash cut the one before.
        line = f"\n{json.dumps([claim.message.revision, [[i, *r] for i, r in results.items()]])}\n"
        try:
            descriptor = durable.open_append(path)
            try:
                durable.write_all(descriptor, line.encode())
                durable.sync(descriptor)
            finally:
                os.close(descriptor)
            if not claim.has_progress:
                durable.sync_directory(self._join(claim.state))
        except OSError as exc:
            raise SpoolError("note progress in", path, exc) from exc
        return evolve(claim, has_progress=True)

    def _merge_progress(self, message: Message, state: str) -> tuple[Message, bool]:
        """Apply what an earlier session noted and did not come to record."""
        if len(message.recipients) == 1:
            # Nothing is noted of a message that goes in one part.
            return message, False
        path = self._join(state, message.id + PROGRESS)
        try:
            lines = _read_whole(path).split(b"\n")
        except FileNotFoundError:
            return message, False
        recipients = list(message.recipients)
        for line in lines:
            try:
                revision, results = json.loads(line)
                noted = [(recipients[i], i, str(s), str(r)) for i, s, r in results]
            except (ValueError, TypeError, IndexError):
                continue  # The end of a line that a crash cut: it was never relied upon.
            if revision == message.revision:
                for recipient, index, noted_state, reply in noted:
                    if recipient.state == PENDING and noted_state in (DELIVERED, FAILED, PENDING):
                        recipients[index] = evolve(recipient, state=noted_state, reply=reply)
        return evolve(message, recipients=tuple(recipients)), True

    def _drop_progress(self, message_id: str, state: str) -> None:
        if durable.unlink_if_there(self._join(state, message_id + PROGRESS)):
            self._unsynced.add(state)

    def _carry_body(self, message_id: str, target: str) -> None:
        """Put the body into `target` too, from wherever it is: the one that is locked."""
        path = self._join(target, message_id + BODY)
        for directory in _BODY_ORDER:
            source = self._join(directory, message_id + BODY)
            if not durable.is_there(source):
                continue
            if directory != target and not _is_same_file(source, path):
                # Another file of that name is a copy which a restore from backup left.
                durable.unlink_if_there(path)
                _link_or_rename(source, path)
            return

    def _drop_body(self, message_id: str, state: str) -> None:
        durable.unlink_if_there(self._join(state, message_id + BODY))

    def _append_result(self, message_id: str, text: str) -> None:
        """Append to undelivered/ID.result, replaced whole; the oldest goes when it is long."""
        path = self._join(UNDELIVERED, message_id + RESULT)
        try:
            with open(path, "rb") as file:
                before = file.read()
        except FileNotFoundError:
            before = b""
        data = before + text.encode(errors="replace")
        if len(data) > RESULT_LIMIT_OCTETS:
            data = data[-RESULT_LIMIT_OCTETS:]
            data = b"[...]\n" + data[data.find(b"\n") + 1 :]
        durable.replace(self._join(TMP, message_id + RESULT), path, data)
        self._unsynced.add(UNDELIVERED)

    def read_result(self, message_id: str) -> str:
        """What relays said of a message so far, "" if nothing was written."""
        try:
            with open(self._join(UNDELIVERED, message_id + RESULT), "rb") as file:
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def flush(self) -> None:
        """Make every removal and move so far durable, then unlink what hung on what was removed.

        In this order, because power loss could otherwise bring a sidecar back without its body.
        Done at the end of a session, and within a long one now and then. Raises SpoolError.
        """
        while self._unsynced:
            self.sync(self._unsynced.pop())
        while self._doomed:
            path = self._doomed.pop()
            try:
                durable.unlink_if_there(path)
            except OSError as exc:
                raise SpoolError("remove", path, exc) from exc

    def sync(self, state: str) -> None:
        """Make sure that what can be seen in a state is also on disk. Raises SpoolError."""
        try:
            durable.sync_directory(self._join(state))
        except OSError as exc:
            raise SpoolError("make durable", self._join(state), exc) from exc

    def gather(self, claim: Claim) -> None:
        """Bring a claimed message's body to where its sidecar is. Raises SpoolError."""
        message_id = claim.message.id
        try:
            self._carry_body(message_id, claim.state)
            durable.sync_directory(self._join(claim.state))
            for state in STATES:
                if state != claim.state:
                    self._drop_body(message_id, state)
                    self._unsynced.add(state)
        except OSError as exc:
            raise SpoolError("gather", self._join(claim.state, message_id), exc) from exc

    def repeat_due_time(self, claim: Claim) -> None:
        """Set the hint right again on a sidecar whose times were lost (a copy, a restore)."""
        path = self._join(claim.state, claim.message.id + SIDECAR)
        due = HELD_UNTIL if claim.message.held else claim.message.next_attempt
        try:
            os.utime(path, (due, due), follow_symlinks=False)
        except OSError as exc:
            raise SpoolError("touch", path, exc) from exc

    # --- Administration ----------------------------------------------------------------------

    def change(self, claim: Claim, outcome: str, note: str, **fields: object) -> Message:
        """Rewrite a claimed message as an administrator wants it, with a line in its history."""
        now = int(self.clock())
        revised = claim.message.with_event(
            Event(now, "", outcome, note), revision=claim.message.revision + 1, **fields
        )
        state = CUR if claim.state in (UNDELIVERED, NEW) else claim.state
        self.record(claim, revised, state)
        return revised

    def destroy(self, message_id: str) -> bool:
        """Remove all of a message because somebody said so, damaged or not.

        False if another process has it. Durable with `flush`. Raises NoSuchMessageError,
        SpoolError.
        """
        descriptor = self._open_body(message_id)
        has_body = descriptor >= 0
        if not has_body:
            descriptor = self._open_sidecar(message_id)
        try:
            if has_body and not self._lock_fairly(descriptor, message_id):
                return False
            if not has_body and not try_lock(descriptor):
                return False
            for state in (*STATES, TMP):
                if durable.unlink_if_there(self._join(state, message_id + SIDECAR)):
                    self._unsynced.add(state)
                for suffix in (PROGRESS, BODY, RESULT):
                    self._doomed.append(self._join(state, message_id + suffix))
        except OSError as exc:
            raise SpoolError("remove", f"{self.path}/*/{message_id}", exc) from exc
        finally:
            os.close(descriptor)
        return True

    def _open_sidecar(self, message_id: str) -> int:
        """Open what is left of a message whose body is gone. Raises NoSuchMessageError."""
        for state in STATES:
            path = self._join(state, message_id + SIDECAR)
            try:
                return os.open(path, _READ)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("open", path, exc) from exc
        raise NoSuchMessageError(f"{message_id}: no such message in {self.path}")

    # --- Sweeping ----------------------------------------------------------------------------

    def sweep(self, paths: Iterable[str]) -> tuple[list[str], list[SpoolError]]:
        """Unlink leftovers that nobody holds and no message owns.

        Returns what went, and what would not go: one leftover that cannot be removed keeps no
        mail back.

        `paths` are candidates that scan.leftovers found old enough. Only unlinks: nothing is
        ever promoted, because only what was renamed into a state was accepted.
        """
        gone, trouble = [], []
        for path in paths:
            try:
                if self._unlink_unowned(path):
                    gone.append(path)
            except OSError as exc:
                trouble.append(SpoolError("sweep", path, exc))
        return gone, trouble

    def _unlink_unowned(self, path: str) -> bool:
        if self._is_owned(path) or not os.path.isfile(path) or os.path.islink(path):
            return False
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return False
        try:
            # Asked again under the lock: its last holder may have made it a message, or moved
            # the message here, since we looked.
            if not try_lock(descriptor) or self._is_owned(path):
                return False
            return durable.unlink_if_there(path)
        finally:
            os.close(descriptor)

    def _is_owned(self, path: str) -> bool:
        """Say whether there is a sidecar that this file belongs to.

        A second name of a body, left by a crash in a move, belongs to none: the message has the
        name beside its sidecar, and who is moving it has its lock.
        """
        stem, suffix = os.path.splitext(os.path.basename(path))
        directory = os.path.basename(os.path.dirname(path))
        if suffix in (BODY, RESULT):
            # Twice: a message that is being moved may have been missed between two directories.
            states = self.where(stem) or self.where(stem)
            return bool(states) and not (
                suffix == BODY
                and directory not in states
                and any(_is_same_file(path, self._join(state, stem + BODY)) for state in states)
            )
        return suffix == PROGRESS and durable.is_there(self._join(directory, stem + SIDECAR))

    # --- Small things ------------------------------------------------------------------------

    def _join(self, directory: str, name: str = "") -> str:
        return f"{self.path}/{directory}/{name}" if name else f"{self.path}/{directory}"

    def _read_sidecar(self, state: str, message_id: str) -> Message:
        data = _read_whole(self._join(state, message_id + SIDECAR))
        return Message.from_sidecar(data, message_id)


def _read_whole(path: str) -> bytes:
    """A small file's octets, by fewer calls than a file object makes. Raises OSError."""
    descriptor = os.open(path, _READ)
    try:
        blocks = [os.read(descriptor, _SMALL_OCTETS)]
        # Of a file less is read than was asked for at its end alone.
        if len(blocks[0]) == _SMALL_OCTETS:
            while blocks[-1]:
                blocks.append(os.read(descriptor, BLOCK_OCTETS))
    finally:
        os.close(descriptor)
    return b"".join(blocks)


def _check_size(message: Message, octets: int) -> None:
    if octets != message.size:
        raise DamagedMessageError(f"its body has {octets} octets, and {message.size} were accepted")


def _is_same_file(one: str, other: str) -> bool:
    """Say whether two names are of one file."""
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)


def _link_or_rename(source: str, target: str) -> None:
    """Give a file a second name; rename it where the file system has no links.

    That the target is there already is the trace of a crash after this very step.
    """
    try:
        durable.link(source, target)
    except FileExistsError:
        return
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        durable.rename(source, target)


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
