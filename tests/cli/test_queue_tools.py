"""status, list, show, explain, retry, hold, release, requeue, delete, purge: on a real spool."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.cli.main import main
from picoqmail.layout import BODY, CUR, NEW, SIDECAR, UNDELIVERED
from rig import faults
from rig.hostile import HostileRelay
from rig.recording import RecordingRelay
from rig.waiting import wait_until
from trial import make_trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from trial import Trial

    Command = Callable[..., subprocess.CompletedProcess[str]]

NO_MESSAGE = "1700000000.M1P1Q1Raa.nowhere"


def document(ran: subprocess.CompletedProcess[str]) -> Any:
    """What a command with --json printed."""
    return json.loads(ran.stdout)


def failed(trial: Trial, **values: object) -> str:
    """A message of undelivered/ that failed for one of two recipients."""
    message_id = trial.deferred(
        attempts=1,
        recipients=[
            {"address": "b@example.net", "state": "delivered", "reply": "250 ok"},
            {"address": "c@example.net", "state": "failed", "reply": "550 5.1.1 unknown"},
        ],
        **values,
    )
    for suffix in (BODY, SIDECAR):
        os.rename(trial.path(CUR, message_id, suffix), trial.path(UNDELIVERED, message_id, suffix))
    return message_id


# Looking


def test_an_empty_spool(trial: Trial, picoqmail: Command) -> None:
    """Nothing waits, and everything says so, with exit code 0."""
    assert "nothing waits" in picoqmail(trial, "status").stdout
    assert "0 messages" in picoqmail(trial, "list").stdout
    assert [] == document(picoqmail(trial, "list", "--json"))
    found = document(picoqmail(trial, "status", "--json"))
    assert (0, None, None) == (found["waiting"], found["oldest_age"], found["last_delivery"])


def test_status_counts_what_lies_where(trial: Trial, picoqmail: Command) -> None:
    """Messages, octets and ages by state; what is held is neither due nor old."""
    trial.accepted()
    later = trial.deferred(next_attempt=int(time.time()) + 500)
    held = trial.deferred()
    assert 0 == picoqmail(trial, "hold", held).returncode
    failed(trial)
    found = document(picoqmail(trial, "status", "--json"))
    counts = {name: heap["messages"] for name, heap in found["states"].items()}
    assert {"new": 1, "cur": 2, "undelivered": 1} == counts
    assert (3, 1, 1) == (found["waiting"], found["held"], found["due"])
    assert trial.sidecar(later)["next_attempt"] == found["next_attempt"]
    (gone,) = trial.ids(UNDELIVERED)
    size = os.path.getsize(trial.path(UNDELIVERED, gone, BODY))
    assert size == found["states"]["undelivered"]["octets"]


def test_status_sees_who_works_and_leaves_the_locks_alone(
    trial: Trial, picoqmail: Command, rig: Callable[..., HostileRelay]
) -> None:
    """While a sender works its pid is told; the lock is looked at and never taken."""
    relay = rig(HostileRelay({"banner": faults.stall()}))
    trial.setting("relayip", relay.address)
    trial.accepted()
    sender = trial.start("send")
    wait_until(lambda: relay.connections, "the sender connects")
    try:
        assert sender.pid == document(picoqmail(trial, "status", "--json"))["sender_pid"]
    finally:
        sender.send_signal(signal.SIGKILL)
        sender.wait()
    assert None is document(picoqmail(trial, "status", "--json"))["sender_pid"]


def test_status_knows_the_relay_and_the_last_delivery(
    trial: Trial, picoqmail: Command, relay: RecordingRelay
) -> None:
    """A relay that is down is named with its fault; once mail went through, when that was."""
    trial.accepted()
    assert 75 == trial.send()
    (outage,) = document(picoqmail(trial, "status", "--json"))["relays_down"].values()
    assert ("connect", 1) == (outage["stage"], outage["failures"])
    trial.setting("relayip", relay.address)
    before = int(time.time())
    assert 0 == trial.send(*trial.ids(NEW))
    found = document(picoqmail(trial, "status", "--json"))
    assert before <= found["last_delivery"] <= time.time()
    assert 1 == found["totals"]["delivered"]


def test_filters(trial: Trial, picoqmail: Command) -> None:
    """By state, sender, recipient, age, and what the relay said."""
    old = trial.deferred(history=[{"when": 1, "relay": "", "outcome": "deferred", "reply": "BUSY"}])
    ann = trial.accepted("ann@other.example", ["x@example.net"])
    null = trial.accepted("")
    gone = failed(trial)

    def listed(*words: str) -> list[str]:
        return picoqmail(trial, "list", "--ids", *words).stdout.split()

    assert sorted([old, ann, null, gone]) == listed()
    assert [null, ann, old] == [i for i in listed("--reverse") if i != gone]
    assert {ann, null} == set(listed("--state", "new"))
    assert {old, gone} == set(listed("--state", "cur", "--state", "undelivered"))
    assert [ann] == listed("--sender", "ANN@other.example")
    assert [ann] == listed("--sender", "@other.example")
    assert [null] == listed("--sender", "<>")
    assert [gone] == listed("--recipient", "c*")
    assert [old] == listed("--error", "busy")
    assert [gone] == listed("--error", "5.1.1")
    assert [] == listed("--older-than", "1h")
    assert 4 == len(listed("--younger-than", "1h"))
    assert 2 == len(listed("--limit", "2"))
    assert {"size", "attempts"} <= set(document(picoqmail(trial, "list", "--json"))[0])


def test_a_damaged_message_is_listed_shown_and_deleted(trial: Trial, picoqmail: Command) -> None:
    """What is no JSON any more can be seen and be got rid of; nothing else is touched."""
    whole, broken = trial.accepted(), trial.accepted()
    with open(trial.path(NEW, broken), "w", encoding="utf-8") as file:
        file.write("{ no")
    assert 2 == len(document(picoqmail(trial, "list", "--json")))
    assert [broken] == picoqmail(trial, "list", "--ids", "--state", "damaged").stdout.split()
    assert "not JSON" in picoqmail(trial, "show", broken).stdout
    assert "cannot be read" in picoqmail(trial, "explain", broken).stdout
    assert 65 == picoqmail(trial, "hold", broken).returncode
    assert 0 == picoqmail(trial, "delete", broken).returncode
    assert [whole] == trial.ids(NEW) + trial.ids(UNDELIVERED)


def test_a_body_that_is_gone(trial: Trial, picoqmail: Command) -> None:
    """The sidecar is still shown, explained and deleted."""
    message_id = trial.accepted()
    os.unlink(trial.path(NEW, message_id, BODY))
    assert "body is missing" in picoqmail(trial, "show", message_id).stdout
    assert "body is missing" in picoqmail(trial, "explain", message_id).stdout
    assert 0 == picoqmail(trial, "delete", message_id).returncode
    assert [] == trial.files()


def test_show_does_not_drive_the_terminal(trial: Trial, picoqmail: Command) -> None:
    """An escape sequence in a mail is shown, not obeyed; --raw is the octets."""
    mail = b"Subject: \x1b[2J\n\n\x1b]0;x\x07 \xff\n"
    message_id = trial.accepted("a@example.org", ["b@example.net"], mail)
    shown = picoqmail(trial, "show", message_id).stdout
    assert "\x1b" not in shown
    assert "Subject: \\x1b[2J" in shown
    raw = subprocess.run(
        [os.path.join(trial.installed.bin, "picoqmail"), "show", "--raw", message_id],
        env=trial.variables(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert trial.body(message_id) == raw.stdout


def test_explain_tells_the_story(
    trial: Trial, picoqmail: Command, rig: Callable[..., RecordingRelay]
) -> None:
    """What happened, what the relay said, and what comes next, in that order."""
    relay = rig(RecordingRelay(answers={"DATA": ["451 4.3.0 come back"]}))
    trial.setting("relayip", relay.address)
    message_id = trial.accepted()
    text = picoqmail(trial, "explain", message_id).stdout
    assert "first attempt is due" in text
    assert 75 == trial.send()
    text = picoqmail(trial, "explain", message_id).stdout
    assert text.index("did not take it yet: 451 4.3.0 come back") < text.index("next attempt comes")
    assert "picoqmail retry" in text
    found = document(picoqmail(trial, "explain", "--json", message_id))
    assert ([False], message_id) == ([one["maybe_duplicate"] for one in found], found[0]["id"])


def test_a_refused_login_is_somebodys_business(
    trial: Trial, picoqmail: Command, rig: Callable[..., RecordingRelay]
) -> None:
    """Waiting does not help: explain and retry say that the login was refused, and what to do."""
    relay = rig(RecordingRelay(users={"joe": "right"}))
    trial.setting("relayip", f"joe@{relay.address}")
    trial.setting("relaypass", "wrong")
    trial.setting("cleartextauth", "on")
    trial.setting("tls", "off")
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    message_id = trial.accepted()
    said = picoqmail(trial, "retry", message_id)
    assert "refused the login" in said.stdout
    text = picoqmail(trial, "explain", message_id).stdout
    assert "relaypass" in text
    assert "somebody has to act" in text
    assert "Nobody needs to do anything" not in text


def test_explain_names_a_possible_duplicate(trial: Trial, picoqmail: Command) -> None:
    """An attempt that ended without the answer to the final dot is said to be one."""
    event = {"when": 1, "relay": "r", "outcome": "in_doubt", "reply": "no answer"}
    message_id = trial.deferred(history=[event], attempts=1)
    assert "may get it twice" in picoqmail(trial, "explain", message_id).stdout


# Doing


def test_hold_and_release(trial: Trial, picoqmail: Command, relay: RecordingRelay) -> None:
    """A held message is not sent by anybody; released, it is."""
    trial.setting("relayip", relay.address)
    message_id = trial.accepted()
    assert 0 == picoqmail(trial, "hold", message_id).returncode
    trial.cron()
    trial.send(message_id)
    assert 65 == picoqmail(trial, "retry", message_id).returncode
    assert [] == relay.messages
    assert "held" in picoqmail(trial, "explain", message_id).stdout
    assert 0 == picoqmail(trial, "release", message_id).returncode
    trial.cron()
    assert 1 == len(relay.messages)


def test_retry_sends_now(trial: Trial, picoqmail: Command, relay: RecordingRelay) -> None:
    """What is due in an hour goes out at once; with --later cron takes it."""
    trial.setting("relayip", relay.address)
    now = trial.deferred(next_attempt=int(time.time()) + 3600)
    later = trial.deferred(next_attempt=int(time.time()) + 3600)
    assert "is delivered" in picoqmail(trial, "retry", now).stdout
    assert 0 == picoqmail(trial, "retry", "--later", later).returncode
    assert 1 == len(relay.messages)
    trial.cron()
    assert 2 == len(relay.messages)


@pytest.mark.parametrize(("options", "expected"), [((), 1), (("--all-recipients",), 2)])
def test_requeue(
    trial: Trial, picoqmail: Command, relay: RecordingRelay, options: tuple[str, ...], expected: int
) -> None:
    """What failed goes out again, to those that failed or to all, with a whole lifetime."""
    trial.setting("relayip", relay.address)
    message_id = failed(trial, expires=1)
    assert 0 == picoqmail(trial, "requeue", *options, message_id).returncode
    assert time.time() + 600000 < trial.sidecar(message_id)["expires"]
    trial.cron()
    assert [expected] == [len(one.recipients) for one in relay.messages]
    assert [] == trial.files()


def test_what_cannot_be_done_is_refused(trial: Trial, picoqmail: Command) -> None:
    """Exit 65 and a sentence; the message stays as it was."""
    waiting, gone = trial.accepted(), failed(trial)
    for verb, name in (("requeue", waiting), ("retry", gone), ("hold", gone)):
        ran = picoqmail(trial, verb, name)
        assert 65 == ran.returncode
        assert name in ran.stderr
    assert (NEW, UNDELIVERED) == (trial.state(waiting), trial.state(gone))


def test_a_message_in_other_hands_is_busy(trial: Trial, picoqmail: Command) -> None:
    """While another process has a message's lock nothing is done to it: 75."""
    message_id = trial.accepted()
    with open(trial.path(NEW, message_id, BODY), "rb") as body:
        fcntl.flock(body, fcntl.LOCK_EX)
        for verb in ("hold", "retry", "delete"):
            ran = picoqmail(trial, verb, message_id)
            assert (75, NEW) == (ran.returncode, trial.state(message_id))
    assert 0 == picoqmail(trial, "delete", message_id).returncode


