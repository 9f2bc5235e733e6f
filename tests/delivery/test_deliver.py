"""Delivery, told by what it leaves: outcomes by recipient, schedule, transcripts, doubt, routes."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import BREAKER, CUR, NEW, SIDECAR, UNDELIVERED
from picoqmail.ledger.routes import DirectoryRoutes
from picoqmail.smtp.transaction import RECIPIENTS_LIMIT
from picoqmail.value import evolve
from rig import faults
from rig.hostile import HostileRelay
from rig.recording import RecordingRelay
from rig.waiting import wait_until
from trial import kill

if TYPE_CHECKING:
    from collections.abc import Callable

    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

SECONDS = 120


def look_again_in(trial: Trial, seconds: int) -> None:
    """Have the breaker's time come so many seconds from now, instead of waiting for it."""
    until = int(time.time()) + seconds
    names = list(DirectoryRoutes(trial.spool).read())
    routes = DirectoryRoutes(trial.spool, names)
    for name in names:
        routes.change(name, lambda one: one and evolve(one, until=until))


def due(trial: Trial, message_id: str) -> None:
    """Let the time of a message in cur/ have come."""
    trial.edit(message_id, next_attempt=int(time.time()) - 1)


def with_relay(trial: Trial, rig: Rig, relay: HostileRelay) -> HostileRelay:
    """Start a relay for the trial."""
    started = rig(relay)
    trial.setting("relayip", started.address)
    return started


def states(trial: Trial, message_id: str) -> list[tuple[str, str]]:
    """The recipients and their states, in order."""
    return [(one["address"], one["state"]) for one in trial.sidecar(message_id)["recipients"]]


