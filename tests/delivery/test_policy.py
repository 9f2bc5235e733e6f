"""What becomes of a message: qmail's schedule to the second, and the judgement of an attempt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.delivery import policy, report_state
from picoqmail.delivery.policy import Judgement, next_attempt
from picoqmail.delivery.report_state import DOUBT_TOLD
from picoqmail.smtp.transaction import RecipientResult
from picoqmail.spool.many import ManyRecipients
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Message
from picoqmail.spool.recipient import DOUBTS, SUSPENDED_UNTIL, Recipient
from picoqmail.value import evolve

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def judge(before: Message, results: Mapping[int, RecipientResult], **facts: Any) -> Judgement:
    """The judgement on a message after an attempt with these results by index."""
    replies = policy.Replies(before)
    replies.add([*results], [*results.values()])
    return replies.judge(**facts)


def judged(*outcomes: Outcome, now: int = CREATED, attempts: int = 0) -> Judgement:
    """The judgement after an attempt with these outcomes."""
    results = {index: RESULTS[outcome] for index, outcome in enumerate(outcomes)}
    return judge(
        message(len(outcomes), attempts),
        results,
        now=now,
        relay="r",
        schedule=None,
    )


def test_only_replies_are_replies() -> None:
    """What was not tried leaves everything as it was, and each result belongs to one recipient."""
    replies = policy.Replies(message(3))
    told = [replies.has_any]
    for indexes, outcomes in (
        ([0, 1], ["untried", "untried"]),
        ([2, 0], ["failed", "untried"]),
        ([0], ["untried"]),
    ):
        told += [replies.add(indexes, [RESULTS[one] for one in outcomes]), replies.has_any]
    assert [False, False, False, True, True, False, True] == told
    states = [one.state for one in replies.judge(now=CREATED, relay="r").message.recipients]
    assert [PENDING, PENDING, FAILED] == states
    with pytest.raises(ValueError, match="shorter"):
        replies.add([0, 1], [RESULTS["failed"]])


def test_a_pause_of_a_recipient_is_over_once_it_is_tried() -> None:
    """What else its record says stays."""
    unknown = {SUSPENDED_UNTIL: CREATED + 1, "orcpt": "x"}
    before = evolve(message(), recipients=(Recipient("r0@d", PENDING, "", unknown),))
    told = judge(before, {0: RESULTS["deferred"]}, now=CREATED, relay="r")
    assert [{"orcpt": "x"}] == [one.unknown for one in told.message.recipients]


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
    told = judge(evolve(later, expires=now + WEEK), {0: RESULTS["deferred"]}, now=now, relay="r")
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
    second = judge(first, {1: RESULTS["delivered"]}, now=CREATED + 400, relay="r")
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
    found = judge(message(), {}, now=CREATED, relay="r", doubts={0: 1})
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
    found = judge(message(3), dict.fromkeys(range(3), long), now=CREATED, relay="r")
    assert len(found.message.to_sidecar()) < 10_000


TWO = policy.DoubtLimit(2)


def in_doubt(before: Message, limit: policy.DoubtLimit = TWO, *, now: int = CREATED) -> Message:
    """A message after one more attempt at which no reply came for any recipient."""
    doubts = dict.fromkeys(policy.sendable(before, now), 1)
    return judge(before, {}, now=now, relay="r", doubts=doubts, limit=limit).message


def test_as_many_doubts_as_the_limit_suspend() -> None:
    """Not in a row, but in all: a deferral in between takes no copy back."""
    once = in_doubt(message(2))
    assert ((), (0, 1)) == (once.suspended, policy.sendable(once, CREATED))
    later = judge(once, {0: RESULTS["deferred"]}, now=CREATED, relay="r", limit=TWO).message
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
    found = judge(
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
    after = judge(given, results, now=CREATED, relay="r").message
    spent = time.process_time() - begun
    assert f"450 4.2.1 {count - 1}" == after.recipients[-1].reply
    assert len(after.history[-1]["reply"]) <= 1000
    return spent


def test_a_reply_of_its_own_for_each_recipient_is_judged_in_one_pass() -> None:
    """Eight times as many recipients take eight times as long, and not sixty-four times."""
    small = min(judging_seconds(2000) for _ in range(3))
    assert min(judging_seconds(16_000) for _ in range(3)) < 25 * small


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["delivered"], "delivered"),
        (["failed"], "failed"),
        (["delivered", "failed"], "failed"),
        (["untried", "deferred"], "deferred"),
    ],
)
def test_the_history_names_the_worst(outcomes: list[Outcome], expected: str) -> None:
    """One line for an attempt; who was not tried changes nothing for those behind."""
    found = judged(*outcomes)
    assert expected == found.message.history[-1]["outcome"]
    assert RESULTS[outcomes[-1]].text == found.message.recipients[-1].reply
    assert not found.expired


def test_how_much_of_what_relays_say_is_kept() -> None:
    """500 characters for a recipient, 1000 for the attempt."""
    results = {i: RecipientResult("deferred", None, letter * 600) for i, letter in enumerate("abc")}
    found = judge(message(3), results, now=CREATED, relay="r").message
    assert "a" * 500 == found.recipients[0].reply
    assert "a" * 500 + "; " + "b" * 498 == found.history[-1]["reply"]


def test_a_clock_before_the_acceptance() -> None:
    """The schedule begins with the acceptance, although that is still to come."""
    assert 1400 == next_attempt(1000, 500, 1, None)


def test_a_clock_that_was_set_back_by_little_is_none() -> None:
    """Hosts whose clocks differ by seconds share spools."""
    for seconds, expected in ((20, False), (21, True)):
        history = ({"when": CREATED + seconds},)
        current = evolve(message(), next_attempt=CREATED + 400, history=history)
        assert expected == policy.is_due(current, CREATED)


def test_the_end_of_the_fair_part_belongs_to_it() -> None:
    """An attempt just then counts."""
    assert 2 == policy.fair_attempts(600, (60,))


def lived(lifetime: int, attempts: int = 0) -> Message:
    """A message with this lifetime."""
    return evolve(message(attempts=attempts), expires=CREATED + lifetime)


def test_too_old_at_the_last_second_with_the_last_attempt() -> None:
    """Both are reached, neither has to be passed."""
    assert policy.is_over(lived(WEEK, 13), CREATED + WEEK, None)
    assert not policy.is_over(lived(WEEK, 12), CREATED + WEEK, None)
    assert not policy.is_over(lived(WEEK, 13), CREATED + WEEK - 1, None)


@pytest.mark.parametrize(
    ("lifetime", "unreached", "expected"),
    [(600, 60, True), (600, 59, False), (10, 1, True), (11, 1, False), (WEEK, 1, False)],
)
def test_as_long_in_front_of_a_dead_relay(
    lifetime: int,
    unreached: int,
    expected: bool,  # noqa: FBT001 - a table
) -> None:
    """A tenth of the lifetime is enough, if the relay was tried in vain for so long."""
    current = lived(lifetime)
    now = current.expires
    assert expected == policy.is_over(current, now, None, unreached_seconds=unreached)
    assert not policy.is_over(current, now, None)
    assert not policy.is_over(lived(0), CREATED, None)


def test_after_the_lifetime_the_pace_is_that_of_the_attempts() -> None:
    """Not that of an age which a clock made: as if each attempt had come in its time."""
    for attempts, seconds in ((0, 1200), (1, 2000)):
        found = judged("deferred", now=CREATED + WEEK, attempts=attempts)
        assert ("defer", CREATED + WEEK + seconds) == (found.step, found.message.next_attempt)


def test_a_pause_of_no_time_leaves_it_to_the_schedule() -> None:
    """It is over at once, and the message waits like any other."""
    limit = policy.DoubtLimit(1, 0)
    assert CREATED + 400 == in_doubt(message(), limit).next_attempt


def test_what_is_due_first_decides() -> None:
    """A pause that ends before the next attempt by the schedule."""
    found = judge(
        message(2),
        {1: RESULTS["deferred"]},
        now=CREATED,
        relay="r",
        doubts={0: 1},
        limit=policy.DoubtLimit(1, 100),
    )
    assert CREATED + 100 == found.message.next_attempt


@pytest.mark.parametrize("lifetime", [WEEK, 5])
def test_the_end_of_the_lifetime_is_seen_at_its_second(lifetime: int) -> None:
    """From then on a tenth of it is left, a second at least; that is recorded as a revision."""
    waits = evolve(in_doubt(lived(lifetime), policy.DoubtLimit(1)), attempts=0)
    assert policy.wait_on(waits, waits.expires - 1, None) is None
    seen = policy.wait_on(waits, waits.expires, None)
    assert seen is not None
    assert waits.expires + max(lifetime // 10, 1) == seen.message.next_attempt
    assert waits.revision + 1 == seen.message.revision


def test_a_suspension_ends_and_the_copies_stay_counted() -> None:
    """By a retry; a message that gets a new life is counted anew."""
    other = Recipient("other@d", unknown={"mine": 1})
    (one,) = in_doubt(in_doubt(message())).recipients
    told = evolve(one, unknown={**one.unknown, DOUBT_TOLD: "a report", "mine": 1})
    resumed = policy.resumed(evolve(message(), recipients=(told, other)))
    assert {DOUBTS: 2, DOUBT_TOLD: "a report", "mine": 1} == resumed[0].unknown
    assert other == resumed[1]
    assert {"mine": 1} == policy.without_doubts(told).unknown


def test_what_is_said_of_a_message_that_is_given_up() -> None:
    """How old it is, and why, in its history too."""
    found = policy.expire(message(), now=CREATED + 100_000 * 86400)
    assert "expired after 100000.0 days in the queue" == found.message.recipients[0].reply
    assert "too old: the queue lifetime is over" == found.message.history[-1]["reply"]
    assert 1 == found.message.revision
    told = policy.expire(message(), now=CREATED - 5, because="no route").message
    assert "expired after 0.0 days in the queue; last: no route" == told.recipients[0].reply
    assert "no route" == told.history[-1]["reply"]


@pytest.mark.parametrize(
    ("states", "step"),
    [
        ([DELIVERED, DELIVERED], "remove"),
        ([DELIVERED, FAILED], "fail"),
        ([FAILED], "fail"),
    ],
)
def test_what_was_recorded_and_not_ended(states: list[str], step: str) -> None:
    """A crash came in between: the sidecar says what is to be done."""
    recipients = tuple(Recipient("a@b", state) for state in states)
    found = policy.judged_before(evolve(message(), recipients=recipients))
    assert (step, 1) == (found.step, found.message.revision)


def test_only_faults_in_a_row_lengthen_the_delay() -> None:
    """Anything else that came of it begins anew."""
    current = message()
    for _ in range(2):
        current = policy.postpone(current, now=CREATED, relay="r", reply="lost")
    assert (CREATED + 120, 2) == (current.next_attempt, current.revision)
    between = judge(current, {0: RESULTS["deferred"]}, now=CREATED, relay="r").message
    again = policy.postpone(between, now=CREATED, relay="r", reply="lost")
    assert CREATED + 60 == again.next_attempt


def test_doubts_that_a_dead_sender_left_are_counted() -> None:
    """Those that were noted; else one for each that was sent to. At the limit it is suspended."""
    anybody = policy.found_in_doubt(message(2), now=CREATED, schedule=None, limit=TWO)
    assert [1, 1] == [one.doubts for one in anybody.recipients]
    assert ((), 1) == (anybody.suspended, anybody.revision)
    known = policy.found_in_doubt(anybody, now=CREATED, schedule=None, limit=TWO, doubts={1: 1})
    assert [1, 2] == [one.doubts for one in known.recipients]
    assert ((1,), 2) == (known.suspended, known.revision)


def test_what_goes_out_again_at_once_is_counted_before() -> None:
    """It is due now, unless too many copies may be out."""
    once = policy.goes_again(message(2), {1: 1}, TWO, CREATED + 7)
    assert ([0, 1], ()) == ([one.doubts for one in once.recipients], once.suspended)
    assert (CREATED + 7, 1) == (once.next_attempt, once.revision)
    assert "in_doubt" == once.history[-1]["outcome"]
    assert (1,) == policy.goes_again(once, {1: 1}, TWO, CREATED + 7).suspended


KINDS = st.lists(
    st.builds(
        Recipient,
        st.just("a@b"),
        st.sampled_from([PENDING, PENDING, DELIVERED, FAILED]),
        st.sampled_from([None, "451 before"]),
        st.sampled_from(
            [{}, {}, {DOUBTS: 1}, {SUSPENDED_UNTIL: CREATED}, {SUSPENDED_UNTIL: 2**33}]
        ),
    ),
    min_size=1,
    max_size=6,
)


def plain(found: Judgement | Message | None) -> object:
    """All that a judgement says, whatever keeps the recipients."""
    if found is None:
        return None
    if isinstance(found, Message):
        return found.to_sidecar()
    indexes = [*found.failed_now], [*found.delivered_now]
    return found.step, found.message.to_sidecar(), indexes, found.expired


@given(
    KINDS,
    st.lists(st.sampled_from([*RESULTS]), min_size=6, max_size=6),
    st.dictionaries(st.integers(0, 5), st.integers(1, 2)),
    st.sampled_from([CREATED, CREATED + WEEK, CREATED + 99 * WEEK]),
)
def test_very_many_recipients_are_judged_as_few_are(
    kinds: list[Recipient], outcomes: list[str], doubts: dict[int, int], now: int
) -> None:
    """Their way of being kept changes nothing, whatever becomes of them."""
    few = evolve(message(attempts=50), recipients=tuple(kinds))
    many = evolve(few, recipients=ManyRecipients(kinds))
    doubts = {index: times for index, times in doubts.items() if index < len(kinds)}
    for ask in (
        lambda one: one.pending,
        lambda one: one.suspended,
        lambda one: policy.sendable(one, now),
        report_state.not_suspended,
        report_state.unreported,
        report_state.untold_doubts,
    ):
        assert [*ask(few)] == [*ask(many)]
    results = {n: RESULTS[outcomes[n]] for n in policy.sendable(few, now)}
    facts: dict[str, Any] = {"now": now, "relay": "r", "doubts": doubts, "limit": TWO}
    for change in (
        lambda one: judge(one, results, **facts),
        lambda one: policy.expire(one, now=now, also_failed=(0,)),
        lambda one: policy.found_in_doubt(one, now=now, schedule=None, doubts=doubts, limit=TWO),
        lambda one: policy.goes_again(one, doubts, TWO, now),
        lambda one: policy.wait_on(one, now, None),
        policy.judged_before,
        lambda one: evolve(one, recipients=policy.resumed(one)),
        lambda one: report_state.reported(one, report_state.unreported(one), "R"),
        lambda one: report_state.doubt_told(one, report_state.untold_doubts(one), "R"),
    ):
        assert plain(change(few)) == plain(change(many))
    assert (few.recipients == tuple(kinds), many.recipients == tuple(kinds)) == (True, True)
