"""Races for a lock, step by step: lock_races.py COPY NAME DIRECTORY prints the breaches.

COPY is a copy of the package; "" stands for the installed one. No step waits for a time: each
follows an event of the other side.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
import time
from typing import Any

_LIFETIME_SECONDS = 1800
_PATIENCE_SECONDS = 20.0


def cron(locks: Any, directory: str) -> list[str]:
    """A run takes the lock and stamps it, while another one reads the stamp of a dead run."""
    path = locks.cron_lock(directory, 0)
    now = time.time()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    locks.rewrite(descriptor, b"1\n")
    asked = []

    def lifetime() -> int:
        """Stamp the lock once the other run has seen the old stamp."""
        asked.append(True)
        if len(asked) == 2:
            locks.rewrite(descriptor, b"%d\n" % int(now))
        return _LIFETIME_SECONDS

    if locks.take_cron_lock(directory, now, lifetime) >= 0:
        return ["a run of cron began beside one that had just begun"]
    return []


def key(locks: Any, directory: str) -> list[str]:
    """The holder of a lock removes its file, while another process waits for the lock."""
    path = f"{directory}/key"
    holder = locks.take_lock(path)
    taken: list[int] = []

    def wait() -> None:
        taken.append(locks.wait_for_lock(path, _PATIENCE_SECONDS))

    waiter = threading.Thread(target=wait)
    waiter.start()
    while _descriptors_of(path) < 2:
        time.sleep(0.001)
    os.unlink(path)
    locks.unlock(holder)
    waiter.join()
    # Another one comes, and gets a lock of the same name.
    other = locks.take_lock(path)
    if taken[0] >= 0 and other >= 0:
        return ["two processes have the lock of one name"]
    return []


def _descriptors_of(path: str) -> int:
    """Return how often this process has a file open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == path
        except FileNotFoundError:
            continue
    return found


def main() -> None:
    """Run one race."""
    copy, name, directory = sys.argv[1:]
    if copy:
        sys.path.insert(0, copy)
    os.mkdir(directory)
    race = {"cron": cron, "key": key}[name]
    for breach in race(importlib.import_module("picoqmail.spool.locks"), directory):
        sys.stdout.write(breach + "\n")


if __name__ == "__main__":
    main()
