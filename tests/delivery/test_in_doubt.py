"""Copies that may have arrived: no more than doubtlimit, never lost, and everybody is told."""

from __future__ import annotations

import email
import email.policy
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.layout import BREAKER, CUR, IN_DOUBT_BIT, NEW, UNDELIVERED
from picoqmail.smtp.transaction import RECIPIENTS_LIMIT
from picoqmail.spool.recipient import DOUBTS, SUSPENDED_UNTIL, UNTIL_RETRY
from rig import faults
from rig.hostile import OFFERS, HostileRelay
from rig.waiting import wait_until
from trial import kill

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import EmailMessage

    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

SECONDS = 120
DAY = 86400
WAYS: dict[str, dict[str, Any]] = {
    "data": {"offers": ("SIZE 50000000",)},
    "pipelining": {},
    "bdat": {"offers": (*OFFERS, "CHUNKING")},
    "lmtp": {"lmtp": True},
}


def serving(
    trial: Trial, rig: Rig, fault: faults.Fault | None = None, way: str = "pipelining"
) -> HostileRelay:
    """Start a relay that takes every message and then does this instead of a reply."""
    relay = rig(HostileRelay({".": fault or faults.drop()}, **WAYS[way]))
    trial.setting("relayip", f"lmtp://{relay.address}" if way == "lmtp" else relay.address)
    return relay


def let_pass(trial: Trial, message_id: str, seconds: int) -> None:
    """Let so much time pass for a message: all its times lie further back."""
    record = trial.sidecar(message_id)
    for one in record["history"]:
        one["when"] -= seconds
    for one in record["recipients"]:
        if 0 < one.get(SUSPENDED_UNTIL, 0) < UNTIL_RETRY:
            one[SUSPENDED_UNTIL] -= seconds
    times = ("created", "next_attempt", "expires", "overdue_since")
    trial.edit(
        message_id,
        history=record["history"],
        recipients=record["recipients"],
        **{key: record[key] - seconds for key in times if key in record},
    )


def until_it_rests(trial: Trial, message_id: str, runs: int = 40) -> None:
    """Run cron again and again, each time when the next attempt is due, but before its end."""
    for _ in range(runs):
        record = trial.sidecar(message_id)
        if record["next_attempt"] >= record["expires"]:
            return
        let_pass(trial, message_id, max(record["next_attempt"] - int(time.time()), 0) + 1)
        trial.cron()


def doubts(trial: Trial, message_id: str) -> list[int]:
    """How many copies each recipient may have."""
    return [one.get(DOUBTS, 0) for one in trial.sidecar(message_id)["recipients"]]


def await_ends(relay: HostileRelay, count: int) -> None:
    """Wait until so many messages have come as a whole, with a reply or without."""

    def is_there() -> bool:
        return count == sum(wire.count(b"\r\n.\r\n") for wire in list(relay.wire.values()))

    wait_until(is_there, f"the end of message {count} comes", SECONDS)


def picoqmail(trial: Trial, *arguments: str) -> tuple[int, str]:
    """Run the administrator's program; return its exit code and what it says."""
    ran = subprocess.run(
        [f"{trial.installed.bin}/picoqmail", *arguments],
        capture_output=True,
        env=trial.variables(),
        timeout=60,
        check=False,
    )
    return ran.returncode, (ran.stdout + ran.stderr).decode()


def stopped(trial: Trial, rig: Rig, **options: Any) -> tuple[HostileRelay, str]:
    """Have a message that is not sent again by itself."""
    relay = serving(trial, rig, **options)
    message_id = trial.queued()
    assert 75 == trial.send()
    until_it_rests(trial, message_id)
    return relay, message_id


def parsed(content: bytes) -> EmailMessage:
    """A report as a mail reader sees it."""
    return email.message_from_bytes(content, policy=email.policy.default)


