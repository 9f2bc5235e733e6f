"""Taking mail from the drop into the spool; done by the owner of the spool, before each look at it.

What is in the drop may have been written by anybody: by our program, or by whoever took it over.
So nothing of a sidecar is believed but sender and recipients, which are checked as at submission.
Where a message came from, the name of the directory says.

A message is accepted by the steps of transitions.ACCEPT, under the ID that it has. Then it is
unlinked in the drop, and that is synced. A process that dies in between leaves the message in
both. Whoever claims it first (claim.py) finishes the removal, and whoever collects skips what the
spool has. Power loss may leave the sidecar alone in the spool: then the message is taken once more,
and nobody claims it before. The lock of a message in the drop is on its body, as everywhere.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import time

from picoqmail import durable
from picoqmail.errors import DamagedMessageError, PicoqmailError, SpoolError
from picoqmail.home.limits import MOST_OCTETS, MOST_RECIPIENTS
from picoqmail.layout import (
    BLOCK_OCTETS,
    BODY,
    DROPPED,
    NEW,
    SIDECAR,
    TMP,
    UNDELIVERED,
    accepted_at,
)
from picoqmail.message.envelope import decode_recipients, decode_sender
from picoqmail.spool import drop
from picoqmail.spool.files import READ_FLAGS, SpoolFiles
from picoqmail.spool.incoming import Incoming, publish
from picoqmail.spool.locks import is_at, try_lock
from picoqmail.spool.sidecar_reading import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from picoqmail.home.limits import Limits
    from picoqmail.spool.claim import Damage

# More than the program writes with the largest envelope that it takes.
MOST_SIDECAR_OCTETS = 24 << 20
# Reading JSON takes up to thirty times its size in memory, and most for what our program never
# writes. So a sidecar that is not small may have only as many values as the largest of ours.
_SMALL_SIDECAR_OCTETS = 1 << 16
_MOST_LINE_OCTETS = 1 << 14
_VALUES_OF_A_RECIPIENT = 8
# Bodies are copied before anything is sent. After so much of one user's the others have their turn.
_OCTETS_A_TURN = 64 << 20
_MOST_PID = 2**31 - 1
# So many names are looked at in one pass, however many a user has put there.
_MOST_NAMES = 2000
_PROGRAM = "picoqmail-queue"


class _Busy(Exception):  # noqa: N818 - no error
    """Another process has the message, or it is gone."""


class _Transfer(Incoming):
    """A message on its way from the drop into the spool, under the ID that it has."""

    __slots__ = ()

    def __init__(self, spool: str, limits: Limits, message_id: str, *, uid: int, pid: int) -> None:
        """Make the body in tmp/. What a collection that died has left there is in the way."""
        self.id = message_id
        super().__init__(spool, limits, program=_PROGRAM, uid=uid, pid=pid)
        self._first_line = b""
        self.size = 0

    def _make_body(self, pid: int, now_ns: int) -> None:
        del pid, now_ns
        body = self._path(TMP, BODY)
        try:
            for suffix in (SIDECAR, BODY):
                durable.unlink_if_there(self._path(TMP, suffix))
            self._descriptor = durable.create(body)
            if not try_lock(self._descriptor):
                raise _Busy
        except OSError as exc:
            raise SpoolError("make the message file", body, exc) from exc

    def copy(self, source: int, octets: int) -> None:
        """Copy a body; at most one octet more than it should have. Raises OSError, SpoolError."""
        wanted = octets + 1
        while wanted and (block := os.read(source, min(BLOCK_OCTETS, wanted))):
            wanted -= len(block)
            self._put(block)

    def is_whole(self, octets: int, crc32: int) -> bool:
        """Say whether what was copied is what was accepted."""
        return (self.size, self._crc32) == (octets, crc32)


class Collector:
    """Takes mail from the drop of one spool.

    `limits` gives host name and lifetime. `on_damage` gets each message that was put aside,
    `on_trouble` a sentence about what prevents that a user's mail is taken.
    """

    def __init__(
        self,
        files: SpoolFiles,
        limits: Limits,
        clock: Callable[[], float],
        on_damage: Callable[[Damage], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._files = files
        self._limits = limits
        self._clock = clock
        self._on_damage = on_damage
        self._on_trouble = on_trouble
        self._octets_left = 0

    def collect(self, most: int) -> list[str]:
        """Take at most so many messages of each user, and no more after 64 MiB; return their IDs.

        Durable at the return, and gone from the drop. Nothing that a user has put there keeps
        back the mail of others. Raises SpoolError if the spool cannot take more.
        """
        taken: list[str] = []
        for uid, part in drop.parts(self._files.path):
            directory = f"{part}/{NEW}"
            try:
                taken += self._collect_part(uid, directory, most)
            except SpoolError:
                raise
            except FileNotFoundError:
                continue  # It is being made.
            except OSError as exc:
                self._on_trouble(f"mail of user {uid} cannot be taken: {exc}; it waits there")
        return taken

    def _collect_part(self, uid: int, directory: str, most: int) -> list[str]:
        """Raises OSError for what is wrong with the drop, SpoolError for the spool."""
        owner = os.lstat(directory).st_uid
        done: list[str] = []
        trouble: OSError | None = None
        self._octets_left = _OCTETS_A_TURN
        try:
            for message_id in self._names(directory)[:most]:
                if self._octets_left <= 0:
                    break
                try:
                    self._take(uid, owner, directory, message_id)
                    done.append(message_id)
                except _Busy:
                    continue
                except SpoolError:
                    raise
                except OSError as exc:
                    trouble = exc
        finally:
            if done:
                # Only now may the spool lose them.
                durable.sync_directory(directory)
        if trouble is not None:
            self._on_trouble(f"mail of user {uid} cannot be taken: {trouble}; it waits there")
        return done

    @staticmethod
    def _names(directory: str) -> list[str]:
        found = []
        with os.scandir(directory) as entries:
            for seen, entry in enumerate(entries):
                stem = entry.name.removesuffix(SIDECAR)
                is_named = stem != entry.name and drop.is_name(stem)
                if is_named and not entry.is_dir(follow_symlinks=False):
                    found.append(stem)
                if seen >= _MOST_NAMES:
                    break
        return sorted(found)

    def _take(self, uid: int, owner: int, directory: str, message_id: str) -> None:
        """Take one message and unlink it in the drop. Raises _Busy, OSError, SpoolError."""
        path = f"{directory}/{message_id}{SIDECAR}"
        # Beside the sidecar, or after power loss still in tmp/. If there is none, the lock is on
        # the sidecar.
        beside = f"{directory}/{message_id}{BODY}"
        earlier = f"{os.path.dirname(directory)}/{TMP}/{message_id}{BODY}"
        body = _open(beside, owner)
        if body is None:
            beside = earlier
            body = _open(beside, owner)
        locked = body
        if locked is None:
            beside = path
            locked = _open(path, owner)
        try:
            if locked is not None and not (try_lock(locked) and is_at(beside, locked)):
                raise _Busy
            states = self._files.where(message_id)
            is_half = self._is_half_taken(states, message_id)
            # In this order: who delivers a message unlinks it here before it leaves the spool.
            if not durable.is_there(path):
                raise _Busy
            if states and not is_half:
                for state in states:
                    self._files.sync(state)
            else:
                self._accept(uid, owner, path, message_id, body)
            drop.remove(directory, message_id)
        finally:
            if locked is not None:
                os.close(locked)

    def _is_half_taken(self, states: list[str], message_id: str) -> bool:
        """Say whether power loss has kept the sidecar's new name, and none of the body's.

        Then the only body is the one that lies here, and the message is accepted once more.
        """
        return states == [NEW] and self._files.body_is_nowhere(message_id)

    def _accept(self, uid: int, owner: int, path: str, message_id: str, body: int | None) -> None:
        if body is not None:
            octets = os.fstat(body).st_size
            most = self._limits.databytes or MOST_OCTETS
            if octets > most:
                # It is not put aside: databytes may have been larger when it was accepted.
                text = f"it has {octets} bytes, and the setting databytes allows {most}"
                raise OSError(errno.EFBIG, text, path)
            self._octets_left -= octets
        sidecar = _open(path, owner)
        data = b""
        try:
            try:
                data = _read_sidecar(sidecar)
                self._copy(uid, data, message_id, body)
            finally:
                if sidecar is not None:
                    os.close(sidecar)
        except DamagedMessageError as exc:
            self._put_aside(uid, message_id, data, body, str(exc))

    def _copy(self, uid: int, data: bytes, message_id: str, body: int | None) -> None:
        _check_values(data)
        record = decode(data, message_id)
        sender, recipients = _envelope(record)
        if body is None:
            raise DamagedMessageError("its body is missing, or is no file")
        pid = record["origin"].get("pid")
        pid = pid if type(pid) is int and 0 <= pid <= _MOST_PID else 0
        _check_first_line(body, uid, message_id)
        with _Transfer(self._files.path, self._limits, message_id, uid=uid, pid=pid) as transfer:
            transfer.copy(body, min(record["size"], self._limits.databytes or MOST_OCTETS))
            if not transfer.is_whole(record["size"], record["crc32"]):
                raise DamagedMessageError("its body is not what was accepted")
            transfer.prepare(sender, recipients, self._extra(uid, message_id))
            publish((transfer,))

    def _extra(self, uid: int, message_id: str) -> dict[str, Any]:
        """What such a message has besides; a time of the future would keep it for ever."""
        extra: dict[str, Any] = {DROPPED: uid}
        created, now = accepted_at(message_id), int(self._clock())
        if not 0 < created <= now:
            extra |= {"created": now, "expires": now + self._limits.queuelifetime}
        extra["next_attempt"] = min(created, now)
        return extra

    def _put_aside(
        self, uid: int, message_id: str, data: bytes, body: int | None, reason: str
    ) -> None:
        """Put what must not be sent into undelivered/, its octets untouched.

        Before those of its sidecar a line says why. So it is no sidecar, whatever it says, until a
        person has removed that line.
        """
        from picoqmail.spool.claim import Damage

        reason = f"user {uid}: {reason}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        try:
            self._files.append_result(message_id, f"{stamp} not sent: {reason}\n")
            if body is not None:
                os.lseek(body, 0, os.SEEK_SET)
                copy = self._files.join(TMP, message_id + BODY)
                _copy_file(body, copy, self._limits.databytes or MOST_OCTETS)
                durable.rename(copy, self._files.join(UNDELIVERED, message_id + BODY))
            durable.replace(
                self._files.join(TMP, message_id + SIDECAR),
                self._files.join(UNDELIVERED, message_id + SIDECAR),
                f"not taken from the drop: {reason}\n".encode() + data,
            )
            durable.sync_directory(self._files.join(UNDELIVERED))
        except OSError as exc:
            raise SpoolError("put aside", self._files.join(UNDELIVERED, message_id), exc) from exc
        self._on_damage(Damage(message_id, reason))


def _open(path: str, owner: int) -> int | None:
    """Open a file of the drop; None if it is not there, or is no file. Raises OSError."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return None
    except OSError:
        if stat.S_ISREG(os.lstat(path).st_mode):
            raise
        return None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_uid == owner:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return None
    raise PermissionError(1, f"it belongs to user {found.st_uid} and not to user {owner}", path)


