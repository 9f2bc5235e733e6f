"""Idempotency keys: which message a key stands for, in the transaction that accepts the message.

As spool/keys.py: a key is locked, found or not, written down, and then the message is accepted.
Here lock, record and message are one transaction: its end releases the lock, and a crash leaves
either both or neither. So there is no record of a message that never came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from picoqmail.postgresql.incoming import publish
from picoqmail.spool.keys import name_of, refuse_reuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from picoqmail.postgresql.connections import Connections, DatabaseTransaction
    from picoqmail.postgresql.incoming import TableIncoming

# How long to wait for another caller that has the same key: many times what it needs, and less than
# a statement may take.
KEY_PATIENCE_SECONDS = 12

_LOCK = """
    SELECT set_config('lock_timeout', %(patience)s, true);
    SELECT pg_advisory_xact_lock(hashtextextended(%(lock)s, 0));
    SELECT set_config('lock_timeout', %(usual)s, true)
"""
_FIND = """
    SELECT id, fingerprint, size, created, next_attempt, expires FROM picoqmail.key
    WHERE name = %(name)s AND expires > extract(epoch FROM clock_timestamp())
"""
_WRITE = """
    INSERT INTO picoqmail.key AS key (name, id, fingerprint, size, created, next_attempt, expires)
    VALUES (%(name)s, %(id)s, %(fingerprint)s, %(size)s, %(created)s, %(next_attempt)s,
        extract(epoch FROM clock_timestamp()) + %(lifetime)s)
    ON CONFLICT (name) DO UPDATE SET id = excluded.id, fingerprint = excluded.fingerprint,
        size = excluded.size, created = excluded.created, next_attempt = excluded.next_attempt,
        expires = excluded.expires
"""
SWEEP_KEYS = """
    DELETE FROM picoqmail.key WHERE name IN (
        SELECT name FROM picoqmail.key WHERE expires <= extract(epoch FROM clock_timestamp())
        ORDER BY expires LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ) RETURNING name
"""


class KnownKeyError(Exception):
    """The key stands for a message already; `found` is its record."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        super().__init__("the key stands for a message already")
        self.found = found


def find_key(connections: Connections, key: str) -> dict[str, Any] | None:
    """Return what a key stands for now, None if nothing or if it expired.

    Raises SpoolError; MessageError for what is no key.
    """
    rows = connections.run("read the idempotency key", _FIND, {"name": name_of(key)})
    return _record(rows[0]) if rows else None


def publish_keyed(  # noqa: PLR0913 - all that a record is
    incoming: TableIncoming,
    key: str,
    *,
    fingerprint: str,
    lifetime: float,
    key_decides: bool = False,
    patience: float = KEY_PATIENCE_SECONDS,
) -> dict[str, Any] | None:
    """Accept a sealed message, and have the key stand for it for `lifetime` seconds.

    If the key stands for a message already, return the record of that; None if this one was
    accepted. Waits at most `patience` seconds for another caller with this key. Raises
    KeyReusedError if the record is that of another message or envelope, unless `key_decides`.
    Raises SpoolError, also UncertainAcceptanceError, and MessageError for what is no key.
    """
    name = name_of(key)
    address = incoming.connections.address
    values = {
        "name": name,
        "id": incoming.id,
        "fingerprint": fingerprint,
        "size": incoming.size,
        "created": incoming.created,
        "next_attempt": float(incoming.due),
        "lifetime": lifetime,
        "lock": f"{address.schema}.key {name}",
        "patience": f"{int(patience * 1000)}ms",
        "usual": "5s",
    }

    def take_key(transaction: DatabaseTransaction) -> None:
        transaction.run(_LOCK, values)
        rows = transaction.run(_FIND, values)
        if rows:
            raise KnownKeyError(_record(rows[0]))
        transaction.queue(_WRITE, values)

    try:
        publish([incoming], before=take_key)
    except KnownKeyError as exc:
        if not key_decides:
            refuse_reuse(key, exc.found, fingerprint)
        return dict(exc.found)
    return None


def _record(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a record as the directory store has it."""
    message_id, fingerprint, size, created, next_attempt, expires = row
    return {
        "id": message_id,
        "fingerprint": fingerprint,
        "size": int(size),
        "created": int(created),
        "next_attempt": int(next_attempt),
        "expires": int(expires),
    }
