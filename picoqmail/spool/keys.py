"""Idempotency keys: which message a key stands for, as small durable records beside the mail.

`spool/idempotency/NAME`, one file a key, NAME the SHA-256 of the key. Plain stdlib: the sweep is
part of an idle cron run. The file's lock is held by the caller that works with the key. Its
modification time repeats when the record expires. The execute bit says that its message has arrived
in the spool; without it, the message was on its way there when the record was written:

    1. body and sidecar of the message are on disk in tmp/, and so are their names
    2. the record is written, without the bit, and is on disk               (`KeyRecord.intend`)
    3. the message becomes visible: its rename into new/ or cur/            (incoming.publish)
    4. the bit is set                                                       (`KeyRecord.arrived`)

If a crash, or a copy of the spool without its modes, removed a bit, that costs a check and nothing
else. A crash between 2 and 4 leaves no bit and no lock. Then the message was accepted, unless it is
still in tmp/: a message leaves tmp/ only by step 3, or by the sweep, which sweeps the records first
(`sweep`).
"""

from __future__ import annotations

import os

from picoqmail import durable
from picoqmail.errors import KeyReusedError, MessageError, SpoolError
from picoqmail.importing import importing
from picoqmail.layout import (
    BODY,
    CUR,
    IDEMPOTENCY,
    NEW,
    PRIVATE_FILE_MODE,
    SIDECAR,
    STATES,
    TMP,
    is_id,
)
from picoqmail.spool import locks, sidecar
from picoqmail.spool.json_reading import read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

KEY_LIMIT_OCTETS = 1024
# How long to wait for another caller that has the same key: many times what it needs.
PATIENCE_SECONDS = 30.0
SWEEP_INTERVAL_SECONDS = 3600

_SWEPT = ".swept"
_ARRIVED = 0o100
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_RECORD_LIMIT_OCTETS = 65536
_NUMBERS = ("size", "created", "next_attempt", "expires")
# What every JSON reader keeps exact (RFC 8259 section 6).
_MOST_SECONDS = 2**53 - 1


def name_of(key: object) -> str:
    """Return the file name of a key. Raises MessageError for what can be none."""
    with importing:
        from hashlib import sha256

    octets = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else b""
    if not 0 < len(octets) <= KEY_LIMIT_OCTETS:
        raise MessageError(
            f"the idempotency key {key!a:.60} is not text of 1 to {KEY_LIMIT_OCTETS} bytes"
        )
    return sha256(octets).hexdigest()


