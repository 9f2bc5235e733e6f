"""`picoqmail config`: every setting, its value, its source and its meaning; wrong values as 78."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail.home import page as settings_page
from picoqmail.home import settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home with some settings, one of them secret."""
    control = tmp_path / "control"
    control.mkdir()
    (control / "me").write_text("mail.example.org\n")
    (control / "relayip").write_text("# first\nmx1\nsmtps://joe@mx2\n")
    (control / "relaypass").write_text("hunter2\n")
    (control / "relaypass").chmod(0o600)
    (control / "minivars").write_text("TIMEOUTREMOTE=300\nRETRYSCHEDULE='5m 1h'\nBOUNCES=no\n")
    return tmp_path


def config(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `picoqmail config` for a home."""
    return subprocess.run(
        [sys.executable, "-m", "picoqmail.cli.main", "config", *words],
        env={**os.environ, "PICOQMAIL_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_tells_everything(home: Path) -> None:
    """Each setting stands there with value and source; the password does not."""
    done = config(home)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"timeoutremote = 300 seconds    [{home}/control/minivars:1]" in done.stdout
    assert f"relayip = mx1 | smtps://joe@mx2    [{home}/control/relayip:2]" in done.stdout
    assert "helohost = mail.example.org    [as me]" in done.stdout
    assert "queuelifetime = 604800 seconds    [default]" in done.stdout
    assert f"relaypass = <secret>    [{home}/control/relaypass:1]" in done.stdout
    assert "hunter2" not in done.stdout
    for name in settings.SPECS:
        assert f"\n{name} = " in f"\n{done.stdout}"


def test_one_setting(home: Path) -> None:
    """A name limits the output, in either case of letters; a wrong one gets a hint."""
    done = config(home, "TimeoutRemote")
    assert done.stdout.startswith("timeoutremote = 300")
    assert "helohost" not in done.stdout
    wrong = config(home, "timeoutremot")
    assert wrong.returncode == 64
    assert "did you mean timeoutremote" in wrong.stderr


def test_json(home: Path) -> None:
    """The same for programs: numbers are numbers, lists lists, and nothing secret shows."""
    done = config(home, "--json")
    assert "hunter2" not in done.stdout
    document = json.loads(done.stdout)
    assert list(document["settings"]) == list(settings.SPECS)
    values = {name: told["value"] for name, told in document["settings"].items()}
    assert values["timeoutremote"] == 300
    assert values["bounces"] is False
    assert values["relayip"] == ["mx1", "smtps://joe@mx2"]
    assert values["retryschedule"] == "5m 1h"
    assert values["smtproutes"] == []
    assert values["tlsca"] is None
    assert document["settings"]["bounces"]["source"] == f"{home}/control/minivars:3"
    assert (document["errors"], document["warnings"]) == ([], [])


def test_all_wrong_values(home: Path) -> None:
    """Every wrong value is told with file and line, the right ones are still shown, exit 78."""
    (home / "control/tls").write_text("always\n")
    (home / "control/databytes").write_text("# size\n10M\n")
    (home / "control/rcpthosts").write_text("x\n")
    done = config(home)
    assert done.returncode == 78
    assert f"{home}/control/tls:1: tls: 'always'" in done.stderr
    assert f"{home}/control/databytes:2: databytes: '10M'" in done.stderr
    assert f"warning: {home}/control/rcpthosts: is not a setting" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"tls = (wrong)    [{home}/control/tls:1]" in done.stdout
    assert "timeoutremote = 300 seconds" in done.stdout
    document = json.loads(config(home, "--json").stdout)
    assert len(document["errors"]) == 2
    assert document["settings"]["tls"]["value"] is None


def test_terminal_cannot_be_driven(home: Path) -> None:
    """Control characters in a file are escaped before they are shown."""
    (home / "control/log").write_text("\x1b]0;owned\x07\n")
    done = config(home)
    assert done.returncode == 78
    assert "\x1b" not in done.stdout + done.stderr


def test_no_home(tmp_path: Path) -> None:
    """Without a home the missing name is the error, and no traceback."""
    done = config(tmp_path / "nowhere")
    assert done.returncode == 78
    assert "picoqmail init" in done.stderr
    assert "Traceback" not in done.stderr


def test_page_is_up_to_date() -> None:
    """docs/settings.md is what `picoqmail config --markdown` prints."""
    page = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "settings.md")
    with open(page, encoding="utf-8") as file:
        assert settings_page.document() == file.read()
