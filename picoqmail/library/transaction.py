"""A message within the caller's own transaction: `enqueue(..., connection=)`.

The message is rows of the database that the caller writes to anyway. It is committed or rolled back
with the caller's own rows, so it costs no fsync, and one round trip for most mails. The statement
also sees to it that a commit with synchronous_commit off waits for the disk this time.

What is to be run is made first (`insertion_of`); then it is run by a connection that blocks, or by
one of asyncio.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING
from zlib import crc32

from attrs import frozen

from picoqmail.errors import ConfigurationError, MessageError, MessageTooLargeError, SpoolError
from picoqmail.home.database import database_of
from picoqmail.layout import make_id
from picoqmail.library.mail import Receipt
from picoqmail.message.dates import header_date
from picoqmail.spool import sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from typing import Any

    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.library.orders import Order

    Run = Callable[[str, Mapping[str, Any]], object]
    AsyncRun = Callable[[str, Mapping[str, Any]], Awaitable[object]]

_ENTROPY_OCTETS = 8
_TAKES = (
    "a psycopg Connection, a Connection or Session of SQLAlchemy, or the alias of a Django database"
)
_TAKES_ASYNC = (
    "a psycopg AsyncConnection, or an AsyncConnection or AsyncSession of SQLAlchemy; a connection "
    "that blocks is for picoqmail.enqueue, in the thread that it belongs to"
)
# SQLSTATE: undefined_table, invalid_schema_name.
_MISSING = frozenset({"42P01", "3F000"})


@frozen
class Insertion:
    """The statements of one message, with their values, and the receipt for when they are run."""

    receipt: Receipt
    schema: str
    statements: Sequence[tuple[str, Mapping[str, Any]]]


def insertion_of(home: Home, limits: Limits, order: Order, program: str) -> Insertion:
    """Return what puts a message into the tables.

    Raises ConfigurationError, MessageError, MessageTooLargeError.
    """
    if order.key is not None:
        raise MessageError(
            "an idempotency key cannot be used within your own transaction; a unique column of "
            "your own does the same there"
        )
    from picoqmail.postgresql.insertion import ReadyMessage, in_chunks, insert, state_and_due

    schema = schema_of(home)
    now_ns = time.time_ns()
    uid, pid = os.getuid(), os.getpid()
    message_id = make_id(limits.host, pid, now_ns, os.urandom(_ENTROPY_OCTETS))
    created = now_ns // 1_000_000_000
    first = (
        f"Received: by {limits.host} (picoqmail {pid} invoked by uid {uid}) id {message_id}; "
        f"{header_date(created)}\n"
    ).encode()
    with closing(order.content):
        chunks = in_chunks(_bounded([first], order.content.blocks(), limits))
    size = sum(map(len, chunks))
    checksum = 0
    for chunk in chunks:
        checksum = crc32(chunk, checksum)
    record = sidecar.new_record(
        message_id,
        order.sender,
        order.recipients,
        created=created,
        next_attempt=created,
        expires=created + limits.queuelifetime,
        size=size,
        crc32=checksum,
        origin={"uid": uid, "pid": pid, "program": program},
    )
    record.update(order.extra)
    state, due = state_and_due(created, record)
    # Due at once, whatever the clock of the server says: 0 is past on every clock.
    due = due if due > created else 0
    ready = ReadyMessage(message_id, state, due, sidecar.encode(record), chunks)
    statements: list[tuple[str, Mapping[str, Any]]] = []

    def keep(text: str, values: Mapping[str, Any]) -> None:
        statements.append((text, values))

    insert(keep, ready, schema, entered=created, lasting=True)
    receipt = Receipt(
        id=message_id,
        sender=order.sender,
        recipients=tuple(order.recipients),
        size=size,
        created=created,
        next_attempt=record["next_attempt"],
        durable=False,
    )
    return Insertion(receipt, schema, statements)


def enqueue_within(connection: object, insertion: Insertion) -> Receipt:
    """Put a message into the tables through a connection of the caller's.

    Nothing is committed, unless the connection commits each statement by itself. Raises
    ConfigurationError, MessageError, SpoolError. After an error of the database the caller's
    transaction can only be rolled back.
    """
    with _running(connection) as run:
        try:
            for text, values in insertion.statements:
                run(text, values)
        except Exception as exc:
            raise _translated(exc, insertion.schema) from exc
    return insertion.receipt


async def enqueue_within_async(connection: object, insertion: Insertion) -> Receipt:
    """Do the same through a connection of asyncio."""
    async with _running_async(connection) as run:
        try:
            for text, values in insertion.statements:
                await run(text, values)
        except Exception as exc:
            raise _translated(exc, insertion.schema) from exc
    return insertion.receipt


def _bounded(first: list[bytes], blocks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    size = 0
    for some in (first, blocks):
        for block in some:
            size += len(block)
            if limits.databytes and size > limits.databytes:
                raise MessageTooLargeError(
                    f"the message is larger than {limits.databytes} bytes (setting databytes)"
                )
            yield block


def schema_of(home: Home) -> str:
    """Return the schema of the tables, as the home names it. Raises ConfigurationError."""
    from picoqmail.postgresql.address import DEFAULT_SCHEMA, read_url

    url, where = database_of(home)
    return read_url(url, where).schema if url else DEFAULT_SCHEMA


@contextmanager
def _running(connection: object) -> Iterator[Run]:
    """Yield what runs a statement in the caller's transaction.

    Where the connection commits each statement by itself, all of ours are one transaction.
    """
    package = _package_of(connection)
    with ExitStack() as opened:
        if isinstance(connection, str):
            yield opened.enter_context(_django(connection))
        elif package == "psycopg" and hasattr(connection, "transaction"):
            yield opened.enter_context(_psycopg(connection))
        elif package == "sqlalchemy" and (one := _of_sqlalchemy(connection)) is not None:
            yield one.exec_driver_sql
        elif hasattr(connection, "vendor") and hasattr(connection, "alias"):
            yield opened.enter_context(_django(connection.alias))
        else:
            raise _refuse(connection, _TAKES)


@asynccontextmanager
async def _running_async(connection: Any) -> AsyncIterator[AsyncRun]:  # noqa: ANN401 - not ours
    """Do the same for a connection of asyncio."""
    package = _package_of(connection)
    async with AsyncExitStack() as opened:
        if package == "psycopg" and _is_async(connection, "execute"):
            yield await opened.enter_async_context(_psycopg_async(connection))
        elif package == "sqlalchemy" and _is_async(connection, "connection"):
            yield _with_our_values(await connection.connection()).exec_driver_sql
        elif package == "sqlalchemy" and _is_async(connection, "exec_driver_sql"):
            yield _with_our_values(connection).exec_driver_sql
        else:
            raise _refuse(connection, _TAKES_ASYNC)


def _package_of(connection: object) -> str:
    return type(connection).__module__.partition(".")[0]


def _refuse(connection: object, takes: str) -> MessageError:
    return MessageError(f"connection is a {type(connection).__name__}; give {takes}")


def _is_async(connection: object, method: str) -> bool:
    import inspect

    # Of the class: some attributes of an instance refuse to be looked at.
    return inspect.iscoroutinefunction(getattr(type(connection), method, None))


def _of_sqlalchemy(connection: Any) -> Any:  # noqa: ANN401 - a package that need not be there
    """Return the Connection of a Connection or Session; None for anything else."""
    if any(_is_async(connection, one) for one in ("connection", "exec_driver_sql")):
        raise MessageError("connection is one for asyncio: use picoqmail.aio.enqueue")
    if hasattr(connection, "exec_driver_sql"):
        return _with_our_values(connection)
    return _with_our_values(connection.connection()) if hasattr(connection, "connection") else None


def _with_our_values(connection: Any) -> Any:  # noqa: ANN401 - the same
    """Return it if its driver takes values as ours do: `%(name)s`. Raises MessageError."""
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.paramstyle != "pyformat":
        raise MessageError(
            f"connection uses {dialect.name} with the driver {dialect.driver}; mail within a "
            "transaction needs PostgreSQL with psycopg (postgresql+psycopg://)"
        )
    return connection


@contextmanager
def _psycopg(connection: Any) -> Iterator[Run]:  # noqa: ANN401 - a package that need not be there
    if _is_async(connection, "execute"):
        raise MessageError("connection is one for asyncio: use picoqmail.aio.enqueue")
    if connection.autocommit:
        # Within a transaction of the caller's this is a savepoint, else it commits at its end.
        with connection.transaction():
            yield connection.execute
    else:
        yield connection.execute


@asynccontextmanager
async def _psycopg_async(connection: Any) -> AsyncIterator[AsyncRun]:  # noqa: ANN401 - the same
    if connection.autocommit:
        async with connection.transaction():
            yield connection.execute
    else:
        yield connection.execute


@contextmanager
def _django(alias: str) -> Iterator[Run]:
    from django.db import connections, transaction

    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"DATABASES[{alias!r}]",
            f"is {connection.vendor}, and mail within a transaction needs PostgreSQL",
            "leave connection out: the mail goes into the spool",
        )
    with ExitStack() as opened:
        if not connection.in_atomic_block and connection.get_autocommit():
            opened.enter_context(transaction.atomic(using=alias))
        cursor = opened.enter_context(connection.cursor())
        yield cursor.execute


def _translated(exc: Exception, schema: str) -> Exception:
    """Return our error for one of whichever driver it is; others as they are."""
    original = getattr(exc, "orig", None) or exc.__cause__ or exc
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is None and not hasattr(original, "diag"):
        return exc
    said = str(original).strip().partition("\n")[0]
    if state in _MISSING:
        return ConfigurationError(
            "connection",
            f"its database has no tables of picoqmail in the schema {schema}: {said}",
            "run picoqmail migrate with PICOQMAIL_SPOOL naming this database",
        )
    return SpoolError("accept the message in your transaction", schema, None, reason=said)
