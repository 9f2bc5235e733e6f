"""Our side: the wheel in its own environment, homes, and spools that are filled quickly."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from attrs import define, frozen

import installation
from picoqmail.layout import CUR, DIRECTORIES, NEW
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def empty(self) -> None:
        """Delete all mail."""
        for state in DIRECTORIES:
            for name in os.listdir(f"{self.spool}/{state}"):
                os.unlink(f"{self.spool}/{state}/{name}")

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
                with open(path, "wb", buffering=0) as file:
                    file.write(content)
            os.utime(path, (due, due))
        for suffix in (".eml", ".json"):
            os.unlink(f"{self.spool}/{NEW}/{stem}{suffix}")


def make_home(parent: str, relay: str = "127.0.0.1:1") -> MeasuredHome:
    """Make a home in a directory of its own below `parent`."""
    return MeasuredHome(tempfile.mkdtemp(prefix="home-", dir=parent)).make(HOST, relay)


@contextlib.contextmanager
def scratch_directory() -> Iterator[str]:
    """A directory for everything, removed at the end; BENCH_SCRATCH names the disk to measure."""
    path = tempfile.mkdtemp(prefix="picoqmail-bench-", dir=os.environ.get("BENCH_SCRATCH"))
    os.chmod(path, 0o755)  # noqa: S103 - rivals with users of their own must get in
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
