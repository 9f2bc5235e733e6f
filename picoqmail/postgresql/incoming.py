"""Acceptance: octets and an envelope become rows, and success is reported after the commit.

A message of up to SPILL_OCTETS is held until then, and is one transaction. What is larger goes into
the tables as it comes, in transactions of its own, as a row in the state `tmp`, which is no message
yet: so nothing holds it whole, and no transaction is as long as its caller is slow. The last
transaction gives it its state. A prepared message is in the state `tmp`, too.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING
from zlib import crc32

import psycopg

from picoqmail.errors import MessageTooLargeError, SpoolError
from picoqmail.layout import NEW, make_id
from picoqmail.message.dates import header_date
from picoqmail.postgresql.connections import BrokenError
from picoqmail.postgresql.faults import UncertainAcceptanceError, translate
from picoqmail.postgresql.insertion import (
    CHUNK_OCTETS,
    ReadyMessage,
    channel_of,
    insert,
    state_and_due,
)
from picoqmail.spool import sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self

    from picoqmail.home.limits import Limits
    from picoqmail.postgresql.connections import Connections, DatabaseTransaction

SPILL_OCTETS = 8 * CHUNK_OCTETS
_ENTROPY_OCTETS = 8
# From so many messages on, COPY is quicker than statements.
_LEAST_FOR_COPY = 4
# How long to ask what became of a transaction whose answer was lost.
_ASK_SECONDS = 20.0
_ASK_EVERY_SECONDS = 0.25

_DRAFT = """
    INSERT INTO picoqmail.message (id, state, due, sidecar, entered)
    VALUES (%(id)s, 'tmp', 'Infinity', ''::bytea, extract(epoch FROM clock_timestamp()))
    ON CONFLICT (id) DO NOTHING
"""
_CHUNK = """
    INSERT INTO picoqmail.chunk (message, number, octets)
    VALUES (%(id)s, %(number)s, %(octets)s) ON CONFLICT (message, number) DO NOTHING
"""
_FINISH = """
    UPDATE picoqmail.message
    SET state = %(state)s, due = %(due)s, sidecar = %(sidecar)s, octets = %(size)s,
        entered = extract(epoch FROM clock_timestamp())
    WHERE id = %(id)s AND state = 'tmp' RETURNING id
"""
_FORGET = "DELETE FROM picoqmail.message WHERE id = %(id)s AND state = 'tmp'"
_HAVE_ARRIVED = """
    SELECT id FROM picoqmail.message WHERE id = ANY (%(ids)s) AND state <> 'tmp'
    UNION ALL SELECT id FROM picoqmail.ledger WHERE id = ANY (%(ids)s)
