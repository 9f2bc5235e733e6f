"""A relay that is slow with one message: what comes meanwhile does not wait for it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import NEW
from rig.hostile import OFFERS, HostileRelay
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from rig.faults import Fault, Line
    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

PATIENCE_SECONDS = 120
SLOW = "slow@d"


class Slow:
    """A fault that keeps the reply back until `go` is set, or patience has ended."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def fault(self) -> Fault:
        """Return the fault, for one occurrence."""

        def act(line: Line, ordinary: bytes) -> bool:
            self.begun.set()
            self.go.wait(PATIENCE_SECONDS)
            line.send(ordinary)
            return True

        return act


def queued(trial: Trial, recipient: str) -> None:
    """Queue a message for which a sender is started, unless there is one."""
    ran = trial.queue(
        envelope=b"Fa@example.org\0T" + recipient.encode() + b"\0\0", env=trial.sending()
    )
    assert (0, b"") == (ran.returncode, ran.stderr)


def arrived(*relays: HostileRelay) -> list[str]:
    """The recipients of all messages whose end has arrived, and was replied to."""
    messages = [message for relay in relays for message in relay.messages if message.reply]
    return [message.recipients[0] for message in messages]


def wait_for(count: int, relay: HostileRelay) -> None:
    """Wait until so many messages have arrived."""
    wait_until(lambda: len(arrived(relay)) >= count, "it does not wait", PATIENCE_SECONDS / 2)


@pytest.mark.parametrize("offers", [OFFERS, (*OFFERS, "CHUNKING"), None])
@pytest.mark.parametrize("step", [".", "MAIL", "DATA"])
def test_new_mail_does_not_wait(
    trial: Trial, rig: Rig, step: str, offers: tuple[str, ...] | None
) -> None:
    """One connection waits for a reply. Another one of the same run takes what has come since."""
    if step == "DATA" and offers and "CHUNKING" in offers:
        step = "RCPT"
    slow = Slow()
    relay = rig(HostileRelay({step: [slow.fault()]}, offers=offers))
    trial.setting("relayip", relay.address)
    queued(trial, SLOW)
    assert slow.begun.wait(PATIENCE_SECONDS)
    for number in range(3):
        queued(trial, f"r{number}@d")
        wait_for(number + 1, relay)
    assert not slow.go.is_set()
    assert SLOW not in arrived(relay)
    slow.go.set()
    trial.wait_for_senders()
    assert sorted([SLOW, "r0@d", "r1@d", "r2@d"]) == sorted(arrived(relay))
    assert [] == trial.ids(NEW)
    # One sender did it all.
    assert 1 == len({event["pid"] for event in trial.events("delivered")})


@pytest.mark.parametrize("offers", [OFFERS, (*OFFERS, "CHUNKING")])
def test_mail_behind_the_slow_one(trial: Trial, rig: Rig, offers: tuple[str, ...]) -> None:
    """What was pipelined behind the final dot is taken by another connection, too."""
    slow = Slow()
    relay = rig(HostileRelay({".": [slow.fault()]}, offers=offers))
    trial.setting("relayip", relay.address)
    trial.accepted(recipients=[SLOW])
    trial.accepted(recipients=["r0@d"])
    sender = trial.start("send")
    try:
        assert slow.begun.wait(PATIENCE_SECONDS)
        wait_for(1, relay)
        assert ["r0@d"] == arrived(relay)
    finally:
        slow.go.set()
        assert 0 == sender.wait(PATIENCE_SECONDS)
    assert ["r0@d", SLOW] == arrived(relay)
    assert [] == trial.events("deferred") + trial.events("in_doubt")


def test_mail_for_another_route(trial: Trial, rig: Rig) -> None:
    """Nor does it wait where another relay than the slow one is for it."""
    slow = Slow()
    relay = rig(HostileRelay({".": [slow.fault()]}))
    other = rig(HostileRelay())
    trial.setting("relayip", relay.address)
    trial.setting("smtproutes", f"other:{other.address}")
    queued(trial, SLOW)
    assert slow.begun.wait(PATIENCE_SECONDS)
    for number in range(2):
        queued(trial, f"r{number}@other")
        wait_for(number + 1, other)
    slow.go.set()
    trial.wait_for_senders()
    assert ["r0@other", "r1@other"] == arrived(other)
    assert [SLOW] == arrived(relay)


def test_while_cron_waits(trial: Trial, rig: Rig) -> None:
    """A run of cron that has the sender's lock takes new mail, too."""
    slow = Slow()
    relay = rig(HostileRelay({".": [slow.fault()]}))
    trial.setting("relayip", relay.address)
    message_id = trial.deferred(next_attempt=1)
    trial.queued()
    cron = trial.start("cron", env=trial.sending())
    try:
        assert slow.begun.wait(PATIENCE_SECONDS)
        wait_for(1, relay)
        queued(trial, "r0@d")
        wait_for(2, relay)
        assert os.path.exists(trial.path("cur", message_id))
    finally:
        slow.go.set()
        assert 0 == cron.wait(PATIENCE_SECONDS)
    trial.wait_for_senders()
    assert 3 == len(arrived(relay))


def test_while_another_process_waits(trial: Trial, rig: Rig) -> None:
    """Nor does it wait for one of several processes of a run."""
    slow = Slow()
    relay = rig(HostileRelay({"RCPT <slow@d>": [slow.fault()]}))
    trial.setting("relayip", relay.address)
    # The second of two is for the second process.
    recipients = ["r@d", SLOW] + ["r@d"] * 420
    for recipient in recipients:
        trial.accepted(recipients=[recipient])
    sender = trial.start("send")
    try:
        assert slow.begun.wait(PATIENCE_SECONDS)
        wait_for(420, relay)
        queued(trial, "late@d")
        wait_until(lambda: "late@d" in arrived(relay), "it does not wait", PATIENCE_SECONDS / 2)
        assert SLOW not in arrived(relay)
    finally:
        slow.go.set()
        assert 0 == sender.wait(PATIENCE_SECONDS)
    trial.wait_for_senders()
    assert len(recipients) + 1 == len(arrived(relay))
