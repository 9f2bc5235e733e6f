"""A home on trial: a real spool, the installed programs, and verbs to use and inspect them."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from picoqmail.home.limits import Limits
from picoqmail.home.paths import Home
from picoqmail.layout import BODY, CUR, DIRECTORIES, NEW, SIDECAR, UNDELIVERED
from picoqmail.spool.incoming import Incoming
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from installation import Installation

PROGRAM_SECONDS = 60
ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"
MESSAGE = b"Subject: trial\n\nbody\n"
HOST = "me.test"


@frozen
class Trial:
    """A home below `root`, its programs, and the environment that they are given."""

    root: str
    installed: Installation
    environ: dict[str, str] = field(factory=dict)

    # Making it so.

    def setting(self, name: str, text: str) -> None:
        """Write a control file."""
        with open(f"{self.root}/control/{name}", "w", encoding="utf-8") as file:
            file.write(text + "\n")

    @property
    def home(self) -> Home:
        """The home as the library has it."""
        return Home(self.root)

    @property
    def spool(self) -> str:
        """The path of the spool."""
        return f"{self.root}/spool"

    def path(self, state: str, message_id: str, suffix: str = SIDECAR) -> str:
        """The path of a file of a message."""
        return f"{self.spool}/{state}/{message_id}{suffix}"

    def accepted(
        self,
        sender: str = "a@example.org",
        recipients: Sequence[str] = ("b@example.net",),
        message: bytes = MESSAGE,
    ) -> str:
        """Put a message into the spool by the library; returns its ID."""
        incoming = Incoming(self.spool, Limits(HOST), program="trial", uid=os.getuid(), pid=1)
        incoming.write(message)
        return incoming.commit(sender, list(recipients))

    def edit(self, message_id: str, **values: object) -> None:
        """Change keys of a message's sidecar where it lies, as an older or newer program might.

        Its time becomes that of `next_attempt`, as it would be.
        """
        state = self.state(message_id)
        record = self.sidecar(message_id)
        record.update(values)
        with open(self.path(state, message_id), "w", encoding="utf-8") as file:
            json.dump(record, file)
        due = record["next_attempt"]
        if isinstance(due, int) and 0 <= due < 2**33:
            os.utime(self.path(state, message_id), (due, due))

    def deferred(self, **values: object) -> str:
        """Put a message into cur/ as one that was tried before and is due; returns its ID."""
        message_id = self.accepted()
        for suffix in (BODY, SIDECAR):
            source, target = (self.path(state, message_id, suffix) for state in (NEW, CUR))
            os.rename(source, target)
        self.edit(message_id, **values)
        return message_id

    def rename(self, message_id: str, name: str) -> None:
        """Give a message another ID, as one that was accepted at another time."""
        state = self.state(message_id)
        self.edit(message_id, id=name)
        for suffix in (BODY, SIDECAR):
            os.rename(self.path(state, message_id, suffix), self.path(state, name, suffix))

    # Running programs.

    def variables(self, *, sending: bool = False) -> dict[str, str]:
        """Return the environment of a program; the queue starts no sender unless `sending`."""
        off = {} if sending else {"PICOQMAIL_SEND": "off"}
        path = os.environ["PATH"]
        return {"PATH": path, "PICOQMAIL_HOME": self.root, **off, **self.environ}

    def start(self, program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start picoqmail-PROGRAM."""
        command = [self.installed.program(program), *arguments]
        options.setdefault("env", self.variables())
        return subprocess.Popen(command, **options)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run picoqmail-PROGRAM to its end."""
        return subprocess.run(
            [self.installed.program(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.variables(),
            timeout=PROGRAM_SECONDS,
            check=False,
        )

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

    # Looking.

    def names(self, state: str) -> list[str]:
        """All file names in a directory of the spool."""
        return sorted(os.listdir(f"{self.spool}/{state}"))

    def files(self) -> list[str]:
        """All files of messages, as `state/name`."""
        return [f"{state}/{name}" for state in DIRECTORIES for name in self.names(state)]

    def ids(self, state: str) -> list[str]:
        """The messages whose sidecar lies in a state."""
        return [n.removesuffix(SIDECAR) for n in self.names(state) if n.endswith(SIDECAR)]

    def state(self, message_id: str) -> str:
        """The one state that a message is in."""
        (state,) = [one for one in (NEW, CUR, UNDELIVERED) if message_id in self.ids(one)]
        return state

    def sidecar(self, message_id: str) -> dict[str, Any]:
        """Read a sidecar, by the json module."""
        with open(self.path(self.state(message_id), message_id), encoding="utf-8") as file:
            record = json.load(file)
        assert isinstance(record, dict)
        return record

    def outcomes(self, message_id: str) -> list[str]:
        """The outcomes in a message's history."""
        return [entry["outcome"] for entry in self.sidecar(message_id)["history"]]

    def body(self, message_id: str) -> bytes:
        """The body beside the sidecar."""
        with open(self.path(self.state(message_id), message_id, BODY), "rb") as file:
            return file.read()

    def result(self, message_id: str) -> str:
        """What the relay said, as kept in undelivered/."""
        path = self.path(UNDELIVERED, message_id, ".result")
        with open(path, encoding="utf-8") as file:
            return file.read()

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
        return list(processes_with(f"PICOQMAIL_HOME={self.root}"))

    def wait_for_senders(self, seconds: float = 30) -> None:
        """Wait until the senders in the background have ended."""
        wait_until(lambda: not self.programs(), "the sender ends", seconds)


def make_trial(root: str, installed: Installation, relay: str = "127.0.0.1:1") -> Trial:
    """Make the home of a Trial."""
    for name in ("control", *(f"spool/{one}" for one in DIRECTORIES)):
        os.makedirs(f"{root}/{name}", mode=0o700)
    trial = Trial(root, installed)
    trial.setting("me", HOST)
    trial.setting("relayip", relay)
    trial.setting("log", f"json {root}/log debug")
    # One matter at a time: reports of failure have tests of their own, which turn them on.
    trial.setting("bounces", "off")
    return trial


def age(path: str, seconds: float) -> None:
    """Make a file that much older."""
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def processes_with(variable: str) -> Iterator[int]:
    """The pids of the processes whose environment has this `NAME=value`."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    found = variable.encode() in file.read().split(b"\0")
            except OSError:
                continue  # It ended, or it is not ours to look at.
            if found:
                yield int(name)


def kill(pid: int) -> None:
    """Kill a process so that it cannot tidy up."""
    os.kill(pid, signal.SIGKILL)
