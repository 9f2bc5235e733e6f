"""Which processes there are, by /proc: for programs in the background nobody else can wait."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ENV_END = 48  # Field 51 of proc_pid_stat(5), counted from the state, which is field 3.


def find_processes(is_wanted: Callable[[str], bool]) -> list[int]:
    """Return the pids of the processes whose directory in /proc is wanted.

    `is_wanted` may raise OSError: that process has ended, or is not ours to look at. It looks
    twice: a process that was just read of may have left a child, and ended.
    """
    found = set()
    for _ in range(2):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if is_wanted(f"/proc/{name}"):
                    found.add(int(name))
    return sorted(found)


def environment(process: str) -> list[bytes]:
    """Return the variables of the process with this directory in /proc. Raises OSError.

    While a program is being started, execve(2) has taken the old variables away and has not yet put
    the new ones in place. So this waits for them.
    """
    while True:
        with open(f"{process}/environ", "rb") as file:
            found = file.read()
        # Not there for one that has ended, nor for a thread of the kernel.
        os.readlink(f"{process}/exe")
        with open(f"{process}/stat", "rb") as file:
            end = file.read().rpartition(b")")[2].split()[_ENV_END]
        if found or int(end):
            return found.split(b"\0")
        time.sleep(0.001)
