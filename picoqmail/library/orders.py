"""From a Mail to an Order: everything about it that can be checked before a file exists.

What may live here: the checks of envelope and times, and the choice of what the header must say.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.errors import EnvelopeError, MessageError
from picoqmail.message import envelope
from picoqmail.message.addresses import read_one
from picoqmail.message.content import Content, is_email_object, open_content
from picoqmail.message.header_envelope import HeaderEnvelope
from picoqmail.spool.keys import name_of
from picoqmail.spool.sidecar import NOT_BEFORE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from picoqmail.library.mail import Mail

_LATEST_SECONDS = 1 << 40


@frozen(eq=False)
class Order:
    """A Mail whose envelope and times were checked; its content is open, and to be closed.

    `extra` are keys of the sidecar.
    """

    sender: str
    recipients: list[str]
    content: Content
    key: str | None
    extra: dict[str, Any]

    @property
    def needs_the_spool(self) -> bool:
        """Whether it asks for what the qmail-queue interface cannot carry."""
        return bool(self.extra) or self.key is not None


def check(mail: Mail, now: float, lifetime_seconds: int) -> Order:
    """Check a Mail at `now` (Unix seconds); `lifetime_seconds` is how long it is tried.

    Raises EnvelopeError, MessageError, InputError; no file was made then.
    """
    extra = _times(mail, now, lifetime_seconds)
    if mail.idempotency_key is not None:
        name_of(mail.idempotency_key)
    sender = _checked_sender(mail.sender)
    recipients = _checked_recipients(mail.recipients)
    message = mail.message
    header = HeaderEnvelope.of_object(message) if is_email_object(message) else None
    content = None
    with ExitStack() as opened:
        if header is None:
            content = open_content(message)
            opened.callback(content.close)
            if sender is None or recipients is None:
                header = HeaderEnvelope.of_fields(content.fields())
            if recipients is None:
                content.drop_bcc()
        if header is not None and sender is None:
            sender = envelope.check_sender(header.sender())
        if header is not None and recipients is None:
            recipients = envelope.check_recipients(header.recipients())
        if content is None:
            international = not all(one.isascii() for one in (sender or "", *(recipients or ())))
            content = open_content(message, utf8=international)
        opened.pop_all()
    return Order(sender or "", recipients or [], content, mail.idempotency_key, extra)


def _times(mail: Mail, now: float, lifetime_seconds: int) -> dict[str, Any]:
    """Return the keys of the sidecar that follow from the times of a Mail."""
    extra: dict[str, Any] = {}
    start = now
    if mail.not_before is not None:
        start = _moment("not_before", mail.not_before, now)
        if start > now:
            # Rounded up, so that it is never tried before.
            extra["next_attempt"] = extra[NOT_BEFORE] = int(-(-start // 1))
            extra["expires"] = extra["next_attempt"] + lifetime_seconds
    if mail.expires is not None:
        end = _moment("expires", mail.expires, now)
        if end <= max(start, now):
            raise MessageError(
                "expires is not after "
                + ("not_before" if start > now else "now")
                + ": the message would never be tried"
            )
        extra["expires"] = int(end)
    return extra


def _checked_sender(given: str | None) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise EnvelopeError(f"the sender {given!a:.100} is not text but {type(given).__name__}")
    return envelope.check_sender(read_one(given))


def _checked_recipients(given: Sequence[str] | str | None) -> list[str] | None:
    if given is None:
        return None
    several = [given] if isinstance(given, str) else list(given)
    if not several:
        raise EnvelopeError("there is no recipient: the list is empty")
    for index, one in enumerate(several):
        if not isinstance(one, str):
            raise EnvelopeError(
                f"recipient {index + 1}, {one!a:.100}, is not text but {type(one).__name__}"
            )
    return envelope.check_recipients([read_one(one, index) for index, one in enumerate(several)])


def _moment(name: str, given: object, now: float) -> float:
    """Return a moment in Unix seconds. Raises MessageError."""
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise MessageError(
                f"{name} is {given!r}, which has no time zone; give it one, such as datetime.UTC"
            )
        return given.timestamp()
    if isinstance(given, timedelta):
        return now + given.total_seconds()
    if (
        isinstance(given, (int, float))
        and not isinstance(given, bool)
        and 0 <= given < _LATEST_SECONDS
    ):
        return float(given)
    raise MessageError(
        f"{name} is {given!r}; give a datetime with its time zone, a timedelta, or Unix seconds"
    )
