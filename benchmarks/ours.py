"""Our side: the wheel in its own environment, homes, and spools that are filled quickly."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import time

from attrs import define, frozen

import installation
from picoqmail.layout import CUR, DIRECTORIES, NEW
from temporary_home import TemporaryHome

HOST = "bench.test"
ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"


def message(size: int = 4096) -> bytes:
    """Return a mail of this many octets, header included."""
    head = (
        b"From: a@example.org\nTo: b@example.net\nSubject: measured\n"
        b"Date: Sun, 22 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.org>\n\n"
    )
    line = b"x" * 71 + b"\n"
    body = line * ((size - len(head)) // len(line) + 1)
    return (head + body)[: size - 1] + b"\n"


@frozen
class Ours:
    """An environment that has the wheel and its dependencies, compiled as installers do."""

    directory: str

    @property
    def python(self) -> str:
        """Its interpreter."""
        return f"{self.directory}/bin/python3"

    @property
    def packages(self) -> str:
        """Where its modules are."""
        (found,) = glob.glob(f"{self.directory}/lib/python3*/site-packages")
        return found

    def program(self, name: str) -> str:
        """One of the installed programs."""
        return f"{self.directory}/bin/picoqmail-{name}"


def install(scratch: str) -> Ours:
    """Build the wheel of this checkout, and install it as a user would."""
    wheel = installation.build_wheel(scratch)
    directory = f"{scratch}/environment"
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = f"{directory}/bin/python3"
    subprocess.run([python, "-m", "pip", "-q", "install", wheel], check=True)
    return Ours(directory)


@define
class MeasuredHome(TemporaryHome):
    """A home for measuring, and what it is filled with."""

    def variables(self, **more: str) -> dict[str, str]:
        """The environment of a program, the same on every machine."""
        return super().variables(PATH="/usr/bin:/bin", **more)

    def count(self, state: str) -> int:
        """How many messages are in a state."""
        return sum(name.endswith(".json") for name in os.listdir(f"{self.spool}/{state}"))

    def renew(self) -> None:
        """Begin with an empty spool.

        The old one is put aside and not deleted: on an ext4 without a journal making files just
        after many were deleted is many times slower, and that would be measured.
        """
        os.rename(self.spool, tempfile.mkdtemp(prefix="used-", dir=os.path.dirname(self.root)))
        for state in DIRECTORIES:
            os.makedirs(f"{self.spool}/{state}", mode=0o700)

    def fill(self, count: int, *, size: int = 4096) -> None:
        """Accept mails, as the programs do."""
        data = message(size)
        for _ in range(count):
            self.accepted(message=data)

    def defer(self, count: int, *, due_in_seconds: int) -> None:
        """Make messages that were tried before; their bodies share one inode's content only."""
        self.fill(1)
        (sidecar,) = glob.glob(f"{self.spool}/{NEW}/*.json")
        stem = os.path.basename(sidecar).removesuffix(".json")
        with open(sidecar, encoding="utf-8") as file:
            text = file.read()
        with open(f"{self.spool}/{NEW}/{stem}.eml", "rb") as body:
            data = body.read()
        now = int(time.time())
        due = now + due_in_seconds
        text = text.replace(f'"next_attempt": {stem.partition(".")[0]}', f'"next_attempt": {due}')
        tag = f"D{due_in_seconds}" if due_in_seconds >= 0 else f"N{-due_in_seconds}"
        for number in range(count):
            name = f"{now}.M{number % 10**6:06}P1Q{number}R{tag}.{HOST}"
            for suffix, content in ((".eml", data), (".json", text.replace(stem, name).encode())):
                path = f"{self.spool}/{CUR}/{name}{suffix}"
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                os.write(file, content)
                if suffix == ".json":
                    os.utime(file, (due, due))
                os.close(file)
        for suffix in (".eml", ".json"):
            os.unlink(f"{self.spool}/{NEW}/{stem}{suffix}")


def make_home(parent: str, relay: str = "127.0.0.1:1") -> MeasuredHome:
    """Make a home in a directory of its own below `parent`."""
    return MeasuredHome(tempfile.mkdtemp(prefix="home-", dir=parent)).make(HOST, relay)
