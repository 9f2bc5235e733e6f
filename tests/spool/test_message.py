"""The message as delivery sees it: the sidecar and back, whatever a newer program wrote."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from picoqmail.layout import HISTORY_LENGTH
from picoqmail.spool import sidecar
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Event, Message, Recipient
from picoqmail.value import evolve

ID = "1700000000.M000001P2Q3R00.me.test"


def message(*recipients: Recipient) -> Message:
    """A message for these."""
    return Message(
        id=ID,
        sender="a@b",
        recipients=recipients or (Recipient("c@d"),),
        created=1_700_000_000,
        next_attempt=1_700_000_000,
        expires=1_700_604_800,
        attempts=0,
        size=10,
        crc32=5,
        held=False,
        history=(),
        origin={"uid": 0},
    )


@given(
    st.lists(
        st.builds(
            Recipient,
            st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1),
            st.sampled_from([PENDING, DELIVERED, FAILED]),
            st.none() | st.text(),
            st.dictionaries(st.sampled_from(["x", "y"]), st.integers()),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_a_message_survives_its_sidecar(recipients: list[Recipient], held: bool) -> None:  # noqa: FBT001 - drawn
    """Written and read again it is the same, unknown keys of recipients included."""
    before = evolve(message(*recipients), held=held, unknown={"dsn": {"ret": "FULL"}})
    assert before == Message.from_sidecar(before.to_sidecar(), ID)


def test_unknown_keys_are_written_back() -> None:
    """Of the record and of a recipient: what we do not know we do not drop."""
    record = sidecar.new_record(
        ID, "a@b", ["c@d"], created=1, next_attempt=2, expires=3, size=4, crc32=5, origin={}
    )
    record["later"] = {"x": [1, 2.5, None]}
    record["recipients"][0]["weight"] = 3
    data = json.dumps(record).encode()
    assert record == json.loads(Message.from_sidecar(data, ID).to_sidecar())


def test_pending_are_the_indexes_that_wait() -> None:
    """By index, so that a recipient named twice stays two."""
    one = Recipient("c@d")
    assert (0, 2) == message(one, Recipient("c@d", DELIVERED), one).pending


def test_history_is_bounded_and_keeps_the_latest() -> None:
    """Oldest first; a message that is tried for a week does not grow without end."""
    current = message()
    for when in range(HISTORY_LENGTH + 5):
        current = current.with_event(Event(when, "r", "deferred", "451"), attempts=when)
    assert list(range(5, HISTORY_LENGTH + 5)) == [entry["when"] for entry in current.history]
    assert {"when": 24, "relay": "r", "outcome": "deferred", "reply": "451"} == current.history[-1]
    assert 24 == current.attempts
