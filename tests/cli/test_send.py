"""picoqmail-send: which messages it tries, what it says of those it cannot, its exit codes."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import BODY, CUR, NEW, SIDECAR, UNDELIVERED
from rig import faults
from rig.hostile import HostileRelay
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

SECONDS = 120
# None of these may be imported on the way of a mail to its relay.
HEAVY = {
    "argparse",
    "asyncio",
    "attr",
    "dataclasses",
    "email",
    "hashlib",
    "inspect",
    "logging",
    "pathlib",
    "picoqmail.ledger.report_limit",
    "picoqmail.delivery.report_text",
    "portalocker",
    "site",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "typing",
}


def said(trial: Trial, *names: str) -> tuple[int, str]:
    """Exit code and standard error of a run."""
    ran = trial.run("send", *names)
    assert b"" == ran.stdout
    return ran.returncode, ran.stderr.decode()


def test_nothing_to_do_is_0(trial: Trial) -> None:
    """Silently, and nothing is made."""
    assert (0, "") == said(trial)
    assert [] == trial.files()


def test_all_of_new_is_sent(trial: Trial, strict_relay: HostileRelay) -> None:
    """And nothing of cur/, which is cron's."""
    trial.setting("relayip", strict_relay.address)
    for _ in range(3):
        trial.accepted()
    later = trial.deferred(next_attempt=1)
    assert (0, "") == said(trial)
    assert 3 == len(strict_relay.messages)
    assert [later] == trial.ids(CUR)


@pytest.mark.parametrize(("answer", "left"), [("250 2.0.0 ok", 0), ("451 4.3.0 later", 1)])
def test_a_mail_is_sent_without_a_heavy_import(
    trial: Trial, rig: Rig, answer: str, left: int
) -> None:
    """Nearly every mail starts a sender: what its start would double is not for it."""
    relay = rig(HostileRelay({"RCPT": faults.reply(answer)}))
    trial.setting("relayip", relay.address)
    # JSON and colours are structlog's.
    trial.setting("log", f"{trial.root}/events")
    trial.accepted()
    code = "from picoqmail.cli.send import main\nmain([])\nprint(*sys.modules)\n"
    ran = trial.python(code)
    assert b"" == ran.stderr
    names = set(ran.stdout.decode().split())
    assert "picoqmail.delivery.deliver" in names
    assert set() == names & HEAVY
    assert left == len(trial.ids(CUR))


@pytest.mark.parametrize(
    ("answer", "status", "state"),
    [("451 4.3.0 later", 75, CUR), ("550 5.1.1 no", 69, UNDELIVERED), ("250 2.0.0 ok", 0, "")],
)
def test_the_exit_code_says_what_became_of_it(
    trial: Trial, rig: Rig, answer: str, status: int, state: str
) -> None:
    """0 all delivered, 75 something deferred, 69 something failed for good."""
    relay = rig(HostileRelay({"RCPT": faults.reply(answer)}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    assert (status, "") == said(trial)
    assert [state] * bool(state) == [s for s in (NEW, CUR, UNDELIVERED) if trial.ids(s)]
    assert not state or message_id == trial.ids(state)[0]


def test_failed_and_deferred_is_69(trial: Trial, rig: Rig) -> None:
    """The worst of them counts."""
    answers = [faults.reply("550 5.1.1 no"), faults.reply("451 4.3.0 later"), None]
    relay = rig(HostileRelay({"RCPT": answers}))
    trial.setting("relayip", relay.address)
    for _ in range(3):
        trial.accepted()
    assert (69, "") == said(trial)
    assert (1, 1) == (len(trial.ids(UNDELIVERED)), len(trial.ids(CUR)))


@pytest.mark.parametrize(
    "form", ["{id}", "{spool}/cur/{id}.json", "{spool}/cur/{id}.eml", "{id}.eml"]
)
def test_a_message_is_named_by_id_or_path(
    trial: Trial, strict_relay: HostileRelay, form: str
) -> None:
    """Due or not; the others stay where they are."""
    trial.setting("relayip", strict_relay.address)
    message_id = trial.deferred(next_attempt=int(time.time()) + 9999)
    other = trial.accepted()
    assert (0, "") == said(trial, form.format(id=message_id, spool=trial.spool))
    assert [other] == trial.ids(NEW)
    assert [] == trial.ids(CUR)


def test_no_such_message_is_66(trial: Trial, strict_relay: HostileRelay) -> None:
    """Told with its name; those that exist are sent all the same."""
    trial.setting("relayip", strict_relay.address)
    message_id = trial.accepted()
    status, text = said(trial, "1.none", message_id, "../control/me")
    assert (66, 2) == (status, text.count("no such message"))
    assert "1.none" in text
    assert [] == trial.files()


def test_a_failed_message_is_not_sent_by_name(trial: Trial) -> None:
    """It says what to do instead."""
    message_id = trial.accepted()
    for suffix in (BODY, SIDECAR):
        os.rename(trial.path(NEW, message_id, suffix), trial.path(UNDELIVERED, message_id, suffix))
    status, text = said(trial, message_id)
    assert (66, True) == (status, f"picoqmail requeue {message_id}" in text)


def test_a_message_that_another_has_is_75(trial: Trial, rig: Rig) -> None:
    """It says so, and does not wait."""
    relay = rig(HostileRelay({"RCPT": [faults.stall()]}))
    trial.setting("relayip", relay.address)
    message_id = trial.accepted()
    process = trial.start("send")
    wait_until(lambda: "RCPT" in relay.verbs(), "the first one has it", SECONDS)
    status, text = said(trial, message_id)
    process.kill()
    process.wait(SECONDS)
    assert (75, True) == (status, f"{message_id}: another process is sending it" in text)


def test_a_damaged_message_is_69_and_told_as_such(trial: Trial) -> None:
    """Nobody is told that another process has it."""
    message_id = trial.accepted()
    trial.edit(message_id, crc32=1)
    status, text = said(trial, message_id)
    assert 69 == status
    assert "another process" not in text
    assert UNDELIVERED == trial.state(message_id)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("me", ""),
        ("relayip", "no such:thing:at all"),
        ("queuelifetime", "soon"),
        ("retryschedule", "0"),
        ("tls", "maybe"),
    ],
)
@pytest.mark.parametrize("program", ["send", "cron"])
def test_a_wrong_setting_is_78(trial: Trial, program: str, name: str, text: str) -> None:
    """File and line, no traceback, and the mail stays where it is."""
    message_id = trial.accepted()
    trial.setting(name, text)
    ran = trial.run(program)
    where = f"{trial.root}/control/{name}".encode()
    assert (78, True) == (ran.returncode, where in ran.stderr)
    assert 1 == ran.stderr.count(b"\n")
    assert [message_id] == trial.ids(NEW)


