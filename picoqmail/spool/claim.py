"""Claiming a message: its lock, what a crash left of it, and whether it is what was accepted.

A message's lock is the kernel's lock (flock) on its body, whose inode stays the same all its life,
wherever it is moved and however often the sidecar is replaced. If there is no body, the lock is on
the sidecar. It is freed when its holder dies, however it dies.
"""

from __future__ import annotations

import posix
import time
from zlib import crc32

from picoqmail import durable
from picoqmail.errors import DamagedMessageError, SpoolError
from picoqmail.layout import (
    BLOCK_OCTETS,
    BODY,
    CUR,
    DROPPED,
    IN_DOUBT_BIT,
    IN_HAND_BIT,
    NEW,
    PRIVATE_FILE_MODE,
    SIDECAR,
    STATES,
    SUSPECT_BIT,
    UNDELIVERED,
)
from picoqmail.spool import drop
from picoqmail.spool.files import (
    BODY_ORDER,
    NO_BODY,
    READ_FLAGS,
    is_same_file,
    is_same_inode,
    link_or_rename,
)
from picoqmail.spool.locks import is_at, try_lock
from picoqmail.spool.progress import merge_progress
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Final

    from picoqmail.spool.files import SpoolFiles
    from picoqmail.spool.message import Message

_MARKS = IN_DOUBT_BIT | IN_HAND_BIT | SUSPECT_BIT


class RunDiedError(Exception):
    """A run died while it had this message in hand, perhaps because of it. It was not claimed.

    `is_news`: this claim is the first to find it. `is_again`: so did an earlier one, and no attempt
    has come to its end since.
    """

    def __init__(self, *, is_news: bool, is_again: bool) -> None:
        super().__init__("a run died while it had this message in hand")
        self.is_news: Final = is_news
        self.is_again: Final = is_again


class Damage(Value):
    """A message that was put aside: its ID and why."""

    __slots__ = ("id", "reason")

    def __init__(self, id: str, reason: str) -> None:  # noqa: A002 - the sidecar's name for it
        self.id: Final = id
        self.reason: Final = reason


class Claim:
    """A message that this process alone may touch, until `release` or the end of the process.

    `state` is its directory; `newlines` counts its LF, `eight_bit` says whether an octet is over
    127 (the conversation with the relay needs both); `was_in_doubt` that an earlier sender died
    between the end of the data and the reply, which the sidecar does not count yet; `is_in_hand`
    that the body is marked as in hand.
    """

    __slots__ = (
        "message",
        "state",
        "_descriptor",
        "_data",
        "_marks",
        "newlines",
        "eight_bit",
        "has_progress",
        "is_in_hand",
        "was_in_doubt",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        message: Message,
        state: str,
        descriptor: int,
        data: bytes | None,
        *,
        marks: int,
        newlines: int,
        eight_bit: bool,
        has_progress: bool,
    ) -> None:
        """`marks` are those on the body."""
        self.message: Final = message
        self.state: Final = state
        self._descriptor: Final = descriptor
        self._marks = marks
        self.is_in_hand = False
        self._data: Final = data
        self.newlines: Final = newlines
        self.eight_bit: Final = eight_bit
        self.was_in_doubt: Final = bool(marks & IN_DOUBT_BIT)
        self.has_progress: Final = has_progress

    @property
    def size(self) -> int:
        """Octets of the body as spooled."""
        return self.message.size

    def blocks(self) -> Iterator[bytes]:
        """Yield the body's octets, one block for a small mail. Raises OSError."""
        if self._data is not None:
            yield self._data
            return
        offset = 0
        while block := posix.pread(self._descriptor, BLOCK_OCTETS, offset):
            offset += len(block)
            yield block

    def mark_in_doubt(self) -> None:
        """Leave a mark that survives kill -9: the end of the data is sent now."""
        self._mark(self._marks | IN_DOUBT_BIT)

    def clear_doubt(self) -> None:
        """Take the mark back: the reply came and is recorded."""
        self._mark(self._marks & ~IN_DOUBT_BIT)

    @property
    def is_marked(self) -> bool:
        """Whether the mark is there. Raises OSError."""
        return bool(posix.fstat(self._descriptor).st_mode & IN_DOUBT_BIT)

    def doubt_counted(self) -> Claim:
        """Return the claim for a record that counts what an earlier sender left in doubt.

        Any other record leaves the mark of that sender there.
        """
        return evolve(self, was_in_doubt=False)

    def _mark(self, marks: int) -> None:
        mark(self._descriptor, marks)
        self._marks = marks

    def has_survived(self, *, is_removed: bool = False) -> None:
        """Note that an attempt was recorded: no run died of it. `release` takes the marks away.

        If the message was removed, there is nothing left to take them from.
        """
        self._marks &= ~SUSPECT_BIT
        self.is_in_hand = self.is_in_hand and not is_removed

    def release(self) -> None:
        """Release the message; the claim cannot be used any more."""
        try:
            if self.is_in_hand:
                self._mark(self._marks & ~IN_HAND_BIT)
        except OSError:
            # If the disk refuses, the message is taken for one that a run died of, no worse.
            return
        finally:
            posix.close(self._descriptor)


