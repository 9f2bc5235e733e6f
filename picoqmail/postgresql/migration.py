"""The schema: numbered SQL files, applied in order, each in a transaction of its own.

What a migration may do, so that workers of the version before go on: versions.py.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from importlib import resources
from typing import TYPE_CHECKING

import psycopg

from picoqmail.errors import ConfigurationError
from picoqmail.postgresql.connections import DatabaseTransaction, connect
from picoqmail.postgresql.faults import translate
from picoqmail.postgresql.naming import named
from picoqmail.postgresql.versions import OLDEST_PROGRAM, OLDEST_SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from picoqmail.postgresql.address import DatabaseAddress
    from picoqmail.postgresql.connections import Link

    Run = Callable[..., Sequence[Sequence[Any]]]

# An index on a large table takes its time.
_PATIENCE_SECONDS = 86400.0

_LEDGER = """\
CREATE TABLE IF NOT EXISTS picoqmail.migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    oldest_program integer NOT NULL,
    applied timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtext(%(name)s))"


def migrations() -> list[tuple[int, str, str]]:
    """Return all migrations in order: number, name of the file, statements for the usual schema."""
    found = []
    for file in resources.files("picoqmail.postgresql").joinpath("schema").iterdir():
        number, _, _ = file.name.partition("_")
        if file.name.endswith(".sql") and number.isdecimal():
            found.append((int(number), file.name, file.read_text(encoding="utf-8")))
    return sorted(found)


def script(schema: str, after: int = 0) -> str:
    """Return, for database people, what `migrate` runs: the migrations with a number over `after`.

    With 0 it also makes the schema.
    """
    parts = [] if after else [_beginning(schema)]
    parts += [
        f"-- {name}\nBEGIN;\n{named(text, schema)}\n{_noted(number, name, schema)}\nCOMMIT;\n"
        for number, name, text in migrations()
        if number > after
    ]
    return "\n".join(parts)


def statements(number: int, schema: str) -> str:
    """Return the statements of one migration, without those of a transaction."""
    ((name, text),) = [(name, text) for n, name, text in migrations() if n == number]
    beginning = _beginning(schema) if number == 1 else ""
    return f"{beginning}\n{named(text, schema)}\n{_noted(number, name, schema)}"


def apply(run: Run, number: int, schema: str) -> None:
    """Apply one migration in the transaction of a caller, unless it has been applied.

    `run` executes a statement with its values, and returns the rows. Raises what it raises.
    """
    run(_LOCK, {"name": f"{schema}.migration"})
    if _version(run, schema) < number:
        run(statements(number, schema))


def _beginning(schema: str) -> str:
    return f'CREATE SCHEMA IF NOT EXISTS "{schema}";\n\n{named(_LEDGER, schema)}'


def applied(address: DatabaseAddress) -> int:
    """Return the version of the schema, 0 if there is none.

    Raises ConfigurationError, SpoolError.
    """
    with _connected(address) as link, _transaction(link, address, "read the version") as reading:
        return _version(reading.run, address.schema)


def migrate(address: DatabaseAddress) -> list[str]:
    """Apply what is missing; return the names of the migrations that were applied.

    Several may do so at once: one of them does the work, and the others find it done. Raises
    ConfigurationError, SpoolError.
    """
    done = []
    lock = {"name": f"{address.schema}.migration"}
    with _connected(address) as link:
        _demand_server(link, address)
        with _transaction(link, address, "make the schema") as making:
            making.run(_LOCK, lock)
            if not _has_schema(making, address.schema):
                making.run(f'CREATE SCHEMA "{address.schema}"')
            making.run(_LEDGER)
        for number, name, text in migrations():
            with _transaction(link, address, f"apply the migration {name}") as step:
                step.run(_LOCK, lock)
                if _version(step.run, address.schema) < number:
                    step.run(text)
                    step.run(_noted(number, name, address.schema))
                    done.append(name)
    return done


@contextmanager
def _connected(address: DatabaseAddress) -> Iterator[Link]:
    with closing(connect(address)) as link:
        link.patience = _PATIENCE_SECONDS
        yield link


@contextmanager
def _transaction(link: Link, address: DatabaseAddress, doing: str) -> Iterator[DatabaseTransaction]:
    """Run the block as one transaction without limits of time."""
    transaction = DatabaseTransaction(link, address.schema, durable=True, limited=False)
    try:
        transaction.begin()
        yield transaction
        transaction.commit()
    except psycopg.Error as exc:
        raise translate(exc, address, doing) from exc
    finally:
        transaction.roll_back()


def _has_schema(transaction: DatabaseTransaction, schema: str) -> bool:
    names = {"schema": schema}
    return bool(transaction.run("SELECT FROM pg_namespace WHERE nspname = %(schema)s", names))


def _version(run: Run, schema: str) -> int:
    names = {"schema": schema}
    found = run(
        "SELECT 1 FROM pg_tables WHERE schemaname = %(schema)s AND tablename = 'migration'", names
    )
    if not found:
        return 0
    ((version,),) = run(named("SELECT coalesce(max(number), 0) FROM picoqmail.migration", schema))
    return int(version)


def _demand_server(link: Link, address: DatabaseAddress) -> None:
    with _transaction(link, address, "ask the server for its version") as asking:
        ((version, encoding),) = asking.run(
            "SELECT current_setting('server_version_num')::integer,"
            " current_setting('server_encoding')"
        )
    if version < OLDEST_SERVER:
        raise ConfigurationError(
            address.location,
            f"the server is PostgreSQL {version // 10000}",
            f"picoqmail needs {OLDEST_SERVER // 10000} or newer",
        )
    if encoding != "UTF8":
        raise ConfigurationError(
            address.location,
            f"the encoding of the database is {encoding}",
            "make one with: createdb --encoding=UTF8 --template=template0 NAME",
        )


def _noted(number: int, name: str, schema: str) -> str:
    """Return the statement that notes a migration as applied; its values are ours."""
    values = f"({number}, '{name}', {OLDEST_PROGRAM[number]})"
    text = "INSERT INTO picoqmail.migration (number, name, oldest_program) VALUES "
    return named(text, schema) + values + ";"
