"""picoqmail check: each broken state has its exit code, and the figures reach monitoring."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from picoqmail.admin.findings import CRITICAL, OK, UNKNOWN, WARNING, Finding, worst
from picoqmail.layout import (
    BODY,
    CUR,
    IN_DOUBT_BIT,
    IN_HAND_BIT,
    NEW,
    SUSPECT_BIT,
    UNDELIVERED,
)
from rig.recording import RecordingRelay
from temporary_home import age

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from trial import Trial

    Command = Callable[..., subprocess.CompletedProcess[str]]

HOUR = 3600


@pytest.fixture
def well(trial: Trial, relay: RecordingRelay) -> Trial:
    """A home of which nothing is to be said: its relay is up, and cron has run."""
    trial.setting("relayip", relay.address)
    os.chmod(trial.spool, 0o700)
    trial.cron()
    return trial


def levels(ran: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The worst level of each kind of finding."""
    found: dict[str, int] = {}
    for one in json.loads(ran.stdout)["findings"]:
        found[one["name"]] = max(found.get(one["name"], OK), one["level"])
    return found


def test_all_is_well(well: Trial, picoqmail: Command) -> None:
    """Exit 0, one line with the figures behind a bar, then details."""
    ran = picoqmail(well, "check")
    first, *details = ran.stdout.splitlines()
    assert (0, "") == (ran.returncode, ran.stderr)
    assert re.fullmatch(r"PICOQMAIL OK - .* \| waiting=0 oldest=0s .*", first)
    assert all(line.startswith("  OK ") for line in details)


def test_marks_on_a_body_are_well(well: Trial, picoqmail: Command) -> None:
    """Execute bits say what a run has in hand. They let nobody read, and are no finding."""
    message_id = well.accepted()
    for marks in (IN_HAND_BIT, IN_HAND_BIT | SUSPECT_BIT | IN_DOUBT_BIT):
        os.chmod(well.path(NEW, message_id, BODY), 0o600 | marks)
        ran = picoqmail(well, "check", "--no-relay")
        assert "lets other users" not in ran.stdout, ran.stdout


def damage(trial: Trial) -> None:
    """Cut a body."""
    os.truncate(trial.path(NEW, trial.accepted(), BODY), 3)


def lose_body(trial: Trial) -> None:
    """Remove a body."""
    os.unlink(trial.path(NEW, trial.accepted(), BODY))


def leave_over(trial: Trial) -> None:
    """Leave an old file in tmp/."""
    path = f"{trial.spool}/tmp/1.M1P1Q1Raa.host.eml"
    with open(path, "w", encoding="utf-8"):
        pass
    os.chmod(path, 0o600)
    age(path, 40 * HOUR)


def put_aside(trial: Trial) -> None:
    """Have a damaged message put aside."""
    damage(trial)
    assert 69 == trial.send()


def grow_old(hours: float) -> Callable[[Trial], None]:
    """Let a message wait so long."""

    def act(trial: Trial) -> None:
        message_id = trial.deferred(next_attempt=2**32 - 1)
        seconds, dot, rest = message_id.partition(".")
        aged = f"{int(seconds) - int(hours * HOUR)}{dot}{rest}"
        trial.edit(message_id, id=aged)
        for suffix in (BODY, ".json"):
            os.rename(trial.path(CUR, message_id, suffix), trial.path(CUR, aged, suffix))

    return act


def open_to_others(path: str, mode: int) -> Callable[[Trial], None]:
    """Give a directory this mode."""
    return lambda trial: os.chmod(f"{trial.spool}/{path}", mode)


def lose_directory(trial: Trial) -> None:
    """Remove a directory of the spool."""
    os.rmdir(f"{trial.spool}/{UNDELIVERED}")


def stop_cron(trial: Trial) -> None:
    """Let cron have run last an hour ago."""
    age(f"{trial.spool}/cron.lock", HOUR)


