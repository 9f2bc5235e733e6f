"""picoqmail-cron: silent, one at a time, and it takes over from what died or hangs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.admin.filesystem import type_of
from picoqmail.layout import CRON_COMPLAINT, CRON_LOCK, CUR, IDLE, NEW, SENDER_LOCK
from picoqmail.spool.idle import LOCAL
from rig import faults
from rig.hostile import HostileRelay
from rig.waiting import wait_until
from temporary_home import age
from trial import kill

if TYPE_CHECKING:
    from collections.abc import Callable

    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

SECONDS = 120


def stalling(trial: Trial, rig: Rig) -> HostileRelay:
    """A relay whose first client waits for ever."""
    relay = rig(HostileRelay({"RCPT": [faults.stall()]}))
    trial.setting("relayip", relay.address)
    return relay


def test_nothing_to_do(trial: Trial) -> None:
    """Silent, 0, and no connection; what is not due stays as it is."""
    trial.cron()
    message_id = trial.deferred(next_attempt=int(time.time()) + 9999)
    before = os.stat(trial.path(CUR, message_id)).st_mtime_ns
    trial.cron()
    assert before == os.stat(trial.path(CUR, message_id)).st_mtime_ns
    assert [] == trial.events()


def test_an_idle_run_opens_no_sidecar(trial: Trial) -> None:
    """However many wait: one that cannot even be read is no matter before its time."""
    message_id = trial.deferred(next_attempt=int(time.time()) + 9999)
    found = os.stat(trial.path(CUR, message_id))
    with open(trial.path(CUR, message_id), "wb"):
        pass
    os.utime(trial.path(CUR, message_id), (found.st_mtime, found.st_mtime))
    trial.cron()
    assert [message_id] == trial.ids(CUR)


@pytest.mark.slow
def test_what_an_idle_run_noted_keeps_no_mail_waiting(
    trial: Trial, strict_relay: HostileRelay
) -> None:
    """Mail that becomes due, that a sender left, and that an administrator releases, goes out."""
    trial.setting("relayip", strict_relay.address)
    if type_of(trial.spool) not in LOCAL:
        pytest.skip(f"nothing is noted on {type_of(trial.spool)}")

    hint = f"{trial.spool}/{IDLE}"

    def is_noted() -> bool:
        trial.cron()
        return os.path.exists(hint)

    def note() -> None:
        """Run cron until it has noted that nothing is due, as the directories now are."""
        if os.path.exists(hint):
            os.unlink(hint)
        wait_until(is_noted, "an idle run notes it", SECONDS)

    def administer(verb: str, message_id: str) -> None:
        command = [f"{trial.installed.bin}/picoqmail", verb, message_id]
        subprocess.run(command, env=trial.variables(), check=True, stdout=subprocess.DEVNULL)

    waits = trial.deferred(next_attempt=int(time.time()) + 9999)
    held = trial.deferred(next_attempt=1)
    administer("hold", held)
    note()
    assert [] == strict_relay.messages
    administer("release", held)
    trial.cron()
    assert 1 == len(strict_relay.messages)
    note()
    trial.queued()
    trial.cron()
    assert 2 == len(strict_relay.messages)
    note()
    administer("retry", waits)
    trial.cron()
    assert ([], 3) == (trial.ids(CUR), len(strict_relay.messages))
    due = int(time.time()) + 8
    soon = trial.deferred(next_attempt=due)
    note()
    wait_until(lambda: time.time() >= due, "the message is due", SECONDS)
    assert [soon] == trial.ids(CUR)
    trial.cron()
    assert ([], 4) == (trial.ids(CUR), len(strict_relay.messages))


def test_a_lost_hint_is_set_right(trial: Trial, strict_relay: HostileRelay) -> None:
    """Restored from a backup with all times of now: nothing is sent early, and the next is idle."""
    trial.setting("relayip", strict_relay.address)
    due = int(time.time()) + 9999
    message_id = trial.deferred(next_attempt=due)
    age(trial.path(CUR, message_id), 5)
    trial.cron()
    assert [] == strict_relay.messages
    assert due == os.stat(trial.path(CUR, message_id)).st_mtime


def test_new_mail_whose_sender_died(trial: Trial, strict_relay: HostileRelay) -> None:
    """It is cron's as soon as nobody has the sender's lock."""
    trial.setting("relayip", strict_relay.address)
    trial.queued()
    trial.cron()
    assert ([], 1) == (trial.files(), len(strict_relay.messages))


def test_one_run_at_a_time(trial: Trial, rig: Rig) -> None:
    """While one is alive the next says nothing, does nothing, and is 0."""
    relay = stalling(trial, rig)
    trial.deferred(next_attempt=1)
    first = trial.start("cron")
    wait_until(lambda: "RCPT" in relay.verbs(), "the first run is under way", SECONDS)
    other = trial.deferred(next_attempt=1)
    trial.cron()
    assert other in trial.ids(CUR)
    kill(first.pid)
    first.wait(SECONDS)
    # A dead run never keeps anybody out: both messages go.
    trial.cron()
    assert [] == trial.files()


def test_a_run_that_hangs_is_passed(trial: Trial, rig: Rig) -> None:
    """After runlifetime the next one sends what the first does not hold; never the same twice."""
    relay = stalling(trial, rig)
    hanging = trial.deferred(next_attempt=1)
    first = trial.start("cron")
    wait_until(lambda: "RCPT" in relay.verbs(), "the first run is under way", SECONDS)
    other = trial.deferred(next_attempt=1)
    with open(f"{trial.spool}/{CRON_LOCK}", "r+", encoding="ascii") as file:
        began = int(file.read())
        file.seek(0)
        file.write(f"{began - 1900}\n")
    trial.cron()
    assert [hanging] == trial.ids(CUR)
    (message,) = relay.messages
    assert f"id {other};".encode() in message.content
    kill(first.pid)
    first.wait(SECONDS)
    trial.cron()
    assert ([], 2) == (trial.files(), len(relay.messages))


def test_runlifetime_is_a_setting(trial: Trial) -> None:
    """A live run that is older than it keeps nobody out."""
    trial.setting("runlifetime", "60")
    trial.accepted()
    with open(f"{trial.spool}/{CRON_LOCK}", "w", encoding="ascii") as file:
        file.write(f"{int(time.time()) - 50}\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        trial.cron()
        assert [] == trial.events()
        file.seek(0)
        file.write(f"{int(time.time()) - 70}\n")
        file.flush()
        trial.cron()
        # The second got through to the relay, which is not there.
        assert 1 == len(trial.events("relay_down"))


def test_it_is_silent_whatever_became_of_the_mail(trial: Trial, rig: Rig) -> None:
    """Refused, deferred, relay gone: all of that is in the log, not in cron's mail."""
    answers = [faults.reply("550 5.1.1 no"), faults.reply("451 4.3.0 later"), faults.drop()]
    relay = rig(HostileRelay({"RCPT": answers}))
    trial.setting("relayip", relay.address)
    for _ in range(4):
        trial.deferred(next_attempt=1)
    trial.cron()
    assert {"failed", "deferred"} <= {event["event"] for event in trial.events()}


