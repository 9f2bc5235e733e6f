"""The note of an idle run, raced: on the file systems of this host, and where time has long steps.

Current kernels give two changes two times if somebody asked for the first (ext4, XFS and Btrfs
since Linux 6.13). Older ones, and memory file systems, do so only every few milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.spool import idle

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "idle_race.py")
# CLOCK_REALTIME_COARSE of clock_gettime(2), from which file systems take their times.
_COARSE = 5
_SECONDS = 30


@frozen
class IdleReport:
    """How many looks were noted, how many notes changes made void, and how many changes hid."""

    noted: int
    void: int
    hidden: int

    @property
    def breaches(self) -> list[str]:
        """What went wrong."""
        return [f"{self.hidden} changes hid behind {self.noted} notes"] if self.hidden else []


def race(directory: str, seconds: float, copy: str = "") -> IdleReport:
    """Run idle_race.py in a new directory, for at most so many seconds."""
    os.mkdir(directory)
    command = [sys.executable, "-I", _PROGRAM, directory, str(seconds), *([copy] if copy else [])]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    noted, void, hidden = map(int, ran.stdout.split())
    return IdleReport(noted, void, hidden)


def why_not(where: str) -> str:
    """Return why no file system whose time has long steps can be mounted; empty if it can."""
    if os.geteuid():
        return "a file system whose time has long steps can be mounted by root only"
    try:
        with long_steps(where):
            return ""
    except subprocess.CalledProcessError as exc:
        return f"no ramfs can be mounted here: {exc.stderr.decode().strip()}"


def await_step(spool: str) -> None:
    """Wait until the kernel's clock has made a step since the last change of a spool.

    For runs whose clock is ahead: they take a change of this moment for an old one.
    """
    while time.clock_gettime_ns(_COARSE) <= idle.observe(spool).changed_ns:
        time.sleep(0.001)


@contextlib.contextmanager
def long_steps(where: str) -> Iterator[str]:
    """Mount a file system whose time has long steps for a while."""
    os.makedirs(where, exist_ok=True)
    command = ["mount", "-t", "ramfs", "-o", "mode=700", "picoqmail-test", where]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True, capture_output=True)


def find(where: str, copy: str) -> IdleReport:
    """Race a copy of the package with a bug, where time has long steps."""
    with long_steps(where):
        return race(f"{where}/race", _SECONDS, copy)
