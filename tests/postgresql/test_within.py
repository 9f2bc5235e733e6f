"""Mail within the caller's own transaction: what it costs, and with asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest

import picoqmail
from picoqmail import aio
from picoqmail.errors import ConfigurationError, MessageError
from picoqmail.home.paths import Home
from picoqmail.layout import NEW
from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.migration import migrate
from rig.postgresql import PrivatePostgreSQL
from rig.statement_line import StatementLine

if TYPE_CHECKING:
    from picoqmail.postgresql.store import PostgresStore
    from temporary_home import TemporaryHome

MESSAGE = b"From: a@example.org\nTo: b@example.net\nSubject: trial\n\nbody\n"
_SYNCS = {
    "the file": "SELECT wal_sync FROM pg_stat_wal",
    "its successor": "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'",
}


# --- What it costs --------------------------------------------------------------------------------


def test_it_costs_one_round_trip(
    postgresql: PrivatePostgreSQL, database: str, url: str, home: TemporaryHome
) -> None:
    """The statement is one; the first one of a connection asks nothing either."""
    spool = picoqmail.Spool(Home(home.root, database=url))
    with (
        StatementLine(f"{postgresql.directory}/.s.PGSQL.5432") as line,
        psycopg.connect(line.url(postgresql.url(database))) as connection,
    ):
        for _ in range(2):
            before = len(line.statements)
            connection.execute("SELECT 1")
            spool.enqueue(MESSAGE, connection=connection)
            connection.commit()
            begin, ours, enqueued, commit = line.statements[before:]
            assert ("BEGIN", "SELECT 1", "COMMIT") == (begin, ours, commit)
            assert "INSERT INTO picoqmail.message" in enqueued


def test_it_costs_no_sync(home: TemporaryHome) -> None:
    """The commit waits for the disk as often as without the mail: once."""
    with PrivatePostgreSQL(durable=True, wal_writer_delay="10s") as server:
        url = server.url(server.make_database())
        migrate(read_url(url))
        spool = picoqmail.Spool(Home(home.root, database=url))
        with psycopg.connect(url) as connection:
            syncs = _SYNCS[
                "the file" if connection.info.server_version < 180000 else "its successor"
            ]
            connection.execute("CREATE TABLE shop (number integer)")
            connection.commit()

            def counted() -> int:
                connection.execute("SELECT pg_stat_force_next_flush()")
                connection.commit()
                ((count,),) = connection.execute(syncs.encode()).fetchall()
                connection.commit()
                return int(count)

            found = []
            for with_mail in (False, True, False, True):
                before = counted()
                connection.execute("INSERT INTO shop VALUES (1)")
                if with_mail:
                    spool.enqueue(MESSAGE, connection=connection)
                connection.commit()
                found.append(counted() - before)
    assert [1, 1, 1, 1] == found


# --- With asyncio ---------------------------------------------------------------------------------


def test_with_psycopg_and_asyncio(url: str, home: TemporaryHome, store: PostgresStore) -> None:
    """Committed with the caller's rows or not at all; by itself where the connection is so."""

    async def go() -> list[str]:
        spool = aio.Spool(Home(home.root, database=url))
        async with await psycopg.AsyncConnection.connect(url) as connection:
            receipt = await spool.enqueue(MESSAGE, connection=connection)
            assert not receipt.durable
            await connection.rollback()
            assert {} == store.names()
            kept = await spool.enqueue(MESSAGE + b"x" * 700_000, connection=connection)
            assert {} == store.names()
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            alone = await spool.enqueue(MESSAGE, connection=connection)
            async with connection.transaction(force_rollback=True):
                await spool.enqueue(MESSAGE, connection=connection)
        return [kept.id, alone.id]

    assert dict.fromkeys(asyncio.run(go()), NEW) == store.names()


def test_with_sqlalchemy_and_asyncio(url: str, home: TemporaryHome, store: PostgresStore) -> None:
    """A connection and a session."""
    asynchronous = pytest.importorskip("sqlalchemy.ext.asyncio")
    pytest.importorskip("greenlet")

    async def go() -> list[str]:
        spool = aio.Spool(Home(home.root, database=url))
        engine = asynchronous.create_async_engine(
            url.replace("postgresql://", "postgresql+psycopg://")
        )
        async with engine.connect() as connection:
            await spool.enqueue(MESSAGE, connection=connection)
            await connection.rollback()
            one = await spool.enqueue(MESSAGE, connection=connection)
            await connection.commit()
        async with asynchronous.AsyncSession(engine) as session:
            two = await spool.enqueue(MESSAGE, connection=session)
            assert [one.id] == list(store.names())
            await session.commit()
        await engine.dispose()
        return [one.id, two.id]

    assert dict.fromkeys(asyncio.run(go()), NEW) == store.names()


def test_what_asyncio_cannot_use(url: str, home: TemporaryHome, store: PostgresStore) -> None:
    """A connection that blocks, an alias of Django, a key; and the other way round."""

    async def go() -> None:
        spool = aio.Spool(Home(home.root, database=url))
        with psycopg.connect(url) as connection:
            for wrong in (connection, "default", object()):
                with pytest.raises(MessageError, match="give a psycopg AsyncConnection"):
                    await spool.enqueue(MESSAGE, connection=wrong)
        async with await psycopg.AsyncConnection.connect(url) as connection:
            with pytest.raises(MessageError, match="idempotency key"):
                await aio.enqueue(
                    MESSAGE,
                    home=Home(home.root, database=url),
                    connection=connection,
                    idempotency_key="a",
                )
            with pytest.raises(MessageError, match=r"use picoqmail\.aio\.enqueue"):
                picoqmail.Spool(Home(home.root, database=url)).enqueue(
                    MESSAGE, connection=connection
                )

    asyncio.run(go())
    assert {} == store.names()


def test_a_database_without_tables(postgresql: PrivatePostgreSQL, home: TemporaryHome) -> None:
    """One line says what to run, as without asyncio."""
    bare = postgresql.url(postgresql.make_database())

    async def go() -> None:
        async with await psycopg.AsyncConnection.connect(bare) as connection:
            spool = aio.Spool(Home(home.root, database=bare))
            with pytest.raises(ConfigurationError, match="picoqmail migrate"):
                await spool.enqueue(MESSAGE, connection=connection)

    asyncio.run(go())


def test_a_driver_whose_values_look_different(url: str, home: TemporaryHome) -> None:
    """SQLAlchemy with another driver, or another database: a clear error, and nothing is done."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    spool = picoqmail.Spool(Home(home.root, database=url))
    with (
        sqlalchemy.create_engine("sqlite://").connect() as connection,
        pytest.raises(MessageError, match="needs PostgreSQL with psycopg"),
    ):
        spool.enqueue(MESSAGE, connection=connection)