def setting(name: str, value: str) -> Callable[[Trial], None]:
    """Give a setting this value."""
    return lambda trial: trial.setting(name, value)


@pytest.mark.parametrize(
    ("break_it", "name", "level"),
    [
        (setting("tls", "perhaps"), "settings", CRITICAL),
        (setting("me", ""), "settings", CRITICAL),
        (setting("relayip", ""), "settings", CRITICAL),
        (setting("relayip", "127.0.0.1:1"), "relay", CRITICAL),
        (setting("relayip", "no.such.host.invalid"), "relay", CRITICAL),
        (setting("tls", "require"), "relay", CRITICAL),
        (damage, "messages", CRITICAL),
        (lose_body, "messages", CRITICAL),
        (put_aside, "messages", WARNING),
        (leave_over, "leftovers", WARNING),
        (grow_old(1), "queue", OK),
        (grow_old(3), "queue", WARNING),
        (grow_old(13), "queue", CRITICAL),
        (open_to_others(".", 0o755), "modes", WARNING),
        (open_to_others("cur", 0o770), "modes", CRITICAL),
        (stop_cron, "cron", WARNING),
    ],
)
def test_each_broken_state_has_its_level(
    well: Trial,
    picoqmail: Command,
    break_it: Callable[[Trial], None],
    name: str,
    level: int,
) -> None:
    """The exit code is the level of what is broken, and only that is complained of."""
    break_it(well)
    ran = picoqmail(well, "check", "--json")
    assert (level, level) == (levels(ran)[name], ran.returncode)
    assert {name} >= {one for one, found in levels(ran).items() if found}


def test_a_missing_directory(well: Trial, picoqmail: Command) -> None:
    """A spool that lacks a part is critical, and told in one line, not by a traceback."""
    lose_directory(well)
    ran = picoqmail(well, "check")
    assert (CRITICAL, "") == (ran.returncode, ran.stderr)
    assert f"{well.spool}/{UNDELIVERED}" in ran.stdout


def test_there_is_no_home(trial: Trial, picoqmail: Command) -> None:
    """Nothing is known: 3."""
    assert UNKNOWN == picoqmail(trial, "check", PICOQMAIL_HOME="/nonexistent").returncode


def test_a_second_relay_makes_it_a_warning(
    well: Trial, picoqmail: Command, relay: RecordingRelay
) -> None:
    """Mail flows by the other one."""
    well.setting("relayip", f"127.0.0.1:1\n{relay.address}")
    assert WARNING == picoqmail(well, "check").returncode


@pytest.mark.parametrize(("password", "expected"), [("secret", OK), ("wrong", CRITICAL)])
def test_the_relay_is_tried_with_tls_and_login(
    trial: Trial, picoqmail: Command, rig: Callable[..., Any], password: str, expected: int
) -> None:
    """Name, connection, TLS with the end of the certificate, login; and no mail is sent."""
    relay = rig(RecordingRelay(tls="starttls", users={"joe": "secret"}))
    os.chmod(trial.spool, 0o700)
    trial.setting("relayip", f"smtp+starttls://joe@{relay.address}")
    trial.setting("tlsca", relay.certificate.trusted)
    trial.setting("relaypass", password)
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    ran = picoqmail(trial, "check", "--json")
    assert expected == ran.returncode
    (probe,) = json.loads(ran.stdout)["relays"]
    assert ("" if expected == OK else "auth") == probe["stage"]
    assert probe["certificate_ends"] > time.time()
    assert ("TLSv1.3", "authority") == (probe["tls"], probe["verified"])
    assert [] == relay.messages
    assert password not in ran.stdout.replace("authority", "")
    days = picoqmail(trial, "check", "--crit-certificate-days", "99999999")
    assert CRITICAL == days.returncode