def test_many_are_asked_for(trial: Trial, picoqmail: Command) -> None:
    """A filter that would delete many wants --yes where nobody can be asked; --dry-run tells."""
    ids = [trial.accepted() for _ in range(11)]
    assert 64 == picoqmail(trial, "delete", "--state", "new").returncode
    told = picoqmail(trial, "delete", "--state", "new", "--dry-run", "--json")
    assert ids == [one["id"] for one in document(told)["messages"]]
    assert ids == trial.ids(NEW)
    assert 0 == picoqmail(trial, "delete", "--state", "new", "--yes").returncode
    assert [] == trial.files()


def test_nothing_named_is_nothing_done(trial: Trial, picoqmail: Command) -> None:
    """A verb without IDs or filters is a wrong command line, and says what to give."""
    trial.accepted()
    for verb in ("retry", "hold", "release", "requeue", "delete"):
        ran = picoqmail(trial, verb)
        assert 64 == ran.returncode
        assert "--all" in ran.stderr
    assert 64 == picoqmail(trial, "purge").returncode
    assert 1 == len(trial.ids(NEW))


def test_no_such_message(trial: Trial, picoqmail: Command) -> None:
    """66, and the others are done all the same."""
    message_id = trial.accepted()
    assert 66 == picoqmail(trial, "show", NO_MESSAGE).returncode
    assert 66 == picoqmail(trial, "explain", NO_MESSAGE).returncode
    assert 66 == picoqmail(trial, "hold", NO_MESSAGE, message_id).returncode
    assert trial.sidecar(message_id)["held"]
    assert 66 == picoqmail(trial, "show", "../../etc/passwd").returncode