@pytest.mark.parametrize("program", ["send", "cron"])
@pytest.mark.parametrize("name", ["relayip", "smtproutes", "senderroutes"])
def test_a_user_without_a_password_is_78(trial: Trial, program: str, name: str) -> None:
    """Who is to log in does not go on without: the relay would refuse, or worse, take it."""
    message_id = trial.queued()
    prefix = "" if name == "relayip" else ":"
    trial.setting(name, f"{prefix}ann@127.0.0.1:1")
    ran = trial.run(program)
    assert 78 == ran.returncode
    assert b"control/relaypass" in ran.stderr
    assert b"ann" in ran.stderr
    assert NEW == trial.state(message_id)


@pytest.mark.parametrize("program", ["send", "cron"])
def test_no_relay_at_all_is_78(trial: Trial, program: str) -> None:
    """With what to write where."""
    trial.accepted()
    os.unlink(f"{trial.root}/control/relayip")
    ran = trial.run(program)
    assert (78, True) == (ran.returncode, b"picoqmail init --relay" in ran.stderr)


@pytest.mark.parametrize("program", ["send", "cron"])
def test_usage(trial: Trial, program: str) -> None:
    """Asked for: standard output and 0; an unknown option: 64."""
    ran = trial.run(program, "--help")
    assert (0, True, b"") == (ran.returncode, ran.stdout.startswith(b"usage: "), ran.stderr)
    ran = trial.run(program, "--frobnicate")
    assert (64, True, b"") == (ran.returncode, ran.stderr.startswith(b"usage: "), ran.stdout)


def test_the_caller_cannot_steer_python(trial: Trial, strict_relay: HostileRelay) -> None:
    """Variables and files of the caller's directory are not imported from."""
    trial.setting("relayip", strict_relay.address)
    trial.accepted()
    for name in ("enum", "json", "selectors", "socket"):
        with open(f"{trial.root}/{name}.py", "w", encoding="utf-8") as file:
            file.write("raise SystemExit(99)\n")
    trial.environ["PYTHONPATH"] = trial.root
    trial.environ["PYTHONSTARTUP"] = f"{trial.root}/json.py"
    process = trial.start("send", cwd=trial.root)
    assert 0 == process.wait(SECONDS)
    assert 1 == len(strict_relay.messages)


def test_sigterm_finishes_what_is_under_way(trial: Trial, rig: Rig) -> None:
    """The message whose data are out is recorded; the next one is not begun."""
    relay = rig(HostileRelay({".": [faults.delayed(1.5)]}, offers=("SIZE",)))
    trial.setting("relayip", relay.address)
    trial.setting("concurrencyremote", "1")
    for _ in range(3):
        trial.accepted()
    process = trial.start("send")
    wait_until(lambda: b"\r\n.\r\n" in relay.wire.get(1, b""), "the final dot is sent", SECONDS)
    process.terminate()
    assert 75 == process.wait(SECONDS)
    assert (2, 1) == (len(trial.ids(NEW)), len(relay.messages))
    assert "250 2.0.0 Kept" == relay.messages[0].reply
    trial.cron()
    assert [] == trial.files()
    assert 3 == len(relay.messages)


@pytest.mark.slow
def test_two_senders_and_cron_send_nothing_twice(trial: Trial, rig: Rig) -> None:
    """All at once over the same messages, new and due: each goes out once."""
    relay = rig(HostileRelay())
    trial.setting("relayip", relay.address)
    ids = [trial.accepted() for _ in range(60)] + [
        trial.deferred(next_attempt=1) for _ in range(60)
    ]
    processes = [
        trial.start("send"),
        trial.start("send", *ids),
        trial.start("send", *reversed(ids)),
        trial.start("cron"),
    ]
    statuses = [process.wait(60) for process in processes]
    assert {0, 66, 75} >= set(statuses)
    trial.cron()
    trial.send()
    assert [] == trial.files()
    contents = [message.content for message in relay.messages]
    assert len(ids) == len(contents) == len(set(contents))
    assert [] == relay.complaints