@pytest.mark.parametrize("fault", ["drop", "reset", "cut"])
@pytest.mark.parametrize("way", WAYS)
def test_a_relay_that_takes_all_and_never_replies(
    trial: Trial, rig: Rig, way: str, fault: str
) -> None:
    """Two copies, however often cron runs; then it waits, named by every command and the log."""
    act = {"drop": faults.drop(), "reset": faults.reset(), "cut": faults.closing(b"250 2.0")}[fault]
    relay, message_id = stopped(trial, rig, way=way, fault=act)
    for _ in range(3):
        let_pass(trial, message_id, DAY)
        trial.cron()
    assert 75 == trial.send(message_id)
    assert 2 == len(relay.messages)
    assert CUR == trial.state(message_id)
    assert [2] == doubts(trial, message_id)
    (event,) = trial.events("suspended")
    assert (message_id, ["b@example.net"], 2) == (event["id"], event["recipients"], event["copies"])
    status = json.loads(picoqmail(trial, "status", "--json")[1])
    assert (1, 0, None) == (status["in_doubt"], status["due"], status["oldest_waiting"])
    assert "in doubt     1 message of cur" in picoqmail(trial, "status")[1]
    code, said = picoqmail(trial, "check", "--no-relay")
    assert (1, True) == (code, "in doubt: 1 message may have arrived" in said)
    assert message_id in picoqmail(trial, "list", "--state", "in_doubt")[1]
    assert "in doubt: not sent again by itself" in picoqmail(trial, "list")[1]
    story = picoqmail(trial, "explain", message_id)[1]
    assert "may have arrived 2 times" in story
    assert f"picoqmail retry {message_id}" in story


def test_retry_sends_it_once_more(trial: Trial, rig: Rig) -> None:
    """Each retry is one copy; where the relay replies again, that is the end."""
    relay, message_id = stopped(trial, rig)
    assert 75 == picoqmail(trial, "retry", message_id)[0]
    assert (3, [3]) == (len(relay.messages), doubts(trial, message_id))
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert 3 == len(relay.messages)
    healed = rig(HostileRelay())
    trial.setting("relayip", healed.address)
    trial.cron()
    assert [] == healed.messages
    code, said = picoqmail(trial, "retry", "--state", "in_doubt")
    assert (0, True) == (code, "is delivered" in said)
    assert [] == trial.files()
    (delivered,) = trial.events("delivered")
    assert delivered["maybe_duplicate"]


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_is_a_setting(trial: Trial, rig: Rig, limit: int) -> None:
    """So many copies, and no more."""
    trial.setting("doubtlimit", str(limit))
    relay, message_id = stopped(trial, rig)
    assert (limit, [limit]) == (len(relay.messages), doubts(trial, message_id))


def test_without_a_limit_it_is_tried_for_its_whole_life(trial: Trial, rig: Rig) -> None:
    """As RFC 5321 4.5.4 says; the report says what may be."""
    trial.setting("doubtlimit", "0")
    trial.setting("retryschedule", "1d")
    relay = serving(trial, rig)
    message_id = trial.queued()
    assert 75 == trial.send()
    for _ in range(7):
        let_pass(trial, message_id, DAY + 1)
        trial.cron()
    assert 8 == len(relay.messages)
    assert [] == trial.events("suspended")


def test_a_pause_is_a_setting(trial: Trial, rig: Rig) -> None:
    """After doubtpause it goes out once more, and so on."""
    trial.setting("doubtpause", "1d")
    relay = serving(trial, rig)
    message_id = trial.queued()
    assert 75 == trial.send()
    let_pass(trial, message_id, 500)
    trial.cron()
    for copies in (3, 4):
        let_pass(trial, message_id, DAY - 100)
        trial.cron()
        assert copies - 1 == len(relay.messages)
        assert "in_doubt" in picoqmail(trial, "list", "--state", "in_doubt", "--json")[1]
        let_pass(trial, message_id, 101)
        trial.cron()
        assert copies == len(relay.messages)


