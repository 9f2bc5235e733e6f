"""The library for asyncio: the same calls, which never block the loop.

Each runs in a thread, for a disk has no other way of not being waited for. Whoever cancels the
waiting does not know what became of the message; with an idempotency key he can ask again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from picoqmail.library import api

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from picoqmail.library.api import HomeLike
    from picoqmail.library.mail import Mail, Moment, Outcome, Receipt
    from picoqmail.message.content import MessageLike

__all__ = ["enqueue", "enqueue_many"]


async def enqueue(  # noqa: PLR0913 - as api.enqueue
    message: MessageLike,
    sender: str | None = None,
    recipients: Sequence[str] | str | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    not_before: Moment | None = None,
    expires: Moment | None = None,
) -> Receipt:
    """Put one message into the spool; see `picoqmail.Spool.enqueue` for arguments and errors.

    A stream is read in the thread, so it must be one that blocks, not one of asyncio's.
    """
    return await asyncio.to_thread(
        partial(
            api.enqueue,
            message,
            sender,
            recipients,
            home=home,
            send=send,
            idempotency_key=idempotency_key,
            not_before=not_before,
            expires=expires,
        )
    )


async def enqueue_many(
    mails: Iterable[Mail | MessageLike],
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
) -> list[Outcome]:
    """Put many messages into the spool; see `picoqmail.Spool.enqueue_many`.

    The iterable is gone through in the thread.
    """
    return await asyncio.to_thread(partial(api.enqueue_many, mails, home=home, send=send))
