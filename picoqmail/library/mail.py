"""What the library takes and gives: a message with its wishes, and a receipt. Pure values."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from picoqmail.message.content import MessageLike

Moment: TypeAlias = "datetime | timedelta | float"
"""A datetime with its zone, a timedelta from now, or Unix seconds."""


@frozen
class Mail:
    """One message and what is to become of it: what `enqueue` takes, as a value.

    See `Spool.enqueue` for each.
    """

    message: MessageLike
    sender: str | None = None
    recipients: Sequence[str] | str | None = None
    idempotency_key: str | None = field(default=None, kw_only=True)
    not_before: Moment | None = field(default=None, kw_only=True)
    expires: Moment | None = field(default=None, kw_only=True)


@frozen
class Receipt:
    """What was accepted: durable from the moment that you have it.

    `id` names the message in the spool, for `picoqmail show ID` and `Spool.get`; None if the mail
    went through the home's queue program, which tells no name. `sender` and `recipients` are the
    envelope, `size` the octets as spooled, `created` and `next_attempt` Unix seconds. `repeated`
    says that its idempotency key was used before: nothing was enqueued, and the other values are
    those of the first time.
    """

    id: str | None
    sender: str
    recipients: tuple[str, ...]
    size: int
    created: int
    next_attempt: int
    repeated: bool = False


Outcome: TypeAlias = "Receipt | Exception"
"""What became of one message among many."""
