"""What becomes of a message: qmail's schedule to the second, and the judgement of an attempt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.delivery import policy
from picoqmail.delivery.policy import Judgement, next_attempt
from picoqmail.smtp.transaction import RecipientResult
from picoqmail.spool.message import (
    DELIVERED,
    DOUBTS,
    FAILED,
    PENDING,
    SUSPENDED_UNTIL,
    Message,
    Recipient,
)
from picoqmail.value import evolve

if TYPE_CHECKING:
    from picoqmail.smtp.transaction import Outcome

CREATED = 1_700_000_000
WEEK = 604800
RESULTS: dict[str, RecipientResult] = {
    "delivered": RecipientResult("delivered", None, "250 ok"),
    "deferred": RecipientResult("deferred", None, "451 later"),
    "failed": RecipientResult("failed", None, "550 no"),
    "untried": RecipientResult("untried", None, ""),
}


def message(count: int = 1, attempts: int = 0) -> Message:
    """A message for so many, as accepted."""
    return Message(
        id=f"{CREATED}.M1P1Q1R1.me.test",
        sender="a@b",
        recipients=tuple(Recipient(f"r{index}@d") for index in range(count)),
        created=CREATED,
        next_attempt=CREATED,
        expires=CREATED + WEEK,
        attempts=attempts,
        size=1,
        crc32=1,
        held=False,
        history=(),
        origin={},
    )


def judged(*outcomes: Outcome, now: int = CREATED, attempts: int = 0) -> Judgement:
    """The judgement after an attempt with these outcomes."""
    results = {index: RESULTS[outcome] for index, outcome in enumerate(outcomes)}
    return policy.judge(
        message(len(outcomes), attempts),
        results,
        now=now,
        relay="r",
        schedule=None,
    )


def test_the_schedule_is_qmails() -> None:
    """Tried at once each time: ages of 0, 400, 1600, 3600, 6400 seconds, (20 n) squared."""
    ages, now = [0], CREATED
    for attempts in range(1, 11):
        now = next_attempt(CREATED, now, attempts, None)
        ages.append(now - CREATED)
    assert [(20 * n) ** 2 for n in range(11)] == ages


def test_a_week_is_39_attempts() -> None:
    """Of qmail's schedule in its queue lifetime, the last at 577600 s."""
    now, count = CREATED, 0
    while now < CREATED + WEEK:
        count += 1
        now = next_attempt(CREATED, now, count, None)
    assert 39 == count


@given(created=st.integers(0, 2**40), now=st.integers(0, 2**40), attempts=st.integers(0, 10**6))
def test_the_next_attempt_is_always_later(created: int, now: int, attempts: int) -> None:
    """Also where the clock was set back before the message came: never at once, in a circle."""
    assert next_attempt(created, now, attempts, None) >= now + 400
    assert next_attempt(created, now, attempts, (60, 600)) > now


def test_the_schedule_begins_with_the_time_that_was_asked_for() -> None:
    """A message for next week is tried again after 400 seconds, not at the pace of a week's age."""
    later = evolve(message(), unknown={"not_before": CREATED + WEEK})
    now = CREATED + WEEK
    told = policy.judge(
        evolve(later, expires=now + WEEK), {0: RESULTS["deferred"]}, now=now, relay="r"
    )
    assert ("defer", now + 400) == (told.step, told.message.next_attempt)
    for nonsense in ("soon", True, None, CREATED - 1):
        assert CREATED == evolve(later, unknown={"not_before": nonsense}).begins


def test_a_list_of_delays_ends_in_its_last() -> None:
    """The n-th attempt is followed by the n-th delay."""
    delays = [next_attempt(0, 1000, attempts, (60, 600, 3600)) - 1000 for attempts in range(6)]
    assert [60, 60, 600, 3600, 3600, 3600] == delays


@pytest.mark.parametrize(
    ("outcomes", "step", "states"),
    [
        (["delivered"], "remove", [DELIVERED]),
        (["delivered", "delivered"], "remove", [DELIVERED, DELIVERED]),
        (["deferred"], "defer", [PENDING]),
        (["delivered", "deferred"], "defer", [DELIVERED, PENDING]),
        (["failed", "deferred"], "defer", [FAILED, PENDING]),
        (["failed"], "fail", [FAILED]),
        (["delivered", "failed", "delivered"], "fail", [DELIVERED, FAILED, DELIVERED]),
        (["delivered", "untried"], "defer", [DELIVERED, PENDING]),
    ],
)
def test_only_a_message_that_all_have_is_removed(
    outcomes: list[Outcome], step: str, states: list[str]
) -> None:
    """All accepted: gone. Any pending: later. None pending, some failed: put aside. By index."""
    found = judged(*outcomes)
    assert step == found.step
    assert states == [one.state for one in found.message.recipients]
    assert tuple(i for i, o in enumerate(outcomes) if o == "failed") == found.failed_now
    assert tuple(i for i, o in enumerate(outcomes) if o == "delivered") == found.delivered_now
    assert (1, 1) == (found.message.attempts, found.message.revision)


