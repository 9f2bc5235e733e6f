"""Who gets a report, and of what: no failure is reported twice, and none is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from picoqmail.delivery import report_state
from picoqmail.delivery.report_state import DOUBT_TOLD, TELLING, TOLD, addressee_of
from picoqmail.layout import DOUBLE_BOUNCE
from picoqmail.spool.many import ManyRecipients
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Message
from picoqmail.spool.recipient import SUSPENDED_UNTIL, UNTIL_RETRY, Recipient
from picoqmail.value import evolve

if TYPE_CHECKING:
    from collections.abc import Sequence


def message(*recipients: Recipient, sender: str = "a@b", **unknown: object) -> Message:
    """A message of these recipients."""
    return Message(
        id="1700000000.M1P1Q1R1.me.test",
        sender=sender,
        recipients=recipients,
        created=0,
        next_attempt=0,
        expires=0,
        attempts=0,
        size=1,
        crc32=1,
        held=False,
        history=(),
        origin={},
        unknown=unknown,
    )


@pytest.mark.parametrize(
    ("sender", "double", "expected"),
    [
        ("a@b", "root@me", ("a@b", "")),
        ("list-@b-@[]", "root@me", ("list-@b", "")),
        ("", "root@me", ("root@me", DOUBLE_BOUNCE)),
        ("", "", None),
        (DOUBLE_BOUNCE, "root@me", None),
        ("@b", "root@me", None),
        ("nobody", "root@me", None),
    ],
)
def test_who_gets_a_report(sender: str, double: str, expected: tuple[str, str] | None) -> None:
    """The sender; of a report the administrator; of a report about a report nobody."""
    found = addressee_of(message(sender=sender), double)
    assert expected == (None if found is None else (found.address, found.sender))


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        (None, True),
        ({"notify": "failure,delay"}, True),
        ({"notify": "never"}, False),
        ({"notify": "success"}, False),
    ],
)
def test_whether_a_report_is_wanted(
    dsn: object,
    expected: bool,  # noqa: FBT001 - a table
) -> None:
    """RFC 3461 4.1: NOTIFY decides; without it a report is wanted."""
    assert expected is report_state.wants_report(message(dsn=dsn), "FAILURE")


def test_each_failure_is_reported_once() -> None:
    """Those that failed and were not reported; then all of them were, by this report."""
    before = message(
        Recipient("a@b", FAILED),
        Recipient("c@d", DELIVERED),
        Recipient("e@f", FAILED, unknown={TOLD: "first"}),
        Recipient("g@h", FAILED, unknown={"mine": 1}),
        kept=1,
    )
    assert (0, 3) == report_state.unreported(before)
    announced = report_state.announced(before, "second")
    assert {TELLING: "second", "kept": 1} == announced.unknown
    after = report_state.reported(announced, (0, 3), "second")
    assert {"kept": 1} == after.unknown
    assert () == report_state.unreported(after)
    assert [
        {TOLD: "second"},
        {},
        {TOLD: "first"},
        {TOLD: "second", "mine": 1},
    ] == [one.unknown for one in after.recipients]
    again = tuple(map(report_state.not_reported, after.recipients))
    assert (0, 2, 3) == report_state.unreported(evolve(after, recipients=again))
    assert {"mine": 1} == again[3].unknown


def test_each_doubt_is_reported_once() -> None:
    """Of the recipients that are suspended."""
    suspended = {SUSPENDED_UNTIL: UNTIL_RETRY}
    before = message(
        Recipient("a@b", PENDING, unknown=suspended),
        Recipient("c@d", PENDING),
        Recipient("e@f", PENDING, unknown={**suspended, DOUBT_TOLD: "first"}),
    )
    assert (0,) == report_state.untold_doubts(before)
    after = report_state.doubt_told(before, (0,), "second")
    assert () == report_state.untold_doubts(after)
    assert {**suspended, DOUBT_TOLD: "second"} == after.recipients[0].unknown
    assert before.recipients[1:] == after.recipients[1:]


FAILURES = (
    Recipient("delivered@c", DELIVERED),
    Recipient("told@c", FAILED, unknown={TOLD: "1"}),
    Recipient("new@c", FAILED),
    Recipient("waits@c", PENDING),
    Recipient("rests@c", PENDING, unknown={SUSPENDED_UNTIL: UNTIL_RETRY}),
)


@pytest.mark.parametrize("recipients", [FAILURES, ManyRecipients(FAILURES)])
def test_of_very_many_recipients_the_same_are_found(recipients: Sequence[Recipient]) -> None:
    """Whether they are a tuple, or blocks of text."""
    several = evolve(message(), recipients=recipients)
    assert [2] == list(report_state.unreported(several))
    assert [3] == list(report_state.not_suspended(several))


def test_where_nobody_is_suspended_all_wait() -> None:
    """The recipients that are pending, and no others."""
    assert [1] == list(report_state.not_suspended(message(FAILURES[0], FAILURES[3])))
