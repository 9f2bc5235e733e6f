"""What becomes of a message: the schedule of its attempts, and the judgement on each. Pure."""

from __future__ import annotations

from itertools import chain
from math import isqrt

from picoqmail.delivery.report_state import DOUBT_TOLD
from picoqmail.spool.message import (
    DELIVERED,
    FAILED,
    PENDING,
    Event,
    Message,
    draft_of,
    settled,
)
from picoqmail.spool.recipient import DOUBTS, SUSPENDED_UNTIL, UNTIL_RETRY, Recipient
from picoqmail.value import EMPTY, Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

    from picoqmail.smtp.transaction import RecipientResult
    from picoqmail.spool.many import ManyRecipients
    from picoqmail.spool.message import Indexes, Recipients

    Draft = list[Recipient] | ManyRecipients

QUADRATIC_STEP_SECONDS = 20
"""qmail-send's constant for remote mail: attempts at 0, 400, 1600, 3600 ... seconds of age."""

FAIR_PART = 10
"""A message that has become too old is given up after the attempts of this part of its lifetime."""

_MOST_FAIR_ATTEMPTS = 100
_FAULT_DELAY_SECONDS = 60
_FAULT_DELAY_LIMIT_SECONDS = 3600
_TEXT_LIMIT = 500

OVERDUE_SINCE = "overdue_since"
"""The key of a suspended message that was found to be too old: since when, in Unix seconds."""

_NO_REPLY = "the connection ended before the relay replied: it may have the message"
_NO_SENDER = "the sender died before it saw the relay's reply: the relay may have the message"
_MAYBE = "may have been delivered, or not: it was sent as a whole {} times, and no reply came"
_NO_MORE = "; it is not sent to {} again by itself, because so many copies may be out"


class DoubtLimit(Value):
    """How many copies may be out without a reply of the relay; the settings of that name.

    `copies` 0 is no limit. After so many a recipient is suspended for `pause_seconds`; None is
    until an administrator retries the message.
    """

    __slots__ = ("copies", "pause_seconds")

    def __init__(self, copies: int, pause_seconds: int | None = None) -> None:
        self.copies: Final = copies
        self.pause_seconds: Final = pause_seconds


NO_DOUBT_LIMIT = DoubtLimit(0)
NO_DOUBTS: Mapping[int, int] = EMPTY  # type: ignore[assignment] # nothing is in it
_DOUBT_KEYS = (DOUBTS, SUSPENDED_UNTIL, DOUBT_TOLD)


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
        failed_now: Indexes = (),
        delivered_now: Indexes = (),
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
    return _was_set_back(message, now)


def _was_set_back(message: Message, now: float) -> bool:
    last = message.history[-1].get("when", 0) if message.history else 0
    return isinstance(last, (int, float)) and last > now + QUADRATIC_STEP_SECONDS


def sendable(message: Message, now: float) -> Indexes:
    """Return the indexes of the recipients that a message may be sent to now.

    These wait, and are not suspended. A pause that a clock made which was set back since is over.
    """
    if not message.suspended:
        return message.pending
    is_lost = _was_set_back(message, now)

    def is_sendable(one: Recipient) -> bool:
        ends = one.suspended_until
        return ends <= now or (is_lost and ends != UNTIL_RETRY)

    if not isinstance(message.recipients, tuple):
        return message.recipients.indexes_in(PENDING, is_sendable)
    return tuple([i for i in message.pending if is_sendable(message.recipients[i])])


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
        or _is_long_overdue(message, now, lifetime)
    )


def _is_long_overdue(message: Message, now: float, lifetime_seconds: int) -> bool:
    """Say whether a suspended message, which gets no attempts, was found too old long ago."""
    since = message.unknown.get(OVERDUE_SINCE)
    return (
        bool(message.suspended)
        and isinstance(since, int)
        and (now - since) * FAIR_PART >= lifetime_seconds
    )