def mark(descriptor: int, marks: int) -> None:
    """Set the marks on a body, and no others. Raises OSError."""
    posix.fchmod(descriptor, PRIVATE_FILE_MODE | marks)


class LockedBody:
    """A body that is locked: its status since then, and the directory that it was found in."""

    __slots__ = ("directory", "status")

    def __init__(self, status: posix.stat_result, directory: str) -> None:
        self.status = status
        self.directory = directory


class _BusyError(Exception):
    """Another process has a second body of the message."""


class Claimer:
    """Takes messages of one spool for this process.

    `clock` gives Unix seconds. `on_damage` is called for each message that is put aside, `on_copy`
    with the path of each body that was unlinked because it was a damaged copy of a whole one.
    """

    def __init__(
        self,
        files: SpoolFiles,
        clock: Callable[[], float],
        on_damage: Callable[[Damage], None],
        on_copy: Callable[[str], None],
    ) -> None:
        self._files = files
        self._clock = clock
        self._on_damage = on_damage
        self._on_copy = on_copy
        self.collected: set[str] = set()
        """Messages that this process took from the drop, and whose removal from it is durable."""

    def claim(
        self,
        message_id: str,
        states: Iterable[str],
        *,
        in_hand: bool = False,
        suspects: bool = False,
    ) -> Claim | None:
        """Take a message, as Store.claim describes it."""
        descriptor = self._files.open_body(message_id)
        if descriptor < 0:
            self._claim_without_body(message_id)
            return None
        kept, taken = False, False
        try:
            locked = self.lock_body(descriptor, message_id)
            if locked is None:
                return None
            marks = locked.status.st_mode & _MARKS
            if in_hand:
                # Before anything of the message is read, because that may be what kills.
                marks = _take_in_hand(descriptor, marks, suspects=suspects)
                taken = True
            state = self._find_state(message_id, descriptor, locked)
            if state is None or state not in states:
                return None
            claim = self._examine(message_id, state, descriptor, locked.status, marks)
            if claim is not None:
                claim.is_in_hand = in_hand
            if claim is not None and state == NEW:
                self._leave_drop(claim.message)
            kept = claim is not None
        except _BusyError:
            return None
        except OSError as exc:
            raise SpoolError("claim", f"{self._files.path}/*/{message_id}", exc) from exc
        finally:
            if not kept:
                try:
                    if taken:
                        mark(descriptor, marks & ~IN_HAND_BIT)
                finally:
                    posix.close(descriptor)
        return claim

    def put_off(self, message_id: str, when: int) -> None:
        """Have runs of cron pass over a message until `when` (Unix seconds), without reading it.

        It may be what it says that cannot be handled. So it goes to cur/ as it is, and only the
        time of its sidecar, the hint, says when. Nothing is done if another process has it. Raises
        OSError, SpoolError.
        """
        descriptor = self._files.open_body(message_id)
        if descriptor < 0:
            return
        try:
            locked = self.lock_body(descriptor, message_id)
            if locked is None:
                return
            state = self._find_state(message_id, descriptor, locked)
            if state == NEW:
                durable.sync_directory(self._files.join(NEW))
                drop.forget(self._files.path, message_id)
                self._files.carry_body(message_id, CUR)
                source = self._files.join(NEW, message_id + SIDECAR)
                link_or_rename(source, self._files.join(CUR, message_id + SIDECAR))
            if state in {NEW, CUR}:
                posix.utime(self._files.join(CUR, message_id + SIDECAR), (when, when))
                self._files.show_new_time(CUR)
            if state == NEW:
                durable.sync_directory(self._files.join(CUR))
                durable.unlink_if_there(source)
                self._files.drop_body(message_id, NEW)
                self._files.sync_later(NEW)
        except FileNotFoundError:
            return  # Its sidecar is gone, so it is no message any more.
        finally:
            posix.close(descriptor)

    def _leave_drop(self, message: Message) -> None:
        """See that a message from the drop is in it no more, before anything is done with it.

        Otherwise it would be taken a second time once it has left the spool.
        """
        uid = message.unknown.get(DROPPED)
        if type(uid) is int and message.id not in self.collected:
            drop.leave(self._files.path, uid, message.id)
        self.collected.discard(message.id)

    def lock_body(self, descriptor: int, message_id: str) -> LockedBody | None:
        """Lock a body; None if another process has it or it is not the message's any more."""
        if not try_lock(descriptor):
            return None
        # Its last holder may have finished the message meanwhile: a lock on a file that has lost
        # its name is a lock on nothing.
        ours = posix.fstat(descriptor)
        if ours.st_nlink == 0:
            return None
        for directory in BODY_ORDER:
            try:
                there = posix.lstat(self._files.join(directory, message_id + BODY))
            except FileNotFoundError:
                continue
            return LockedBody(ours, directory) if is_same_inode(there, ours) else None
        return None

    def _find_state(self, message_id: str, descriptor: int, locked: LockedBody) -> str | None:
        """Return the state of a locked message, None if it surely has no sidecar.

        As a rule the sidecar lies beside the body. So only the other states are searched, and
        reading the sidecar shows whether it is there.
        """
        beside = locked.directory
        if beside in STATES:
            for state in STATES:
                path = self._files.join(state, message_id + SIDECAR)
                if state != beside and durable.is_there(path):
                    break
            else:
                return beside
        found = self._files.where(message_id)
        if len(found) <= 1:
            return found[0] if found else None
        state = self._settle(message_id, descriptor, found)
        locked.status = posix.fstat(descriptor)
        return state

    def _settle(self, message_id: str, descriptor: int, found: list[str]) -> str:
        """Return the state of a locked message that a crash left in several.

        The later revision stays and the other sidecar goes.
        """
        revisions = {}
        for state in found:
            try:
                revisions[state] = self._files.read_sidecar(state, message_id).revision
            except DamagedMessageError:
                revisions[state] = -1
        # `found` has the order of recovery, and max keeps the first of equals.
        best = max(found, key=lambda state: revisions[state])
        try:
            message = self._files.read_sidecar(best, message_id)
            self._verify_any(message, descriptor, posix.fstat(descriptor))
            is_whole = True
        except DamagedMessageError:
            # `_examine` reports it. A damaged body is not replaced by another damaged one.
            is_whole = False
        if is_whole:
            # Perhaps only the body's new name was lost.
            self._files.carry_body(message_id, best)
        durable.sync_directory(self._files.join(best))
        for state in found:
            if state != best:
                durable.unlink(self._files.join(state, message_id + SIDECAR))
                if is_whole:
                    self._files.drop_body(message_id, state)
                self._files.sync_later(state)
        return best

    def _examine(
        self, message_id: str, state: str, descriptor: int, status: posix.stat_result, marks: int
    ) -> Claim | None:
        """Read a locked message and compare its body with what was accepted.

        `status` is that of the body when it was locked, `marks` are those on it now. Return None
        if there is no sidecar.
        """
        try:
            try:
                message = self._files.read_sidecar(state, message_id)
            except FileNotFoundError:
                return None
            data, newlines, eight_bit = self._verify_any(message, descriptor, status)
        except DamagedMessageError as exc:
            self._quarantine(message_id, state, str(exc))
            return None
        message, has_progress = merge_progress(self._files, message, state)
        return Claim(
            message,
            state,
            descriptor,
            data,
            marks=marks,
            newlines=newlines,
            eight_bit=eight_bit,
            has_progress=has_progress,
        )

    def _verify_any(
        self, message: Message, descriptor: int, before: posix.stat_result
    ) -> tuple[bytes | None, int, bool]:
        """Check a locked body; if it is damaged, go on with a whole one that lies elsewhere.

        `before` is its status, as it was once it was locked.

        A copy or a restore that was cut can leave a part of a body where it is looked for first.
        Then `descriptor` becomes that of the whole one, locked, and the damaged ones are unlinked.
        Return what `verify_body` returns. Raises DamagedMessageError if there is no whole one,
        _BusyError.
        """
        try:
            check_size(message, before.st_size)
            return verify_body(message, descriptor)
        except DamagedMessageError as exc:
            reason = exc
        in_the_way = []
        for directory in BODY_ORDER:
            path = self._files.join(directory, message.id + BODY)
            try:
                other = posix.open(path, READ_FLAGS)
            except FileNotFoundError:
                continue
            try:
                found = posix.fstat(other)
                if is_same_inode(before, found):
                    in_the_way.append(path)
                    continue
                if not try_lock(other):
                    raise _BusyError
                try:
                    check_size(message, found.st_size)
                    verified = verify_body(message, other)
                except DamagedMessageError:
                    in_the_way.append(path)
                    continue
                if before.st_mode & _MARKS:
                    mark(other, before.st_mode & _MARKS)
                for damaged in in_the_way:
                    durable.unlink_if_there(damaged)
                    self._on_copy(damaged)
                posix.dup2(other, descriptor, inheritable=False)
                return verified
            finally:
                posix.close(other)
        raise reason

    def _claim_without_body(self, message_id: str) -> None:
        """Put aside a sidecar whose body is nowhere, under the sidecar's own lock.

        But not one whose message is still in the drop: the next collection takes it once more.
        """
        for state in (NEW, CUR):
            path = self._files.join(state, message_id + SIDECAR)
            try:
                descriptor = posix.open(path, READ_FLAGS)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("open", path, exc) from exc
            try:
                if not try_lock(descriptor):
                    continue
                # Looked at first, because the removal there is what a collector does last.
                if state == NEW and drop.has(self._files.path, message_id):
                    continue
                # The body may have appeared since: by a move, or a restore from a backup.
                if self._files.body_is_nowhere(message_id) and is_at(path, descriptor):
                    self._quarantine(message_id, state, NO_BODY)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("put aside", path, exc) from exc
            finally:
                posix.close(descriptor)

    def _quarantine(self, message_id: str, state: str, reason: str) -> None:
        """Move a message that must not be sent to undelivered/, its octets untouched."""
        damage = Damage(message_id, reason)
        if state != UNDELIVERED:
            self._files.append_result(message_id, f"{_stamp(self._clock())} not sent: {reason}\n")
            self._files.carry_body(message_id, UNDELIVERED)
            source = self._files.join(state, message_id + SIDECAR)
            link_or_rename(source, self._files.join(UNDELIVERED, message_id + SIDECAR))
            durable.sync_directory(self._files.join(UNDELIVERED))
            durable.unlink_if_there(source)
            # Where there are several, all damaged, all are kept: a person may repair one of them.
            body = message_id + BODY
            if is_same_file(self._files.join(state, body), self._files.join(UNDELIVERED, body)):
                self._files.drop_body(message_id, state)
            self._files.sync_later(state)
        self._on_damage(damage)


