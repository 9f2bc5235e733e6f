"""Acceptance: octets and an envelope become a durable message. Hot; builtins only.

The order of the steps is transitions.ACCEPT. Success is reported only after the last step. After a
failure, nothing of the message is left in the spool.
"""

from __future__ import annotations

import posix
import time
from zlib import crc32

from picoqmail import durable
from picoqmail.errors import (
    QUEUE_BODY,
    QUEUE_BODY_RENAME,
    QUEUE_SIDECAR,
    QUEUE_SIDECAR_RENAME,
    QUEUE_SPOOL,
    QUEUE_WRITE,
    MessageTooLargeError,
    SpoolError,
)
from picoqmail.home.paths import exists
from picoqmail.layout import BODY, CUR, NEW, PRIVATE_FILE_MODE, SIDECAR, TMP, make_id
from picoqmail.message.dates import header_date
from picoqmail.spool import sidecar
from picoqmail.spool.locks import lock_at_once, unlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    from picoqmail.home.limits import Limits

_READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_ENTROPY_OCTETS = 8
_TRIES_FOR_A_NAME = 10
# Each time another 2 to this power octets are written, the free space is checked again.
_CHECK_SPACE_BITS = 20


class Incoming:
    """A message on its way into the spool, its body locked against the sweep.

    Use it in a `with` statement: `write` the body, then `commit`. Unless the message was
    committed, the end of the block takes it back: none of its files is left.
    """

    __slots__ = (
        "_any_umask",
        "_crc32",
        "_descriptor",
        "_first_line",
        "_limits",
        "_mode",
        "_origin",
        "_sidecar",
        "_spool",
        "_state",
        "committed",
        "id",
        "size",
    )

    def __init__(  # noqa: PLR0913 - all that an origin is
        self,
        spool: str,
        limits: Limits,
        *,
        program: str,
        uid: int,
        pid: int,
        now_ns: int = 0,
        any_umask: bool = False,
        mode: int = PRIVATE_FILE_MODE,
    ) -> None:
        """Make the body in `spool`/tmp and lock it; its first line will be the Received: line.

        Record `program`, `uid` (the real one) and `pid` of the caller as the origin. `now_ns` is
        Unix time in nanoseconds, 0 for now; `any_umask` is for processes whose umask is not ours
        (durable.create), `mode` is that of the files. Raises SpoolError, and leaves no file then.
        """
        self._spool = spool
        self._limits = limits
        self._any_umask = any_umask
        self._mode = mode
        self._origin = {"uid": uid, "pid": pid, "program": program}
        self._state = NEW
        self.committed = False
        self._crc32 = 0
        if limits.minfree:
            self._check_free_space()
        now_ns = now_ns or time.time_ns()
        self._descriptor = self._sidecar = -1
        try:
            self._make_body(pid, now_ns)
            # Written with what follows it, which saves a call.
            self._first_line = (
                f"Received: by {limits.host} (picoqmail {pid} invoked by uid {uid}) id {self.id}; "
                f"{header_date(now_ns // 1_000_000_000)}\n".encode()
            )
            self.size = len(self._first_line)
        except SpoolError:
            raise
        except BaseException:
            # Raised by a signal's handler; no `with` block has the message yet.
            self.abort()
            raise

    def _make_body(self, pid: int, now_ns: int) -> None:
        """Make and lock a file of a name that no other message has. Raises SpoolError."""
        for _ in range(_TRIES_FOR_A_NAME):
            self.id = make_id(self._limits.host, pid, now_ns, posix.urandom(_ENTROPY_OCTETS))
            body = self._path(TMP, BODY)
            try:
                self._descriptor = durable.create(body, any_umask=self._any_umask, mode=self._mode)
                break
            except FileExistsError as exc:
                taken = exc
            except OSError as exc:
                missing = not exists(f"{self._spool}/{TMP}")
                status = QUEUE_SPOOL if missing else QUEUE_BODY
                raise SpoolError("make the message file", body, exc, status) from exc
        else:
            raise SpoolError("make the message file", body, taken, QUEUE_BODY)
        try:
            lock_at_once(self._descriptor)
        except OSError as exc:
            self.abort()
            raise SpoolError("lock the message file", body, exc, QUEUE_BODY) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take the message back unless it was committed, whatever ends the block."""
        self.abort()

    def _check_free_space(self) -> None:
        try:
            found = posix.statvfs(self._spool)
        except OSError as exc:
            raise SpoolError("check the space of", self._spool, exc, QUEUE_SPOOL) from exc
        if found.f_bavail * found.f_frsize < self._limits.minfree:
            import errno

            few = OSError(errno.ENOSPC, "less space is free than the setting minfree wants")
            raise SpoolError("accept mail", self._spool, few)

    def _put(self, data: bytes) -> None:
        self.size += len(data)
        try:
            if self._first_line:
                data, self._first_line = self._first_line + data, b""
            durable.write_all(self._descriptor, data)
        except OSError as exc:
            raise SpoolError("write the message", self._path(TMP, BODY), exc) from exc
        self._crc32 = crc32(data, self._crc32)

    def write(self, data: bytes) -> None:
        """Append octets to the body. Raises SpoolError, MessageTooLargeError."""
        if self._limits.databytes and self.size + len(data) > self._limits.databytes:
            raise MessageTooLargeError(
                f"the message is larger than {self._limits.databytes} bytes (setting databytes)"
            )
        if self._limits.minfree:
            after = self.size + len(data)
            if after >> _CHECK_SPACE_BITS != self.size >> _CHECK_SPACE_BITS:
                self._check_free_space()
        self._put(data)

    def commit(
        self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None
    ) -> str:
        """Make the message durable and visible; return its ID.

        Addresses must have been checked (envelope.py). `extra` are further keys of the sidecar;
        a `next_attempt` in the future puts the message into cur/, for cron. Raises SpoolError;
        the message is taken back then.
        """
        with self:
            self.prepare(sender, recipients, extra)
            publish((self,))
        return self.id

    def prepare(
        self,
        sender: str,
        recipients: list[str],
        extra: dict[str, Any] | None = None,
        *,
        synced: bool = True,
    ) -> None:
        """Put body and sidecar on disk, still invisible in tmp/. Raises SpoolError.

        Without `synced` they are only written, and the caller syncs the file system before it
        calls `publish`.
        """
        self._write_sidecar(sender, recipients, extra)
        if synced:
            durable.begin_writing(self._sidecar)
        self.finish(synced=synced)

    def begin(
        self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None
    ) -> None:
        """Write the sidecar, and have the disk begin with both files. Raises SpoolError.

        Nothing is durable before `finish`. Between the two other messages may begin, so that the
        disk has much to do at once.
        """
        self._write_sidecar(sender, recipients, extra)
        durable.begin_writing(self._descriptor)
        durable.begin_writing(self._sidecar)

    def finish(self, *, synced: bool = True) -> None:
        """Wait until body and sidecar are on disk; close the sidecar. Raises SpoolError."""
        try:
            try:
                if synced:
                    self._sync_body()
                    durable.sync(self._sidecar)
            finally:
                self._close_sidecar()
        except SpoolError:
            raise
        except OSError as exc:
            path = self._path(TMP, SIDECAR)
            raise SpoolError("make the sidecar", path, exc, QUEUE_SIDECAR) from exc

    def _write_sidecar(
        self, sender: str, recipients: list[str], extra: dict[str, Any] | None
    ) -> None:
        """Write the end of the body and the sidecar, which stays open. Raises SpoolError."""
        if self._first_line:
            self._put(b"")
        created = int(self.id[: self.id.index(".")])
        record = sidecar.new_record(
            self.id,
            sender,
            recipients,
            created=created,
            next_attempt=created,
            expires=created + self._limits.queuelifetime,
            size=self.size,
            crc32=self._crc32,
            origin=self._origin,
        )
        due = None
        if extra:
            record.update(extra)
            if record["next_attempt"] > created:
                # The modification time repeats the due time, so an idle run opens no sidecar.
                due = record["next_attempt"]
                self._state = CUR
        path = self._path(TMP, SIDECAR)
        try:
            self._sidecar = durable.create_written(
                path, sidecar.encode(record), due, any_umask=self._any_umask, mode=self._mode
            )
        except OSError as exc:
            raise SpoolError("make the sidecar", path, exc, QUEUE_SIDECAR) from exc

    def _close_sidecar(self) -> None:
        if self._sidecar >= 0:
            descriptor, self._sidecar = self._sidecar, -1
            posix.close(descriptor)

    def _sync_body(self) -> None:
        try:
            durable.sync(self._descriptor)
        except OSError as exc:
            raise SpoolError("make the message durable", self._path(TMP, BODY), exc) from exc

    def _enter(self) -> None:
        """Give the body its name in the state, then the sidecar: visible, not durable yet.

        The body keeps its name in tmp/ until both names are durable. So a sidecar finds its body,
        whichever of the names power loss leaves.
        """
        status = QUEUE_BODY_RENAME
        target = self._path(self._state, BODY)
        try:
            self._link_body(target)
            status = QUEUE_SIDECAR_RENAME
            target = self._path(self._state, SIDECAR)
            durable.rename(self._path(TMP, SIDECAR), target)
        except OSError as exc:
            raise SpoolError("accept the message as", target, exc, status) from exc

    def _link_body(self, target: str) -> None:
        try:
            durable.link(self._path(TMP, BODY), target)
        except OSError:
            # This file system has no links, or something is in the way: a rename replaces it.
            durable.rename(self._path(TMP, BODY), target)

    def _leave(self) -> None:
        """Give up the name in tmp/ and the lock; nothing that fails here undoes the acceptance."""
        for step in (self._drop_name, self.close):
            try:
                step()
            except OSError:
                # Swept later; the descriptor is gone also where close(2) reports an error.
                continue

    def _drop_name(self) -> None:
        durable.unlink_if_there(self._path(TMP, BODY))

    def abort(self) -> None:
        """Take everything back, the sidecar first; do nothing if the message was committed.

        What cannot be removed is swept later.
        """
        if self.committed:
            return
        for suffix in (SIDECAR, BODY):
            for directory in (self._state, TMP):
                try:
                    durable.unlink_if_there(self._path(directory, suffix))
                except OSError:
                    # The caller gets an error in any case. A body that stays is swept after 36
                    # hours, and a sidecar without its body is not sent.
                    continue
        for close in (self._close_sidecar, self.close):
            try:
                close()
            except OSError:
                # The descriptor is gone all the same (close(2)), and nothing depends on it.
                continue

    def close(self) -> None:
        """Release the lock. Raises OSError where the file system reports an error only now."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                unlock(descriptor)
            finally:
                posix.close(descriptor)

    def park(self) -> None:
        """Close the prepared body until `unpark`.

        Meanwhile only its age protects it from the sweep. Raises SpoolError.
        """
        try:
            self.close()
        except OSError as exc:
            raise SpoolError("close", self._path(TMP, BODY), exc) from exc

    def unpark(self) -> None:
        """Open and lock a parked body again; do nothing if it is open. Raises SpoolError."""
        if self._descriptor >= 0:
            return
        path = self._path(TMP, BODY)
        try:
            self._descriptor = posix.open(path, _READ)
            lock_at_once(self._descriptor)
            # The sweep may have unlinked it just before the lock was taken.
            posix.stat(path)
        except OSError as exc:
            raise SpoolError("open the prepared message", path, exc, QUEUE_BODY) from exc

    def _path(self, directory: str, suffix: str) -> str:
        return f"{self._spool}/{directory}/{self.id}{suffix}"


def publish(group: Sequence[Incoming]) -> None:
    """Make prepared messages of one spool visible and durable, all or none.

    They share the directory's fsync, and are committed at the return. Raises SpoolError; then none
    of them is committed, and each has to be taken back.
    """
    try:
        for incoming in group:
            incoming._enter()  # noqa: SLF001 - the two halves of one transition
        for directory in {f"{one._spool}/{one._state}" for one in group}:  # noqa: SLF001
            try:
                durable.sync_directory(directory)
            except OSError as exc:
                raise SpoolError("make durable", directory, exc, QUEUE_WRITE) from exc
        for incoming in group:
            incoming.committed = True
    except BaseException:
        # Also those that were marked already: a signal handler may raise between two of them. All
        # are locked still, so that none was on its way.
        for incoming in group:
            incoming.committed = False
        raise
    for incoming in group:
        incoming._leave()  # noqa: SLF001 - as above
