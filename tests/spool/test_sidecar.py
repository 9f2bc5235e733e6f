"""The sidecar's text: what is written is JSON, and what is read is checked."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.errors import DamagedMessageError
from picoqmail.spool import sidecar, sidecar_reading

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "1700000000.M000001P2Q3R00.me.test"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


def record(**values: object) -> dict[str, Any]:
    """A new record, with keys changed."""
    fresh = sidecar.new_record(
        ID,
        "a@b",
        ["c@d", "c@d"],
        created=1,
        next_attempt=2,
        expires=3,
        size=4,
        crc32=5,
        origin={"uid": 0, "pid": 1, "program": "trial"},
    )
    return {**fresh, **values}


def encoded(**values: object) -> bytes:
    """The JSON text of a record as another program might write it."""
    return json.dumps(record(**values)).encode()


def nested(levels: int) -> object:
    """A list in a list in a list."""
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_a_new_record_has_every_key_of_the_format() -> None:
    """Contract of format 1, to the last key."""
    assert {
        "version": 1,
        "id": ID,
        "sender": "a@b",
        "recipients": [{"address": "c@d", "state": "pending", "reply": None}] * 2,
        "created": 1,
        "next_attempt": 2,
        "expires": 3,
        "attempts": 0,
        "size": 4,
        "crc32": 5,
        "held": False,
        "history": [],
        "origin": {"uid": 0, "pid": 1, "program": "trial"},
        "revision": 0,
    } == record()


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_the_json_module_reads_what_is_written(values: dict[str, Any]) -> None:
    """Every value, quoting and escape, lone surrogates included."""
    assert values == json.loads(sidecar.encode(values))


@given(st.text(st.characters()))
def test_text_never_leaves_its_quotes(text: str) -> None:
    """One key a line, whatever stands in it: no value adds a line of its own."""
    assert 3 == sidecar.encode({text: text}).count(b"\n")


def test_what_has_no_form_in_json_is_a_bug() -> None:
    """A value of another type is told at once, not written in some form of its own."""
    with pytest.raises(TypeError, match="bytes"):
        sidecar.encode({"x": b"y"})


def test_unknown_keys_are_kept() -> None:
    """A newer picoqmail of the same format may have more to say."""
    data = encoded(dsn={"ret": "FULL"})
    assert {"ret": "FULL"} == sidecar_reading.decode(data, ID)["dsn"]


def test_times_may_have_fractions() -> None:
    """Another program may write them so; we calculate with whole seconds."""
    assert 1700000000 == sidecar_reading.decode(encoded(created=1700000000.7), ID)["created"]


DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "cut": lambda: encoded()[:-5],
    "no UTF-8": lambda: encoded(sender="a@b").replace(b"a@b", b"\xff@b"),
    "zeros": lambda: b"\0" * 300,
    "a list": lambda: b"[]",
    "a number": lambda: b"1",
    "deep": lambda: b"[" * 100000,
    "deeper than we could write": lambda: encoded(later=nested(200)),
    "deep in a recipient": lambda: encoded(
        recipients=[{"address": "c@d", "state": "pending", "reply": None, "x": nested(200)}]
    ),
    "no version": lambda: encoded(version=None),
    "version 0": lambda: encoded(version=0),
    "version 2": lambda: encoded(version=2),
    "version true": lambda: encoded(version=True),
    "version 1.0": lambda: encoded(version=1.0),
    "another's": lambda: encoded(id="1700000000.M1P1Q1R1.other"),
    "no recipient": lambda: encoded(recipients=[]),
    "recipients of text": lambda: encoded(recipients=["c@d"]),
    "recipients as an object": lambda: encoded(recipients={"c@d": "pending"}),
    "no address": lambda: encoded(recipients=[{"state": "pending", "reply": None}]),
    "an unknown state": lambda: encoded(
        recipients=[{"address": "c@d", "state": "lost", "reply": None}]
    ),
    "a state of list": lambda: encoded(recipients=[{"address": "c@d", "state": [], "reply": None}]),
    "a reply of number": lambda: encoded(
        recipients=[{"address": "c@d", "state": "pending", "reply": 250}]
    ),
    "sender null": lambda: encoded(sender=None),
    "held 1": lambda: encoded(held=1),
    "size true": lambda: encoded(size=True),
    "size negative": lambda: encoded(size=-1),
    "size with a fraction": lambda: encoded(size=4.0),
    "crc32 of text": lambda: encoded(crc32="5"),
    "attempts huge": lambda: encoded(attempts=10**400),
    "attempts negative": lambda: encoded(attempts=-1),
    "revision of text": lambda: encoded(revision="1"),
    "history of text": lambda: encoded(history=["delivered"]),
    "history an object": lambda: encoded(history={}),
    "origin of text": lambda: encoded(origin="root"),
    "created NaN": lambda: encoded(created=math.nan),
    "created infinite": lambda: encoded(created=math.inf),
    "next_attempt 1e999": lambda: encoded().replace(b'"next_attempt": 2', b'"next_attempt": 1e999'),
    "expires huge": lambda: encoded(expires=10**30),
    "expires negative": lambda: encoded(expires=-(10**30)),
    "a number of 5000 digits": lambda: encoded().replace(b'"size": 4', b'"size": ' + b"9" * 5000),
}


@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_told_and_never_guessed_at(make: Callable[[], bytes]) -> None:
    """Each kind of damage is one error whose text says what is wrong."""
    with pytest.raises(DamagedMessageError, match="its sidecar"):
        sidecar_reading.decode(make(), ID)


def test_a_version_from_the_future_is_told_as_such() -> None:
    """The administrator learns that a newer picoqmail wrote it, and what to do."""
    with pytest.raises(DamagedMessageError, match=r"version 2.*newer picoqmail"):
        sidecar_reading.decode(encoded(version=2), ID)


def test_what_we_can_read_we_can_write() -> None:
    """The deepest value that is let in comes out again."""
    data = encoded(later=nested(32), recipients=[{
        "address": "c@d", "state": "pending", "reply": None, "x": nested(31)}])  # fmt: skip
    once = sidecar_reading.decode(data, ID)
    assert once == sidecar_reading.decode(sidecar.encode(once), ID)
