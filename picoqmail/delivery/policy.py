"""What becomes of a message: the schedule of its attempts, and the judgement on each. Pure."""

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

FAIR_PART = 10
"""A message that has become too old is given up after the attempts of this part of its lifetime."""

_MOST_FAIR_ATTEMPTS = 100
_FAULT_DELAY_SECONDS = 60
_FAULT_DELAY_LIMIT_SECONDS = 3600
_TEXT_LIMIT = 500


class Judgement(Value):
    """A message after an attempt: what its sidecar will say, and what is new.

    `step` is `remove`, `defer` or `fail`. `failed_now` and `delivered_now` are the indexes of the
    recipients of which that became known in this attempt.
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
    """Return when to try again after `attempts` attempts; Unix seconds.

    Without a schedule it is qmail's quadratic one (qmail-send: nextretry). The age at the n-th
    attempt is (20 n)^2 seconds; n goes on from the age that the last attempt was really made at.
    `begun` is when that age began. With a schedule it is the `attempts`-th delay; the last repeats.
    """
    if schedule:
        return now + schedule[min(max(attempts, 1), len(schedule)) - 1]
    age = max(now - begun, 0)
    # A clock that was set back must not bring the next attempt before now.
    return max(begun, now - age) + (isqrt(age) + QUADRATIC_STEP_SECONDS) ** 2


def is_due(message: Message, now: float) -> bool:
    """Say whether a message may be tried: not held, and its time has come.

    A last attempt in the future shows that the clock was set back since. Then the time of the next
    attempt is worth nothing, and the message is due.
    """
    if message.held:
        return False
    if message.next_attempt <= now:
        return True
    last = message.history[-1].get("when", 0) if message.history else 0
    return isinstance(last, (int, float)) and last > now + QUADRATIC_STEP_SECONDS


def fair_attempts(lifetime_seconds: int, schedule: tuple[int, ...] | None) -> int:
    """Return how many attempts a message gets at least: those of a tenth of its lifetime.

    A clock that jumps ends no message. A board that starts in 2001, and is set right after the
    first 4xx, has a message that is 25 years old and was tried once.
    """
    part = max(lifetime_seconds, 0) // FAIR_PART
    if not schedule:
        return 1 + isqrt(part) // QUADRATIC_STEP_SECONDS
    attempts, age = 1, 0
    for delay in (*schedule, *[schedule[-1]] * _MOST_FAIR_ATTEMPTS):
        age += delay
        if age > part or attempts >= _MOST_FAIR_ATTEMPTS:
            break
        attempts += 1
    return attempts


def is_over(
    message: Message,
    now: float,
    schedule: tuple[int, ...] | None,
    *,
    unreached_seconds: float = 0,
) -> bool:
    """Say whether a message is given up now: too old, and tried for a fair part of its lifetime.

    `unreached_seconds` is how long its relay has been tried in vain by other measure than a clock.
    """
    lifetime = message.expires - message.begins
    return now >= message.expires and (
        message.attempts >= fair_attempts(lifetime, schedule)
        or (unreached_seconds > 0 and unreached_seconds * FAIR_PART >= lifetime)
    )


def judge(  # noqa: PLR0913 - what is known at the end of an attempt
    message: Message,
    results: Mapping[int, RecipientResult],
    *,
    now: int,
    relay: str,
    in_doubt: bool = False,
    schedule: tuple[int, ...] | None = None,
) -> Judgement:
    """Judge a message that a relay replied to; `results` by index of the recipient.

    Recipients without a final reply stay pending; those that are pending when the message expires
    fail. An end of data without a reply (`in_doubt`) counts as an attempt. So a relay that always
    dies there gets the message as the schedule says, and not in every run.
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
        texts.append("the connection ended before the relay replied: it may have the message")
    else:
        outcome = "deferred"
    after = message.with_event(
        Event(now, relay, outcome, _join(texts)),
        recipients=tuple(recipients),
        attempts=message.attempts + 1,
        revision=message.revision + 1,
    )
    if PENDING not in states:
        if FAILED not in states:
            return Judgement("remove", after, (), tuple(delivered))
        return Judgement("fail", after, tuple(failed), tuple(delivered))
    if is_over(after, now, schedule):
        return expire(after, now=now, also_failed=tuple(failed), delivered=tuple(delivered))
    begun = message.begins
    if now >= message.expires:
        # By its age, which the clock made, it would wait for weeks.
        begun = now - (QUADRATIC_STEP_SECONDS * after.attempts) ** 2
    due = next_attempt(begun, now, after.attempts, schedule)
    return Judgement("defer", evolve(after, next_attempt=due), tuple(failed), tuple(delivered))


def expire(
    message: Message,
    *,
    now: int,
    because: str = "",
    also_failed: tuple[int, ...] = (),
    delivered: tuple[int, ...] = (),
) -> Judgement:
    """Fail the pending recipients of a message that has grown too old."""
    days = max(now - message.created, 0) / 86400
    pending = message.pending
    recipients = list(message.recipients)
    for index in pending:
        last = recipients[index].reply or because
        text = f"expired after {days:.1f} days in the queue" + (f"; last: {last}" if last else "")
        recipients[index] = evolve(recipients[index], state=FAILED, reply=text)
    after = evolve(message, recipients=tuple(recipients), revision=message.revision + 1).with_event(
        Event(now, "", "expired", because or "too old: the queue lifetime is over")
    )
    return Judgement("fail", after, also_failed + pending, delivered, expired=True)


def judged_before(message: Message) -> Judgement:
    """Return the judgement on a message without pending recipients, as its sidecar says.

    A crash or a full disk came after this was recorded, and before the message was ended.
    """
    done = all(one.state == DELIVERED for one in message.recipients)
    ended = evolve(message, revision=message.revision + 1)
    return Judgement("remove" if done else "fail", ended)


def postpone(message: Message, *, now: int, relay: str, reply: str) -> Message:
    """Return a message in whose transaction the relay failed more than once.

    The message is not charged, but others go first, in case the relay dies of this very message.
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
    """Return a message whose last sender died between the end of the data and the relay's reply.

    It is due at once the first time. If that happens again in a row, the schedule decides, so that
    whatever kills the sender does not make a duplicate in every run.
    """
    again = bool(message.history) and message.history[-1].get("outcome") == "in_doubt"
    attempts = message.attempts + 1
    due = next_attempt(message.begins, now, attempts, schedule) if again else now
    text = "the sender died before it saw the relay's reply: the relay may have the message"
    return message.with_event(
        Event(now, "", "in_doubt", text),
        attempts=attempts,
        next_attempt=due,
        revision=message.revision + 1,
    )


def _join(texts: list[str]) -> str:
    return "; ".join(texts)[: 2 * _TEXT_LIMIT]
