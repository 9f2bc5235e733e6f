"""What administrators and applications do, by the library, on every store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import picoqmail
from picoqmail.errors import KeyReusedError, NoSuchMessageError
from picoqmail.layout import CUR, NEW, UNDELIVERED

if TYPE_CHECKING:
    from picoqmail.home.paths import Home
    from picoqmail.store.protocol import Store

MESSAGE = b"From: a@example.org\nTo: b@example.net\nSubject: trial\n\nbody\n"


@pytest.fixture
def spool(home: Home) -> picoqmail.Spool:
    """The spool, as an application has it."""
    return picoqmail.Spool(home, send=False)


def put(spool: picoqmail.Spool, text: bytes = b"", **more: str) -> picoqmail.Receipt:
    """Enqueue a message."""
    return spool.enqueue(MESSAGE + text, **more)  # type: ignore[arg-type]


def test_one_message_and_many(spool: picoqmail.Spool) -> None:
    """Each has a receipt, is listed by age, and says what it is."""
    first = put(spool)
    outcomes = spool.enqueue_many([MESSAGE + b"%d" % number for number in range(30)])
    assert 30 == len(outcomes.receipts)
    assert [] == outcomes.errors
    ids = [one.id for one in spool.list()]
    assert sorted(ids) == ids
    assert {first.id, *(one.id for one in outcomes.receipts)} == set(ids)
    assert list(reversed(ids)) == [one.id for one in spool.list(newest_first=True)]
    entry = spool.get(first.id)
    assert (NEW, "a@example.org") == (entry.state, entry.message and entry.message.sender)
    assert first.size == len(b"".join(spool.body(first.id)))
    assert "" == spool.result(first.id)


def test_one_bad_message_never_stops_the_others(spool: picoqmail.Spool) -> None:
    """The good ones are accepted; each bad one has its own error."""
    outcomes = spool.enqueue_many([MESSAGE, b"Subject: for nobody\n\n", MESSAGE])
    assert [True, False, True] == [isinstance(one, picoqmail.Receipt) for one in outcomes]
    assert 2 == len(list(spool.list()))


def test_a_key_enqueues_once(spool: picoqmail.Spool) -> None:
    """The second call gets the first receipt; another message of that key is refused."""
    first = put(spool, idempotency_key="order 7")
    again = put(spool, idempotency_key="order 7")
    assert (first.id, True) == (again.id, again.repeated)
    with pytest.raises(KeyReusedError):
        put(spool, b"another", idempotency_key="order 7")
    other = spool.enqueue(MESSAGE + b"another", idempotency_key="order 7", on_reuse="return")
    assert (first.id, True) == (other.id, other.repeated)
    assert put(spool, idempotency_key="order 8").id != first.id
    assert 2 == len(list(spool.list()))


def test_a_key_outlives_its_message(spool: picoqmail.Spool) -> None:
    """Delivered or deleted meanwhile: still the same receipt."""
    first = put(spool, idempotency_key="order 7")
    spool.delete(first.id)
    assert (first.id, True) == (
        put(spool, idempotency_key="order 7").id,
        put(spool, idempotency_key="order 7").repeated,
    )
    assert [] == list(spool.list())


def test_many_callers_of_one_key(spool: picoqmail.Spool) -> None:
    """At the same moment: one message, and all know its ID."""
    receipts: list[picoqmail.Receipt] = []

    def call() -> None:
        receipts.append(put(spool, idempotency_key="same"))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert 8 == len(receipts)
    assert 1 == len({one.id for one in receipts}) == len(list(spool.list()))
    assert 7 == sum(one.repeated for one in receipts)


def test_keys_in_a_group(spool: picoqmail.Spool) -> None:
    """The same key twice in one call: the second one repeats the first."""
    mails = [picoqmail.Mail(MESSAGE, idempotency_key=key) for key in ("a", "b", "a")]
    outcomes = spool.enqueue_many(mails)
    assert [False, False, True] == [one.repeated for one in outcomes.receipts]
    assert outcomes.receipts[0].id == outcomes.receipts[2].id
    assert 2 == len(list(spool.list()))


def test_prepared_is_not_sent(spool: picoqmail.Spool, store: Store) -> None:
    """Before its commit it is no message; after an abort it never was."""
    pending = spool.prepare(MESSAGE)
    assert [] == list(spool.list())
    receipt = pending.commit()
    assert [pending.id] == [receipt.id] == [one.id for one in spool.list()]
    with spool.prepare(MESSAGE):
        pass
    assert [receipt.id] == [one.id for one in spool.list()]
    assert [receipt.id] == store.due(10, (NEW,))


def test_what_an_administrator_does(spool: picoqmail.Spool, store: Store) -> None:
    """hold, release, retry, requeue, delete; each is in the history, and explained."""
    receipt = put(spool)
    assert "done" == spool.hold(receipt.id).result
    assert [receipt.id] == [one.id for one in spool.list("held")]
    assert [] == store.due(10, (NEW, CUR))
    assert "held" in spool.explain(receipt.id)
    assert "done" == spool.release(receipt.id).result
    assert [receipt.id] == store.due(10, (CUR,))
    claim = store.claim(receipt.id)
    assert claim is not None
    store.record(claim, claim.message, UNDELIVERED).release()
    assert [receipt.id] == [one.id for one in spool.list(UNDELIVERED)]
    assert "done" == spool.requeue(receipt.id).result
    assert [receipt.id] == [one.id for one in spool.list(CUR)]
    assert "done" == spool.delete(receipt.id).result
    with pytest.raises(NoSuchMessageError):
        spool.get(receipt.id)
    assert 0 == spool.status().waiting


def test_filters(spool: picoqmail.Spool) -> None:
    """By sender, recipient and age."""
    one = spool.enqueue(MESSAGE, "x@one.test", ["y@two.test"])
    two = spool.enqueue(MESSAGE, "x@three.test", ["y@four.test"])
    assert [one.id] == [entry.id for entry in spool.list(sender="@one.test")]
    assert [two.id] == [entry.id for entry in spool.list(recipient="*@four.*")]
    assert [] == list(spool.list(older_than=60))
    assert 2 == len(list(spool.list(younger_than=60)))


def test_status_has_the_figures(spool: picoqmail.Spool) -> None:
    """Waiting, held, relays that are down."""
    put(spool)
    spool.hold(put(spool).id)
    found = spool.status()
    assert (2, 1, 1) == (found.waiting, found.held, found.due)
    assert {} == found.outages
