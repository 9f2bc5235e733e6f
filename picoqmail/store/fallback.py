"""Acceptance into a database that may be away: then the host's directory takes the mail at once.

A message is written to both, under one ID. The commit goes to the database. If that is away, the
copy in the directory is committed instead, and is brought over later, once (forwarding.py). Else it
is taken back. A copy that was never committed is a leftover of tmp/, as that of a caller who died.

If nobody can say whether the database committed (the answer was lost, and it cannot be asked), the
copy is committed, too. Whoever brings it over finds it there, or in the ledger of what has left.
"""

from __future__ import annotations

import posix
import time
from typing import TYPE_CHECKING

from picoqmail.errors import ConfigurationError, SpoolError
from picoqmail.layout import DATABASE_DOWN, NEW, PRIVATE_FILE_MODE, TMP
from picoqmail.ledger.relay_down import is_noted_until
from picoqmail.postgresql.incoming import publish
from picoqmail.spool.incoming import Incoming
from picoqmail.spool.incoming import publish as publish_local

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.postgresql.incoming import TableIncoming
    from picoqmail.postgresql.store import PostgresStore

# After the database was found to be away, so long no other process of this host tries it: a burst
# of mail must not wait for it one after the other.
AWAY_SECONDS = 5
_NOTE_LIMIT_SECONDS = 60


class FallbackIncoming:
    """A message on its way into the database, or else into the host's directory.

    Use it in a `with` statement: `write` the body, then `commit`. Unless the message was committed,
    the end of the block takes it back.
    """

    __slots__ = (
        "_envelope",
        "_is_prepared",
        "_local",
        "_spool",
        "_table",
        "committed",
    )

    def __init__(  # noqa: PLR0913 - all that an origin is
        self,
        home: Home,
        store: PostgresStore,
        limits: Limits,
        *,
        program: str,
        uid: int,
        pid: int,
        any_umask: bool = False,
    ) -> None:
        """Begin it in both places; in the directory alone if the database is away.

        Raises SpoolError where the directory refuses, ConfigurationError.
        """
        self._spool = home.spool
        self._table: TableIncoming | None = None
        self.committed = False
        self._envelope: tuple[str, list[str], dict[str, Any]] = ("", [], {})
        self._is_prepared = False
        now_ns = time.time_ns()
        is_away = database_is_away(home.spool, time.time())
        if not is_away:
            try:
                # The times of the database are those of its server.
                now_ns = int(store.time() * 1_000_000_000)
            except SpoolError:
                is_away = True
                self._note_away()
        self._local = Incoming(
            home.spool,
            limits,
            program=program,
            uid=uid,
            pid=pid,
            now_ns=now_ns,
            any_umask=any_umask,
        )
        if not is_away:
            self._table = store.incoming(
                limits,
                program=program,
                uid=uid,
                pid=pid,
                now_ns=now_ns,
                message_id=self._local.id,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take the message back unless it was committed, whatever ends the block."""
        self.abort()

    @property
    def id(self) -> str:
        """The ID in both places."""
        return self._local.id

    @property
    def size(self) -> int:
        """Octets so far, our Received: line included."""
        return self._local.size

    def write(self, data: bytes) -> None:
        """Append octets to the body. Raises SpoolError, MessageTooLargeError."""
        self._local.write(data)
        if self._table is not None:
            try:
                self._table.write(data)
            except SpoolError:
                self._leave_database()

    def seal(self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None) -> None:
        """Add the envelope; nothing can be written any more. `extra` are further keys."""
        self._envelope = (sender, recipients, dict(extra or {}))
        if self._table is not None:
            self._table.seal(sender, recipients, extra)

    def prepare(
        self,
        sender: str,
        recipients: list[str],
        extra: dict[str, Any] | None = None,
        *,
        synced: bool = True,
    ) -> None:
        """Do all that can fail for want of room or rights, in both places. Raises SpoolError."""
        self._envelope = (sender, recipients, dict(extra or {}))
        if self._table is not None:
            try:
                self._table.prepare(sender, recipients, extra, synced=synced)
            except (SpoolError, ConfigurationError):
                self._leave_database()
        self._local.prepare(sender, recipients, extra, synced=synced)
        self._is_prepared = True

    def commit(
        self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None
    ) -> str:
        """Make the message durable and visible in one of the two places; return its ID.

        Raises SpoolError; the message is taken back then.
        """
        with self:
            self.seal(sender, recipients, extra)
            publish_either((self,))
        return self.id

    def park(self) -> None:
        """Close the prepared body until `unpark`. Raises SpoolError."""
        self._local.park()

    def unpark(self) -> None:
        """Open a parked body again. Raises SpoolError."""
        self._local.unpark()

    def abort(self) -> None:
        """Take everything back; do nothing if the message was committed."""
        if self.committed:
            return
        self._local.abort()
        if self._table is not None:
            self._table.abort()

    def in_database(self) -> TableIncoming:
        """Return the message as it goes to the database. Raises SpoolError if that is away."""
        if self._table is None:
            raise SpoolError(
                "accept the message with its key",
                self._spool,
                None,
                reason="the database is away, and it alone knows the keys",
            )
        return self._table

    def note_commit(self) -> None:
        """Note that the database has it now."""
        self.committed = True
        self._local.abort()

    def _leave_database(self) -> None:
        table, self._table = self._table, None
        if table is not None:
            table.abort()
        self._note_away()

    def _note_away(self) -> None:
        """Have other processes of this host leave the database alone for a moment."""
        path = f"{self._spool}/{DATABASE_DOWN}"
        until = time.time() + AWAY_SECONDS
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
        try:
            posix.close(posix.open(path, flags, PRIVATE_FILE_MODE))
            posix.utime(path, (until, until))
        except OSError:
            # They find out themselves, each after a moment of its own.
            return


def publish_either(group: Sequence[FallbackIncoming]) -> None:
    """Make sealed messages durable and visible, all in the database or all in the directory.

    Raises SpoolError; then none of them is committed, and each has to be taken back.
    """
    tables = [one._table for one in group if one._table is not None]  # noqa: SLF001 - one module
    if len(tables) == len(group):
        try:
            publish(tables)
        except (SpoolError, ConfigurationError):
            # Also for a schema or a right that is missing: somebody has to act, and no mail waits.
            # And also if nobody can say what became of the COMMIT: whoever brings the messages over
            # finds that out, for they keep their IDs.
            group[0]._note_away()  # noqa: SLF001 - as above
        else:
            for one in group:
                one.note_commit()
            return
    for one in group:
        if not one._is_prepared:  # noqa: SLF001 - as above
            one._local.prepare(*one._envelope)  # noqa: SLF001 - as above
    publish_local([one._local for one in group])  # noqa: SLF001 - as above
    for one in group:
        one.committed = True


def database_is_away(spool: str, now: float) -> bool:
    """Say whether the database was found to be away a moment ago. Costs one stat."""
    return is_noted_until(f"{spool}/{DATABASE_DOWN}", now, _NOTE_LIMIT_SECONDS)


def can_fall_back(spool: str) -> bool:
    """Say whether this process may write to the host's directory."""
    return all(posix.access(f"{spool}/{one}", posix.W_OK | posix.X_OK) for one in (TMP, NEW))
