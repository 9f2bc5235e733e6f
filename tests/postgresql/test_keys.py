"""Idempotency keys in tables: one message, whoever asks, and whatever breaks."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from picoqmail.errors import KeyReusedError, MessageError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.postgresql.keys import publish_keyed
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.spool.keys import name_of

if TYPE_CHECKING:
    from picoqmail.postgresql.incoming import TableIncoming
    from picoqmail.postgresql.store import PostgresStore
    from rig.postgresql import PrivatePostgreSQL


def sealed(store: PostgresStore) -> TableIncoming:
    """A message that is ready."""
    incoming = store.incoming(Limits("me.test"), program="t", uid=7, pid=os.getpid())
    incoming.write(b"Subject: x\n\n")
    incoming.seal("a@example.org", ["b@example.net"])
    return incoming


def accept(store: PostgresStore, key: str, fingerprint: str = "1:f", **more: Any) -> str:
    """Accept a message with a key; return the ID that the key stands for."""
    incoming = sealed(store)
    with incoming:
        found = publish_keyed(incoming, key, fingerprint=fingerprint, **{"lifetime": 60.0, **more})
    return str(found["id"]) if found else incoming.id


def test_a_key_stands_for_one_message(store: PostgresStore, other: PostgresStore) -> None:
    """For all hosts; the first receipt is found again."""
    first = accept(store, "order 1 \0")
    assert first == accept(other, "order 1 \0")
    assert first != accept(store, "order 2")
    assert 2 == len(store.due(10))
    found = store.find_key("order 1 \0")
    assert found is not None
    assert (first, "1:f", int(first.partition(".")[0])) == (
        found["id"],
        found["fingerprint"],
        found["created"],
    )
    assert found["size"] == store.read(first)[1].size
    assert store.find_key("order 3") is None


def test_a_key_of_another_message(store: PostgresStore) -> None:
    """It is refused, unless the key decides, or the fingerprints cannot be compared."""
    first = accept(store, "order 1")
    with pytest.raises(KeyReusedError, match=first):
        accept(store, "order 1", "1:g")
    assert first == accept(store, "order 1", "1:g", key_decides=True)
    assert first == accept(store, "order 1", "2:g")
    with pytest.raises(MessageError):
        accept(store, "x" * 2000)
    assert 1 == len(store.names())


def test_a_key_expires(store: PostgresStore) -> None:
    """By the server's clock; then it stands for a new message, and is swept if nobody uses it."""
    first = accept(store, "order 1", lifetime=-1.0)
    accept(store, "order 2", lifetime=-1.0)
    assert first != accept(store, "order 1", "1:g")
    store.sweep(())
    ((count,),) = store.connections.run("see", "SELECT count(*) FROM picoqmail.key")
    assert 1 == count


def test_callers_with_one_key_wait_for_each_other(url: str, store: PostgresStore) -> None:
    """All get the same ID, and one message is there."""
    stores = [open_postgresql(url) for _ in range(8)]
    start = threading.Barrier(len(stores))
    ids: list[str] = []

    def run(mine: PostgresStore) -> None:
        start.wait()
        ids.append(accept(mine, "order 1"))

    threads = [threading.Thread(target=run, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in stores:
        one.close()
    assert 8 == len(ids)
    assert [ids[0]] == list(set(ids)) == store.due(10)


def test_a_key_that_another_caller_keeps(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore
) -> None:
    """After a while that is a temporary error, and nothing is accepted."""
    with psycopg.connect(postgresql.url(database)) as connection:
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            (f"picoqmail.key {name_of('order 1')}",),
        )
        with pytest.raises(SpoolError, match="lock timeout"):
            accept(store, "order 1", patience=0.2)
    assert {} == store.names()
    assert accept(store, "order 1") in store.names()


def test_a_lost_answer_is_no_second_message(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and message were committed together, and are found together."""
    real = psycopg.ClientCursor.execute
    cuts = [1]

    def execute(cursor: Any, query: Any, *more: Any, **options: Any) -> Any:
        result = real(cursor, query, *more, **options)
        if query == "COMMIT" and cuts:
            cuts.pop()
            cursor.connection.pgconn.finish()
            raise psycopg.OperationalError("the line was cut")
        return result

    monkeypatch.setattr(psycopg.ClientCursor, "execute", execute)
    first = accept(store, "order 1")
    assert [] == cuts
    assert [first] == store.due(10)
    assert first == accept(store, "order 1")
