"""Files for cron, systemd and logrotate: right by their own programs, and never in others' way."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.delivery.processes import MESSAGES_WORTH_A_PROCESS
from picoqmail.home import units
from picoqmail.home.make import InitError
from picoqmail.home.paths import Home
from picoqmail.home.settings import Settings
from picoqmail.layout import CUR, NEW
from picoqmail.log.choice import LogChoice
from rig import faults
from rig.hostile import EVERYTHING, HostileRelay
from rig.programs import find

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trial import Trial

ROOT = units.Account("root", "root")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a program that can be executed, in a path that needs quoting."""
    home = Home(str(tmp_path / "a home 100%"))
    os.makedirs(home.bin)
    program = f"{home.bin}/minisendcron"
    with open(program, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\n")
    os.chmod(program, 0o755)
    return home


@pytest.fixture
def logging(tmp_path: Path) -> Settings:
    """Settings whose log is a file."""
    path = str(tmp_path / "mail.log")
    return Settings({"me": "me.test", "log": LogChoice("file", path, "info")})


def test_systemd_takes_the_units(home: Home, logging: Settings, tmp_path: Path) -> None:
    """systemd-analyze verify has nothing to say of them, odd paths included."""
    analyze = find("systemd-analyze", "systemd")
    found = list(units.systemd_files(home, ROOT, logging))
    paths = units.install(found, str(tmp_path / "root"))
    ran = subprocess.run(
        [analyze, "verify", "--man=no", *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in ran.stderr.splitlines() if "picoqmail" in line]
    assert (0, []) == (ran.returncode, complaints)


@pytest.mark.parametrize(("user", "tenths"), [("picoqmail", 15), ("root", 19)])
def test_systemd_thinks_well_of_the_service(
    home: Home, logging: Settings, tmp_path: Path, user: str, tenths: int
) -> None:
    """Its exposure is "OK" by systemd-analyze; docs/security.md has the figures."""
    analyze = find("systemd-analyze", "systemd")
    account = units.Account(user, user)
    paths = units.install(units.systemd_files(home, account, logging), str(tmp_path / "root"))
    ran = subprocess.run(
        [
            analyze,
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={tenths}",
            *[path for path in paths if path.endswith(".service")],
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 0 == ran.returncode, ran.stdout + ran.stderr
    assert " OK " in ran.stdout


def allowed_calls(analyze: str, text: str) -> set[str]:
    """The system calls that the SystemCallFilter lines of a unit allow (systemd.exec(5))."""
    ran = subprocess.run(
        [analyze, "syscall-filter"], capture_output=True, text=True, check=True, timeout=60
    )
    sets: dict[str, list[str]] = {}
    for line in ran.stdout.splitlines():
        words = line.split()
        if line.startswith("@"):
            members = sets.setdefault(words[0], [])
        elif words and not words[0].startswith("#"):
            members.append(words[0])

    def calls(name: str) -> set[str]:
        return set().union(*map(calls, sets[name])) if name.startswith("@") else {name}

    allowed: set[str] = set()
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "SystemCallFilter" and value.startswith("~"):
            allowed -= set().union(*map(calls, value[1:].split()))
        elif name == "SystemCallFilter":
            allowed |= set().union(*map(calls, value.split()))
    return allowed


def test_the_sender_needs_no_call_that_the_service_forbids(
    trial: Trial, rig: Callable[[HostileRelay], HostileRelay], tmp_path: Path
) -> None:
    """A run of cron: TLS, a login by a program, several processes, a report, an old message."""
    analyze, strace = find("systemd-analyze", "systemd"), find("strace", "strace")
    refused = {"RCPT <refused@example.net>": faults.reply("550 5.1.1 no such user")}
    relay = rig(HostileRelay(refused, offers=EVERYTHING, tls="starttls"))
    trial.setting("relayip", f"smtp+starttls://user@{relay.address}")
    trial.setting("tls", "fingerprint")
    trial.setting("tlsfingerprint", relay.certificate.fingerprint)
    trial.setting("relaypass", "!echo secret")
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    trial.setting("log", "syslog")
    for number in range(MESSAGES_WORTH_A_PROCESS * 2 + 60):
        trial.accepted(recipients=[f"r{number}@example.net"])
    trial.accepted(recipients=["refused@example.net"])
    trial.deferred()
    trace = tmp_path / "trace"
    subprocess.run(
        [strace, "-f", "-qq", "-o", str(trace), trial.installed.program("cron")],
        env=trial.variables(),
        check=True,
        timeout=300,
    )
    assert [] == trial.ids(NEW) + trial.ids(CUR)
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    assert {"fork", "clone", "clone3", "vfork"} & made
    (service, _) = units.systemd_files(trial.home, ROOT, None)
    assert set() == made - allowed_calls(analyze, service.text)


@pytest.mark.parametrize(
    ("sendatonce", "times", "words"),
    [
        ("on", ["OnCalendar=minutely", "AccuracySec=15s"], "each minute"),
        ("off", ["OnCalendar=*:*:0/10", "AccuracySec=1s"], "every ten seconds"),
    ],
)
def test_the_timer_sends_new_mail_if_nothing_else_does(
    trial: Trial,
    picoqmail: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    sendatonce: str,
    times: list[str],
    words: str,
) -> None:
    """Without `sendatonce` mail of users starts no sender, so the timer runs each ten seconds."""
    trial.setting("sendatonce", sendatonce)
    ran = picoqmail(trial, "init", "--units", "systemd", "--destdir", str(tmp_path))
    assert (0, "") == (ran.returncode, ran.stderr)
    path = tmp_path / "etc/systemd/system/picoqmail.timer"
    lines = path.read_text().splitlines()
    assert times == [line for line in lines if line.startswith(("OnCalendar", "AccuracySec"))]
    assert f"Description=Retry of mail {words}" in lines
    calendar = times[0].removeprefix("OnCalendar=")
    analyze = find("systemd-analyze", "systemd")
    subprocess.run([analyze, "calendar", calendar], check=True, capture_output=True, timeout=60)


def test_logrotate_takes_its_file(logging: Settings, tmp_path: Path) -> None:
    """Logrotate's own dry run finds the log and no error."""
    logrotate = find("logrotate", "logrotate")
    unit = units.logrotate_file(units.log_path(logging), ROOT)
    (path,) = units.install([unit], str(tmp_path / "root"))
    with open(units.log_path(logging), "w", encoding="utf-8") as file:
        file.write("a line\n")
    state = str(tmp_path / "state")
    ran = subprocess.run(
        [logrotate, "--debug", "--state", state, path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 0 == ran.returncode
    assert "error" not in ran.stderr
    assert "mail.log" in ran.stderr


def test_the_cron_line_runs(trial: Trial) -> None:
    """What stands behind the user's name is a command that a shell understands."""
    os.symlink(trial.installed.program("cron"), f"{trial.root}/bin/minisendcron")
    text = units.cron_file(trial.home, ROOT).text
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    words = line.split(None, 6)
    assert ["*"] * 5 + ["root"] == words[:6]
    ran = subprocess.run(
        ["/bin/sh", "-c", words[6]], capture_output=True, check=False, timeout=60, env={}
    )
    assert (0, b"") == (ran.returncode, ran.stdout + ran.stderr)


def test_no_file_of_another_is_touched(home: Home, tmp_path: Path) -> None:
    """What does not bear our mark, a link included, is neither overwritten nor removed."""
    (tmp_path / "etc" / "cron.d").mkdir(parents=True)
    path = tmp_path / "etc" / "cron.d" / "picoqmail"
    path.write_text("mine\n")
    with pytest.raises(InitError, match="not ours"):
        units.install([units.cron_file(home, ROOT)], str(tmp_path))
    assert [] == units.uninstall(str(tmp_path))
    assert "mine\n" == path.read_text()
    path.unlink()
    (tmp_path / "elsewhere").write_text(units.MARK + "\n")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InitError, match="not ours"):
        units.install([units.cron_file(home, ROOT)], str(tmp_path))
    assert path.is_symlink()


def test_installed_again_and_removed(
    trial: Trial, picoqmail: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Units may be installed again; --uninstall leaves nothing."""
    for kind in ("cron", "systemd", "cron"):
        ran = picoqmail(trial, "init", "--units", kind, "--destdir", str(tmp_path))
        assert (0, "") == (ran.returncode, ran.stderr)
    (owner,) = {os.stat(trial.spool).st_uid}
    text = (tmp_path / "etc/systemd/system/picoqmail.service").read_text()
    assert f"User={units.user_name(owner)}\n" in text
    assert 4 == len(picoqmail(trial, "init", "--units").stdout.split("--- /")) - 1
    assert 0 == picoqmail(trial, "init", "--uninstall", "--destdir", str(tmp_path)).returncode
    assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]
