"""What becomes of a message: the schedule of attempts and the judgement of an attempt. Pure."""

from __future__ import annotations

from math import isqrt

from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Event, Message, Recipient
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from picoqmail.smtp.transaction import RecipientResult

QUADRATIC_STEP_SECONDS = 20
"""qmail-send's constant for remote mail: attempts at 0, 400, 1600, 3600 ... seconds of age."""

_FAULT_DELAY_SECONDS = 60
_FAULT_DELAY_LIMIT_SECONDS = 3600
_TEXT_LIMIT = 500


class Judgement(Value):
    """A message after an attempt: what its sidecar will say, and the events to tell.

    `step` is `remove`, `defer` or `fail`; `failed_now` are the indexes that failed this time.
    """

    __slots__ = ("step", "message", "failed_now", "delivered_now", "expired")

    def __init__(
        self,
        step: str,
        message: Message,
        failed_now: tuple[int, ...] = (),
        delivered_now: tuple[int, ...] = (),
        *,
        expired: bool = False,
    ) -> None:
        self.step: Final = step
        self.message: Final = message
        self.failed_now: Final = failed_now
        self.delivered_now: Final = delivered_now
        self.expired: Final = expired


def next_attempt(begun: int, now: int, attempts: int, schedule: tuple[int, ...] | None) -> int:
    """When to try again after `attempts` attempts; Unix seconds.

    Without a schedule qmail's quadratic one (qmail-send: nextretry): the age at the n-th attempt
    is (20 n)^2 seconds, counted on from whatever age it was really made at; `begun` is when that
    age began. With one, its `attempts`-th delay, the last repeating.
    """
    if schedule:
        return now + schedule[min(max(attempts, 1), len(schedule)) - 1]
    age = max(now - begun, 0)
    # A clock that was set back must not bring the next attempt before now.
    return max(begun, now - age) + (isqrt(age) + QUADRATIC_STEP_SECONDS) ** 2


def is_due(message: Message, now: float) -> bool:
    """Say whether a message may be tried: not held, and its time has come.

    A last attempt that lies in the future shows that the clock was set back since: then the time
    of the next one is worth nothing, and the message is due.
    """
    if message.held:
        return False
    if message.next_attempt <= now:
        return True
    last = message.history[-1].get("when", 0) if message.history else 0
    return isinstance(last, (int, float)) and last > now + QUADRATIC_STEP_SECONDS


def judge(  # noqa: PLR0913 - what is known at the end of an attempt
    message: Message,
    results: Mapping[int, RecipientResult],
    *,
    now: int,
    relay: str,
    in_doubt: bool = False,
    schedule: tuple[int, ...] | None = None,
) -> Judgement:
    """Judge a message that a relay answered for: `results` by index of the recipient.

    Recipients without a final answer stay pending; what is pending when the message has expired
    fails. An end of data without an answer (`in_doubt`) is an attempt, so that a relay which
    always dies there gets the message at the schedule's pace and not in every run.
    """
    recipients = list(message.recipients)
    delivered, failed, texts = [], [], []
    for index, result in results.items():
        if result.outcome == "untried":
            continue
        state = {"delivered": DELIVERED, "failed": FAILED}.get(result.outcome, PENDING)
        text = result.text[:_TEXT_LIMIT]
        before = recipients[index]
        recipients[index] = Recipient(before.address, state, text, before.unknown)
        if state == DELIVERED:
            delivered.append(index)
        elif state == FAILED:
            failed.append(index)
        if state != DELIVERED and text not in texts:
            texts.append(text)
    states = {one.state for one in recipients}
    if PENDING not in states:
        outcome = "failed" if failed or not delivered else "delivered"
    elif in_doubt:
        outcome = "in_doubt"
        texts.append("the connection ended before the relay answered: it may have the message")
    else:
        outcome = "deferred"
    told = message.with_event(
        Event(now, relay, outcome, _join(texts)),
        recipients=tuple(recipients),
        attempts=message.attempts + 1,
        revision=message.revision + 1,
    )
    if PENDING not in states:
        if FAILED not in states:
            return Judgement("remove", told, (), tuple(delivered))
        return Judgement("fail", told, tuple(failed), tuple(delivered))
    if now >= message.expires:
        return expire(told, now=now, also_failed=tuple(failed), delivered=tuple(delivered))
    due = next_attempt(message.begins, now, told.attempts, schedule)
    return Judgement("defer", evolve(told, next_attempt=due), tuple(failed), tuple(delivered))


def expire(
    message: Message,
    *,
    now: int,
    because: str = "",
    also_failed: tuple[int, ...] = (),
    delivered: tuple[int, ...] = (),
) -> Judgement:
    """Fail what is pending of a message that has grown too old."""
    days = max(now - message.created, 0) / 86400
    pending = message.pending
    recipients = list(message.recipients)
    for index in pending:
        last = recipients[index].reply or because
        text = f"expired after {days:.1f} days in the queue" + (f"; last: {last}" if last else "")
        recipients[index] = evolve(recipients[index], state=FAILED, reply=text)
    told = evolve(message, recipients=tuple(recipients), revision=message.revision + 1).with_event(
        Event(now, "", "expired", because or "too old: the queue lifetime is over")
    )
    return Judgement("fail", told, also_failed + pending, delivered, expired=True)


def judged_before(message: Message) -> Judgement:
    """The judgement on a message that nobody waits for any more, as its sidecar says.

    A crash, or a full disk, came between that record and the end of the message.
    """
    done = all(one.state == DELIVERED for one in message.recipients)
    ended = evolve(message, revision=message.revision + 1)
    return Judgement("remove" if done else "fail", ended)


def postpone(message: Message, *, now: int, relay: str, reply: str) -> Message:
    """A message in whose transaction the relay failed more than once.

    It is not charged, but others go first, in case this very message is what the relay dies of.
    """
    faults = 0
    for entry in reversed(message.history):
        if entry.get("outcome") != "relay_fault":
            break
        faults += 1
    delay = min(_FAULT_DELAY_SECONDS << min(faults, 10), _FAULT_DELAY_LIMIT_SECONDS)
    return message.with_event(
        Event(now, relay, "relay_fault", reply[:_TEXT_LIMIT]),
        next_attempt=now + delay,
        revision=message.revision + 1,
    )


def found_in_doubt(message: Message, *, now: int, schedule: tuple[int, ...] | None) -> Message:
    """A message whose last sender died between the end of the data and the relay's answer.

    It is due at once the first time; if that happens again in a row, at the schedule's pace, so
    that what kills the sender does not make a duplicate in every run.
    """
    again = bool(message.history) and message.history[-1].get("outcome") == "in_doubt"
    attempts = message.attempts + 1
    due = next_attempt(message.begins, now, attempts, schedule) if again else now
    text = "the sender died before it saw the relay's answer: the relay may have the message"
    return message.with_event(
        Event(now, "", "in_doubt", text),
        attempts=attempts,
        next_attempt=due,
        revision=message.revision + 1,
    )


def _join(texts: list[str]) -> str:
    return "; ".join(texts)[: 2 * _TEXT_LIMIT]