"""


class TableIncoming:
    """A message on its way into the tables.

    Use it in a `with` statement: `write` the body, then `commit`. Unless the message was committed,
    the end of the block takes it back: none of its rows is left.
    """

    __slots__ = (
        "_chunks",
        "_connections",
        "_crc32",
        "_limits",
        "_octets",
        "_on_commit",
        "_origin",
        "_record",
        "_stored",
        "_is_stored",
        "committed",
        "created",
        "due",
        "id",
        "size",
        "state",
    )

    def __init__(  # noqa: PLR0913 - all that an origin is
        self,
        connections: Connections,
        limits: Limits,
        *,
        program: str,
        uid: int,
        pid: int,
        now_ns: int,
        entropy: bytes,
        message_id: str = "",
    ) -> None:
        """Begin a message; its first line will be the Received: line.

        `now_ns` is the server's time (Unix nanoseconds), `entropy` 8 random octets for the ID.
        """
        self._connections = connections
        self._limits = limits
        self._origin = {"uid": uid, "pid": pid, "program": program}
        self.id = message_id or make_id(limits.host, pid, now_ns, entropy)
        self.created = int(self.id[: self.id.index(".")])
        self.state = NEW
        self.due = 0.0
        self.committed = False
        self.size = 0
        self._crc32 = 0
        self._octets = bytearray()
        self._chunks: list[bytes] = []
        """Whole chunks that are not in the tables yet."""
        self._stored = 0
        """How many chunks are."""
        self._is_stored = False
        """Whether there may be a row of this message in the state tmp."""
        self._record = b""
        self._put(
            f"Received: by {limits.host} (picoqmail {pid} invoked by uid {uid}) id {self.id}; "
            f"{header_date(now_ns // 1_000_000_000)}\n".encode()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take the message back unless it was committed, whatever ends the block."""
        self.abort()

    def write(self, data: bytes) -> None:
        """Append octets to the body. Raises SpoolError, MessageTooLargeError."""
        if self._limits.databytes and self.size + len(data) > self._limits.databytes:
            raise MessageTooLargeError(
                f"the message is larger than {self._limits.databytes} bytes (setting databytes)"
            )
        self._put(data)
        if len(self._chunks) * CHUNK_OCTETS >= SPILL_OCTETS:
            self._spill()

    def _put(self, data: bytes) -> None:
        self.size += len(data)
        self._crc32 = crc32(data, self._crc32)
        self._octets += data
        while len(self._octets) >= CHUNK_OCTETS:
            self._chunks.append(bytes(self._octets[:CHUNK_OCTETS]))
            del self._octets[:CHUNK_OCTETS]

    def _spill(self, *, durable: bool = False) -> None:
        """Put what is held into the tables, as no message yet. May be repeated."""
        self._is_stored = True
        self._connections.run("write the message", _DRAFT, {"id": self.id})
        for octets in self._chunks:
            values = {"id": self.id, "number": self._stored, "octets": octets}
            self._connections.run("write the message", _CHUNK, values)
            self._stored += 1
        self._chunks.clear()
        if durable:
            self._connections.flush("write the message")

    def seal(self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None) -> None:
        """Add the envelope; nothing can be written any more. `extra` are further keys."""
        if self._octets:
            self._chunks.append(bytes(self._octets))
            self._octets.clear()
        created = self.created
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
        record.update(extra or {})
        self.state, self.due = state_and_due(created, record)
        self._record = sidecar.encode(record)

    def prepare(
        self,
        sender: str,
        recipients: list[str],
        extra: dict[str, Any] | None = None,
        *,
        synced: bool = True,
    ) -> None:
        """Put the whole message into the tables, durably, but as no message yet.

        Without `synced` that is left to `publish`. Raises SpoolError.
        """
        self.seal(sender, recipients, extra)
        if synced:
            self._spill(durable=True)

    def commit(
        self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None
    ) -> str:
        """Make the message durable and visible; return its ID.

        Addresses must have been checked (envelope.py). `extra` are further keys of the sidecar; a
        `next_attempt` in the future leaves the first attempt to cron. Raises SpoolError; the
        message is taken back then.
        """
        with self:
            self.seal(sender, recipients, extra)
            publish((self,))
        return self.id

    def abort(self) -> None:
        """Take everything back; do nothing if the message was committed.

        What cannot be removed is swept later.
        """
        if self.committed or not self._is_stored:
            return
        self._is_stored = False
        try:
            self._connections.run("take the message back", _FORGET, {"id": self.id})
        except SpoolError:
            # The caller gets an error in any case, and what is in the state tmp is never sent.
            return

    def park(self) -> None:
        """Do nothing: a prepared message holds no connection."""

    def unpark(self) -> None:
        """Do nothing: a prepared message is where it was."""

    def ready(self) -> ReadyMessage:
        """Return a sealed message none of which is in the tables yet."""
        return ReadyMessage(self.id, self.state, self.due, self._record, self._chunks)

    @property
    def is_stored(self) -> bool:
        """Whether a part of it is in the tables already."""
        return self._is_stored

    def finish(self, transaction: DatabaseTransaction) -> None:
        """Put in what is missing, and make it a message. Raises psycopg.Error, SpoolError."""
        values = {
            "id": self.id,
            "state": self.state,
            "due": float(self.due),
            "sidecar": self._record,
            "size": self.size,
        }
        found = transaction.run(_FINISH, values)
        for number, octets in enumerate(self._chunks if found else (), self._stored):
            transaction.queue(_CHUNK, {"id": self.id, "number": number, "octets": octets})
        if not found:
            raise SpoolError(
                "accept the message", self.id, None, reason="it was swept or taken back meanwhile"
            )

    @property
    def connections(self) -> Connections:
        """Those of its store."""
        return self._connections


