"""The verbs of the library on mail that is in the spool, with real relays."""

from __future__ import annotations

from typing import Any

import pytest

import picoqmail
from rig import faults
from rig.hostile import HostileRelay
from temporary_home import FROM_A_TO_B, TemporaryHome


@pytest.fixture
def spool(home: TemporaryHome) -> picoqmail.Spool:
    """Its spool, as a program has it."""
    return picoqmail.Spool(home.root, send=False)


def test_deliver_tells_its_events(home: TemporaryHome, spool: picoqmail.Spool, relay: Any) -> None:
    """Delivery within the process brings the mail to the relay and tells a function of it."""
    home.setting("relayip", relay.address)
    receipt = spool.enqueue(b"Subject: x\n\nbody\n", **FROM_A_TO_B)
    told: list[tuple[str, dict[str, object]]] = []
    summary = spool.deliver(on_event=lambda name, facts: told.append((name, facts)))
    assert 1 == summary.delivered
    assert repr(summary).startswith("Summary(delivered=1, deferred=0, ")
    (got,) = relay.wait_for(1)
    assert b"body" in got.content
    assert [] == home.files()
    assert [receipt.id] == [facts["id"] for name, facts in told if name == "delivered"]


def test_a_listener_that_raises_harms_no_mail(
    home: TemporaryHome, spool: picoqmail.Spool, relay: Any
) -> None:
    """The mail is delivered and recorded, then the error is told."""
    home.setting("relayip", relay.address)
    spool.enqueue(b"", **FROM_A_TO_B)

    def broken(name: str, facts: dict[str, object]) -> None:
        raise RuntimeError(name, facts)

    with pytest.raises(RuntimeError):
        spool.deliver(on_event=broken)
    assert [] == home.files()
    assert 1 == len(relay.wait_for(1))


def test_the_life_of_a_deferred_message(
    home: TemporaryHome, spool: picoqmail.Spool, rig: Any
) -> None:
    """Listed, shown, held, released, retried, failed, requeued, deleted: as on the command line."""
    server = rig(HostileRelay({"RCPT": faults.reply("451 4.3.0 later")}))
    home.setting("relayip", server.address)
    receipt = spool.enqueue(b"x\n", **FROM_A_TO_B)
    assert receipt.id is not None
    assert ["new"] == [one.state for one in spool.list()]
    assert 1 == spool.deliver().deferred
    entry = spool.get(receipt.id)
    assert "cur" == entry.state
    assert entry.message is not None
    assert 1 == entry.message.attempts
    assert "451" in spool.result(receipt.id)
    assert b"".join(spool.body(receipt.id)).endswith(b"\nx\n")
    assert 0 == spool.deliver().deferred, "not due"
    assert "done" == spool.hold(receipt.id).result
    assert [receipt.id] == [one.id for one in spool.list("held")]
    assert "refused" == spool.retry(receipt.id).result
    assert "done" == spool.release(receipt.id).result
    assert 1 == spool.deliver().deferred
    assert "done" == spool.retry(receipt.id).result
    assert 1 == spool.status().waiting
    assert [] == list(spool.list(sender="@other.example"))
    assert [receipt.id] == [one.id for one in spool.list("cur", error="later")]
    assert "done" == spool.delete(receipt.id).result
    for verb in (spool.get, spool.retry, spool.delete, spool.body, spool.result):
        with pytest.raises(picoqmail.NoSuchMessageError):
            verb(receipt.id)
    with pytest.raises(ValueError, match="not a state"):
        spool.list("nonsense")


def test_requeue(home: TemporaryHome, spool: picoqmail.Spool, rig: Any) -> None:
    """A message that failed for good gets a new life."""
    refusal = [faults.reply("550 5.1.1 nobody"), None]
    server = rig(HostileRelay({"RCPT": refusal}))
    home.setting("relayip", server.address)
    home.setting("bounces", "off")
    receipt = spool.enqueue(b"x\n", **FROM_A_TO_B)
    assert receipt.id is not None
    assert 1 == spool.deliver().failed
    assert "undelivered" == spool.get(receipt.id).state
    assert "done" == spool.requeue(receipt.id).result
    assert 1 == spool.deliver().delivered
    assert [] == home.files()
