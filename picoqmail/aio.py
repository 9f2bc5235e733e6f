"""The library for asyncio and trio: the same calls, which never block the loop.

    receipt = await aio.enqueue(message)
    async with await aio.prepare(message) as pending:
        receipt = await pending.commit()

Each call runs in a thread, because a file system has no asynchronous interface. A caller that
cancels a call cannot know whether the message was accepted. With an idempotency key it can safely
call again.

With `connection=` the message is put into the caller's own transaction, by the caller's connection
and in the loop that this belongs to.

Under asyncio nothing else is needed; under trio, anyio is (extra `anyio`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from picoqmail.errors import ConfigurationError
from picoqmail.importing import importing
from picoqmail.library import api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any, Self

    from picoqmail.admin.change import VerbResult
    from picoqmail.admin.selection import Entry
    from picoqmail.admin.status import Status
    from picoqmail.delivery.deliver import Summary
    from picoqmail.home.paths import Home
    from picoqmail.library.api import HomeLike
    from picoqmail.library.mail import (
        AddressLike,
        Mail,
        Moment,
        OnReuse,
        Outcomes,
        Receipt,
        Recipients,
    )
    from picoqmail.library.verbs import Listener
    from picoqmail.message.content import MessageLike

__all__ = ["Pending", "Spool", "enqueue", "enqueue_many", "prepare"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Item = TypeVar("Item")


async def _in_thread(
    call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call it in a thread of whatever loop runs."""
    do = partial(call, *args, **kwargs)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Another library's loop: trio's.
        return await _to_thread()(do)  # type: ignore[no-any-return] # anyio's own type is hidden
    return await asyncio.to_thread(do)


def _to_thread() -> Any:  # noqa: ANN401 - a function of a package that need not be there
    with importing:
        try:
            from anyio import to_thread
        except ImportError:
            raise ConfigurationError(
                "picoqmail.aio",
                "this event loop is not asyncio's, and anyio is not installed",
                "pip install 'picoqmail[anyio]'",
            ) from None
    return to_thread.run_sync


async def _each(items: Iterator[Item]) -> AsyncIterator[Item]:
    """The items of an iterator, each fetched in a thread."""
    end = object()
    while True:
        item = await _in_thread(next, items, end)
        if item is end:
            return
        yield item  # type: ignore[misc] # what is not the end is an item


class Pending:
    """A message that is on disk and that nothing sends yet: `commit` it, or `abort`.

    As an asynchronous context manager it is taken back at the end of the block unless it was
    committed. See `picoqmail.Pending`.
    """

    def __init__(self, pending: api.Pending) -> None:
        self._pending = pending

    @property
    def id(self) -> str:
        """The ID that the message will have in the spool."""
        return self._pending.id

    async def commit(self) -> Receipt:
        """Make the message visible; it is durable and on its way when this returns."""
        return await _in_thread(self._pending.commit)

    async def abort(self) -> None:
        """Take the message back; nothing if it was committed. Raises nothing."""
        await _in_thread(self._pending.abort)

    def blocking(self) -> api.Pending:
        """The same for `picoqmail.Spool.commit_many` and other calls that block."""
        return self._pending

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        # At once: in a task that was cancelled, a thread could not be waited for.
        self._pending.abort()
        return False


