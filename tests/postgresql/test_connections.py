"""Connections: nothing outlives a transaction, everything has a time limit."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from picoqmail.errors import SpoolError
from picoqmail.home.limits import Limits
from picoqmail.layout import CUR
from picoqmail.postgresql import connections
from picoqmail.postgresql.connections import Link
from picoqmail.postgresql.opening import open_postgresql
from rig.silent_line import SilentLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.postgresql.store import PostgresStore
    from rig.postgresql import PrivatePgBouncer, PrivatePostgreSQL

SETTINGS = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
}


@pytest.fixture
def line(postgresql: PrivatePostgreSQL) -> Iterator[SilentLine]:
    """A line to the server."""
    with SilentLine(f"{postgresql.directory}/.s.PGSQL.5432") as made:
        yield made


def accept(store: PostgresStore) -> str:
    """Put a message in."""
    incoming = store.incoming(Limits("me.test"), program="t", uid=0, pid=os.getpid())
    incoming.write(b"Subject: x\n\n" + b"x" * 600_000)
    return incoming.commit("a@example.org", ["b@example.net"])


def test_every_statement_has_its_limits_and_leaves_none(store: PostgresStore) -> None:
    """They are set for the transaction alone, in the same message."""
    names = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    for _ in range(2):
        assert [tuple(SETTINGS.values())] == store.connections.run("see", f"SELECT {names}")
    with store.connections.transaction("see") as transaction:
        assert [tuple(SETTINGS.values())] == transaction.run(f"SELECT {names}")
    (link,) = store.connections._idle
    for name in SETTINGS:
        assert ("0",) == link.execute(f"SHOW {name}".encode()).fetchone()


def test_a_lock_is_not_waited_for_without_end(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody holds the table; that is temporary. The limit is a short one here."""
    message_id = accept(store)
    short = connections._SETTINGS.replace("lock_timeout = 5000", "lock_timeout = 300")
    assert short != connections._SETTINGS
    monkeypatch.setattr(connections, "_SETTINGS", short)
    with psycopg.connect(postgresql.url(database)) as connection:
        connection.execute("LOCK TABLE picoqmail.message")
        with pytest.raises(SpoolError, match="lock timeout"):
            store.claim(message_id)
    assert store.claim(message_id) is not None


def test_a_line_that_goes_silent(
    line: SilentLine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No end, no error, and no answer: the wait for that ends, on a kept line and on a new one."""
    monkeypatch.setattr(Link, "patience", 1.0)
    monkeypatch.setitem(connections._TRANSPORT, "connect_timeout", 2)
    store = open_postgresql(f"postgresql://postgres@127.0.0.1:{line.port}/{database}")
    message_id = accept(store)
    line.is_silent.set()
    with pytest.raises(SpoolError):
        store.claim(message_id)
    line.is_silent.clear()
    claim = store.claim(message_id)
    assert claim is not None
    claim.mark_in_doubt()
    store.close()


def test_all_verbs_work_behind_a_pooler(pgbouncer: PrivatePgBouncer, database: str) -> None:
    """In transaction mode, with fewer sessions than there are threads."""
    stores = [open_postgresql(pgbouncer.url(database)) for _ in range(12)]
    failures: list[BaseException] = []

    def run(store: PostgresStore) -> None:
        try:
            for _ in range(3):
                message_id = accept(store)
                claim = store.claim(message_id, in_hand=True)
                assert claim is not None
                assert 600_000 < sum(map(len, claim.blocks()))
                claim.mark_in_doubt()
                store.renew()
                claim = store.record(claim, claim.message, CUR, "450 later\n")
                store.remove(claim)
                claim.release()
                store.flush()
        except BaseException as exc:  # noqa: BLE001 - told by the test
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
    assert {} == stores[0].names()
    for store in stores:
        store.close()


def test_few_connections_are_kept(store: PostgresStore) -> None:
    """Those that many threads needed at once are closed again."""
    start = threading.Barrier(12)

    def run() -> None:
        start.wait()
        store.connections.run("sleep", "SELECT pg_sleep(0.3)")

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < len(store.connections._idle) <= 4


def test_a_handler_that_raises_leaves_no_answer_behind(store: PostgresStore) -> None:
    """The next statement must not read what the last one was to get."""

    class Stop(Exception):  # noqa: N818 - no error
        """Raised in the middle."""

    def left(*_: object) -> float:
        raise Stop

    store.due(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "_left", left)
        with pytest.raises(Stop):
            store.connections.run("ask", "SELECT 1")
    assert [(2,)] == store.connections.run("ask", "SELECT 2")
