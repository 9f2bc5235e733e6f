"""The library for asyncio: the same calls, which never block the loop.

Each call runs in a thread, because a file system has no asynchronous interface. A caller that
cancels a call cannot know whether the message was accepted. With an idempotency key it can safely
call again.
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

    The thread reads the stream, so it must be a blocking one, not one of asyncio's.
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

    The thread consumes the iterable.
    """
    return await asyncio.to_thread(partial(api.enqueue_many, mails, home=home, send=send))