def test_send_to(well: Trial, picoqmail: Command, relay: RecordingRelay) -> None:
    """A mail goes out only when asked for, and its outcome is a finding."""
    assert OK == picoqmail(well, "check", "--send-to", "ann@example.net").returncode
    (mail,) = relay.messages
    assert (("ann@example.net",), "postmaster@me.test") == (mail.recipients, mail.sender)
    assert [] == well.files()
    assert CRITICAL == picoqmail(well, "check", "--send-to", "nobody").returncode


def test_send_to_that_is_refused(well: Trial, picoqmail: Command, rig: Callable[..., Any]) -> None:
    """What the relay said is told."""
    relay = rig(RecordingRelay(answers={"RCPT": ["550 5.7.1 not you"]}))
    well.setting("relayip", relay.address)
    ran = picoqmail(well, "check", "--send-to", "ann@example.net")
    assert CRITICAL == ran.returncode
    assert "550 5.7.1 not you" in ran.stdout


def test_thresholds(well: Trial, picoqmail: Command) -> None:
    """Counts and ages can be given limits."""
    well.deferred(next_attempt=2**32 - 1)
    assert OK == picoqmail(well, "check").returncode
    assert WARNING == picoqmail(well, "check", "--warn-waiting", "1").returncode
    assert CRITICAL == picoqmail(well, "check", "--crit-age", "0").returncode


@pytest.mark.parametrize(
    ("me", "domain", "said"),
    [
        ("vm.example.org", "", "user@vm becomes user@vm.vm.example.org"),
        ("box", "", "has no domain"),
        ("localhost.localdomain", "", "every host's name for itself"),
        ("192.0.2.1", "example.org", "in brackets"),
        ("my_host.example.org", "example.org", "is not a name of the DNS"),
    ],
)
def test_names_that_relays_refuse(
    well: Trial, picoqmail: Command, me: str, domain: str, said: str
) -> None:
    """A warning that names the setting, and what to write there."""
    well.setting("me", me)
    if domain:
        well.setting("defaultdomain", domain)
    ran = picoqmail(well, "check", "--json")
    assert {"names": WARNING} == {name: level for name, level in levels(ran).items() if level}
    (found,) = [one for one in json.loads(ran.stdout)["findings"] if one["name"] == "names"]
    assert said in found["text"]
    assert f"{well.root}/control/" in found["text"] + found["remedy"]


def test_deep_finds_a_changed_octet(well: Trial, picoqmail: Command) -> None:
    """The checksum of every body is only looked at with --deep."""
    path = well.path(NEW, well.accepted(), BODY)
    with open(path, "r+b") as file:
        file.write(b"X")
    assert OK == picoqmail(well, "check").returncode
    assert CRITICAL == picoqmail(well, "check", "--deep").returncode


def test_repair_mends_and_loses_nothing(well: Trial, picoqmail: Command) -> None:
    """Modes, leftovers, a lost due time, a damaged message; the good ones are still there."""
    good = well.deferred(next_attempt=2**32 - 1)
    os.utime(well.path(CUR, good), (1, 1))
    leave_over(well)
    damage(well)
    os.chmod(f"{well.spool}/cur", 0o755)
    os.chmod(well.path(CUR, good, BODY), 0o644)
    ran = picoqmail(well, "check", "--repair", "--json")
    assert WARNING == ran.returncode  # the damaged message was put aside, and a person must look
    assert 4 <= len(json.loads(ran.stdout)["repaired"])
    assert 0o700 == os.stat(f"{well.spool}/cur").st_mode & 0o777
    assert 0o600 == os.stat(well.path(CUR, good, BODY)).st_mode & 0o777
    assert 2**32 - 1 == os.stat(well.path(CUR, good)).st_mtime
    assert ([], [good], 1) == (well.names("tmp"), well.ids(CUR), len(well.ids(UNDELIVERED)))


