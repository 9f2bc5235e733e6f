"""The message as delivery sees it: the sidecar and back, whatever a newer program wrote."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.layout import HISTORY_LENGTH
from picoqmail.spool import sidecar
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Event, Message
from picoqmail.spool.recipient import Recipient
from picoqmail.value import evolve

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.parametrize("count", [1000, 1001, 2000, 2001])
def test_very_many_recipients_are_written_as_few_are(count: int) -> None:
    """In parts, which together are the text of the whole."""
    recipients = [
        Recipient(
            f'"{n}"@d', PENDING, f"450 {n} \\ é" if n % 2 else None, {"x": n} if n % 3 else {}
        )
        for n in range(count)
    ]
    many = message(*recipients)
    octets = many.to_sidecar()
    assert many == Message.from_sidecar(octets, ID)
    assert octets == sidecar.encode(json.loads(octets))


def test_the_memory_for_very_many_recipients(tmp_path: Path) -> None:
    """A message in memory takes less than 200 octets a recipient, and as much to write it."""
    recipients = [f"{n:x}@d" for n in range(20_000)]
    record = sidecar.new_record(
        ID, "a@b", recipients, created=1, next_attempt=2, expires=3, size=4, crc32=5, origin={}
    )
    octets = sidecar.encode(record)
    tracemalloc.start()
    try:
        read = Message.from_sidecar(octets, ID)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        (tmp_path / "sidecar").write_bytes(read.to_sidecar())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert octets == (tmp_path / "sidecar").read_bytes()
    assert kept < 200 * len(recipients)
    assert most - kept < 200 * len(recipients)
