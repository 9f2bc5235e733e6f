"""What the library takes and gives: a message with its wishes, receipts, outcomes. Pure values."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.message.content import MessageLike

Moment: TypeAlias = datetime | timedelta | float
"""A datetime with its zone, a timedelta from now, or Unix seconds."""

AddressLike: TypeAlias = "str | Address | tuple[str, str]"
"""An address alone, an `email.headerregistry.Address`, or a pair of name and address.

Names are not part of an envelope: they are dropped.
"""

Recipients: TypeAlias = "Iterable[AddressLike] | AddressLike"
"""One recipient or any iterable of them."""

OnReuse: TypeAlias = Literal["raise", "return"]
"""What a used idempotency key means if it comes with another message; see `Spool.enqueue`."""

if TYPE_CHECKING:
    from email.headerregistry import Address


@frozen
class Mail:
    """One message and what is to become of it: what `enqueue` takes, as a value.

    See `Spool.enqueue` for each.
    """

    message: MessageLike
    sender: AddressLike | None = None
    recipients: Recipients | None = None
    idempotency_key: str | None = field(default=None, kw_only=True)
    on_reuse: OnReuse = field(default="raise", kw_only=True)
    not_before: Moment | None = field(default=None, kw_only=True)
    expires: Moment | None = field(default=None, kw_only=True)
    add_missing: bool = field(default=False, kw_only=True)


@frozen
class Receipt:
    """What was accepted: durable from the moment that you have it.

    Unless `durable` is False: then it is part of your own transaction, and durable once you commit.

    `id` names the message in the spool, for `picoqmail show ID` and `Spool.get`; "" if the mail
    went through the home's queue program, which returns no ID. `sender` and `recipients` are the
    envelope, `size` the octets as spooled, `created` and `next_attempt` Unix seconds. `repeated`
    says that its idempotency key was used before: nothing was enqueued, and the other values are
    those of the first time.
    """

    id: str
    sender: str
    recipients: tuple[str, ...]
    size: int
    created: int
    next_attempt: int
    repeated: bool = False
    durable: bool = True


Outcome: TypeAlias = Receipt | Exception
"""What became of one message among many."""


class Outcomes(list[Outcome]):
    """One result for each message, in order: its Receipt, or the exception that refused it."""

    @property
    def receipts(self) -> list[Receipt]:
        """The receipts of all messages that were accepted, in order."""
        return [one for one in self if isinstance(one, Receipt)]

    @property
    def errors(self) -> list[Exception]:
        """The errors of all others, in order; empty if all messages were accepted."""
        return [one for one in self if isinstance(one, Exception)]

    def raise_for_errors(self) -> None:
        """Raise the first error, if there is one; a note says of how many messages it is one.

        What was accepted stays accepted.
        """
        errors = self.errors
        if not errors:
            return
        note = f"message {self.index(errors[0]) + 1} of {len(self)}; {len(errors)} were refused"
        if note not in getattr(errors[0], "__notes__", ()):
            errors[0].add_note(note)
        raise errors[0]
