"""Records of idempotency keys: what is one, what is none, and who may have it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.errors import MessageError, SpoolError
from picoqmail.layout import BODY, IDEMPOTENCY, NEW
from picoqmail.spool import keys
from picoqmail.spool.keys import KEY_LIMIT_OCTETS, KeyRecord, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from temporary_home import TemporaryHome

NOW = 1_700_000_000
HOUR = 3600
MOST_SECONDS = 2**53 - 1
RECORD: dict[str, Any] = {"id": "1.a", "fingerprint": "1:x", "expires": NOW + 100}


@pytest.fixture
def record(home: TemporaryHome) -> Iterator[KeyRecord]:
    """The record of a key, empty and locked."""
    found = KeyRecord(home.spool, "key")
    yield found
    found.close()


def found_of(record: KeyRecord, said: object) -> dict[str, Any] | None:
    """Return what the key stands for if its file says this, and its message came long ago."""
    record.arrived()
    with open(record._path, "w", encoding="utf-8") as file:
        json.dump(said, file)
    return record.find(NOW)


@pytest.mark.parametrize("more", [{}, {"size": 0, "created": MOST_SECONDS, "next_attempt": 0.5}])
def test_what_is_a_record(record: KeyRecord, more: dict[str, object]) -> None:
    """The ID, the fingerprint and when it expires are enough."""
    assert {**RECORD, **more} == found_of(record, {**RECORD, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"id": 1},
        {"id": None},
        {"id": "../1.a"},
        {"fingerprint": 1},
        {"expires": "soon"},
        {"expires": -1},
        {"created": MOST_SECONDS + 1},
        {"size": "large"},
    ],
)
def test_what_is_no_record(record: KeyRecord, more: dict[str, object]) -> None:
    """Nothing relies on it: it is as if the key had never been used."""
    assert found_of(record, {**RECORD, **more}) is None


@pytest.mark.parametrize("missing", RECORD)
def test_a_record_without_a_key_of_it_is_none(record: KeyRecord, missing: str) -> None:
    """Each of the three is needed."""
    assert found_of(record, {k: v for k, v in RECORD.items() if k != missing}) is None


def test_a_key_has_a_longest_length() -> None:
    """In octets of UTF-8; and it is not empty."""
    assert KEY_LIMIT_OCTETS == 1024
    assert name_of("k" * KEY_LIMIT_OCTETS) != name_of("k" * (KEY_LIMIT_OCTETS - 1))
    for key in ("k" * (KEY_LIMIT_OCTETS + 1), "", None):
        with pytest.raises(MessageError, match="1 to 1024 bytes"):
            name_of(key)


def test_a_short_record_takes_the_place_of_a_long_one(record: KeyRecord) -> None:
    """Of what stood there before nothing is left."""
    record.intend({**RECORD, "fingerprint": "1:" + "x" * 100})
    record.intend(RECORD)
    record.arrived()
    assert {"version": 1, "key": "key", **RECORD} == record.find(NOW)


@pytest.mark.usefixtures("record")
def test_a_key_in_hand_is_waited_for_in_vain(home: TemporaryHome) -> None:
    """The error names the key's file; the same may be tried again."""
    with pytest.raises(SpoolError, match="lock the idempotency key in") as caught:
        KeyRecord(home.spool, "key", patience=0.0)
    assert not caught.value.permanent


def test_a_key_that_was_let_go_is_free_though_a_child_has_its_file(home: TemporaryHome) -> None:
    """As after a fork: the lock goes with us, and our descriptor, too."""
    before = len(os.listdir("/proc/self/fd"))
    record = KeyRecord(home.spool, "key")
    inherited = os.dup(record._descriptor)
    record.close()
    KeyRecord(home.spool, "key", patience=0.0).close()
    os.close(inherited)
    assert before == len(os.listdir("/proc/self/fd"))


def test_an_odd_umask_withholds_no_record(home: TemporaryHome) -> None:
    """Callers are applications: the next one must be able to open the file."""
    before = os.umask(0o777)
    try:
        record = KeyRecord(home.spool, "key")
    finally:
        os.umask(before)
    assert 0o600 == os.stat(record._path).st_mode & 0o777
    record.close()


def test_whether_a_message_came_may_be_unknown(home: TemporaryHome, record: KeyRecord) -> None:
    """Then the call fails, and is to be tried again: a guess might enqueue twice, or never."""
    record.intend(RECORD)
    os.rmdir(f"{home.spool}/{NEW}")
    os.close(os.open(f"{home.spool}/{NEW}", os.O_CREAT))
    with pytest.raises(SpoolError, match="read"):
        record.find(NOW)


def test_keys_are_swept_once_an_hour(home: TemporaryHome) -> None:
    """To the second."""
    record = KeyRecord(home.spool, "key")
    record.intend(RECORD)
    record.arrived()
    record.close()
    swept = [keys.sweep(home.spool, NOW + 50 + seconds) for seconds in (0, HOUR - 1, HOUR)]
    assert [0, 0, 1] == swept
    assert [".swept"] == os.listdir(f"{home.spool}/{IDEMPOTENCY}")


def test_a_moment_after_a_sweep_none_is_due(home: TemporaryHome) -> None:
    """Not even in the same second."""
    for key in ("one", "two"):
        record = KeyRecord(home.spool, key)
        record.intend({**RECORD, "expires": NOW})
        record.arrived()
        record.close()
        assert (key == "one") == keys.sweep(home.spool, NOW + 100)


def test_a_link_is_no_record(home: TemporaryHome) -> None:
    """Whatever it leads to, the sweep neither follows it nor stops there."""
    record = KeyRecord(home.spool, "key")
    record.intend({**RECORD, "expires": NOW})
    record.arrived()
    record.close()
    old = f"{home.root}/old"
    with open(old, "wb"):
        os.utime(old, (NOW, NOW))
    directory = f"{home.spool}/{IDEMPOTENCY}"
    for number in range(3):
        os.symlink(old, f"{directory}/to a file {number}")
        os.symlink(f"{directory}/loop {number}", f"{directory}/loop {number}")
    assert 1 == keys.sweep(home.spool, NOW + 100)
    assert 7 == len(os.listdir(directory))


def test_what_is_gone_was_not_swept(home: TemporaryHome) -> None:
    """Another run removed it between two looks."""
    assert not keys._sweep_one(home.spool, f"{home.spool}/{IDEMPOTENCY}/none", NOW)


def test_a_message_is_delivered_whose_body_is_still_there(
    home: TemporaryHome, record: KeyRecord
) -> None:
    """The sidecar goes first: without one, and with none on its way, the message came."""
    record.intend(RECORD)
    os.close(os.open(home.path(NEW, "1.a", BODY), os.O_CREAT))
    assert record.find(NOW) is not None


def test_a_key_expires_at_its_second(home: TemporaryHome) -> None:
    """And one that says nothing goes at once, if nobody has it."""
    for key in ("key", "other"):
        record = KeyRecord(home.spool, key)
        if key == "key":
            record.intend(RECORD)
            record.arrived()
        record.close()
    assert 2 == keys.sweep(home.spool, RECORD["expires"])