def test_each_recipient_keeps_its_own_reply() -> None:
    """What concerned one is not told of another."""
    found = judged("delivered", "failed", "deferred")
    assert ["250 ok", "550 no", "451 later"] == [one.reply for one in found.message.recipients]
    assert ["550 no; 451 later"] == [entry["reply"] for entry in found.message.history]


def test_what_was_settled_before_stays() -> None:
    """A second attempt speaks of the pending ones only."""
    first = judged("delivered", "deferred", "failed").message
    second = policy.judge(first, {1: RESULTS["delivered"]}, now=CREATED + 400, relay="r")
    assert "fail" == second.step
    assert [DELIVERED, DELIVERED, FAILED] == [one.state for one in second.message.recipients]
    assert "550 no" == second.message.recipients[2].reply
    assert () == second.failed_now


def test_too_old_fails_what_is_pending_and_says_why() -> None:
    """After the queue lifetime the last attempt is the last; what was delivered stays so."""
    found = judged("delivered", "deferred", now=CREATED + WEEK, attempts=38)
    assert ("fail", True, (1,), (0,)) == (
        found.step,
        found.expired,
        found.failed_now,
        found.delivered_now,
    )
    reply = found.message.recipients[1].reply
    assert "expired after 7.0 days in the queue; last: 451 later" == reply
    assert ["deferred", "expired"] == [entry["outcome"] for entry in found.message.history]
    assert "defer" == judged("deferred", now=CREATED + WEEK - 1, attempts=38).step


@pytest.mark.parametrize(
    ("lifetime", "schedule", "attempts"),
    [
        (WEEK, None, 13),
        (86400, None, 5),
        (3600, None, 1),
        (1, None, 1),
        (0, None, 1),
        (WEEK, (60, 600, 3600), 19),
        (WEEK, (1,), 100),
        (WEEK, (30 * 86400,), 1),
    ],
)
def test_a_fair_part_of_the_schedule(
    lifetime: int, schedule: tuple[int, ...] | None, attempts: int
) -> None:
    """As many attempts as a tenth of the lifetime has, a hundred at most."""
    assert attempts == policy.fair_attempts(lifetime, schedule)


def test_old_by_the_clock_alone_is_not_too_old() -> None:
    """A clock that was set right after the first 4xx ends no message."""
    found = judged("deferred", now=CREATED + 25 * 365 * 86400)
    assert ("defer", 1) == (found.step, found.message.attempts)
    assert found.message.next_attempt - (CREATED + 25 * 365 * 86400) < 3600


def test_a_delivery_after_the_lifetime_is_a_delivery() -> None:
    """The last attempt may succeed."""
    assert "remove" == judged("delivered", now=CREATED + WEEK + 1).step


def test_doubt_is_an_attempt_and_is_named() -> None:
    """No reply after the final dot: pending, charged, and in the history."""
    found = policy.judge(message(), {}, now=CREATED, relay="r", doubts={0: 1})
    assert ("defer", 1, "in_doubt") == (
        found.step,
        found.message.attempts,
        found.message.history[-1]["outcome"],
    )
    assert CREATED + 400 == found.message.next_attempt


def test_doubt_found_after_a_crash_is_due_at_once_but_not_for_ever() -> None:
    """The first time now; in a row at the schedule's pace, or each run would make a duplicate."""
    first = policy.found_in_doubt(message(), now=CREATED + 5, schedule=None)
    assert (CREATED + 5, 1) == (first.next_attempt, first.attempts)
    second = policy.found_in_doubt(first, now=CREATED + 6, schedule=None)
    assert second.next_attempt >= CREATED + 400
    assert ["in_doubt"] * 2 == [entry["outcome"] for entry in second.history]


def test_relay_trouble_charges_no_attempt() -> None:
    """A message in whose middle the relay dies steps aside, longer each time, up to an hour."""
    current, delays = message(), []
    for _ in range(9):
        current = policy.postpone(current, now=CREATED, relay="r", reply="connection lost")
        delays.append(current.next_attempt - CREATED)
    assert [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600] == delays
    assert 0 == current.attempts


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, True),
        ({"next_attempt": CREATED + 1}, False),
        ({"held": True}, False),
        ({"next_attempt": CREATED + 9999, "history": ({"when": CREATED + 9000},)}, True),
        ({"next_attempt": CREATED + 400, "history": ({"when": CREATED},)}, False),
        ({"next_attempt": CREATED + 400, "history": ({"when": "?"},)}, False),
    ],
)
def test_due_is_what_is_not_held_and_whose_time_has_come(
    changes: dict[str, Any],
    due: bool,  # noqa: FBT001 - a table
) -> None:
    """A last attempt in the future shows a clock that was set back: then it is due."""
    assert due == policy.is_due(evolve(message(), **changes), CREATED)