def test_purge_takes_only_old_failures(trial: Trial, picoqmail: Command) -> None:
    """What is younger, or still waits, stays."""
    trial.accepted()
    failed(trial)
    assert "no message" in picoqmail(trial, "purge", "--older-than", "1h").stdout
    assert 0 == picoqmail(trial, "purge", "--older-than", "0").returncode
    assert ([], 1) == (trial.ids(UNDELIVERED), len(trial.ids(NEW)))


def test_changes_are_on_disk_before_they_are_told(trial: Trial, picoqmail: Command) -> None:
    """A new sidecar has the next revision and a line in the history."""
    message_id = trial.accepted()
    picoqmail(trial, "hold", message_id)
    record = trial.sidecar(message_id)
    assert (1, ["held"]) == (record["revision"], trial.outcomes(message_id))


def test_there_is_no_home(trial: Trial, picoqmail: Command) -> None:
    """78, with the way out."""
    ran = picoqmail(trial, "status", PICOQMAIL_HOME="/nonexistent")
    assert 78 == ran.returncode
    assert "picoqmail init" in ran.stderr


NOBODY = 65534


def test_root_leaves_nothing_that_the_owner_cannot_read(trial: Trial) -> None:
    """Root becomes the owner of the spool first, for good: a new sidecar is the owner's."""
    if os.getuid() != 0:
        pytest.skip("becomes another user, which takes root")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        theirs = make_trial(f"{directory}/home", trial.installed)
        message_id = theirs.accepted()
        for path in (theirs.root, theirs.home.control, f"{theirs.home.control}/me"):
            os.chmod(path, 0o755)
        for path, _, names in os.walk(theirs.spool):
            for name in ("", *names):
                os.chown(os.path.join(path, name), NOBODY, NOBODY)
        # Imported before: below root's own directories the owner could not read them.
        importlib.import_module("picoqmail.cli.change")
        child = os.fork()
        if child == 0:
            os.environ["PICOQMAIL_HOME"] = theirs.root
            status = 70
            try:
                status = main(["hold", message_id, "--json"])
                status = status or (0 if os.getresuid() == (NOBODY,) * 3 else 71)
            finally:
                os._exit(status)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert theirs.sidecar(message_id)["held"]
        for suffix in (BODY, SIDECAR):
            assert NOBODY == os.lstat(theirs.path(CUR, message_id, suffix)).st_uid