class KeyRecord:
    """The record of one key, locked: no other process or thread has it until `close`."""

    __slots__ = ("_descriptor", "_path", "_spool", "key")

    def __init__(self, spool: str, key: str, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until no other caller has the key, at most `patience` seconds.

        Raises SpoolError: temporary, the same may be tried again.
        """
        self.key = key
        self._spool = spool
        self._path = f"{spool}/{IDEMPOTENCY}/{name_of(key)}"
        try:
            self._descriptor = self._open_locked(patience)
        except OSError as exc:
            raise SpoolError("lock the idempotency key in", self._path, exc) from exc

    def _open_locked(self, patience: float) -> int:
        while True:
            try:
                # Callers are applications with umasks of their own.
                descriptor = locks.wait_for_lock(self._path, patience, any_umask=True)
            except FileNotFoundError:
                durable.make_directory(f"{self._spool}/{IDEMPOTENCY}")
                continue
            if descriptor >= 0:
                return descriptor

    def find(self, now: float) -> dict[str, Any] | None:
        """Return what the key stands for, None if nothing or if it expired. Raises SpoolError."""
        try:
            found = self._read()
            if found is None or found["expires"] <= now:
                return None
            if not self._has_arrived():
                if not _was_published(self._spool, found["id"]):
                    return None
                self.arrived()
        except OSError as exc:
            raise SpoolError("read", self._path, exc) from exc
        return found

    def check(self, found: dict[str, Any], fingerprint: str) -> None:
        """Raise KeyReusedError if the record is that of another message or envelope."""
        refuse_reuse(self.key, found, fingerprint)

    def intend(self, record: dict[str, Any], *, synced: bool = True) -> None:
        """Write down what the key is going to stand for. Raises OSError.

        `record` has the message's id, its fingerprint, and when the key expires (Unix seconds).
        The entry in the directory is not durable yet; without `synced` the record is not, either.
        """
        data = sidecar.encode({"version": 1, "key": self.key, **record})
        os.ftruncate(self._descriptor, 0)
        if self._has_arrived():
            # An expired record's: the disk must not show it with what is written now.
            os.fchmod(self._descriptor, PRIVATE_FILE_MODE)
            durable.sync(self._descriptor)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        durable.write_all(self._descriptor, data)
        os.utime(self._descriptor, (record["expires"], record["expires"]))
        if synced:
            durable.sync(self._descriptor)

    def arrived(self) -> None:
        """Say that the message was accepted; its loss in a crash loses nothing."""
        os.fchmod(self._descriptor, PRIVATE_FILE_MODE | _ARRIVED)

    def forget(self) -> None:
        """Take the record back: nothing was accepted. Raises OSError."""
        os.ftruncate(self._descriptor, 0)
        durable.unlink_if_there(self._path)

    def close(self) -> None:
        """Let the key go. Raises nothing: what hangs on the record has been decided by then."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            try:
                locks.unlock(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            # At worst a child that was forked meanwhile keeps the lock, and callers wait for it.
            return

    def _has_arrived(self) -> bool:
        return bool(os.fstat(self._descriptor).st_mode & _ARRIVED)

    def _read(self) -> dict[str, Any] | None:
        return _parse(os.pread(self._descriptor, _RECORD_LIMIT_OCTETS, 0))


def refuse_reuse(key: str, found: Mapping[str, Any], fingerprint: str) -> None:
    """Raise KeyReusedError if what a key stands for is another message or envelope."""
    known = found["fingerprint"]
    # One without a version is of another kind, and cannot be compared: then the key decides.
    if known != fingerprint and known.rpartition(":")[0] == fingerprint.rpartition(":")[0]:
        raise KeyReusedError(
            f"the idempotency key {key!a:.60} stands for another message or envelope, "
            f"{found['id']}; use a key of its own for each message"
        )


def _parse(data: bytes) -> dict[str, Any] | None:
    """Return the record; None if there is none, or only part of one, on which nothing relies."""
    try:
        found = read_json(data.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    message_id = found.get("id")
    proper = (
        isinstance(message_id, str)
        and is_id(message_id)
        and isinstance(found.get("fingerprint"), str)
        and all(_is_number(found.get(name, 0)) for name in _NUMBERS)
        and "expires" in found
    )
    return found if proper else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= _MOST_SECONDS


def _was_published(spool: str, message_id: str) -> bool:
    """Say whether a message ever left tmp/ for the spool, though it may be delivered by now.

    tmp/ID.json may also be what a sender is about to replace the sidecar with. So the body must
    lie where acceptance leaves it, and a sidecar may be nowhere, before and after. Raises OSError.
    """

    def has_sidecar() -> bool:
        return any(durable.is_there(f"{spool}/{one}/{message_id}{SIDECAR}") for one in STATES)

    waits = not has_sidecar() and durable.is_there(f"{spool}/{TMP}/{message_id}{SIDECAR}")
    has_body = any(durable.is_there(f"{spool}/{one}/{message_id}{BODY}") for one in (TMP, NEW, CUR))
    return not (waits and has_body) or has_sidecar()


def sweep(spool: str, now: float) -> int:
    """Unlink what has expired, at most once an hour; return how many. Raises OSError.

    If no key was ever used, or it is not yet time, it costs a stat or two. It must run before tmp/
    is swept, at least every 36 hours: the record of a message that never left tmp/ is removed while
    that can still be seen.
    """
    directory = f"{spool}/{IDEMPOTENCY}"
    swept = f"{directory}/{_SWEPT}"
    try:
        if 0 <= now - os.stat(swept).st_mtime < SWEEP_INTERVAL_SECONDS:
            return 0
    except FileNotFoundError:
        if not os.path.isdir(directory):
            return 0
        os.close(durable.open_append(swept))
    os.utime(swept, (now, now))
    gone = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if entry.name == _SWEPT or not entry.is_file(follow_symlinks=False):
                continue
            if status.st_mtime <= now or not status.st_mode & _ARRIVED:
                gone += _sweep_one(spool, entry.path, now)
    return gone


def _sweep_one(spool: str, path: str, now: float) -> bool:
    """Unlink a record that has expired or whose message never came; not one in use."""
    try:
        descriptor = os.open(path, _OPEN)
    except (FileNotFoundError, PermissionError):
        # Gone; or left by root, and unreadable: `picoqmail check` reports its owner.
        return False
    try:
        if not locks.try_lock(descriptor) or not locks.is_at(path, descriptor):
            return False
        status = os.fstat(descriptor)
        found = _parse(os.pread(descriptor, _RECORD_LIMIT_OCTETS, 0))
        alive = found is not None and found["expires"] > now
        if found is not None and alive and not status.st_mode & _ARRIVED:
            alive = _was_published(spool, found["id"])
            if alive:
                os.fchmod(descriptor, PRIVATE_FILE_MODE | _ARRIVED)
        if alive:
            return False
        return durable.unlink_if_there(path)
    finally:
        os.close(descriptor)