def test_later_later_yes(trial: Trial, rig: Callable[[RecordingRelay], RecordingRelay]) -> None:
    """451, 451, 250: attempts, qmail's schedule, history and transcript; then it is gone."""
    relay = rig(RecordingRelay(answers={"DATA": ["451 4.3.0 later", "451 4.3.0 again"]}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    created = trial.sidecar(message_id)["created"]
    assert 75 == trial.send()
    record = trial.sidecar(message_id)
    assert (CUR, 1, ["deferred"]) == (
        trial.state(message_id),
        record["attempts"],
        trial.outcomes(message_id),
    )
    # The second attempt comes at an age of about 400 s: (sqrt(age) + 20) squared.
    assert 400 <= record["next_attempt"] - created < 600
    assert "451 4.3.0 later" in record["recipients"][0]["reply"]
    assert "451 4.3.0 later" in record["history"][0]["reply"]
    assert relay.address in record["history"][0]["relay"]
    transcript = trial.result(message_id)
    for line in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>", "451 4.3.0 later"):
        assert line in transcript
    # Not before its time, and not by a send that is not told which.
    trial.cron()
    assert 0 == trial.send()
    assert 1 == trial.sidecar(message_id)["attempts"]
    due(trial, message_id)
    trial.cron()
    assert (2, ["deferred"] * 2) == (
        trial.sidecar(message_id)["attempts"],
        trial.outcomes(message_id),
    )
    assert "451 4.3.0 again" in trial.result(message_id)
    due(trial, message_id)
    trial.cron()
    assert [] == trial.files()
    (message,) = relay.messages
    assert message.unix.endswith(b"Subject: trial\n\nbody\n")


def test_one_refused_of_three(
    trial: Trial, rig: Callable[[RecordingRelay], RecordingRelay]
) -> None:
    """Two delivered, one failed, nothing lost; each keeps its own reply, by index."""
    relay = rig(RecordingRelay(answers={"RCPT <two@d>": ["550 5.1.1 nobody"]}))
    trial.setting("relayip", relay.address)
    message_id = trial.accepted(recipients=["one@d", "two@d", "three@d"])
    assert 69 == trial.send()
    assert UNDELIVERED == trial.state(message_id)
    assert [("one@d", "delivered"), ("two@d", "failed"), ("three@d", "delivered")] == states(
        trial, message_id
    )
    assert ("one@d", "three@d") == relay.messages[0].recipients
    replies = [one["reply"] for one in trial.sidecar(message_id)["recipients"]]
    assert ["550" in reply for reply in replies] == [False, True, False]
    assert "550 5.1.1 nobody" in trial.result(message_id)
    (failed,) = trial.events("failed")
    assert ("two@d", message_id) == (failed["recipient"], failed["id"])
    # What failed for good is never tried again by itself.
    trial.cron()
    assert 1 == relay.connections


def test_a_later_transaction_is_for_the_pending_only(trial: Trial, rig: Rig) -> None:
    """Delivered, deferred, failed in one: the next time the deferred one alone."""
    replies = {
        "RCPT <two@d>": [faults.reply("451 4.3.0 later")],
        "RCPT <three@d>": [faults.reply("550 5.1.1 no")],
    }
    relay = with_relay(trial, rig, HostileRelay(replies))
    message_id = trial.accepted(recipients=["one@d", "two@d", "three@d"])
    assert 75 == trial.send()
    assert ["delivered", "pending", "failed"] == [state for _, state in states(trial, message_id)]
    due(trial, message_id)
    trial.cron()
    assert [("one@d",), ("two@d",)] == [message.recipients for message in relay.messages]
    assert ["delivered", "delivered", "failed"] == [s for _, s in states(trial, message_id)]
    assert UNDELIVERED == trial.state(message_id)
    assert [] == relay.complaints


def test_a_recipient_named_twice_is_two(trial: Trial, rig: Rig) -> None:
    """The first of them is refused, the second is not: kept apart by index."""
    with_relay(trial, rig, HostileRelay({"RCPT <b@d>": [faults.reply("451 4.3.0 no"), None]}))
    message_id = trial.accepted(recipients=["b@d", "b@d"])
    trial.send()
    assert [("b@d", "pending"), ("b@d", "delivered")] == states(trial, message_id)


@pytest.mark.parametrize("step", ["banner", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_421_charges_nobody(trial: Trial, rig: Rig, step: str) -> None:
    """The relay's fault at whatever step: attempts 0, nobody failed, and it is sent later."""
    relay = with_relay(trial, rig, HostileRelay({step: faults.final("421 4.3.2 shutting down")}))
    message_id = trial.queued()
    assert 75 == trial.send()
    record = trial.sidecar(message_id)
    assert (0, [("b@example.net", "pending")]) == (record["attempts"], states(trial, message_id))
    assert [] == [m for m in relay.messages if m.reply and m.reply.startswith("2")]


def test_an_absent_relay_charges_nobody_and_opens_the_breaker(trial: Trial) -> None:
    """75, attempts 0, the message where it was; the next run does not even look."""
    message_id = trial.queued()
    assert 75 == trial.send()
    record = trial.sidecar(message_id)
    assert (NEW, 0, []) == (trial.state(message_id), record["attempts"], record["history"])
    (down,) = trial.events("relay_down")
    assert "connect" == down["stage"]
    assert BREAKER in os.listdir(trial.spool)
    look_again_in(trial, 300)
    trial.cron()
    assert 75 == trial.send()
    assert 1 == len(trial.events("relay_down"))


def test_a_named_message_goes_past_an_open_breaker(
    trial: Trial, strict_relay: HostileRelay
) -> None:
    """The relay is back before its time: whoever asks by name finds out, and closes the breaker."""
    message_id = trial.queued()
    trial.send()
    trial.setting("relayip", strict_relay.address)
    assert 0 == trial.send(message_id)
    assert [] == trial.files()


def test_the_relay_is_back(trial: Trial, rig: Rig) -> None:
    """Down, then up: told once each, with one connection while it is looked at."""
    relay = with_relay(trial, rig, HostileRelay({"banner": [faults.final("421 4.3.2 no")] * 1}))
    ids = [trial.queued() for _ in range(3)]
    trial.send()
    assert ids == trial.ids(NEW)
    look_again_in(trial, -1)
    trial.cron()
    assert [] == trial.files()
    assert (1, 1) == (len(trial.events("relay_down")), len(trial.events("relay_up")))
    assert 3 == len(relay.messages)


@pytest.mark.slow
def test_a_relay_that_is_hurried(trial: Trial, rig: Rig) -> None:
    """Few messages are charged, the rest is left alone, in this run and in those after it."""
    slower = faults.reply("450 4.7.1 not so fast")
    relay = with_relay(trial, rig, HostileRelay({"MAIL": [None, *[slower] * 7]}))
    # With several connections several messages could be under way at the first refusal.
    trial.setting("concurrencyremote", "1")
    for _ in range(12):
        trial.queued()
    assert 75 == trial.send()
    assert (1, 6, 5) == (len(relay.messages), len(trial.ids(CUR)), len(trial.ids(NEW)))
    (down,) = trial.events("relay_down")
    assert ("pace", "450 4.7.1 not so fast") == (down["stage"], down["reason"])
    look_again_in(trial, 300)
    trial.cron()
    assert 7 == relay.verbs().count("MAIL")
    for charged, left in ((7, 4), (7, 0)):
        look_again_in(trial, -1)
        trial.cron()
        assert (charged, left) == (len(trial.ids(CUR)), len(trial.ids(NEW)))
    assert not os.path.exists(f"{trial.spool}/{BREAKER}")


def test_expired_with_the_last_reply(trial: Trial, rig: Rig) -> None:
    """Too old: one more attempt, then it fails and says why."""
    with_relay(trial, rig, HostileRelay({"RCPT": faults.reply("451 4.3.0 later")}))
    message_id = trial.deferred(expires=int(time.time()) - 1, next_attempt=1, attempts=30)
    trial.cron()
    assert UNDELIVERED == trial.state(message_id)
    (recipient,) = trial.sidecar(message_id)["recipients"]
    assert "failed" == recipient["state"]
    assert "expired" in recipient["reply"]
    assert "451 4.3.0 later" in recipient["reply"]
    assert ["deferred", "expired"] == trial.outcomes(message_id)
    (failed,) = trial.events("failed")
    assert failed["expired"]


@pytest.mark.parametrize("count", [1, 3])
def test_expired_in_front_of_a_relay_that_is_down(trial: Trial, count: int) -> None:
    """A relay that never comes back keeps no message for ever; a young one waits on."""
    past = int(time.time()) - 700_000
    old = [
        trial.deferred(created=past, expires=past + 604800, next_attempt=past, attempts=30)
        for _ in range(count)
    ]
    renamed = []
    for message_id in old:
        # The ID tells the age, too.
        name = f"{past}.{message_id.partition('.')[2]}"
        trial.rename(message_id, name)
        renamed.append(name)
    young = trial.deferred(next_attempt=past)
    trial.cron()
    assert sorted(renamed) == trial.ids(UNDELIVERED)
    assert [young] == trial.ids(CUR)
    for message_id in renamed:
        (recipient,) = trial.sidecar(message_id)["recipients"]
        assert "expired after 8.1 days" in recipient["reply"]
        assert "cannot connect" in recipient["reply"]


def test_a_clock_that_was_set_right_ends_no_message(trial: Trial, rig: Rig) -> None:
    """Accepted in 2001 by a board without a clock: tried as often as any other, then it fails."""
    with_relay(trial, rig, HostileRelay({"RCPT": faults.reply("451 4.7.1 greylisted")}))
    past = 1_000_000_000
    message_id = trial.deferred(created=past, expires=past + 604800, next_attempt=past, attempts=0)
    trial.cron()
    assert CUR == trial.state(message_id)
    record = trial.sidecar(message_id)
    # The first delay of qmail's schedule, and not that of a message of 25 years.
    assert record["next_attempt"] - time.time() < 3600
    for attempts in range(1, 13):
        assert (CUR, attempts) == (trial.state(message_id), trial.sidecar(message_id)["attempts"])
        trial.send(message_id)
    assert UNDELIVERED == trial.state(message_id)


def test_a_relay_that_is_down_after_the_clock_was_set_right(trial: Trial) -> None:
    """A message is too old for one failure of the relay only by the clock."""
    trial.setting("relayip", "127.0.0.1:1")
    past = 1_000_000_000
    message_id = trial.deferred(created=past, expires=past + 604800, next_attempt=past, attempts=0)
    old = f"{past}.{message_id.partition('.')[2]}"
    trial.rename(message_id, old)
    trial.cron()
    assert CUR == trial.state(old)
    with open(f"{trial.spool}/{BREAKER}", "rb") as file:
        down = json.loads(file.read())
    (route,) = down["routes"].values()
    route.update(failures=300, until=1)
    with open(f"{trial.spool}/{BREAKER}", "w", encoding="utf-8") as written:
        json.dump(down, written)
    os.utime(f"{trial.spool}/{BREAKER}", (1, 1))
    trial.cron()
    assert UNDELIVERED == trial.state(old)


def test_a_time_planned_by_a_clock_that_was_ahead_is_not_waited_for(
    trial: Trial, relay: RecordingRelay
) -> None:
    """400 days ahead, deferred there, set back, and then touched by a chown or a restore."""
    trial.setting("relayip", relay.address)
    ahead = int(time.time()) + 400 * 86400
    history = [{"when": ahead, "relay": "r", "outcome": "deferred", "reply": "451 later"}]
    message_id = trial.deferred(next_attempt=ahead + 400, history=history)
    path = trial.path(CUR, message_id, SIDECAR)
    os.utime(path, (ahead + 400, ahead + 400))
    trial.cron()
    assert [("b@example.net",)] == [one.recipients for one in relay.messages]


def test_held_is_not_sent(trial: Trial, strict_relay: HostileRelay) -> None:
    """Neither by cron nor by name; in new/ neither."""
    trial.setting("relayip", strict_relay.address)
    held = trial.deferred(held=True, next_attempt=1)
    fresh = trial.accepted()
    trial.edit(fresh, held=True)
    trial.cron()
    assert 75 == trial.send(held)
    assert 75 == trial.send(fresh)
    assert [] == strict_relay.messages
    assert {held, fresh} == {*trial.ids(NEW), *trial.ids(CUR)}


def test_unknown_keys_are_kept(trial: Trial, rig: Rig) -> None:
    """Of the record and of a recipient, through a deferral and a failure."""
    replies = [faults.reply("451 4.3.0 later"), faults.reply("550 5.1.1 no")]
    with_relay(trial, rig, HostileRelay({"RCPT": replies}))
    message_id = trial.accepted()
    recipients = [{"address": "b@example.net", "state": "pending", "reply": None, "tag": [1]}]
    trial.edit(message_id, later={"x": 1.5}, recipients=recipients)
    trial.send()
    due(trial, message_id)
    trial.cron()
    assert UNDELIVERED == trial.state(message_id)
    record = trial.sidecar(message_id)
    assert ({"x": 1.5}, [1]) == (record["later"], record["recipients"][0]["tag"])


def test_many_recipients_are_several_transactions(trial: Trial, rig: Rig) -> None:
    """A hundred each at most; what one of them brought is not sent again when another fails."""
    count = 2 * RECIPIENTS_LIMIT + 50
    relay = with_relay(trial, rig, HostileRelay({".": [None, faults.reply("451 4.3.0 later")]}))
    addresses = [f"r{number}@d" for number in range(count)]
    message_id = trial.accepted(recipients=addresses)
    assert 75 == trial.send()
    pending = [address for address, state in states(trial, message_id) if state == "pending"]
    accepted = [m for m in relay.messages if m.reply and m.reply.startswith("250")]
    served = [address for message in accepted for address in message.recipients]
    assert max(len(message.recipients) for message in relay.messages) == RECIPIENTS_LIMIT
    assert sorted(addresses) == sorted(served + pending)
    assert 1 == trial.sidecar(message_id)["attempts"]
    due(trial, message_id)
    trial.cron()
    assert [] == trial.files()
    accepted = [m for m in relay.messages if m.reply and m.reply.startswith("250")]
    assert sorted(addresses) == sorted(a for message in accepted for a in message.recipients)
    assert [] == relay.complaints


def test_killed_between_two_transactions(trial: Trial, rig: Rig) -> None:
    """The first hundred are noted before the second are offered: nobody gets it twice."""
    relay = with_relay(trial, rig, HostileRelay({"MAIL": [None, faults.stall()]}, offers=("SIZE",)))
    trial.setting("concurrencyremote", "1")
    addresses = [f"r{number}@d" for number in range(RECIPIENTS_LIMIT + 20)]
    trial.accepted(recipients=addresses)
    process = trial.start("send")
    wait_until(lambda: 2 <= relay.verbs().count("MAIL"), "a second transaction", SECONDS)
    kill(process.pid)
    process.wait(SECONDS)
    trial.cron()
    assert [] == trial.files()
    served = [address for message in relay.messages for address in message.recipients]
    assert sorted(addresses) == sorted(served)


def test_a_verp_sender_is_one_for_each_recipient(trial: Trial, strict_relay: HostileRelay) -> None:
    """qmail-inject(8): `list-@host-@[]` becomes `list-user=domain@host`."""
    trial.setting("relayip", strict_relay.address)
    trial.accepted(sender="list-@example.org-@[]", recipients=["b@x.test", "c@y.test"])
    assert 0 == trial.send()
    assert {
        ("list-b=x.test@example.org", ("b@x.test",)),
        ("list-c=y.test@example.org", ("c@y.test",)),
    } == {(message.sender, message.recipients) for message in strict_relay.messages}


def test_one_connection_for_many_messages(trial: Trial, strict_relay: HostileRelay) -> None:
    """They go out one after another; each is its own transaction."""
    trial.setting("relayip", strict_relay.address)
    trial.setting("concurrencyremote", "1")
    for _ in range(20):
        trial.accepted()
    assert 0 == trial.send()
    assert (20, 1) == (len(strict_relay.messages), strict_relay.connections)


def test_each_recipient_goes_its_own_way(
    trial: Trial, rig: Rig, strict_relay: HostileRelay
) -> None:
    """Messages for two routes are sent by both in one run, however many they are."""
    other = rig(HostileRelay())
    trial.setting("relayip", strict_relay.address)
    trial.setting("smtproutes", f"other.test:{other.address}")
    for _ in range(110):
        trial.accepted(recipients=["a@one.test", "b@other.test", "c@one.test"])
    assert 0 == trial.send()
    assert [] == trial.files()
    assert [("a@one.test", "c@one.test")] * 110 == [m.recipients for m in strict_relay.messages]
    assert [("b@other.test",)] * 110 == [message.recipients for message in other.messages]
    assert [] == other.complaints


def test_one_route_of_two_is_down(trial: Trial, strict_relay: HostileRelay) -> None:
    """What the other took is recorded, and not sent again when the first is back."""
    trial.setting("relayip", strict_relay.address)
    trial.setting("smtproutes", "other.test:127.0.0.1:1")
    ids = [trial.accepted(recipients=["a@one.test", "b@other.test"]) for _ in range(5)]
    assert 75 == trial.send()
    for message_id in ids:
        assert ["delivered", "pending"] == [state for _, state in states(trial, message_id)]
    assert [("a@one.test",)] * 5 == [message.recipients for message in strict_relay.messages]
    (down,) = trial.events("relay_down")
    assert "127.0.0.1:1" == down["relay"]
    trial.setting("smtproutes", f"other.test:{strict_relay.address}")
    assert 0 == trial.send(*ids)
    assert [("b@other.test",)] * 5 == [message.recipients for message in strict_relay.messages[5:]]


def test_a_connection_that_dies_in_doubt(trial: Trial, rig: Rig) -> None:
    """No reply to the final dot: named in history and log, an attempt, and sent again later."""
    relay = with_relay(trial, rig, HostileRelay({".": [faults.drop()]}))
    message_id = trial.queued()
    assert 75 == trial.send()
    assert (1, ["in_doubt"]) == (trial.sidecar(message_id)["attempts"], trial.outcomes(message_id))
    assert [message_id] == [event["id"] for event in trial.events("in_doubt")]
    due(trial, message_id)
    trial.cron()
    assert [] == trial.files()
    assert [None, "250 2.0.0 Kept"] == [message.reply for message in relay.messages]


def test_a_poisonous_address_stops_nobody(trial: Trial, strict_relay: HostileRelay) -> None:
    """A sidecar edited by hand: what cannot be written on the wire fails, all else is delivered."""
    trial.setting("relayip", strict_relay.address)
    poison = [
        "b@d>\r\nRCPT TO:<evil@d",
        "b\n@d",
        "\ud800@d",
        "b@\udfff",
        "@d",
        "",
    ]
    bad = []
    for address in poison:
        message_id = trial.accepted()
        recipients = [{"address": address, "state": "pending", "reply": None}]
        trial.edit(message_id, recipients=recipients)
        bad.append(message_id)
    for sender in ("a\r\n@b", "\udc80@b", "a@b> SIZE=1"):
        message_id = trial.accepted()
        trial.edit(message_id, sender=sender)
        bad.append(message_id)
    for extra in ({"dsn": 5}, {"dsn": {"ret": 5, "envid": ["\r\n"], "orcpt": {}, "notify": "X\n"}}):
        trial.edit(trial.accepted(), **extra)
    good = trial.accepted()
    ran = trial.run("send")
    assert b"" == ran.stderr
    assert f"id {good};".encode() in b"".join(m.content for m in strict_relay.messages)
    assert "evil@d" not in [one for m in strict_relay.messages for one in m.recipients]
    assert [] == trial.names(NEW)
    assert set(bad) >= {*trial.ids(UNDELIVERED)}
