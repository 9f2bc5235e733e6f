"""A home on trial: a temporary home, the installed programs, and verbs to use them."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

from attrs import define, field

from picoqmail.layout import NEW
from rig.processes import environment, find_processes
from rig.waiting import wait_until
from temporary_home import MESSAGE, Spooled, TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from installation import Installation

# No measure of anything: a busy machine may take many times what an idle one does.
PROGRAM_SECONDS = 180
ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"


@define
class Trial(TemporaryHome):
    """A temporary home, its programs, and the environment that they are given besides."""

    installed: Installation
    environ: dict[str, str] = field(factory=dict)

    def variables(self, **more: str) -> dict[str, str]:
        """Return the environment of a program; the queue starts no sender."""
        return super().variables(**{**self.environ, **more})

    def sending(self) -> dict[str, str]:
        """The environment of a program after which a sender is started."""
        found = self.variables()
        del found["PICOQMAIL_SEND"]
        return found

    def start(self, program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start picoqmail-PROGRAM."""
        command = [self.installed.program(program), *arguments]
        options.setdefault("env", self.variables())
        return subprocess.Popen(command, **options)

    def run(
        self,
        program: str,
        *arguments: str | bytes,
        message: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run picoqmail-PROGRAM to its end, the message on its standard input."""
        return subprocess.run(
            [self.installed.program(program), *arguments],
            input=message,
            capture_output=True,
            env=self.variables(**(environ or {})),
            timeout=PROGRAM_SECONDS,
            check=False,
        )

    def accepts(
        self,
        program: str,
        *arguments: str | bytes,
        message: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> Spooled:
        """Hand in a message that must be accepted without a word, and return it as spooled."""
        before = set(self.ids(NEW))
        ran = self.run(program, *arguments, message=message, environ=environ)
        assert (0, b"") == (ran.returncode, ran.stderr)
        (message_id,) = set(self.ids(NEW)) - before
        return Spooled(self.sidecar(message_id), self.message(message_id))

    def refuses(
        self,
        program: str,
        *arguments: str | bytes,
        message: bytes = b"",
        status: int = 100,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """Hand in a message that must be refused, leaving nothing; return what was said."""
        before = self.everything()
        ran = self.run(program, *arguments, message=message, environ=environ)
        assert status == ran.returncode
        assert before == self.everything()
        assert ran.stderr
        return ran.stderr.decode()

    def python(self, code: str) -> subprocess.CompletedProcess[bytes]:
        """Run code as the launchers run ours: without site, the installed packages in reach."""
        (packages,) = glob.glob(f"{self.installed.bin}/../lib/python3*/site-packages")
        reach = f"import sys; sys.path.append({packages!r})\n"
        return subprocess.run(
            [self.installed.python, "-I", "-S", "-c", reach + code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.variables(),
            timeout=PROGRAM_SECONDS,
            check=False,
        )

    def send(self, *names: str) -> int:
        """Run picoqmail-send and return its exit code; it must have nothing to say."""
        ran = self.run("send", *names)
        assert b"" == ran.stdout + ran.stderr
        return ran.returncode

    def cron(self) -> None:
        """Run picoqmail-cron: it says nothing and ends well."""
        ran = self.run("cron")
        assert (0, b"") == (ran.returncode, ran.stdout + ran.stderr)

    def queue(
        self, message: bytes = MESSAGE, envelope: bytes = ENVELOPE, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run picoqmail-queue on a message and an envelope."""
        with tempfile.TemporaryFile() as zero, tempfile.TemporaryFile() as one:
            for file, data in ((zero, message), (one, envelope)):
                file.write(data)
                file.seek(0)
            options = {"stdin": zero, "stdout": one, **options}
            return subprocess.run(
                [self.installed.program("queue")],
                stderr=subprocess.PIPE,
                timeout=PROGRAM_SECONDS,
                check=False,
                **{"env": self.variables(), **options},
            )

    def queued(self, message: bytes = MESSAGE, envelope: bytes = ENVELOPE) -> str:
        """Have the queue program accept a message without a word; returns its ID."""
        before = set(self.ids(NEW))
        ran = self.queue(message, envelope)
        assert (0, b"") == (ran.returncode, ran.stderr)
        (message_id,) = set(self.ids(NEW)) - before
        return message_id

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The events in the log, or those of one name."""
        try:
            with open(f"{self.root}/log", encoding="utf-8") as file:
                events = [json.loads(line) for line in file]
        except FileNotFoundError:
            return []
        return [event for event in events if name in ("", event["event"])]

    def programs(self) -> list[int]:
        """The pids of the programs of this home that run now.

        Looked up in /proc: asking for the sender's lock would be taking it from somebody.
        """
        variable = f"PICOQMAIL_HOME={self.root}".encode()
        return find_processes(lambda process: variable in environment(process))

    def wait_for_senders(self, seconds: float = 120) -> None:
        """Wait until the senders in the background have ended."""
        wait_until(lambda: not self.programs(), "the sender ends", seconds)


def make_trial(
    root: str,
    installed: Installation,
    *,
    relay: str = "127.0.0.1:1",
    environ: Mapping[str, str] | None = None,
) -> Trial:
    """Make the home of a Trial."""
    trial = Trial(root, installed, dict(environ or {})).make(relay=relay)
    trial.setting("log", f"json {root}/log debug")
    # One matter at a time: reports of failure have tests of their own, which turn them on.
    trial.setting("bounces", "off")
    return trial


def kill(pid: int) -> None:
    """Kill a process so that it cannot tidy up."""
    os.kill(pid, signal.SIGKILL)
