"""A message's story in sentences: what happened, what the relay said, what comes next.

For a reader who does not know picoqmail and wants to know where a mail is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from picoqmail.admin.remedies import needs_somebody
from picoqmail.admin.selection import entry_of
from picoqmail.admin.words import count, moment
from picoqmail.delivery.report_state import DOUBT_TOLD, TELLING, TOLD, WARNED
from picoqmail.errors import DamagedMessageError
from picoqmail.home.values import spelled_duration
from picoqmail.layout import CUR, NEW
from picoqmail.spool.message import DELIVERED, FAILED, PENDING
from picoqmail.spool.recipient import UNTIL_RETRY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from picoqmail.admin.selection import Entry
    from picoqmail.ledger.routes import Outage
    from picoqmail.spool.message import Message
    from picoqmail.store.protocol import Store

_DO_NOTHING = "Nobody needs to do anything."


def explain_message(store: Store, message_id: str, now: float) -> tuple[Entry, str]:
    """Return a message and its whole story; `now` is Unix seconds. Raises NoSuchMessageError."""
    entry = entry_of(store, message_id)
    damage = entry.damage
    if entry.message is not None:
        try:
            store.check_body(entry.message)
        except DamagedMessageError as exc:
            damage = str(exc)
    return entry, explain(entry, now, store.routes().read(), damage=damage)


def explain(entry: Entry, now: float, outages: Mapping[str, Outage], *, damage: str = "") -> str:
    """Return the whole story, in paragraphs. `damage` is what is wrong with it, if known."""
    message = entry.message
    if message is None:
        return (
            f"Message {entry.id} cannot be read: {entry.damage}.\n\n"
            f"It is in {entry.state}/ and is never sent as it is. Its body may still be whole. To "
            f"see it: picoqmail show {entry.id}. To delete it: picoqmail delete {entry.id}."
        )
    parts = [_arrival(message), *_events(message), *_recipients(message)]
    if is_in_doubt(message):
        parts.append(
            "At least once, a connection or a sender died after the whole message was sent and "
            "before the relay replied. The relay may have it, so recipients may get it twice."
        )
    parts += _telling(message)
    parts.append(_future(entry, message, now, outages, damage))
    return "\n\n".join(parts)


def is_in_doubt(message: Message) -> bool:
    """Say whether an attempt ended without the relay's reply to the whole message."""
    return any(event.get("outcome") == "in_doubt" for event in message.history)


def _arrival(message: Message) -> str:
    origin = message.origin
    program = str(origin.get("program") or "a program")
    who = f" for user {origin['uid']}" if "uid" in origin else ""
    sender = f"<{message.sender}>" if message.sender else "<>, the sender of reports,"
    return (
        f"Message {message.id} was accepted on {moment(message.created)} by {program}{who}: "
        f"{message.size} bytes from {sender} to {count(len(message.recipients), 'recipient')}."
    )


_WHAT = {
    "delivered": "the relay{relay} took it",
    "deferred": "the relay{relay} did not take it yet",
    "failed": "the relay{relay} refused it for good",
    "in_doubt": "it was sent to the relay{relay} as a whole, and no reply came",
    "relay_fault": "the connection to the relay{relay} broke during the transaction",
    "expired": "it was too old and was given up",
    "held": "it was held",
    "released": "it was released",
    "resumed": "it was to be sent once more",
    "requeued": "it was put back into the queue",
    "damaged": "it was found damaged and put aside",
}


def _events(message: Message) -> Iterator[str]:
    if not message.history:
        yield (
            "No attempt was made yet."
            if message.attempts == 0
            else (f"Attempts so far: {message.attempts}. Nothing more is known of them.")
        )
        return
    known = [event for event in message.history if isinstance(event, dict)]
    first = message.attempts - sum(event.get("outcome") in _ATTEMPTS for event in known)
    lines = [f"What happened ({count(message.attempts, 'attempt')}):"]
    if first > 0:
        lines.append(f"  - {count(first, 'earlier attempt')}, no longer recorded")
    lines += [f"  - {_event(event)}" for event in known]
    yield "\n".join(lines)


_ATTEMPTS = ("delivered", "deferred", "failed", "in_doubt")


def _event(event: Mapping[str, Any]) -> str:
    outcome = str(event.get("outcome"))
    relay = f" {event['relay']}" if event.get("relay") else ""
    what = _WHAT.get(outcome, outcome).replace("{relay}", relay)
    said = str(event.get("reply") or "")
    when = event.get("when")
    stamp = moment(when) if isinstance(when, int | float) else "at an unknown time"
    return f"{stamp}: {what}{f': {said}' if said else ''}"