class Replies:
    """What relays said in one attempt, recipient by recipient.

    Each reply is written into a copy of the message's recipients at once, and kept nowhere else.
    """

    __slots__ = ("message", "has_any", "_recipients", "_delivered", "_failed", "_texts")

    def __init__(self, message: Message) -> None:
        self.message: Final = message
        self.has_any = False
        self._texts: dict[str, None] = {}
        recipients = message.recipients
        self._recipients: Draft
        self._delivered: list[int] | array[int]
        self._failed: list[int] | array[int]
        if isinstance(recipients, tuple):
            self._recipients, self._delivered, self._failed = list(recipients), [], []
        else:
            self._recipients = recipients.copy()
            self._delivered, self._failed = recipients.indexes(), recipients.indexes()

    def add(self, indexes: Sequence[int], results: Sequence[RecipientResult]) -> bool:
        """Take the results of the recipients at these indexes; False if none is a reply."""
        recipients, texts, replied = self._recipients, self._texts, False
        for index, result in zip(indexes, results, strict=True):
            outcome = result.outcome
            if outcome == "untried":
                continue
            replied = True
            text = result.text[:_TEXT_LIMIT]
            before = recipients[index]
            unknown = before.unknown
            if SUSPENDED_UNTIL in unknown:
                # It was tried, so a pause is over.
                unknown = _without(unknown, (SUSPENDED_UNTIL,))
            state = PENDING
            if outcome == "delivered":
                state = DELIVERED
                self._delivered.append(index)
            elif outcome == "failed":
                state = FAILED
                self._failed.append(index)
            # No more than is written: each of many recipients may have a reply of its own.
            if state != DELIVERED and len(texts) < 2 * _TEXT_LIMIT:
                texts[text] = None
            recipients[index] = Recipient(before.address, state, text, unknown)
        if replied:
            self.has_any = True
        return replied

    def judge(
        self,
        *,
        now: int,
        relay: str,
        doubts: Mapping[int, int] = NO_DOUBTS,
        limit: DoubtLimit = NO_DOUBT_LIMIT,
        schedule: tuple[int, ...] | None = None,
    ) -> Judgement:
        """Judge the message at the end of the attempt.

        Recipients without a final reply stay pending; those that are pending when the message
        expires fail. `doubts` says how many times, by index, the end of the data went out and no
        reply came; that counts as an attempt. So a relay that always dies there gets the message as
        the schedule says, and not in every run; and no more often than `limit` says.
        """
        message, texts = self.message, self._texts
        if doubts:
            _count_doubts(self._recipients, doubts, now, limit)
        recipients: Recipients
        delivered: Indexes
        failed: Indexes
        if isinstance(self._recipients, list):
            recipients = tuple(self._recipients)
            states = {one.state for one in recipients}
            delivered, failed = tuple(self._delivered), tuple(self._failed)
        else:
            recipients = self._recipients
            states = recipients.states
            delivered, failed = (
                recipients.indexes(self._delivered),
                recipients.indexes(self._failed),
            )
        if PENDING not in states:
            outcome = "failed" if failed or not delivered else "delivered"
        elif doubts:
            outcome = "in_doubt"
            texts[_NO_REPLY + _no_more(recipients, doubts)] = None
        else:
            outcome = "deferred"
        after = message.with_event(
            Event(now, relay, outcome, "; ".join(texts)[: 2 * _TEXT_LIMIT]),
            recipients=recipients,
            attempts=message.attempts + 1,
            revision=message.revision + 1,
        )
        if PENDING not in states:
            if FAILED not in states:
                return Judgement("remove", after, (), delivered)
            return Judgement("fail", after, failed, delivered)
        if is_over(after, now, schedule):
            return expire(after, now=now, also_failed=failed, delivered=delivered)
        begun = message.begins
        if now >= message.expires:
            # By its age, which the clock made, it would wait for weeks.
            begun = now - (QUADRATIC_STEP_SECONDS * after.attempts) ** 2
        due = next_attempt(begun, now, after.attempts, schedule)
        return Judgement("defer", _put_off(after, now, due), failed, delivered)


def _count_doubts(
    recipients: Draft, doubts: Mapping[int, int], now: int, limit: DoubtLimit
) -> None:
    """Count the copies that may be out, and suspend the recipients that may have too many."""
    for index, times in doubts.items():
        one = recipients[index]
        unknown = {**one.unknown, DOUBTS: one.doubts + times}
        if one.state == PENDING and limit.copies and unknown[DOUBTS] >= limit.copies:
            pause = limit.pause_seconds
            unknown[SUSPENDED_UNTIL] = UNTIL_RETRY if pause is None else now + pause
        recipients[index] = evolve(one, unknown=unknown)


def _no_more(recipients: Sequence[Recipient], doubts: Iterable[int]) -> str:
    """Return what the history says of recipients that were suspended."""
    count = sum([bool(recipients[index].suspended_until) for index in doubts])
    if not count:
        return ""
    return _NO_MORE.format("this recipient" if count == 1 else f"{count} recipients")


