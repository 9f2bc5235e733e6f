"""What every store promises of messages: the way in, claims, records, and what people see."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import NoSuchMessageError
from picoqmail.home.limits import Limits
from picoqmail.layout import CUR, NEW, STATES, UNDELIVERED
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Event
from picoqmail.value import evolve
from temporary_home import HOST, MESSAGE

if TYPE_CHECKING:
    from picoqmail.spool.message import Message
    from picoqmail.store.protocol import ClaimedMessage, Store
    from store.conformance.conftest import Accepting, Opener

FOREIGN = "1700000000.M1P1Q1R00.none.test"


def claimed(store: Store, message_id: str) -> ClaimedMessage:
    """A claim that must be given."""
    claim = store.claim(message_id, STATES)
    assert claim is not None
    return claim


def deferred(message: Message, due: int) -> Message:
    """The message as it is after an attempt that failed for now."""
    return message.with_event(
        Event(due, "relay.test", "deferred", "451 4.3.0 later"),
        attempts=message.attempts + 1,
        next_attempt=due,
        revision=message.revision + 1,
    )


def test_what_was_accepted_is_there(store: Store, opener: Opener, accepted: Accepting) -> None:
    """Due at once, whole, and the same for every process."""
    message_id = accepted()
    other = opener()
    assert [message_id] == other.due(10, (NEW, CUR)) == store.due(10, (NEW,))
    assert [] == store.due(10, (CUR,))
    state, message = other.read(message_id)
    assert (NEW, "a@example.org") == (state, message.sender)
    assert ["b@example.net"] == [one.address for one in message.recipients]
    octets = b"".join(other.body(message_id))
    first, _, rest = octets.partition(b"\n")
    assert first.startswith(b"Received: by " + HOST.encode())
    assert (rest, len(octets)) == (MESSAGE, message.size)
    other.check_body(message)
    assert other.is_whole(message_id)


def test_a_message_that_is_not_committed_never_was(store: Store) -> None:
    """The end of the block takes it back, large or small, prepared or not."""
    uid, pid = os.getuid(), os.getpid()
    for octets, is_prepared in ((10, False), (10, True), (5_000_000, False), (5_000_000, True)):
        with store.incoming(Limits(HOST), program="trial", uid=uid, pid=pid) as incoming:
            incoming.write(b"x" * octets)
            if is_prepared:
                incoming.prepare("a@example.org", ["b@example.net"])
        assert {} == store.names()
        assert [] == store.due(10, (NEW, CUR))


@pytest.mark.parametrize("octets", [0, 1, 262_144, 3_000_000])
def test_bodies_of_any_size_are_what_they_were(
    store: Store, accepted: Accepting, octets: int
) -> None:
    """One chunk, many, or what is larger than a process holds."""
    body = bytes(range(256)) * (octets // 256) + b"\n" * (octets % 256)
    message_id = accepted(message=body)
    claim = claimed(store, message_id)
    assert body == b"".join(claim.blocks()).partition(b"\n")[2]
    assert claim.newlines == body.count(b"\n") + 1
    assert claim.eight_bit == (octets >= 256)
    claim.release()


def test_one_process_has_a_message(store: Store, opener: Opener, accepted: Accepting) -> None:
    """Until it is released; what is due leaves it out, or its claim does."""
    message_id = accepted()
    other = opener()
    claim = claimed(store, message_id)
    assert None is other.claim(message_id)
    claim.release()
    claimed(other, message_id).release()


def test_many_claimers_get_each_message_once(
    opener: Opener, accepted: Accepting, store: Store
) -> None:
    """Four at once, over the same list."""
    ids = [accepted() for _ in range(20)]
    got: list[str] = []

    def take() -> None:
        own = opener()
        for message_id in ids:
            claim = own.claim(message_id)
            if claim is not None:
                got.append(message_id)
                own.remove(claim)
                claim.release()
        own.flush()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(ids) == sorted(got)
    assert {} == store.names()


def test_what_is_not_there_is_none(store: Store, accepted: Accepting) -> None:
    """No such message, or one in another state."""
    assert None is store.claim(FOREIGN)
    with pytest.raises(NoSuchMessageError):
        store.find(FOREIGN)
    with pytest.raises(NoSuchMessageError):
        store.read(FOREIGN)
    with pytest.raises(NoSuchMessageError):
        store.destroy(FOREIGN)
    assert None is store.claim(accepted(), (UNDELIVERED,))


def test_a_record_moves_the_message(store: Store, opener: Opener, accepted: Accepting) -> None:
    """Deferred to cur/, failed for good to undelivered/; what relays said is kept."""
    message_id = accepted()
    now = int(store.clock())
    claim = claimed(store, message_id)
    claim = store.record(claim, deferred(claim.message, now + 60), CUR, "451 later\n")
    assert CUR == claim.state
    claim.release()
    other = opener()
    assert [CUR] == other.where(message_id)
    assert [] == other.due(10, (NEW, CUR))
    due = other.next_due()
    assert due is not None
    assert abs(due - now - 60) < 5
    claim = claimed(other, message_id)
    assert (1, 1) == (claim.message.attempts, len(claim.message.history))
    (one,) = claim.message.recipients
    failed = evolve(claim.message, recipients=(evolve(one, state=FAILED, reply="550 no"),))
    other.record(claim, failed, UNDELIVERED, "550 no\n").release()
    assert ([UNDELIVERED], "451 later\n550 no\n") == (
        store.where(message_id),
        store.read_result(message_id),
    )
    assert {message_id: UNDELIVERED} == store.names()


def test_the_result_is_bounded(store: Store, accepted: Accepting) -> None:
    """The oldest goes, by whole lines."""
    claim = claimed(store, accepted())
    for number in range(4):
        text = "".join(f"{number} {line:05}\n" for line in range(4000))
        claim = store.record(claim, claim.message, CUR, text)
    claim.release()
    kept = store.read_result(claim.message.id)
    assert len(kept) <= 65536
    assert kept.startswith("[...]\n")
    assert kept.endswith("3 03999\n")


def test_held_is_not_due(store: Store, accepted: Accepting) -> None:
    """Whatever its time says."""
    claim = claimed(store, accepted())
    held = evolve(claim.message, held=True, next_attempt=1)
    store.record(claim, held, CUR).release()
    assert [] == store.due(10, (NEW, CUR))
    assert None is store.next_due()


def test_a_message_may_be_put_off(store: Store, accepted: Accepting) -> None:
    """Without being read; its claim overrules that."""
    message_id = accepted()
    claim = claimed(store, message_id)
    store.record(claim, deferred(claim.message, 1), CUR).release()
    assert [message_id] == store.due(10, (CUR,))
    store.put_off(message_id, int(store.clock()) + 3600)
    assert [] == store.due(10, (CUR,))
    claim = claimed(store, message_id)
    store.repeat_due_time(claim)
    claim.release()
    assert [message_id] == store.due(10, (CUR,))


def test_a_time_of_the_future_is_kept(store: Store, accepted: Accepting) -> None:
    """A message with a time belongs to cron."""
    when = int(store.clock()) + 3600
    message_id = accepted(next_attempt=when)
    assert [CUR] == store.where(message_id)
    assert [] == store.due(10, (NEW, CUR))


def test_removed_is_gone(store: Store, opener: Opener, accepted: Accepting) -> None:
    """With its result and its progress."""
    message_id = accepted(["b@example.net", "c@example.net"])
    claim = claimed(store, message_id)
    claim = store.record(claim, deferred(claim.message, 1), CUR, "451 later\n")
    claim = store.note_progress(claim, {0: (DELIVERED, "250 ok")})
    store.remove(claim)
    claim.release()
    store.flush()
    other = opener()
    assert ({}, "") == (other.names(), other.read_result(message_id))


def test_progress_outlives_its_process(store: Store, opener: Opener, accepted: Accepting) -> None:
    """The next claim knows who was served; a record contains it."""
    message_id = accepted(["b@example.net", "c@example.net", "d@example.net"])
    claim = claimed(store, message_id)
    claim = store.note_progress(claim, {0: (DELIVERED, "250 ok")})
    claim = store.note_progress(claim, {2: (FAILED, "550 no")})
    claim.release()
    other = opener()
    claim = claimed(other, message_id)
    assert claim.has_progress
    assert [DELIVERED, PENDING, FAILED] == [one.state for one in claim.message.recipients]
    claim = other.record(claim, evolve(claim.message, revision=1), CUR)
    assert not claim.has_progress
    claim.release()
    claim = claimed(store, message_id)
    assert not claim.has_progress
    assert [DELIVERED, PENDING, FAILED] == [one.state for one in claim.message.recipients]
    claim.release()


def test_doubt_outlives_its_process(store: Store, opener: Opener, accepted: Accepting) -> None:
    """Marked before the final dot, found by the next claim, taken back by the reply or a record."""
    message_id = accepted()
    claim = claimed(store, message_id)
    marks = [claim.is_marked]
    claim.mark_in_doubt()
    assert [False, True] == [*marks, claim.is_marked]
    claim.release()
    other = opener()
    claim = claimed(other, message_id)
    assert claim.was_in_doubt
    claim.clear_doubt()
    claim.release()
    claim = claimed(store, message_id)
    assert not claim.was_in_doubt
    claim.mark_in_doubt()
    store.record(claim, claim.message, CUR).release()
    claim = claimed(other, message_id)
    assert not claim.was_in_doubt
    claim.release()


def test_an_administrator_removes_anything(
    store: Store, opener: Opener, accepted: Accepting
) -> None:
    """But not what another process has."""
    message_id = accepted()
    other = opener()
    claim = claimed(other, message_id)
    assert not store.destroy(message_id)
    claim.release()
    assert store.destroy(message_id)
    store.flush()
    assert {} == other.names()


def test_unknown_keys_stay(store: Store, accepted: Accepting) -> None:
    """What a later version wrote is kept when a sidecar is rewritten."""
    message_id = accepted(later={"a": [1, "ü"]})
    claim = claimed(store, message_id)
    store.record(claim, deferred(claim.message, 1), CUR).release()
    _, message = store.read(message_id)
    assert {"a": [1, "ü"]} == message.unknown["later"]
    sidecar = store.sidecar(message_id, CUR)
    assert sidecar is not None
    assert message_id.encode() in sidecar


def test_figures_count_what_is_there(store: Store, accepted: Accepting) -> None:
    """By state; held ones apart; the oldest that waits."""
    first = accepted()
    claim = claimed(store, accepted())
    store.record(claim, deferred(claim.message, 1), CUR).release()
    claim = claimed(store, accepted())
    store.record(claim, evolve(claim.message, held=True), CUR).release()
    claim = claimed(store, accepted())
    store.record(claim, claim.message, UNDELIVERED).release()
    figures = store.figures(store.clock())
    assert {NEW: 1, CUR: 2, UNDELIVERED: 1} == {
        name: heap.messages for name, heap in figures.heaps.items()
    }
    assert (1, 1) == (figures.held, figures.due)
    assert figures.heaps[NEW].octets > len(MESSAGE)
    assert figures.heaps[NEW].oldest == int(first.partition(".")[0])


def test_due_takes_the_next_ones(store: Store, accepted: Accepting) -> None:
    """As many as are asked for, the oldest first, without those that were seen."""
    ids = [accepted() for _ in range(5)]
    assert ids[:2] == store.due(2, (NEW,))
    assert ids[2:4] == store.due(2, (NEW,), ids[:2])
    assert [] == store.due(2, (NEW,), ids)


def test_old_failures_go(store: Store, opener: Opener, accepted: Accepting) -> None:
    """Only from undelivered/, and only what has lain there for so long."""
    accepted()
    claim = claimed(store, accepted())
    store.record(claim, claim.message, UNDELIVERED).release()
    assert 0 == store.purge(3600)
    assert 2 == len(opener().names())


def test_all_messages_are_walked_in_both_directions(store: Store, accepted: Accepting) -> None:
    """Each once with its state, oldest first or newest first."""
    ids = [accepted() for _ in range(4)]
    claim = claimed(store, ids[2])
    store.record(claim, claim.message, CUR).release()
    expected = [(one, CUR if one == ids[2] else NEW) for one in ids]
    assert expected == list(store.walk())
    assert expected[::-1] == list(store.walk(newest_first=True))
    assert expected == list(store.names().items())
