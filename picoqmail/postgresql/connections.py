"""Connections to the database, and transactions on them.

The rules of this module. No state of a session outlives a transaction, so that a pooler may give
each transaction another session: every transaction begins with its own settings (SET LOCAL), no
statement is prepared, nothing is locked or listened to beyond its end. Whatever can hang has a time
limit, here and on the server; all limits together are shorter than a lease. A connection belongs to
the process that made it: a fork makes new ones.
"""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import ClientCursor

from picoqmail.errors import ConfigurationError
from picoqmail.postgresql.faults import is_worth_another_try, translate, translate_refusal
from picoqmail.postgresql.naming import named
from picoqmail.postgresql.versions import refuse_version

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from picoqmail.postgresql.address import DatabaseAddress

    Row = tuple[Any, ...]
    Parameters = Mapping[str, Any]

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 15
LOCK_SECONDS = 5
IDLE_SECONDS = 30
# For an answer that never comes: a proxy or a pooler may keep a line open whose other end is dead,
# so that TCP's own limits see nothing.
PATIENCE_SECONDS = 20.0
NOTICE_SECONDS = 1.0
# For who looks at all messages, and holds none meanwhile.
LONG_STATEMENT_SECONDS = 300
_TCP_MILLISECONDS = 10_000
_KEPT = 4

_TRANSPORT = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": _TCP_MILLISECONDS,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 2,
    "client_encoding": "utf8",
    "application_name": "picoqmail",
}
_SETTINGS = (
    f"SET LOCAL statement_timeout = {STATEMENT_SECONDS * 1000}; "
    f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000}; "
    f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}; "
)
# Nobody is told yes before the server says that the commit is on its disk. What is not durable is
# repeated or found out after a crash of the server: claims, renewals, totals.
_DURABLE = "SET LOCAL synchronous_commit = on; "
_QUICK = "SET LOCAL synchronous_commit = off; "

# SQLSTATE of errors after which the server has closed the connection.
_ENDS_SESSION = ("08", "57P", "25P03")

# After so long without a word from the server the clocks may have come apart.
_TRUSTED_SECONDS = 600
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
_HELLO = """
    SELECT extract(epoch FROM clock_timestamp())::float8, max(number), max(oldest_program)
    FROM picoqmail.migration
"""


class _AnswerTimeoutError(psycopg.OperationalError):
    """No answer came in time."""


class Link(psycopg.Connection["Row"]):
    """A connection that waits for an answer no longer than PATIENCE_SECONDS."""

    patience = PATIENCE_SECONDS

    def __del__(self, *_: Any) -> None:
        """Say nothing: whoever forgets a store has lost no mail. The driver closes the socket."""

    def wait(self, gen: Generator[Any, Any, Any], *_: Any, **__: Any) -> Any:
        """Drive one exchange with the server. What ends it early ends the connection, too."""
        deadline = time.monotonic() + self.patience
        poll = select.poll()
        try:
            wanted = next(gen)
            poll.register(self.pgconn.socket, _events(wanted))
            while True:
                if found := poll.poll(self._left(deadline) * 1000):
                    wanted = gen.send(_ready(found[0][1], wanted))
                poll.modify(self.pgconn.socket, _events(wanted))
        except StopIteration as exc:
            return exc.value
        except BaseException as exc:
            if isinstance(exc, _AnswerTimeoutError) or not isinstance(exc, psycopg.Error):
                # No answer, or a signal's handler raised. What the server still says is nobody's.
                self.pgconn.finish()
            raise

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _AnswerTimeoutError(f"no answer within {self.patience:g} seconds")
        return left


def _events(wanted: int) -> int:
    """Translate what the driver waits for: 1 is to read, 2 to write."""
    return (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0)


def _ready(events: int, wanted: int) -> int:
    """Translate what has happened. An error or a hang-up is found by doing what was waited for."""
    ready = (1 if events & select.POLLIN else 0) | (2 if events & select.POLLOUT else 0)
    return ready or wanted


