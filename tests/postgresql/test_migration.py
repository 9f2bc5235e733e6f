"""The schema: made once, by one of several, in any schema; and refused where it does not fit."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import ConfigurationError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.postgresql import versions
from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.migration import applied, migrate, migrations, script
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.postgresql.versions import OLDEST_PROGRAM, PROGRAM_VERSION

if TYPE_CHECKING:
    from rig.postgresql import PrivatePostgreSQL

NAMES = [name for _, name, _ in migrations()]


def accepts(url: str) -> str:
    """Put a message in and take it out again; return its ID."""
    store = open_postgresql(url)
    try:
        incoming = store.incoming(Limits("me.test"), program="t", uid=0, pid=1)
        incoming.write(b"Subject: x\n\n")
        message_id = incoming.commit("a@example.org", ["b@example.net"])
        claim = store.claim(message_id)
        assert claim is not None
        store.remove(claim)
        store.flush()
    finally:
        store.close()
    return message_id


def test_the_numbers_are_without_a_gap() -> None:
    """Each has a file, and a rule about which programs may go on."""
    numbers = [number for number, _, _ in migrations()]
    assert list(range(1, PROGRAM_VERSION + 1)) == numbers == sorted(OLDEST_PROGRAM)
    assert all(oldest <= number for number, oldest in OLDEST_PROGRAM.items())


@pytest.mark.parametrize("schema", ["picoqmail", "outbox"])
def test_a_new_database(postgresql: PrivatePostgreSQL, schema: str) -> None:
    """It may be done again; two schemas of one database do not know each other."""
    name = postgresql.make_database()
    address = read_url(postgresql.url(name, schema=schema))
    assert 0 == applied(address)
    assert NAMES == migrate(address)
    assert [] == migrate(address)
    assert PROGRAM_VERSION == applied(address)
    assert accepts(postgresql.url(name, schema=schema))
    other = postgresql.url(name, schema="third")
    with pytest.raises(ConfigurationError, match="run: picoqmail migrate"):
        accepts(other)


def test_several_migrate_at_once(postgresql: PrivatePostgreSQL) -> None:
    """One does the work, and no other fails."""
    address = read_url(postgresql.url(postgresql.make_database()))
    done: list[str] = []
    threads = [threading.Thread(target=lambda: done.extend(migrate(address))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert NAMES == done


@pytest.mark.parametrize("schema", ["picoqmail", "outbox"])
def test_what_database_people_run_by_hand(postgresql: PrivatePostgreSQL, schema: str) -> None:
    """The same, by psql."""
    name = postgresql.make_database()
    url = postgresql.url(name)
    for _ in range(2):
        subprocess.run(
            ["psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-", url],
            input=script(schema) if _ == 0 else script(schema, PROGRAM_VERSION),
            text=True,
            check=True,
        )
    assert [] == migrate(read_url(f"{url}&schema={schema}"))
    assert accepts(f"{url}&schema={schema}")


def test_a_schema_that_is_too_old(
    postgresql: PrivatePostgreSQL, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what to do."""
    monkeypatch.setattr(versions, "PROGRAM_VERSION", PROGRAM_VERSION + 1)
    with pytest.raises(ConfigurationError, match="run: picoqmail migrate") as found:
        accepts(postgresql.url(database))
    assert "\n" not in str(found.value)


def test_a_schema_that_is_too_new(postgresql: PrivatePostgreSQL, own_database: str) -> None:
    """Unless its migration says that programs of this version may go on."""
    text = "INSERT INTO picoqmail.migration (number, name, oldest_program) VALUES ({}, 'x', {})"
    postgresql.execute(text.format(PROGRAM_VERSION + 1, PROGRAM_VERSION), own_database)
    assert accepts(postgresql.url(own_database))
    postgresql.execute(text.format(PROGRAM_VERSION + 2, PROGRAM_VERSION + 1), own_database)
    with pytest.raises(ConfigurationError, match="too new for this picoqmail"):
        accepts(postgresql.url(own_database))


def test_a_schema_that_becomes_too_new(postgresql: PrivatePostgreSQL, own_database: str) -> None:
    """A worker that has lived since before the migration finds out when it next cleans up."""
    store = open_postgresql(postgresql.url(own_database))
    assert ([], []) == store.sweep(())
    text = "INSERT INTO picoqmail.migration (number, name, oldest_program) VALUES ({}, 'x', {})"
    postgresql.execute(text.format(PROGRAM_VERSION + 1, PROGRAM_VERSION + 1), own_database)
    with pytest.raises(ConfigurationError, match="too new for this picoqmail"):
        store.sweep(())
    store.close()


def test_missing_rights(postgresql: PrivatePostgreSQL, own_database: str) -> None:
    """On the schema, and on a table: who must be granted what."""
    postgresql.execute("DROP ROLE IF EXISTS joe")
    postgresql.execute("CREATE ROLE joe LOGIN")
    url = postgresql.url(own_database, user="joe")
    try:
        with pytest.raises(ConfigurationError, match="permission denied for schema"):
            accepts(url)
        with pytest.raises(ConfigurationError, match="permission denied"):
            migrate(read_url(url + "&schema=elsewhere"))
        postgresql.execute("GRANT USAGE ON SCHEMA picoqmail TO joe", own_database)
        postgresql.execute("GRANT SELECT ON ALL TABLES IN SCHEMA picoqmail TO joe", own_database)
        with pytest.raises(ConfigurationError, match="cannot accept the message: permission"):
            accepts(url)
        postgresql.execute("GRANT ALL ON ALL TABLES IN SCHEMA picoqmail TO joe", own_database)
        assert accepts(url)
    finally:
        postgresql.execute("DROP OWNED BY joe", own_database)
        postgresql.execute("DROP ROLE joe")


def test_a_database_that_takes_no_changes(postgresql: PrivatePostgreSQL, own_database: str) -> None:
    """A standby in recovery says the same; that may pass."""
    postgresql.execute(
        f"ALTER DATABASE {own_database} SET default_transaction_read_only = on", own_database
    )
    with pytest.raises(SpoolError, match="read-only, or a standby in recovery"):
        accepts(postgresql.url(own_database))


def test_a_database_that_is_not_there(postgresql: PrivatePostgreSQL) -> None:
    """It has to be made by hand, or the URL is wrong."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        accepts(postgresql.url("nowhere"))


def test_a_server_that_is_not_there(postgresql: PrivatePostgreSQL) -> None:
    """It may come back."""
    with pytest.raises(SpoolError, match="connect to the database"):
        accepts("postgresql://joe:s3cr3t@127.0.0.1:1/mail")
    with pytest.raises(SpoolError, match="connect to the database"):
        accepts(f"postgresql:///mail?host={postgresql.directory}/nowhere")


def test_an_encoding_that_cannot_hold_every_address(postgresql: PrivatePostgreSQL) -> None:
    """It is refused before anything is made."""
    postgresql.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(ConfigurationError, match="the encoding of the database is LATIN1"):
        migrate(read_url(postgresql.url("latin")))