def _read_sidecar(descriptor: int | None) -> bytes:
    if descriptor is None:
        raise DamagedMessageError("its sidecar is no file")
    if os.fstat(descriptor).st_size > MOST_SIDECAR_OCTETS:
        raise DamagedMessageError(f"its sidecar is larger than {MOST_SIDECAR_OCTETS} octets")
    data = b""
    while len(data) <= MOST_SIDECAR_OCTETS and (block := os.read(descriptor, BLOCK_OCTETS)):
        data += block
    return data


def _check_values(data: bytes) -> None:
    """Refuse a sidecar that would take much memory to read. Raises DamagedMessageError.

    Ours has one line for each key and for each recipient. They are read one by one here.
    """
    if len(data) <= _SMALL_SIDECAR_OCTETS:
        return
    recipients = others = 0
    for line in io.BytesIO(data):
        text = line.strip().removesuffix(b",").removeprefix(b'"recipients": [')
        if text.startswith(b'{"address": ') and _is_one_recipient(text.removesuffix(b"]")):
            recipients += 1
        else:
            others += len(line)
        if others > _SMALL_SIDECAR_OCTETS or recipients > MOST_RECIPIENTS:
            raise DamagedMessageError("its sidecar has more values than one of ours can have")


def _is_one_recipient(text: bytes) -> bool:
    """Say whether a line of a sidecar holds few and plain values."""
    if len(text) > _MOST_LINE_OCTETS:
        return False
    nested = text.count(b"{") + text.count(b"[") - 1
    if not nested and text.count(b",") < _VALUES_OF_A_RECIPIENT:
        return True  # as nearly all are
    try:
        values = list(json.loads(text).values())
    except (ValueError, AttributeError, RecursionError):
        return False
    return len(values) <= _VALUES_OF_A_RECIPIENT and not any(
        isinstance(one, (dict, list)) for one in values
    )