class Connections:
    """The connections of one process to one database; threads may share them.

    They also have the server's time.
    """

    def __init__(self, address: DatabaseAddress) -> None:
        """Nothing is connected yet."""
        self.address = address
        self._idle: list[Link] = []
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._is_checked = False
        self._offset: float | None = None
        self._heard_at = 0.0
        self._notified = float("-inf")

    # --- Time ----------------------------------------------------------------------------------

    def clock(self) -> float:
        """Return the server's time (Unix seconds), that of this host before the first connection.

        It is counted on from the last exchange, so it needs no other.
        """
        offset = self._offset
        return time.time() if offset is None else _uptime() + offset

    def heard(self, server_time: float) -> None:
        """Take note of the time that the server has just given."""
        self._heard_at = _uptime()
        self._offset = server_time - self._heard_at

    def measure(self) -> None:
        """Make sure that `clock` is the server's. Raises SpoolError, ConfigurationError."""
        if self._offset is None:
            with self._borrowed():
                pass
        elif _uptime() > self._heard_at + _TRUSTED_SECONDS:
            ((now,),) = self.run("ask the database for its time", _NOW)
            self.heard(now)

    def demand_version(self) -> None:
        """Refuse a schema that has been migrated meanwhile, and is too new for this program.

        It was asked for with the first connection; some programs live for months. Raises
        ConfigurationError, SpoolError.
        """
        ((now, version, oldest_program),) = self.run("read the version of the schema", _HELLO)
        self.heard(now)
        refuse_version(self.address, version, oldest_program)

    def is_pooled(self, session: int) -> bool:
        """Say whether a pooler is in between: then a session has another number than it gave us.

        `session` is what the server calls the one that the last statement was run in.
        """
        with self._mutex:
            return all(link.info.backend_pid != session for link in self._idle)

    def may_notify(self) -> bool:
        """Say whether a commit may wake workers now: once a second, for all such commits queue."""
        now = time.monotonic()
        if now < self._notified + NOTICE_SECONDS:
            return False
        self._notified = now
        return True

    # --- Statements ----------------------------------------------------------------------------

    def run(
        self,
        doing: str,
        text: str,
        parameters: Parameters | None = None,
        *,
        durable: bool = False,
        patient: bool = False,
    ) -> list[Row]:
        """Run one statement as a transaction of its own, in one round trip; return its rows.

        The statement must be one that may be repeated: if the connection broke, it is sent once
        more. `durable`: what it changes is on the server's disk when this returns. `patient`: it
        may take minutes. Raises
        SpoolError, ConfigurationError.
        """
        settings = _SETTINGS + (_DURABLE if durable else _QUICK)
        if patient:
            settings += f"SET LOCAL statement_timeout = {LONG_STATEMENT_SECONDS * 1000}; "
        statement = named(text, self.address.schema)
        for is_last in (False, True):
            try:
                with self._borrowed() as link:
                    usual = link.patience
                    if patient:
                        link.patience = LONG_STATEMENT_SECONDS + PATIENCE_SECONDS
                    try:
                        return _execute(link, settings + _bind(link, statement, parameters))
                    finally:
                        link.patience = usual
            except BrokenError as exc:
                # A connection that was kept may have been dead for long. On a new one, too, the
                # answer may have been lost on its way, and asking again gets it.
                if is_last:
                    raise translate(exc.cause, self.address, doing) from None
            except psycopg.Error as exc:
                if is_last or not is_worth_another_try(exc):
                    raise translate(exc, self.address, doing) from exc
        raise AssertionError("unreachable: the last try returns or raises")

    def flush(self, doing: str) -> None:
        """Have the server's disk take what was committed before. Raises SpoolError."""
        # What is written ahead is one sequence, so the sync of its end is that of all before.
        self.run(doing, "SELECT pg_logical_emit_message(true, 'picoqmail', '')", durable=True)

    @contextmanager
    def transaction(self, doing: str, *, durable: bool = True) -> Iterator[DatabaseTransaction]:
        """Run the block as one transaction: committed at its end, rolled back if it raises.

        Raises SpoolError, ConfigurationError.
        """
        with self._translated(doing), self.transaction_on_link(durable=durable) as transaction:
            yield transaction

    @contextmanager
    def transaction_on_link(
        self, *, durable: bool = True, lazily: bool = False
    ) -> Iterator[DatabaseTransaction]:
        """Do the same; but raise psycopg.Error, or BrokenError where the connection broke.

        With `lazily` the transaction begins with its first statement, which saves a round trip. A
        connection that was dead before is then the caller's to replace: by doing all once more.
        """
        link = self._take()
        transaction = DatabaseTransaction(link, self.address.schema, durable=durable)
        if not lazily:
            try:
                self._begin(link, transaction)
            except BrokenError:
                link = self._connect()
                transaction = DatabaseTransaction(link, self.address.schema, durable=durable)
                self._begin(link, transaction)
        with self._guarded(link):
            try:
                yield transaction
                transaction.commit()
            finally:
                transaction.roll_back()

    def _begin(self, link: Link, transaction: DatabaseTransaction) -> None:
        try:
            transaction.begin()
        except psycopg.Error as exc:
            link.close()
            self.close()
            raise BrokenError(exc) from exc

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except BrokenError as exc:
            raise translate(exc.cause, self.address, doing) from None
        except psycopg.Error as exc:
            raise translate(exc, self.address, doing) from exc

    # --- Links ---------------------------------------------------------------------------------

    @contextmanager
    def _borrowed(self) -> Iterator[Link]:
        """Lend a connection for the block. Raises BrokenError if it broke meanwhile."""
        link = self._take()
        with self._guarded(link):
            yield link

    @contextmanager
    def _guarded(self, link: Link) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            if link.closed or (exc.sqlstate or "").startswith(_ENDS_SESSION):
                link.close()
                # The others that were kept have most likely died with it.
                self.close()
                raise BrokenError(exc) from exc
            raise
        finally:
            self._give_back(link)

    def _take(self) -> Link:
        if self._pid != os.getpid():
            self._leave_to_parent()
        with self._mutex:
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, link: Link) -> None:
        is_idle = (
            not link.closed
            and link.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
            and self._pid == os.getpid()
        )
        with self._mutex:
            if is_idle and len(self._idle) < _KEPT:
                self._idle.append(link)
                return
        link.close()

    def _leave_to_parent(self) -> None:
        """Give up the connections of the process that we were forked from, and not with a goodbye.

        The driver never says one in a child. Only our copy of the descriptor is closed.
        """
        for link in self._idle:
            os.close(link.pgconn.socket)
        self._idle = []
        # A thread that does not exist here may have had the old one.
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    def _connect(self) -> Link:
        link = connect(self.address)
        if self._is_checked and self._offset is not None:
            return link
        try:
            with self._translated("read the version of the schema"):
                hello = _SETTINGS + _bind(link, named(_HELLO, self.address.schema), None)
                ((now, version, oldest_program),) = _execute(link, hello)
            self.heard(now)
            refuse_version(self.address, version, oldest_program)
        except BaseException:
            link.close()
            raise
        self._is_checked = True
        return link

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        with self._mutex:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()


