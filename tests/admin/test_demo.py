"""The demo: its story happens with the real programs, is told, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("aiosmtpd", reason="the demo is an extra")

from picoqmail.admin import demo
from rig.processes import find_processes
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "picoqmail.cli.main", "demo"]
TITLES = [
    "A home",
    "A mail goes in on standard input",
    "It comes out of the relay",
    "The relay says: later",
    "Cron tries again",
    "The relay says: never, to one of three",
    "And so it goes without anybody's help",
]


class Silent:
    """A narrator that keeps the titles; what is overridden in tests does harm."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def step(self, title: str) -> None:
        """Keep the title."""
        self.titles.append(title)

    def say(self, text: str) -> None:
        """Say nothing."""

    def command(self, words: Sequence[str], given: str, code: int, output: str) -> None:
        """Show nothing."""

    def state(self, lines: Sequence[str]) -> None:
        """Show nothing."""

    def lines(self, title: str, lines: Sequence[str]) -> None:
        """Show nothing."""

    def proved(self, fact: str) -> None:
        """Tell nothing."""


def processes_that_name(text: str) -> list[int]:
    """Return the pids of living processes in whose command line a text occurs."""

    def names_it(process: str) -> bool:
        with open(f"{process}/cmdline", "rb") as file:
            return text in file.read().replace(b"\0", b" ").decode("utf-8", "replace")

    return find_processes(names_it)


def test_story(tmp_path: Path) -> None:
    """All steps happen, in order; afterwards there is no file and no process of it."""
    done = subprocess.run(
        COMMAND,
        env={**os.environ, "TMPDIR": str(tmp_path), "PICOQMAIL_HOME": str(tmp_path / "mine")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if re.match(r"\d\. ", line)]
    assert told == [f"{number}. {title}" for number, title in enumerate(TITLES, 1)]
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert processes_that_name(str(tmp_path)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner could replace what is made there."""
    os.chown(tmp_path, 54321, 54321)
    done = subprocess.run(
        COMMAND,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode
    assert "belongs to user 54321" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path: Path) -> None:
    """--json tells the same as one document."""
    done = subprocess.run(
        [*COMMAND, "--json"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], document["error"]) == (0, True, None)
    assert [step["title"] for step in document["steps"]] == TITLES
    codes = [
        event["exit"] for step in document["steps"] for event in step["events"] if "run" in event
    ]
    assert codes == [0, 0, 0, 0, 75, 0, 0, 69, 0]


def test_colour_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal the story is told in colour."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    with open(master, "rb", buffering=0) as reader:
        with open(slave, "wb") as terminal:
            process = subprocess.Popen(
                COMMAND, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
            )
        told = b""
        try:
            while block := reader.read(4096):
                told += block
        except OSError:
            pass  # what Linux says at the end of a pseudo-terminal
        assert process.wait(100) == 0
    assert b"\x1b[1;36m1. A home\x1b[0m" in told


def test_keeps_what_is_asked_for(tmp_path: Path) -> None:
    """With a directory of its own the story's end is left there to look at."""
    demo.play(Silent(), str(tmp_path / "kept"))
    left = [path.suffix for path in (tmp_path / "kept/home/spool/undelivered").iterdir()]
    assert sorted(left) == [".eml", ".json", ".result"]
    assert len(list((tmp_path / "kept/Maildir/new").iterdir())) == 4


def test_tells_if_a_mail_is_lost(tmp_path: Path) -> None:
    """If a mail is taken out of the spool behind its back, the demo fails and says where."""
    kept = tmp_path / "kept"

    class Thief(Silent):
        def step(self, title: str) -> None:
            super().step(title)
            if title == "Cron tries again":
                for path in (kept / "home/spool/cur").glob("*.eml"):
                    path.unlink()

    thief = Thief()
    with pytest.raises(demo.DemoError):
        demo.play(thief, str(kept))
    assert thief.titles[-1] == "Cron tries again"
    assert processes_that_name(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_interrupted(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A signal in the middle ends it; no process is left behind, and no file if it can be."""
    with subprocess.Popen(
        COMMAND,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"2. "):
                break
        process.send_signal(number)
        # Its relay holds the other end of this pipe, so this waits for that, too.
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (code, b"")
    # What it just started may begin to end only now; a relay would stay for ever.
    wait_until(lambda: not processes_that_name(str(tmp_path)), "all of them end")
    assert (list(tmp_path.iterdir()) == []) == (number != signal.SIGKILL)


def test_without_the_extra() -> None:
    """Without aiosmtpd the demo says what to install."""
    code = (
        "import sys; sys.modules['aiosmtpd'] = None\n"
        "from picoqmail.cli.main import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 69
    assert "pip install 'picoqmail[demo]'" in done.stderr
