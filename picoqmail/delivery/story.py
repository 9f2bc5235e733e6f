"""What is written down about a message: events in the log, and the dialogue in ID.result.

The rule of this module: it writes and decides nothing.
"""

from __future__ import annotations

import time

from picoqmail.spool.files import RESULT_LIMIT_OCTETS
from picoqmail.spool.message import FEW_RECIPIENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from picoqmail.delivery.policy import Judgement
    from picoqmail.log.logger import Log
    from picoqmail.spool.message import Message
    from picoqmail.spool.recipient import Recipient

RECIPIENTS_LOGGED = 1000
"""Recipients in one event. A message with more is logged as several."""


def log_queued(log: Log, message: Message, now: float) -> None:
    """Log a message when first something becomes of it, because the queue program logs nothing."""
    if message.attempts or message.history:
        return
    log.event(
        "queued",
        id=message.id,
        sender=message.sender,
        recipients=len(message.recipients),
        size=message.size,
        uid=message.origin.get("uid"),
        origin=message.origin.get("program"),
        waited_seconds=int(now - message.created),
    )


def log_attempt(
    log: Log, message: Message, relay: str, sender: str, recipients: Iterable[str]
) -> None:
    """Log that a relay is offered a message for some recipients."""
    log.event(
        "attempt",
        level="debug",
        id=message.id,
        relay=relay,
        sender=sender,
        recipients=list(recipients),
    )


def log_postponed(log: Log, message: Message, relay: str, reason: str) -> None:
    """Log that a message waits because its relay failed in the middle of it."""
    log.event(
        "deferred",
        level="warning",
        id=message.id,
        relay=relay,
        reason=reason,
        next_attempt=message.next_attempt,
    )


def log_judgement(log: Log, judgement: Judgement, relay: str, *, in_doubt: bool = False) -> None:
    """Log what became of a message and of each of its recipients; `in_doubt` in this very run."""
    message = judgement.message
    if judgement.delivered_now and log.is_on("info"):
        doubts = in_doubt or "in_doubt" in [entry.get("outcome") for entry in message.history]
        more: dict[str, Any] = {"maybe_duplicate": True} if doubts else {}
        reply = message.recipients[judgement.delivered_now[0]].reply
        for start in range(0, len(judgement.delivered_now), RECIPIENTS_LOGGED):
            some = judgement.delivered_now[start : start + RECIPIENTS_LOGGED]
            log.event(
                "delivered",
                id=message.id,
                relay=relay,
                sender=message.sender,
                recipients=[message.recipients[i].address for i in some],
                reply=reply,
                **more,
            )
    for index in judgement.failed_now:
        one = message.recipients[index]
        log.event(
            "failed",
            level="error",
            id=message.id,
            relay=relay,
            sender=message.sender,
            recipient=one.address,
            reply=one.reply,
            **({"expired": True} if judgement.expired else {}),
        )
    if judgement.step != "defer":
        return
    pending = message.pending
    if len(message.suspended) == len(pending):
        return
    for start in range(0, len(pending), RECIPIENTS_LOGGED):
        log.event(
            "deferred",
            level="warning",
            id=message.id,
            relay=relay,
            sender=message.sender,
            recipients=[
                message.recipients[i].address for i in pending[start : start + RECIPIENTS_LOGGED]
            ],
            reply=message.history[-1].get("reply", "") if message.history else "",
            attempts=message.attempts,
            next_attempt=message.next_attempt,
        )


def log_suspended(log: Log, before: Message, after: Message, relay: str) -> None:
    """Log for whom a message is not sent again by itself, because copies may be out."""
    suspended = after.suspended
    if not suspended:
        return
    indexes = [i for i in suspended if not before.recipients[i].suspended_until]
    for start in range(0, len(indexes), RECIPIENTS_LOGGED):
        some = indexes[start : start + RECIPIENTS_LOGGED]
        log.event(
            "suspended",
            level="error",
            id=after.id,
            relay=relay,
            sender=after.sender,
            recipients=[after.recipients[i].address for i in some],
            copies=max([after.recipients[i].doubts for i in some]),
            next_attempt=after.next_attempt,
        )


def result_text(message: Message, relay: str, transcript: Iterable[str], now: int) -> str:
    """Return one attempt's part of ID.result: when, with whom, the dialogue, what came of it."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    lines = [f"--- {when}, attempt {message.attempts}, relay {relay or 'none reached'}"]
    lines += transcript
    if message.history:
        last = message.history[-1]
        lines.append(f"=== {last.get('outcome')}: {last.get('reply')}")
    recipients: Sequence[Recipient] = message.recipients
    if len(recipients) > FEW_RECIPIENTS:
        # No fewer than fit into what is kept of a result.
        recipients = recipients[-RESULT_LIMIT_OCTETS // len("    a: failed: ") :]
    lines += [f"    {one.address}: {one.state}: {one.reply}" for one in recipients]
    return "\n".join(lines) + "\n\n"
