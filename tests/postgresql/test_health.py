"""What a database says of itself, for `check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from picoqmail.postgresql.health import TABLES, examine
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.postgresql.versions import PROGRAM_VERSION

if TYPE_CHECKING:
    from picoqmail.postgresql.store import PostgresStore
    from postgresql.conftest import Accept
    from rig.postgresql import PrivatePgBouncer, PrivatePostgreSQL


def test_a_server_that_would_lose_mail_shows_it(store: PostgresStore, accept: Accept) -> None:
    """The rig's own waits for no disk."""
    store.claim(accept())
    health = examine(store.connections)
    assert (False, False, False) == (health.fsync, health.full_page_writes, health.autovacuum)
    assert ("on", False, False) == (health.default_commit, health.in_recovery, health.is_old)
    assert not health.is_pooled
    assert (1, 0, 0) == (health.held_leases, health.expired_leases, health.lost_leases)
    assert PROGRAM_VERSION == health.schema_version == health.program_version
    assert abs(health.offset_seconds) < 5
    assert 0 < health.sessions < health.most_sessions == 200
    assert ((), ()) == (health.lacking, health.standbys)
    assert {"message", "chunk", "result", "ledger"} == {one.name for one in health.tables}


def test_a_transaction_that_pins_vacuum_is_named(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """The oldest, by who has it and for how long."""
    url = postgresql.url(database, application_name="report")
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM picoqmail.message")
        for _ in range(3):
            accept()
        health = examine(store.connections)
        assert "(report)" in health.oldest
        assert health.oldest_seconds is not None
        assert 0 <= health.oldest_seconds < 60
        assert (health.oldest_transactions or 0) >= 3
    assert "(report)" not in examine(store.connections).oldest


def test_expired_leases_and_rights_are_counted(
    postgresql: PrivatePostgreSQL, own_database: str
) -> None:
    """What this user may not do is named by table."""
    store = open_postgresql(postgresql.url(own_database))
    assert () == examine(store.connections).lacking
    store.close()
    postgresql.execute("CREATE ROLE jane LOGIN")
    try:
        for text in (
            "GRANT USAGE ON SCHEMA picoqmail TO jane",
            "GRANT ALL ON ALL TABLES IN SCHEMA picoqmail TO jane",
            "REVOKE DELETE ON picoqmail.chunk FROM jane",
            "REVOKE SELECT ON picoqmail.message FROM jane",
        ):
            postgresql.execute(text, own_database)
        theirs = open_postgresql(postgresql.url(own_database, user="jane"))
        health = examine(theirs.connections)
        assert ("chunk: DELETE", "message: SELECT") == health.lacking
        theirs.close()
    finally:
        postgresql.execute("DROP OWNED BY jane", own_database)
        postgresql.execute("DROP ROLE jane")


def test_a_pooler_is_seen(pgbouncer: PrivatePgBouncer, database: str) -> None:
    """By the number of the session."""
    store = open_postgresql(pgbouncer.url(database))
    assert examine(store.connections).is_pooled
    store.close()


def test_every_table_is_asked_for(postgresql: PrivatePostgreSQL, database: str) -> None:
    """But for the list of migrations, which only `migrate` writes."""
    rows = postgresql.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'picoqmail'", database
    )
    assert {*TABLES, "migration"} == {name for (name,) in rows}
