"""`picoqmail` itself: finds the subcommand, and ends as sysexits.h has it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail import __version__
from picoqmail.cli.commands import COMMANDS

if TYPE_CHECKING:
    from pathlib import Path


def picoqmail(
    *words: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `picoqmail`."""
    return subprocess.run(
        [sys.executable, "-m", "picoqmail.cli.main", *words],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_names_every_command() -> None:
    """--help lists the commands, each with what it does."""
    done = picoqmail("--help")
    assert done.returncode == 0
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert summary in done.stdout


def test_version() -> None:
    """--version is that of the package."""
    assert picoqmail("--version").stdout == f"picoqmail {__version__}\n"


@pytest.mark.parametrize("words", [(), ("stat",), ("--what",), ("config", "--what")])
def test_wrong_command_line(words: tuple[str, ...]) -> None:
    """A command line that cannot be understood is exit 64, and says where to look."""
    done = picoqmail(*words)
    assert (done.returncode, done.stdout) == (64, "")
    assert "--help" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(name: str) -> None:
    """Each command can be imported, tells its options, and has --json."""
    module = importlib.import_module(f"picoqmail.cli.{COMMANDS[name][0]}")
    assert callable(module.run)
    done = picoqmail(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_error_as_json(tmp_path: Path) -> None:
    """With --json an error is a document, too."""
    (tmp_path / "control").write_text("no directory\n")
    done = picoqmail(
        "init", "--me", "a.example", "--json", environment={"PICOQMAIL_HOME": str(tmp_path)}
    )
    assert done.returncode != 0
    document = json.loads(done.stdout)
    assert document["exit"] == done.returncode
    assert f"{tmp_path}/control" in document["error"]
    assert document["error"] in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_has_seen_enough() -> None:
    """A reader that closes the pipe early gets no complaint."""
    with subprocess.Popen(
        [sys.executable, "-m", "picoqmail.cli.main", "config", "--markdown"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_terminal_without_the_letter(tmp_path: Path) -> None:
    """A letter that standard output cannot show is escaped, and no traceback."""
    (tmp_path / "control").mkdir()
    (tmp_path / "control/me").write_text("a.example\n")
    (tmp_path / "control/relayip").write_text("mx.example\n")
    (tmp_path / "control/log").write_text("/var/log/pöst\n")
    done = picoqmail(
        "config",
        "log",
        environment={"PICOQMAIL_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"log = /var/log/p\xf6st" in done.stdout


def test_only_the_command_is_imported() -> None:
    """Asking for one command does not pay for the others."""
    code = (
        "import sys; from picoqmail.cli.main import main; main(['config', '--markdown'])\n"
        "heavy = {'aiosmtpd', 'asyncio', 'structlog', 'rich'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