def test_long_replies_do_not_fill_the_sidecar() -> None:
    """A relay that talks a lot is cut in what is kept of it."""
    long = RecipientResult("deferred", None, "4" * 100_000)
    found = policy.judge(message(3), dict.fromkeys(range(3), long), now=CREATED, relay="r")
    assert len(found.message.to_sidecar()) < 10_000


TWO = policy.DoubtLimit(2)


def in_doubt(before: Message, limit: policy.DoubtLimit = TWO, *, now: int = CREATED) -> Message:
    """A message after one more attempt at which no reply came for any recipient."""
    doubts = dict.fromkeys(policy.sendable(before, now), 1)
    return policy.judge(before, {}, now=now, relay="r", doubts=doubts, limit=limit).message


def test_as_many_doubts_as_the_limit_suspend() -> None:
    """Not in a row, but in all: a deferral in between takes no copy back."""
    once = in_doubt(message(2))
    assert ((), (0, 1)) == (once.suspended, policy.sendable(once, CREATED))
    later = policy.judge(once, {0: RESULTS["deferred"]}, now=CREATED, relay="r", limit=TWO).message
    twice = in_doubt(later)
    assert ((0, 1), ()) == (twice.suspended, policy.sendable(twice, CREATED + 99 * WEEK))
    assert twice.expires == twice.next_attempt
    assert "not sent to 2 recipients again by itself" in twice.history[-1]["reply"]


def test_a_limit_of_nothing_is_no_limit() -> None:
    """Counted all the same."""
    current = message()
    for _ in range(9):
        current = in_doubt(current, policy.NO_DOUBT_LIMIT)
    assert ((), 9) == (current.suspended, current.recipients[0].doubts)


def test_a_reply_is_no_doubt() -> None:
    """Who has the mail or was refused is not suspended, whatever came before."""
    once = in_doubt(message(2))
    found = policy.judge(
        once,
        {0: RESULTS["delivered"], 1: RESULTS["failed"]},
        now=CREATED,
        relay="r",
        doubts={0: 1, 1: 1},
        limit=TWO,
    )
    assert ("fail", ()) == (found.step, found.message.suspended)


def test_a_pause_is_due_when_it_is_over() -> None:
    """Then it is sendable; a clock that was set back ends it, but not what waits for a retry."""
    paused = in_doubt(in_doubt(message()), policy.DoubtLimit(2, 3600))
    assert (CREATED + 3600, ()) == (paused.next_attempt, policy.sendable(paused, CREATED + 3599))
    assert (0,) == policy.sendable(paused, CREATED + 3600)
    assert (0,) == policy.sendable(paused, CREATED - WEEK)
    assert () == policy.sendable(in_doubt(in_doubt(message())), CREATED - WEEK)


def test_what_is_suspended_ends_only_after_a_while() -> None:
    """Too old, it gets a tenth of its lifetime from when that was first seen."""
    waits = in_doubt(in_doubt(message()))
    assert policy.wait_on(waits, waits.expires - 1, None) is None
    jumped = waits.expires + 99 * WEEK
    seen = policy.wait_on(waits, jumped, None)
    assert seen is not None
    assert ("defer", jumped + WEEK // 10) == (seen.step, seen.message.next_attempt)
    assert policy.wait_on(seen.message, jumped, None) is None
    ended = policy.wait_on(seen.message, jumped + WEEK // 10, None)
    assert ended is not None
    assert ("fail", True) == (ended.step, ended.expired)
    reply = str(ended.message.recipients[0].reply)
    assert reply.startswith("may have been delivered, or not: it was sent as a whole 2 times")


def test_doubts_that_make_no_sense() -> None:
    """Whatever stands in a sidecar under our keys, nothing breaks."""
    values: list[Any] = ["2", -1, True, None, 1.5, [], {}]
    for odd in values:
        one = Recipient("a@b", unknown={DOUBTS: odd, SUSPENDED_UNTIL: odd})
        current = evolve(message(), recipients=(one,), unknown={policy.OVERDUE_SINCE: odd})
        assert ((), (0,)) == (current.suspended, policy.sendable(current, CREATED))
        assert 1 == in_doubt(current).recipients[0].doubts


def judging_seconds(count: int) -> float:
    """Processor seconds to judge an attempt in which each recipient got a reply of its own."""
    results = {i: RecipientResult("deferred", None, f"450 4.2.1 {i}") for i in range(count)}
    given = message(count)
    begun = time.process_time()
    after = policy.judge(given, results, now=CREATED, relay="r").message
    spent = time.process_time() - begun
    assert f"450 4.2.1 {count - 1}" == after.recipients[-1].reply
    assert len(after.history[-1]["reply"]) <= 1000
    return spent


def test_a_reply_of_its_own_for_each_recipient_is_judged_in_one_pass() -> None:
    """Eight times as many recipients take eight times as long, and not sixty-four times."""
    small = min(judging_seconds(2000) for _ in range(3))
    assert judging_seconds(16_000) < 25 * small