def _recipients(message: Message) -> Iterator[str]:
    states = {one.state for one in message.recipients}
    if states == {PENDING} and not any(one.reply for one in message.recipients):
        return
    lines = ["Its recipients:"]
    for one in message.recipients:
        what = {
            PENDING: "still waits for it",
            DELIVERED: "has it: a relay took it",
            FAILED: "will not get it",
        }[one.state]
        said = f" ({one.reply})" if one.reply else ""
        lines.append(f"  - <{one.address}> {what}{said}")
    yield "\n".join(lines)


def _telling(message: Message) -> Iterator[str]:
    reports = sorted({str(one.unknown[TOLD]) for one in message.recipients if TOLD in one.unknown})
    if reports:
        yield f"The failure was reported to the sender: {', '.join(reports)}."
    elif TELLING in message.unknown:
        yield f"The failure is being reported to the sender: {message.unknown[TELLING]}."
    doubts = {str(r.unknown[DOUBT_TOLD]) for r in message.recipients if DOUBT_TOLD in r.unknown}
    if doubts:
        text = "That it may have arrived, or not, was reported to the sender"
        yield f"{text}: {', '.join(sorted(doubts))}."
    if WARNED in message.unknown:
        yield f"The delay was reported to the sender: {message.unknown[WARNED]}."


def _future(
    entry: Entry, message: Message, now: float, outages: Mapping[str, Outage], damage: str
) -> str:
    if damage:
        return (
            f"It is damaged: {damage}. It is never sent like that. To send it, put a good copy of "
            f"{entry.id}.eml from a backup in its place, then: picoqmail requeue {entry.id}."
        )
    if entry.state not in (NEW, CUR):
        return _final(entry, message)
    if message.held:
        return f"It is held, and is not sent. To send it: picoqmail release {entry.id}."
    doubtful = _in_doubt(entry, message)
    if doubtful and len(message.suspended) == len(message.pending):
        return doubtful
    if not message.pending:
        return f"Its result is recorded by the next run of cron at the latest. {_DO_NOTHING}"
    if entry.state == NEW:
        what = "Its first attempt is due: a sender makes it, or the next run of cron."
    elif message.next_attempt <= now:
        what = "Its next attempt is due now: the next run of cron makes it."
    else:
        left = spelled_duration(message.next_attempt - now)
        what = f"The next attempt comes in {left}, on {moment(message.next_attempt)}."
    todo = needs_somebody(outages) or _DO_NOTHING
    expiry = _expiry(entry, message, now)
    paragraphs = [" ".join([what, *_relays(outages, now), expiry, todo]), doubtful]
    return "\n\n".join([one for one in paragraphs if one])


def _in_doubt(entry: Entry, message: Message) -> str:
    """Return what becomes of recipients that may have several copies, "" if there are none."""
    indexes = message.suspended
    if not indexes:
        return ""
    copies = max([message.recipients[index].doubts for index in indexes])
    ends = {message.recipients[index].suspended_until for index in indexes}
    if ends == {UNTIL_RETRY}:
        until = f"before {moment(message.expires)}, when it is given up and reported as in doubt"
    else:
        until = f"before {moment(min(ends))}"
    return (
        f"It may have arrived {copies} times for {count(len(indexes), 'recipient')}: the relay got "
        "the whole message, and no reply came. So that it does not arrive again and again, it is "
        f"not sent to them by itself {until}. Ask whether it arrived. To send it once more: "
        f"picoqmail retry {entry.id}. If it has arrived: picoqmail delete {entry.id}."
    )


def _final(entry: Entry, message: Message) -> str:
    failed = sum(one.state == FAILED for one in message.recipients)
    if not failed:
        return (
            f"It was put aside although no relay refused it; see why: picoqmail show {entry.id}. "
            f"To send it after a repair: picoqmail requeue {entry.id}. To delete it: "
            f"picoqmail delete {entry.id}."
        )
    return (
        f"It has failed for good for {count(failed, 'recipient')}, and is not tried again. To "
        f"try it once more: picoqmail requeue {entry.id}. To delete it: "
        f"picoqmail delete {entry.id}."
    )


def _relays(outages: Mapping[str, Outage], now: float) -> Iterator[str]:
    for name, one in outages.items():
        wait = one.until - now
        until = f" in {spelled_duration(wait)}" if wait > 0 else " in the next run"
        yield (
            f"But the relay {name} cannot be used at the moment ({one.stage}: {one.reason}). This "
            f"does not count as an attempt. The relay is tried again{until}."
        )


def _expiry(entry: Entry, message: Message, now: float) -> str:
    if message.expires <= now:
        return "It has reached its age limit: if that attempt fails, it is given up."
    left = spelled_duration(message.expires - now)
    return (
        f"It is given up if no relay has taken it in {left}, on {moment(message.expires)}. "
        f"To send it now: picoqmail retry {entry.id}."
    )
