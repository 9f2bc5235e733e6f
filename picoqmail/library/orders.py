"""From a Mail to an Order: everything about it that can be checked before a file exists.

What may live here: the checks of envelope and times, and the choice of what the header must say.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.errors import EnvelopeError, MessageError
from picoqmail.library.undoing import OnError
from picoqmail.message import envelope
from picoqmail.message.addresses import read_one
from picoqmail.message.content import Content, is_email_object, open_content
from picoqmail.message.header_envelope import HeaderEnvelope
from picoqmail.spool.keys import name_of
from picoqmail.spool.sidecar import NOT_BEFORE

if TYPE_CHECKING:
    from typing import Any

    from picoqmail.library.mail import AddressLike, Mail, Recipients

_LATEST_SECONDS = 1 << 40


@frozen(eq=False)
class Order:
    """A Mail whose envelope and times were checked; its content is open, and to be closed.

    `extra` are keys of the sidecar. `key_decides`: a used key is a repetition, whatever comes with
    it.
    """

    sender: str
    recipients: list[str]
    content: Content
    key: str | None
    extra: dict[str, Any]
    key_decides: bool = False

    @property
    def needs_the_spool(self) -> bool:
        """Whether it asks for what the qmail-queue interface cannot carry."""
        return bool(self.extra) or self.key is not None


def check(mail: Mail, now: float, lifetime_seconds: int, host: str) -> Order:
    """Check a Mail at `now` (Unix seconds); `lifetime_seconds` is how long it is tried.

    `host` is for a Message-ID that is missing.

    Raises EnvelopeError, MessageError, InputError; no file was made then.
    """
    extra = _times(mail, now, lifetime_seconds)
    if mail.idempotency_key is not None:
        name_of(mail.idempotency_key)
    if mail.on_reuse not in ("raise", "return"):
        raise MessageError(f'on_reuse is {mail.on_reuse!a:.60}; it may be "raise" or "return"')
    sender = _checked_sender(mail.sender)
    recipients = _checked_recipients(mail.recipients)
    message = mail.message
    header = HeaderEnvelope.of_object(message) if is_email_object(message) else None
    content = open_content(message) if header is None else None
    with OnError(content.close if content is not None else bool):
        if content is not None and (sender is None or recipients is None):
            header = HeaderEnvelope.of_fields(content.fields())
        if content is not None and recipients is None:
            content.drop_bcc()
        if header is not None and sender is None:
            sender = envelope.check_sender(header.sender())
        if header is not None and recipients is None:
            recipients = envelope.check_recipients(header.recipients())
        if content is None:
            international = not all(one.isascii() for one in (sender or "", *(recipients or ())))
            content = open_content(message, utf8=international)
        if mail.add_missing:
            content.add_missing(now, host)
    return Order(
        sender or "",
        recipients or [],
        content,
        mail.idempotency_key,
        extra,
        key_decides=mail.on_reuse == "return",
    )


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


def _checked_sender(given: AddressLike | None) -> str | None:
    if given is None:
        return None
    return envelope.check_sender(read_one(_text_of(given, "the sender")))


def _checked_recipients(given: Recipients | None) -> list[str] | None:
    if given is None:
        return None
    several: Any = [given] if isinstance(given, str) or hasattr(given, "addr_spec") else given
    if isinstance(several, (bytes, bytearray)) or not hasattr(several, "__iter__"):
        raise EnvelopeError(
            f"recipients is {given!a:.100}; give text, an Address, or an iterable of such"
        )
    texts = [_text_of(one, f"recipient {n}") for n, one in enumerate(several, 1)]
    if not texts:
        raise EnvelopeError("there is no recipient: the list is empty")
    return envelope.check_recipients([read_one(one, n) for n, one in enumerate(texts)])


def _text_of(given: object, what: str) -> str:
    """Return the address of a text, an Address of the email package, or a (name, address)."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
        given = given[1]
    given = getattr(given, "addr_spec", given)
    if not isinstance(given, str):
        raise EnvelopeError(f"{what}, {given!a:.100}, is not text but {type(given).__name__}")
    return given


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