@pytest.mark.slow
def test_safe_beside_running_senders(
    trial: Trial, picoqmail: Command, relay: RecordingRelay
) -> None:
    """While senders and cron work, messages are held, released and made due: each goes out once."""
    trial.setting("relayip", relay.address)
    count = 40
    for number in range(count):
        trial.accepted("a@example.org", [f"r{number}@example.net"])
    working = [trial.start(program) for program in ("send", "cron", "send", "cron")]
    for words in (("hold", "--all"), ("release", "--all"), ("retry", "--all", "--later")):
        ran = picoqmail(trial, *words, "--json", "--yes")
        results = {one["result"] for one in document(ran)["messages"]}
        assert results <= {"done", "unchanged", "refused", "busy", "gone"}
        working.append(trial.start("cron"))
    assert {0} == {one.wait(60) for one in working} - {75}
    picoqmail(trial, "release", "--all", "--yes")
    trial.cron()
    trial.send()
    received = sorted(one.recipients for one in relay.messages)
    assert sorted((f"r{number}@example.net",) for number in range(count)) == received
    assert [] == trial.files()


@pytest.mark.slow
def test_a_hundred_failures_requeued_at_once(
    trial: Trial, picoqmail: Command, relay: RecordingRelay
) -> None:
    """By a filter, and all of them go out."""
    trial.setting("relayip", relay.address)
    for _ in range(100):
        failed(trial)
    assert 0 == picoqmail(trial, "requeue", "--error", "5.1.1 unknown").returncode
    trial.cron()
    assert 100 == len(relay.messages)
