"""Very many recipients: read line by line and kept in blocks, as if they were a tuple."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picoqmail.errors import DamagedMessageError
from picoqmail.spool import sidecar, sidecar_reading
from picoqmail.spool.many import AT_ONCE, ManyRecipients
from picoqmail.spool.message import DELIVERED, FAILED, FEW_RECIPIENTS, PENDING, Message
from picoqmail.spool.recipient import DOUBTS, SUSPENDED_UNTIL, Recipient

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "1700000000.M000001P2Q3R00.me.test"
COUNT = FEW_RECIPIENTS + AT_ONCE + 7


def record(count: int = COUNT) -> dict[str, Any]:
    """What a sidecar for so many says, some of them with more keys than there must be."""
    found = sidecar.new_record(
        ID,
        "a@b",
        [f"recipient{n}@d.example" for n in range(count)],
        created=1,
        next_attempt=2,
        expires=3,
        size=4,
        crc32=5,
        origin={"uid": 0},
    )
    found["history"] = [{"when": 1, "outcome": "deferred"}, {"when": 2, "outcome": "deferred"}]
    found["later"] = {"x": []}
    for one in found["recipients"][:: AT_ONCE // 2 + 1]:
        one.update(state=FAILED, reply='550 "no" \\ é', told="x", weight=[{"a": 1}])
    return found


def ours(octets: bytes) -> bytes:
    """As we write it."""
    return octets


def one_line(octets: bytes) -> bytes:
    """As many programs write JSON."""
    return json.dumps(json.loads(octets)).encode()


def indented(octets: bytes) -> bytes:
    """As jq writes it."""
    return json.dumps(json.loads(octets), indent=2).encode()


def recipients_last(octets: bytes) -> bytes:
    """The keys in another order, without a line end at the end."""
    found = json.loads(octets)
    found["recipients"] = found.pop("recipients")
    return sidecar.encode(found).rstrip()


def shifted(octets: bytes) -> bytes:
    """Edited by hand: one recipient over two lines, two in one line, an empty line."""
    lines = octets.split(b"\n")
    lines[10] = lines[10].replace(b', "state"', b',\n "state"')
    lines[20:22] = [lines[20] + lines[21]]
    lines[30] += b"\n"
    return b"\n".join(lines)


def other_ends(octets: bytes) -> bytes:
    """With the line ends of another system."""
    return octets.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("layout", [ours, one_line, indented, recipients_last, shifted, other_ends])
def test_any_layout_is_read(layout: Callable[[bytes], bytes]) -> None:
    """Octets or a file: the message is what JSON says, and is written as we write it."""
    octets = layout(sidecar.encode(record()))
    for source in (octets, io.BytesIO(octets)):
        message = Message.from_sidecar(source, ID)
        assert isinstance(message.recipients, ManyRecipients)
        assert json.loads(octets) == json.loads(message.to_sidecar())


def test_few_in_a_large_sidecar_are_a_tuple() -> None:
    """It is not the size that decides, but how many they are."""
    found = record(3)
    found["recipients"][0]["reply"] = "550 " + "x" * 100_000
    message = Message.from_sidecar(sidecar.encode(found), ID)
    assert isinstance(message.recipients, tuple)
    assert found == json.loads(message.to_sidecar())


def test_a_list_of_that_name_elsewhere_is_not_taken_for_it() -> None:
    """The message's recipients are those of the outermost object."""
    inner = sidecar.encode(record()).removesuffix(b"\n")
    outer = sidecar.encode({**record(2), "later": 0}).removeprefix(b"{\n")
    octets = b'{\n"inner": ' + inner + b",\n" + outer
    message = Message.from_sidecar(octets, ID)
    assert 2 == len(message.recipients)
    assert json.loads(octets) == json.loads(message.to_sidecar())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"recipient900@d.example"', b'"recipient900@d.example'),
        (b'"recipient900@d.example"', b"900"),
        (b'"recipient900@d.example", "state": "pending"', b'"a@b", "state": "gone"'),
        (b'"recipient900@d.example", "state": "pending"', b'"a@b", "state": ["pending"]'),
        (b'"recipient900@d.example"', b'"recipient900@d.example\xff"'),
        (b'"revision": 0', b'"revision": -1'),
        (b'"revision": 0', b'"revision": 0, "recipients": []'),
        (b"[]}\n}", b"[]}\n"),
        (b'"version": 1', b'"version": 2'),
    ],
)
def test_damage_is_told_as_of_a_small_one(before: bytes, after: bytes) -> None:
    """With the words, and the place, that reading it as a whole gives."""
    octets = sidecar.encode(record())
    assert 1 == octets.count(before)
    octets = octets.replace(before, after)
    with pytest.raises(DamagedMessageError) as whole:
        sidecar_reading.decode(octets, ID)
    with pytest.raises(DamagedMessageError) as by_line:
        Message.from_sidecar(io.BytesIO(octets), ID)
    assert str(whole.value) == str(by_line.value)


def test_a_sidecar_that_is_cut_is_damaged() -> None:
    """Wherever: in the list, in a line, behind the list."""
    octets = sidecar.encode(record())
    for end in (70_000, octets.rindex(b"\n  {"), octets.rindex(b"}],"), len(octets) - 3):
        with pytest.raises(DamagedMessageError, match="not JSON"):
            Message.from_sidecar(octets[:end], ID)


changes = st.lists(
    st.tuples(
        st.integers(0, 2 * AT_ONCE + 2),
        st.builds(
            Recipient,
            st.sampled_from(["a@b", '"é\\"@c']),
            st.sampled_from([PENDING, DELIVERED, FAILED]),
            st.none() | st.text(max_size=9),
            st.dictionaries(st.sampled_from([DOUBTS, SUSPENDED_UNTIL, "x"]), st.integers(1, 9)),
        ),
    ),
    max_size=20,
)


@settings(max_examples=25)
@given(changes)
def test_they_behave_as_a_list(several: list[tuple[int, Recipient]]) -> None:
    """After any changes, made to a copy, of which the original knows nothing."""
    model = [Recipient(f"{n}@d") for n in range(2 * AT_ONCE + 3)]
    original = ManyRecipients(model)
    before, found = tuple(model), original.copy()
    for index, one in several:
        model[index] = found[index] = one
    assert (found == tuple(model), original == before) == (True, True)
    assert (model[-1], tuple(model[95:105])) == (found[-1], found[95:105])
    assert {one.state for one in model} == found.states
    assert [n for n, one in enumerate(model) if one.suspended_until] == [*found.suspended]
    for state in (PENDING, DELIVERED, FAILED):
        assert [n for n, one in enumerate(model) if state == one.state] == [
            *found.indexes_in(state)
        ]
    unmarked = found.indexes_in(PENDING, lambda one: "x" not in one.unknown)
    assert [
        n for n, one in enumerate(model) if PENDING == one.state and "x" not in one.unknown
    ] == [*unmarked]


def test_the_memory_for_reading_and_writing() -> None:
    """Counted, with the sidecar in a file: a fraction of what the sidecar has for each."""
    count = 10_000
    file = io.BytesIO(sidecar.encode(record(count)))
    tracemalloc.start()
    try:
        message = Message.from_sidecar(file, ID)
        for _ in message.sidecar_blocks():
            pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100 * count