def _envelope(record: dict[str, Any]) -> tuple[str, list[str]]:
    """Check the addresses as at submission. Raises DamagedMessageError."""
    try:
        sender = decode_sender(record["sender"].encode())
        wanted = [one["address"].encode() for one in record["recipients"]]
        return sender, decode_recipients(wanted)
    except (PicoqmailError, UnicodeEncodeError) as exc:
        raise DamagedMessageError(f"its envelope is not one that is accepted: {exc}") from None


def _check_first_line(body: int, uid: int, message_id: str) -> None:
    """See that the first line, which we write, says whose message it is."""
    line = os.pread(body, 1000, 0).partition(b"\n")[0]
    if not line.startswith(b"Received: by ") or (
        f" invoked by uid {uid}) id {message_id}; ".encode() not in line
    ):
        raise DamagedMessageError("its first line is not that of our program for this user")


def _copy_file(source: int, target: str, most: int) -> None:
    durable.unlink_if_there(target)
    descriptor = durable.create(target)
    try:
        # As long as it is now: who writes it may go on for ever.
        left = min(os.fstat(source).st_size, most)
        while left and (block := os.read(source, min(BLOCK_OCTETS, left))):
            left -= len(block)
            durable.write_all(descriptor, block)
        durable.sync(descriptor)
    finally:
        os.close(descriptor)


def sweep(paths: Iterable[str]) -> list[str]:
    """Unlink leftovers of the drop unless somebody has them locked; return those that went.

    A directory that somebody has put there is not looked into.
    """
    gone = []
    for path in paths:
        try:
            if _unlink_unlocked(path):
                gone.append(path)
        except OSError:
            # It is the user's own and keeps nobody else's mail back; the next run tries again.
            continue
    return gone


def _unlink_unlocked(path: str) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return durable.unlink_if_there(path)
    descriptor = os.open(path, READ_FLAGS)
    try:
        return try_lock(descriptor) and durable.unlink_if_there(path)
    finally:
        os.close(descriptor)
