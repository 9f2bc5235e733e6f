"""Files for cron, systemd and logrotate: right by their own programs, and never in others' way."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.home import units
from picoqmail.home.make import InitError
from picoqmail.home.paths import Home
from picoqmail.home.settings import Settings
from picoqmail.log.choice import LogChoice
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