def _uptime() -> float:
    """Return seconds of a clock that nobody sets, and that runs while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class BrokenError(Exception):
    """The connection broke. What was sent on it may have taken effect."""

    def __init__(self, cause: psycopg.Error) -> None:
        super().__init__(str(cause))
        self.cause = cause


class DatabaseTransaction:
    """Statements that take effect together."""

    def __init__(self, link: Link, schema: str, *, durable: bool, limited: bool = True) -> None:
        """Nothing is begun. `limited`: its statements have our limits of time."""
        self._link = link
        self._schema = schema
        self._settings = (_SETTINGS if limited else "") + (_DURABLE if durable else _QUICK)
        self._queue = [f"BEGIN; {self._settings}"]
        self.is_committing = False
        """Whether COMMIT may have been sent."""
        self.is_over = False

    def begin(self) -> None:
        """Begin now, with our settings, and not with the first statement. Raises psycopg.Error."""
        self.send()

    def queue(self, text: str, parameters: Parameters | None = None) -> None:
        """Have a statement sent along with the next one; nobody asks for its rows."""
        self._queue.append(_bind(self._link, named(text, self._schema), parameters))

    def run(self, text: str, parameters: Parameters | None = None) -> list[Row]:
        """Run one statement, and those that are queued; return its rows. Raises psycopg.Error."""
        self.queue(text, parameters)
        return self.send()

    def send(self) -> list[Row]:
        """Run the statements that are queued; return the rows of the last. Raises psycopg.Error."""
        queue, self._queue = self._queue, []
        return _execute(self._link, ";\n".join(queue)) if queue else []

    def copy(self, text: str, types: Sequence[str], rows: Iterable[Row]) -> None:
        """Put rows into a table by COPY. Raises psycopg.Error."""
        self.send()
        with psycopg.Cursor(self._link) as cursor, cursor.copy(named(text, self._schema)) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def commit(self) -> None:
        """Commit. Raises psycopg.Error; if the connection broke, nobody knows what came of it."""
        if self.is_over:
            return
        self.send()
        self.is_committing = True
        _execute(self._link, "COMMIT")
        self.is_over = True

    @property
    def _is_idle(self) -> bool:
        return self._link.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def roll_back(self) -> None:
        """End the transaction without effect, unless it was committed."""
        if self.is_over:
            return
        self.is_over = True
        try:
            if not self._link.closed and not self._is_idle:
                _execute(self._link, "ROLLBACK")
        except psycopg.Error:
            # The server rolls back what loses its connection.
            self._link.close()


def connect(address: DatabaseAddress, **more: Any) -> Link:
    """Connect, without asking anything. Raises ConfigurationError, SpoolError."""
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(address.conninfo)
        return Link.connect(
            "",
            **{**_TRANSPORT, **parameters, **more},
            autocommit=True,
            prepare_threshold=None,
            cursor_factory=ClientCursor,
        )
    except psycopg.Error as exc:
        # The driver's own error may quote the URL, and with it a password.
        raise translate_refusal(exc, address) from None
    except (ValueError, UnicodeError):
        raise ConfigurationError(
            address.location, "the URL has a part that cannot be read", "correct it"
        ) from None


def _bind(link: Link, text: str, parameters: Parameters | None) -> str:
    """Return a statement with its values in it: then one message can carry several statements."""
    return ClientCursor(link).mogrify(text, parameters)


def _execute(link: Link, text: str) -> list[Row]:
    """Run statements in one round trip; return the rows of the last one."""
    with ClientCursor(link) as cursor:
        cursor.execute(text)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description is not None else []