def test_a_pause_ends_with_a_reply(trial: Trial, rig: Rig) -> None:
    """A 451 after the pause is no copy: then the schedule decides."""
    trial.setting("doubtpause", "1d")
    drop, later = faults.drop(), faults.reply("451 4.3.0 later")
    relay = rig(HostileRelay({".": [drop, drop], "RCPT": [None, None, later]}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    assert 75 == trial.send()
    let_pass(trial, message_id, 500)
    trial.cron()
    let_pass(trial, message_id, DAY + 1)
    trial.cron()
    record = trial.sidecar(message_id)
    assert SUSPENDED_UNTIL not in record["recipients"][0]
    assert time.time() < record["next_attempt"] < time.time() + DAY
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert [] == trial.files()


def test_killed_in_the_window_counts(trial: Trial, rig: Rig) -> None:
    """A kill -9 between the final dot and the reply is a copy like any other."""
    relay = serving(trial, rig, faults.stall())
    message_id = trial.queued()
    for copies in (1, 2):
        process = trial.start("send" if copies == 1 else "cron")
        await_ends(relay, copies)
        kill(process.pid)
        process.wait(SECONDS)
    trial.cron()
    assert [2] == doubts(trial, message_id)
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert 2 == len(relay.messages)
    assert ["in_doubt", "in_doubt"] == trial.outcomes(message_id)
    assert 1 == len(trial.events("suspended"))


@pytest.mark.parametrize("verb", ["hold", "retry"])
def test_an_administrator_does_not_forget_a_doubt(trial: Trial, rig: Rig, verb: str) -> None:
    """What they do to a message whose sender was killed in the window leaves the mark there."""
    relay = serving(trial, rig, faults.stall())
    message_id = trial.queued()
    process = trial.start("send")
    await_ends(relay, 1)
    kill(process.pid)
    process.wait(SECONDS)
    assert 0 == picoqmail(trial, verb, message_id, *(["--later"] if verb == "retry" else []))[0]
    state = trial.state(message_id)
    assert os.stat(trial.path(state, message_id, ".eml")).st_mode & IN_DOUBT_BIT
    if verb == "hold":
        assert 0 == picoqmail(trial, "release", message_id)[0]
    later = rig(HostileRelay({"RCPT": faults.reply("451 4.3.0 later")}))
    trial.setting("relayip", later.address)
    trial.cron()
    assert [1] == doubts(trial, message_id)


def test_only_those_in_doubt_stop(trial: Trial, rig: Rig) -> None:
    """One recipient is refused for now; the other one, who may have the mail twice, waits alone."""
    later = faults.reply("451 4.3.0 later")
    relay = rig(HostileRelay({".": [faults.drop()] * 2, "RCPT <c@example.net>": [later] * 3}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued(envelope=b"Fa@example.org\0Tb@example.net\0Tc@example.net\0\0")
    assert 75 == trial.send()
    let_pass(trial, message_id, 500)
    trial.cron()
    assert [2, 0] == doubts(trial, message_id)
    let_pass(trial, message_id, DAY)
    trial.cron()
    record = trial.sidecar(message_id)
    assert 75 == trial.send(message_id)
    assert record["next_attempt"] < time.time() + DAY
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert [("b@example.net",)] * 2 + [("c@example.net",)] == [m.recipients for m in relay.messages]
    assert ["pending", "delivered"] == [r["state"] for r in trial.sidecar(message_id)["recipients"]]
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert 3 == len(relay.messages)
    assert 0 == picoqmail(trial, "retry", message_id)[0]
    assert [("b@example.net",)] == [m.recipients for m in relay.messages[3:]]
    assert [] == trial.files()


@pytest.mark.parametrize("killed", [False, True])
def test_parts_are_counted_apart(trial: Trial, rig: Rig, killed: bool) -> None:  # noqa: FBT001
    """Of two transactions only the one that ended in doubt counts, also after kill -9."""
    many = [f"{n}@example.net" for n in range(RECIPIENTS_LIMIT + 20)]
    act = faults.stall() if killed else faults.drop()
    relay = rig(HostileRelay({".": [None, act, act]}))
    trial.setting("relayip", relay.address)
    trial.setting("concurrencyremote", "1")
    message_id = trial.accepted(recipients=many)
    for copies in (2, 3):
        if killed:
            process = trial.start("send" if copies == 2 else "cron")
            await_ends(relay, copies)
            kill(process.pid)
            process.wait(SECONDS)
        elif copies == 2:
            assert 75 == trial.send()
        else:
            let_pass(trial, message_id, 500)
            trial.cron()
    if killed:
        trial.cron()
    assert [0] * RECIPIENTS_LIMIT + [2] * 20 == doubts(trial, message_id)
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert [RECIPIENTS_LIMIT, 20, 20] == [len(m.recipients) for m in relay.messages]


def test_a_part_that_never_went_out_is_in_no_doubt(trial: Trial, rig: Rig) -> None:
    """A kill -9 while the first of two transactions is in the window: the second was not sent."""
    many = [f"{n}@example.net" for n in range(RECIPIENTS_LIMIT + 20)]
    relay = rig(HostileRelay({".": [faults.stall(), None, None]}))
    trial.setting("relayip", relay.address)
    trial.setting("concurrencyremote", "1")
    message_id = trial.accepted(recipients=many)
    process = trial.start("send")
    await_ends(relay, 1)
    kill(process.pid)
    process.wait(SECONDS)
    later = rig(HostileRelay({"RCPT": faults.reply("451 4.3.0 later")}))
    trial.setting("relayip", later.address)
    trial.cron()
    assert [1] * RECIPIENTS_LIMIT + [0] * 20 == doubts(trial, message_id)


def test_lmtp_counts_those_without_a_reply(trial: Trial, rig: Rig) -> None:
    """Who had a 250 before the connection ended has the mail, and is in no doubt."""
    relay = rig(HostileRelay({". <c@example.net>": [faults.drop()] * 2}, lmtp=True))
    trial.setting("relayip", f"lmtp://{relay.address}")
    message_id = trial.queued(envelope=b"Fa@example.org\0Tb@example.net\0Tc@example.net\0\0")
    assert 75 == trial.send()
    until_it_rests(trial, message_id)
    assert [0, 2] == doubts(trial, message_id)


def test_lost_before_the_final_dot_is_no_doubt(trial: Trial, rig: Rig) -> None:
    """A relay that hangs up at DATA has nothing, and the mail is tried as ever."""
    relay = rig(HostileRelay({"DATA": [faults.drop()] * 6}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    assert 75 == trial.send()
    while trial.files():
        let_pass(trial, message_id, DAY // 2)
        if os.path.exists(f"{trial.spool}/{BREAKER}"):
            os.unlink(f"{trial.spool}/{BREAKER}")
        trial.cron()
    assert [] == trial.files()
    assert 1 == len(relay.messages)
    assert [] == trial.events("in_doubt") + trial.events("suspended")


def test_the_sender_gets_a_report_at_once_and_one_in_the_end(trial: Trial, rig: Rig) -> None:
    """They say that it may have been delivered, or not; the second one, that it is given up."""
    trial.setting("bounces", "on")
    relay, message_id = stopped(trial, rig)
    (report,) = [one for one in trial.events("bounced") if one["id"] == message_id]
    assert ("in_doubt", "a@example.org") == (report["kind"], report["to"])
    # It went out in the same run, and is in doubt itself.
    (early,) = [m for m in relay.messages if m.recipients == ("a@example.org",)]
    assert 3 == len(relay.messages)
    assert [1] == doubts(trial, report["report"])
    read = parsed(early.content)
    assert "Your mail may have been delivered, or not" == read["Subject"]
    said = " ".join(early.content.decode().split())
    assert "Action: delayed" in said
    assert "Status: 4.4.2" in said
    assert "sent as a whole 2 times" in said
    assert "Will-Retry-Until" not in said
    healed = rig(HostileRelay())
    trial.setting("relayip", healed.address)
    # A week later, and the part of a lifetime that an administrator gets.
    let_pass(trial, message_id, 7 * DAY)
    trial.cron()
    assert CUR == trial.state(message_id)
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert UNDELIVERED == trial.state(message_id)
    if trial.ids(NEW):
        trial.cron()
    final = healed.messages[-1].content.decode()
    said = " ".join(final.split())
    assert 2 == len([one for one in trial.events("bounced") if one["id"] == message_id])
    assert "may have been delivered to this recipient, or not, and will not be tried again" in said
    assert "Action: failed" in said
    assert "Status: 4.4.2" in said
    assert [] == [m for m in healed.messages if m.recipients == ("b@example.net",)]


def test_no_report_about_a_report(trial: Trial, rig: Rig) -> None:
    """A report in doubt waits like any mail; its sender is nobody."""
    trial.setting("bounces", "on")
    relay = serving(trial, rig)
    message_id = trial.queued(envelope=b"F\0Ta@example.org\0\0")
    assert 75 == trial.send()
    until_it_rests(trial, message_id)
    let_pass(trial, message_id, 7 * DAY)
    trial.cron()
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert UNDELIVERED == trial.state(message_id)
    assert 2 == len(relay.messages)
    assert [] == trial.events("bounced")


def test_whom_nobody_shall_report_to(trial: Trial, rig: Rig) -> None:
    """NOTIFY=NEVER: neither report."""
    trial.setting("bounces", "on")
    relay = serving(trial, rig)
    message_id = trial.queued()
    trial.edit(message_id, dsn={"notify": "NEVER"})
    assert 75 == trial.send()
    until_it_rests(trial, message_id)
    assert [2] == doubts(trial, message_id)
    assert [] == trial.events("bounced")
    assert 2 == len(relay.messages)


def test_a_clock_that_jumps_ends_nothing(trial: Trial, rig: Rig) -> None:
    """Set to 25 years later, it gives up only after a part of the lifetime; set back, it waits."""
    relay, message_id = stopped(trial, rig)
    let_pass(trial, message_id, 25 * 365 * DAY)
    for _ in range(3):
        trial.cron()
    assert CUR == trial.state(message_id)
    assert trial.sidecar(message_id)["next_attempt"] > time.time() + 0.09 * 7 * DAY
    let_pass(trial, message_id, -25 * 365 * DAY)
    trial.cron()
    assert (CUR, 2) == (trial.state(message_id), len(relay.messages))


def test_requeued_it_is_counted_anew(trial: Trial, rig: Rig) -> None:
    """A new life: two copies at most once more."""
    relay, message_id = stopped(trial, rig)
    let_pass(trial, message_id, 7 * DAY)
    trial.cron()
    let_pass(trial, message_id, DAY)
    trial.cron()
    assert UNDELIVERED == trial.state(message_id)
    assert 0 == picoqmail(trial, "requeue", message_id)[0]
    until_it_rests(trial, message_id)
    assert (4, [2]) == (len(relay.messages), doubts(trial, message_id))


def test_an_idle_run_does_not_open_it(trial: Trial, rig: Rig) -> None:
    """Its file's time says that it waits, until it is too old; repair restores that time."""
    _, message_id = stopped(trial, rig)
    path = trial.path(CUR, message_id)
    expires = trial.sidecar(message_id)["expires"]
    assert expires + 0.5 == os.stat(path).st_mtime
    os.utime(path, (1, 1))
    assert "its file time is when it is due" in picoqmail(trial, "check", "--repair")[1]
    assert expires + 0.5 == os.stat(path).st_mtime