class Spool:
    """`picoqmail.Spool` for asynchronous callers: each call is one of that, in a thread.

    Arguments, results and errors are the same. `list` and `body` are asynchronous iterators.
    """

    def __init__(  # noqa: PLR0913 - each argument is one setting
        self,
        home: HomeLike | None = None,
        *,
        me: str | None = None,
        databytes: int | None = None,
        minfree: int | None = None,
        queuelifetime: int | None = None,
        idempotencylifetime: int | None = None,
        send: bool | None = None,
    ) -> None:
        """Raises MessageError where a number is below 0 or no number."""
        self._spool = api.Spool(
            home,
            me=me,
            databytes=databytes,
            minfree=minfree,
            queuelifetime=queuelifetime,
            idempotencylifetime=idempotencylifetime,
            send=send,
        )

    def __repr__(self) -> str:
        """Show the home."""
        return f"aio.{self._spool!r}"

    @property
    def home(self) -> Home:
        """The home of the spool."""
        return self._spool.home

    async def enqueue(  # noqa: PLR0913 - as api.Spool.enqueue
        self,
        message: MessageLike,
        sender: AddressLike | None = None,
        recipients: Recipients | None = None,
        *,
        idempotency_key: str | None = None,
        on_reuse: OnReuse = "raise",
        not_before: Moment | None = None,
        expires: Moment | None = None,
        add_missing: bool = False,
        connection: object = None,
    ) -> Receipt:
        """Put one message into the spool; see `picoqmail.Spool.enqueue`.

        The thread reads the stream, so it must be a blocking one. `connection` puts the message
        into the tables in your own transaction: a psycopg AsyncConnection, or an AsyncConnection
        or AsyncSession of SQLAlchemy with that driver. It is durable, and on its way, when you
        commit.
        """
        if connection is not None:
            mail = api.Mail(
                message,
                sender,
                recipients,
                idempotency_key=idempotency_key,
                on_reuse=on_reuse,
                not_before=not_before,
                expires=expires,
                add_missing=add_missing,
            )
            insertion = await _in_thread(self._spool._insertion, mail)  # noqa: SLF001 - its other face
            with importing:
                from picoqmail.library.transaction import enqueue_within_async
            return await enqueue_within_async(connection, insertion)
        return await _in_thread(
            self._spool.enqueue,
            message,
            sender,
            recipients,
            idempotency_key=idempotency_key,
            on_reuse=on_reuse,
            not_before=not_before,
            expires=expires,
            add_missing=add_missing,
        )

    async def enqueue_many(self, mails: Iterable[Mail | MessageLike]) -> Outcomes:
        """Put many messages into the spool; the thread consumes the iterable."""
        return await _in_thread(self._spool.enqueue_many, mails)

    async def prepare(  # noqa: PLR0913 - as api.Spool.prepare
        self,
        message: MessageLike,
        sender: AddressLike | None = None,
        recipients: Recipients | None = None,
        *,
        idempotency_key: str | None = None,
        on_reuse: OnReuse = "raise",
        not_before: Moment | None = None,
        expires: Moment | None = None,
        add_missing: bool = False,
    ) -> Pending:
        """Put one message on disk, where nothing sends it before its `commit`."""
        return Pending(
            await _in_thread(
                self._spool.prepare,
                message,
                sender,
                recipients,
                idempotency_key=idempotency_key,
                on_reuse=on_reuse,
                not_before=not_before,
                expires=expires,
                add_missing=add_missing,
            )
        )

    async def commit_many(self, pendings: Iterable[Pending]) -> Outcomes:
        """Commit prepared messages, in groups that share an fsync."""
        return await _in_thread(self._spool.commit_many, [one.blocking() for one in pendings])

    # --- Verbs ---------------------------------------------------------------------------------

    def list(  # noqa: PLR0913 - as Verbs.list
        self,
        *states: str,
        sender: str = "",
        recipient: str = "",
        error: str = "",
        older_than: int | None = None,
        younger_than: int | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[Entry]:
        """The messages that meet all conditions, oldest first, each read when it is asked for."""
        return _each(
            self._spool.list(
                *states,
                sender=sender,
                recipient=recipient,
                error=error,
                older_than=older_than,
                younger_than=younger_than,
                newest_first=newest_first,
            )
        )

    async def get(self, message_id: str) -> Entry:
        """One message as it is at this moment. Raises NoSuchMessageError."""
        return await _in_thread(self._spool.get, message_id)

    async def explain(self, message_id: str) -> str:
        """Where a message is, why, and what will become of it. Raises NoSuchMessageError."""
        return await _in_thread(self._spool.explain, message_id)

    async def body(self, message_id: str) -> AsyncIterator[bytes]:
        """The octets of a message as spooled, in blocks. Raises NoSuchMessageError."""
        async for block in _each(await _in_thread(self._spool.body, message_id)):
            yield block

    async def result(self, message_id: str) -> str:
        """What relays said of a message so far. Raises NoSuchMessageError."""
        return await _in_thread(self._spool.result, message_id)

    async def status(self) -> Status:
        """Counts, ages, outages and active programs."""
        return await _in_thread(self._spool.status)

    async def retry(self, message_id: str) -> VerbResult:
        """Make a deferred message due now. Raises NoSuchMessageError, as do the following."""
        return await _in_thread(self._spool.retry, message_id)

    async def hold(self, message_id: str) -> VerbResult:
        """Keep a message from being sent until it is released."""
        return await _in_thread(self._spool.hold, message_id)

    async def release(self, message_id: str) -> VerbResult:
        """Let a held message go."""
        return await _in_thread(self._spool.release, message_id)

    async def requeue(self, message_id: str) -> VerbResult:
        """Give a message that failed for good a new life, for the recipients that failed."""
        return await _in_thread(self._spool.requeue, message_id)

    async def delete(self, message_id: str) -> VerbResult:
        """Remove a message, whatever its state; no report is sent."""
        return await _in_thread(self._spool.delete, message_id)

    async def deliver(
        self,
        ids: Iterable[str] | None = None,
        *,
        forced: bool = False,
        on_event: Listener | None = None,
    ) -> Summary:
        """Deliver now, in a thread that waits for the relay; `on_event` is called there."""
        return await _in_thread(self._spool.deliver, ids, forced=forced, on_event=on_event)


async def enqueue(  # noqa: PLR0913 - as api.enqueue
    message: MessageLike,
    sender: AddressLike | None = None,
    recipients: Recipients | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    on_reuse: OnReuse = "raise",
    not_before: Moment | None = None,
    expires: Moment | None = None,
    add_missing: bool = False,
    connection: object = None,
) -> Receipt:
    """Put one message into the spool; see `picoqmail.enqueue` for arguments and errors.

    The thread reads the stream, so it must be a blocking one, not one of asyncio's. `connection` is
    one of asyncio: see `Spool.enqueue`.
    """
    return await Spool(home, send=send).enqueue(
        message,
        sender,
        recipients,
        idempotency_key=idempotency_key,
        on_reuse=on_reuse,
        not_before=not_before,
        expires=expires,
        add_missing=add_missing,
        connection=connection,
    )


async def enqueue_many(
    mails: Iterable[Mail | MessageLike],
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
) -> Outcomes:
    """Put many messages into the spool; see `picoqmail.enqueue_many`.

    The thread consumes the iterable.
    """
    return await _in_thread(api.enqueue_many, mails, home=home, send=send)


async def prepare(  # noqa: PLR0913 - as api.prepare
    message: MessageLike,
    sender: AddressLike | None = None,
    recipients: Recipients | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    on_reuse: OnReuse = "raise",
    not_before: Moment | None = None,
    expires: Moment | None = None,
    add_missing: bool = False,
) -> Pending:
    """Put one message on disk, to be committed or taken back; see `picoqmail.prepare`."""
    return await Spool(home, send=send).prepare(
        message,
        sender,
        recipients,
        idempotency_key=idempotency_key,
        on_reuse=on_reuse,
        not_before=not_before,
        expires=expires,
        add_missing=add_missing,
    )