def publish(
    group: Sequence[TableIncoming], before: Callable[[DatabaseTransaction], None] | None = None
) -> None:
    """Make sealed messages of one store visible and durable, all or none, in one transaction.

    `before` is done first in the same transaction; what it raises undoes all. Raises SpoolError;
    then none of them is committed, and each has to be taken back. Or raises
    UncertainAcceptanceError: the answer to the COMMIT was lost, and the database cannot be asked.
    """
    connections = group[0].connections
    doing = "accept the message" if len(group) == 1 else "accept the messages"
    deadline = time.monotonic() + _ASK_SECONDS
    is_uncertain = False
    for attempt in itertools.count():
        cause: Exception | None = None
        try:
            is_sent = _publish_once(connections, group, before, is_repeated=is_uncertain)
        except psycopg.Error as exc:
            # With a unique ID there already: a first try that was still under way then.
            error, cause = translate(exc, connections.address, doing), exc
        except SpoolError as exc:
            error = exc
        else:
            if is_sent is None:
                break
            is_uncertain = is_uncertain or is_sent
            where = connections.address.location
            error = SpoolError(doing, where, None, reason="the connection broke")
            if not attempt:
                # Most likely it had been dead for long.
                continue
        if not is_uncertain:
            raise error from cause
        if time.monotonic() > deadline:
            raise UncertainAcceptanceError(
                "learn whether the message was accepted (it may have been)",
                connections.address.location,
                None,
                reason="the connection broke at the commit, and the database cannot be asked",
            ) from error
        time.sleep(_ASK_EVERY_SECONDS)
    for one in group:
        one.committed = True


def _publish_once(
    connections: Connections,
    group: Sequence[TableIncoming],
    before: Callable[[DatabaseTransaction], None] | None,
    *,
    is_repeated: bool,
) -> bool | None:
    """Run the transaction once. Return None if it was committed.

    If the connection broke, return whether the COMMIT may have reached the server. With
    `is_repeated` it may have done so before: then the messages are there, or in the ledger.
    """
    transaction: DatabaseTransaction | None = None
    try:
        with connections.transaction_on_link(lazily=True) as transaction:
            if is_repeated and transaction.run(_HAVE_ARRIVED, {"ids": [one.id for one in group]}):
                return None
            if before is not None:
                before(transaction)
            _insert(transaction, group, connections)
            transaction.commit()
    except BrokenError:
        return transaction is not None and transaction.is_committing
    return None


def _insert(
    transaction: DatabaseTransaction, group: Sequence[TableIncoming], connections: Connections
) -> None:
    schema, entered = connections.address.schema, connections.clock()
    fresh = [one.ready() for one in group if not one.is_stored]
    if len(fresh) >= _LEAST_FOR_COPY:
        transaction.copy(
            "COPY picoqmail.message (id, state, due, sidecar, entered, octets)"
            " FROM STDIN (FORMAT BINARY)",
            ("text", "text", "float8", "bytea", "float8", "int8"),
            [(one.id, one.state, float(one.due), one.sidecar, entered, one.size) for one in fresh],
        )
        transaction.copy(
            "COPY picoqmail.chunk (message, number, octets) FROM STDIN (FORMAT BINARY)",
            ("text", "int4", "bytea"),
            [(one.id, i, octets) for one in fresh for i, octets in enumerate(one.chunks)],
        )
    else:
        for one in fresh:
            insert(transaction.queue, one, schema, entered=entered)
    for stored in group:
        if stored.is_stored:
            stored.finish(transaction)
    if any(one.state == NEW for one in group) and connections.may_notify():
        transaction.queue("SELECT pg_notify(%(channel)s, '')", {"channel": channel_of(schema)})