def test_a_spool_that_cannot_be_looked_at_is_told(trial: Trial) -> None:
    """Missing altogether: one line with the path, 74."""
    os.rename(trial.spool, trial.spool + "-away")
    ran = trial.run("cron")
    assert (74, 1) == (ran.returncode, ran.stderr.count(b"\n"))
    assert trial.spool.encode() in ran.stderr


def test_housekeeping_that_fails_keeps_no_mail_back(
    trial: Trial, strict_relay: HostileRelay
) -> None:
    """What cannot be swept is told, 74, after what is due has been sent."""
    trial.setting("relayip", strict_relay.address)
    trial.queued()
    os.rename(f"{trial.spool}/tmp", f"{trial.spool}/tmp-away")
    ran = trial.run("cron")
    assert (74, True) == (ran.returncode, f"{trial.spool}/tmp".encode() in ran.stderr)
    assert ([], 1) == (trial.names(NEW), len(strict_relay.messages))


def test_locks_are_private_and_stay(trial: Trial, strict_relay: HostileRelay) -> None:
    """Nobody may unlink them while others wait for them, nor read the spool by their modes."""
    trial.setting("relayip", strict_relay.address)
    trial.queued()
    trial.cron()
    for name in (CRON_LOCK, SENDER_LOCK):
        assert 0o600 == os.stat(f"{trial.spool}/{name}").st_mode & 0o777
    assert [] == trial.names(NEW)


def test_a_wrong_setting_is_printed_once(trial: Trial, strict_relay: HostileRelay) -> None:
    """Cron mails what its jobs print: once, and again when something else is wrong, or again."""
    trial.deferred()
    trial.setting("relayip", strict_relay.address)
    trial.setting("tls", "perhaps")
    first, second = trial.run("cron"), trial.run("cron")
    assert (78, 78) == (first.returncode, second.returncode)
    assert b"perhaps" in first.stderr
    assert b"" == second.stderr
    trial.setting("tls", "sometimes")
    assert b"sometimes" in trial.run("cron").stderr
    trial.setting("tls", "off")
    trial.cron()
    assert not os.path.exists(f"{trial.spool}/{CRON_COMPLAINT}")
    trial.setting("tls", "sometimes")
    trial.deferred()
    assert b"sometimes" in trial.run("cron").stderr