def _put_off(message: Message, now: int, scheduled: int) -> Message:
    """Return a message that waits: until `scheduled`, or for what becomes of those suspended.

    If all are suspended, it is looked at again when a pause is over, or when it has become too old.
    """
    pauses = [message.recipients[index].suspended_until for index in message.suspended]
    pauses = [until for until in pauses if until > now]
    if len(pauses) < len(message.pending):
        return evolve(message, next_attempt=min([scheduled, *pauses]))
    if now < message.expires:
        return evolve(message, next_attempt=min([message.expires, *pauses]))
    # A clock that jumped may be all that made it too old. Somebody gets time to see it.
    part = max((message.expires - message.begins) // FAIR_PART, 1)
    since = message.unknown.get(OVERDUE_SINCE)
    if type(since) is not int or since > now:
        since = now
    unknown = {**message.unknown, OVERDUE_SINCE: since}
    return evolve(message, next_attempt=min([now + part, *pauses]), unknown=unknown)


def wait_on(message: Message, now: int, schedule: tuple[int, ...] | None) -> Judgement | None:
    """Judge a message that is due, and has suspended recipients only; None if it just waits on.

    It is not sent. Once it is too old it fails, and its sender is told that it may have arrived.
    """
    if now < message.expires:
        return None
    if is_over(message, now, schedule):
        return expire(message, now=now)
    waits = _put_off(message, now, now)
    if waits.next_attempt == message.next_attempt:
        return None
    return Judgement("defer", evolve(waits, revision=message.revision + 1))


def resumed(message: Message) -> Recipients:
    """Return the recipients of a message, none of them suspended: one more copy may go out."""
    recipients = draft_of(message.recipients)
    for index, one in enumerate(message.recipients):
        if SUSPENDED_UNTIL in one.unknown:
            unknown = _without(one.unknown, (SUSPENDED_UNTIL,))
            recipients[index] = evolve(one, unknown=unknown)
    return settled(recipients)


def _without(unknown: Mapping[str, object], keys: tuple[str, ...]) -> Mapping[str, object]:
    return {key: value for key, value in unknown.items() if key not in keys}


def without_doubts(recipient: Recipient) -> Recipient:
    """Return a recipient of a message that gets a new life: its copies are counted anew."""
    return evolve(recipient, unknown=_without(recipient.unknown, _DOUBT_KEYS))


def expire(
    message: Message,
    *,
    now: int,
    because: str = "",
    also_failed: Indexes = (),
    delivered: Indexes = (),
) -> Judgement:
    """Fail the pending recipients of a message that has grown too old."""
    days = max(now - message.created, 0) / 86400
    pending = message.pending
    recipients = draft_of(message.recipients)
    for index in pending:
        last = recipients[index].reply or because
        text = f"expired after {days:.1f} days in the queue" + (f"; last: {last}" if last else "")
        if recipients[index].doubts:
            text = f"{_MAYBE.format(recipients[index].doubts)}; {text}"
        recipients[index] = evolve(recipients[index], state=FAILED, reply=text)
    after = message.with_event(
        Event(now, "", "expired", because or "too old: the queue lifetime is over"),
        recipients=settled(recipients),
        revision=message.revision + 1,
    )
    failed: Indexes
    if isinstance(message.recipients, tuple):
        failed = (*also_failed, *pending)
    else:
        failed = message.recipients.indexes(chain(also_failed, pending))
    return Judgement("fail", after, failed, delivered, expired=True)


def judged_before(message: Message) -> Judgement:
    """Return the judgement on a message without pending recipients, as its sidecar says.

    A crash or a full disk came after this was recorded, and before the message was ended.
    """
    done = message.states == {DELIVERED}
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


def found_in_doubt(
    message: Message,
    *,
    now: int,
    schedule: tuple[int, ...] | None,
    doubts: Mapping[int, int] = NO_DOUBTS,
    limit: DoubtLimit = NO_DOUBT_LIMIT,
) -> Message:
    """Return a message whose last sender died between the end of the data and the relay's reply.

    `doubts` are counted by index of the recipient; empty: nobody knows who they are, so each one
    that was sent to is. It is due at once the first time. If that happens again in a row, the
    schedule decides, so that whatever kills the sender does not make a duplicate in every run.
    """
    again = bool(message.history) and message.history[-1].get("outcome") == "in_doubt"
    attempts = message.attempts + 1
    due = next_attempt(message.begins, now, attempts, schedule) if again else now
    recipients = draft_of(message.recipients)
    known = doubts or dict.fromkeys(sendable(message, now), 1)
    _count_doubts(recipients, known, now, limit)
    after = message.with_event(
        Event(now, "", "in_doubt", _NO_SENDER + _no_more(recipients, known)),
        recipients=settled(recipients),
        attempts=attempts,
        revision=message.revision + 1,
    )
    return _put_off(after, now, due)


def goes_again(message: Message, doubts: Mapping[int, int], limit: DoubtLimit, now: int) -> Message:
    """Return a message that goes out again at once, although the relay may have it."""
    recipients = draft_of(message.recipients)
    _count_doubts(recipients, doubts, now, limit)
    return message.with_event(
        Event(now, "", "in_doubt", _NO_REPLY),
        recipients=settled(recipients),
        next_attempt=now,
        revision=message.revision + 1,
    )