def test_repair_gives_the_owner_his_files_back(well: Trial, picoqmail: Command) -> None:
    """Modes that keep the owner out, of directories and of what is in them; keys' among them."""
    message = well.accepted()
    path = well.path(NEW, message)
    os.mkdir(f"{well.spool}/idempotency", 0o700)
    record = f"{well.spool}/idempotency/{'0' * 64}"
    with open(record, "wb"):
        pass
    for one, mode in ((path, 0), (record, 0o200), (f"{well.spool}/new", 0o500)):
        os.chmod(one, mode)
    assert CRITICAL == levels(picoqmail(well, "check", "--json"))["modes"]
    ran = picoqmail(well, "check", "--repair", "--json")
    told = [line.split(": ")[0] for line in json.loads(ran.stdout)["repaired"]]
    assert {path, record, f"{well.spool}/new"} == set(told)
    assert OK == levels(ran)["modes"]
    assert 0o700 == os.stat(f"{well.spool}/new").st_mode & 0o777
    assert {0o600} == {os.stat(one).st_mode & 0o777 for one in (path, record)}


def test_repair_makes_what_a_copy_left_out(well: Trial, picoqmail: Command) -> None:
    """Empty directories are made; where all four are missing a disk is not mounted: none is."""
    for name in ("tmp", CUR):
        os.rmdir(f"{well.spool}/{name}")
    ran = picoqmail(well, "check", "--repair", "--json")
    assert OK == ran.returncode
    assert 2 == len(json.loads(ran.stdout)["repaired"])
    assert 0o700 == os.stat(f"{well.spool}/tmp").st_mode & 0o777
    for name in ("tmp", NEW, CUR, UNDELIVERED):
        os.rmdir(f"{well.spool}/{name}")
    assert CRITICAL == picoqmail(well, "check", "--repair").returncode
    assert not os.path.exists(f"{well.spool}/{NEW}")


def test_figures_for_prometheus(well: Trial, picoqmail: Command, tmp_path: Any) -> None:
    """The file is whole, readable by the exporter, and in the format of the textfile collector."""
    well.accepted()
    path = tmp_path / "picoqmail.prom"
    assert OK == picoqmail(well, "check", "--prometheus", str(path)).returncode
    text = path.read_text()
    assert 'picoqmail_messages{state="new"} 1\n' in text
    assert "picoqmail_check_level 0\n" in text
    sample = re.compile(r'picoqmail_\w+(\{\w+="(?:[^"\\\n]|\\.)*"\})? -?[0-9.]+')
    for line in text.splitlines():
        assert line.startswith(("# HELP picoqmail_", "# TYPE picoqmail_")) or sample.fullmatch(line)
    assert 0o644 == path.stat().st_mode & 0o777
    assert [path.name] == os.listdir(tmp_path)


def test_a_figure_file_that_cannot_be_written_is_told(well: Trial, picoqmail: Command) -> None:
    """The check is not lost for it."""
    ran = picoqmail(well, "check", "--prometheus", "/nonexistent/file")
    assert UNKNOWN == ran.returncode
    assert "/nonexistent/file" in ran.stdout


def test_a_figure_file_that_cannot_be_put_in_place_leaves_nothing(
    well: Trial, picoqmail: Command, tmp_path: Any
) -> None:
    """Where a directory lies in its place nothing stays beside it, which cron would pile up."""
    (tmp_path / "figures" / "in the way").mkdir(parents=True)
    ran = picoqmail(well, "check", "--prometheus", str(tmp_path / "figures"))
    assert UNKNOWN == ran.returncode
    assert f"cannot write {tmp_path}/figures" in ran.stdout
    assert ["figures"] == os.listdir(tmp_path)


def test_worst_of_several() -> None:
    """Critical goes before unknown, that before a warning."""
    one = Finding("x", OK, "")
    for several, expected in (
        ((OK, WARNING), WARNING),
        ((WARNING, UNKNOWN), UNKNOWN),
        ((UNKNOWN, CRITICAL, OK), CRITICAL),
        ((), UNKNOWN),
    ):
        assert expected == worst([evolve(one, level=level) for level in several])
