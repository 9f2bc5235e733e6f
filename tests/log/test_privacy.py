"""What the log keeps to itself, and the table of its events."""

from __future__ import annotations

import glob
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

import installation
from picoqmail.log import events
from picoqmail.log.choice import LogChoice
from picoqmail.log.logger import open_log
from picoqmail.log.privacy import mask
from rig.recording import RecordingRelay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trial import Trial

ID = "1795361848.M091634P8815Q1R51768887352c0ce2.me.test"


@pytest.mark.parametrize(
    ("facts", "local", "all_of_it"),
    [
        ({"sender": "joe@example.org"}, "*@example.org", "*"),
        ({"sender": ""}, "", ""),
        ({"sender": "list-@example.org-@[]"}, "*@example.org", "*"),
        ({"recipient": '"joe doe"@example.org'}, "*@example.org", "*"),
        ({"recipients": ["a@b", "c@d"]}, ["*@b", "*@d"], ["*", "*"]),
        ({"recipients": 3}, 3, 3),
        ({"reply": "550 <joe@b.org>: gone, joe@b.org"}, "550 <*@b.org>: gone, *@b.org",
         "550 <*>: gone, *"),
        ({"relay": "smtp://joe@relay.example.org:25"}, "smtp:*@relay.example.org:25", "smtp:*:25"),
        ({"id": ID}, ID, ID),
    ],
)  # fmt: skip
def test_what_is_kept_back(facts: dict[str, Any], local: object, all_of_it: object) -> None:
    """Local parts, or whole addresses, also inside of other texts; nothing else."""
    (name,) = facts
    assert local == mask(facts, "local")[name]
    assert all_of_it == mask(facts, "all")[name]
    assert [name] == list(mask(facts, "all"))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        '"' * 200_000,
        '\\"' * 100_000,
        '"' + '\\"' * 100_000,
        '"@' * 100_000,
        "@[" * 100_000,
        "a@[" * 100_000,
        '\\"@x' * 50_000,
        "a." * 100_000 + "@",
    ],
)
def test_no_reply_makes_the_log_slow(text: str) -> None:
    """Ten times the text takes about ten times the time, whatever a relay says."""
    began = time.process_time()
    mask({"reply": text}, "local")
    assert time.process_time() - began < 2  # Seconds; a quadratic search takes minutes.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<"joe doe"@b.org>', "<*@b.org>"),
        ('"a \\" b"@b.org', "*@b.org"),
        ('say "x" joe@[192.0.2.1] and a@b', 'say "x" *@[192.0.2.1] and *@b'),
        ("@b.org alone, joe@ alone", "@b.org alone, * alone"),
        ('\\"@b.org "open joe@b.org', '\\"@b.org "open *@b.org'),
    ],
)
def test_addresses_in_odd_places(text: str, expected: str) -> None:
    """Quoted local parts and literals are masked as a whole."""
    assert expected == mask({"reply": text}, "local")["reply"]


@pytest.mark.parametrize("how", ["off", "local", "all"])
def test_the_setting_reaches_the_log(
    trial: Trial, rig: Callable[..., RecordingRelay], how: str
) -> None:
    """A whole story, refusal included: the local parts are there or they are nowhere."""
    relay = rig(RecordingRelay(answers={"RCPT <bob@example.net>": ["550 5.1.1 <bob@example.net>"]}))
    trial.setting("relayip", relay.address)
    trial.setting("logprivacy", how)
    trial.setting("bounces", "on")
    message_id = trial.accepted("alice@example.org", ["bob@example.net", "carol@example.net"])
    trial.send()
    with open(f"{trial.root}/log", encoding="utf-8") as file:
        text = file.read()
    for word in ("alice", "bob", "carol"):
        assert (how == "off") == (word in text)
    assert (how != "all") == ("example.net" in text)
    assert message_id in text


def test_a_story_in_events(trial: Trial, relay: RecordingRelay) -> None:
    """queued, attempt and delivered, each once, each with the ID."""
    trial.setting("relayip", relay.address)
    message_id = trial.accepted()
    assert 0 == trial.send()
    told = [event for event in trial.events() if event.get("id") == message_id]
    assert ["attempt", "queued", "delivered"] == [event["event"] for event in told]
    assert ("trial", 1) == (told[1]["origin"], told[1]["recipients"])


def test_the_journal(tmp_path: Path) -> None:
    """Fields of the native protocol, one datagram an event; a journal that is away loses events."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.settimeout(5)
        choice = LogChoice("journal", "", "info")
        log = open_log(choice, str(tmp_path), program="p", journal_socket=path)
        log.event("relay_down", level="warning", relay="r", reason="a\nPRIORITY=0")
        lines = journal.recv(65536).decode().splitlines()
    assert 'MESSAGE=relay_down relay=r reason="a\\nPRIORITY=0"' == lines[0]
    assert {"PRIORITY=4", "SYSLOG_IDENTIFIER=p", f"SYSLOG_PID={os.getpid()}"} < set(lines)
    log.event("relay_up")
    assert 1 == log.lost
    log.close()


def test_every_event_is_in_the_table() -> None:
    """What the sources tell is what the manual says, name by name."""
    told = set()
    for path in glob.glob(f"{installation.CHECKOUT}/picoqmail/**/*.py", recursive=True):
        with open(path, encoding="utf-8") as file:
            source = file.read()
        told |= set(re.findall(r"(?:log|_log)\.event\(\s*\"(\w+)\"", source))
        told |= set(re.findall(r"on_event\(\s*\"(\w+)\"", source))
    told |= {"connection_lost", "relay_greeted"}  # what a session makes of the engine's own
    assert set(events.EVENTS) - {"purged"} <= told
    assert told <= set(events.EVENTS)


def test_the_page_is_the_table() -> None:
    """docs/log.md is made from the table: picoqmail.log.events.document()."""
    with open(f"{installation.CHECKOUT}/docs/log.md", encoding="utf-8") as page:
        assert events.document() == page.read()