def _take_in_hand(descriptor: int, marks: int, *, suspects: bool) -> int:
    """Mark a locked body as in hand; return its marks. Raises RunDiedError, OSError."""
    if marks & IN_HAND_BIT:
        mark(descriptor, marks & ~IN_HAND_BIT | SUSPECT_BIT)
        raise RunDiedError(is_news=True, is_again=bool(marks & SUSPECT_BIT))
    if marks & SUSPECT_BIT and not suspects:
        raise RunDiedError(is_news=False, is_again=False)
    mark(descriptor, marks | IN_HAND_BIT)
    return marks | IN_HAND_BIT


def check_size(message: Message, octets: int) -> None:
    """Raise DamagedMessageError if a body has another size than was accepted."""
    if octets != message.size:
        raise DamagedMessageError(f"its body has {octets} octets, and {message.size} were accepted")


def verify_body(message: Message, descriptor: int) -> tuple[bytes | None, int, bool]:
    """Check a body's CRC. Raises DamagedMessageError.

    Return its octets if they are few, the number of LF, and whether any octet is over 127.
    """
    checksum, newlines, eight_bit, offset = 0, 0, False, 0
    data = b""
    while offset < message.size:
        # One octet more than there should be shows most bodies that are too long. To ask for
        # much more costs a small mail a twentieth of its time: buffers come from the kernel.
        wanted = min(BLOCK_OCTETS, message.size - offset + 1)
        data = posix.pread(descriptor, wanted, offset)
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


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
