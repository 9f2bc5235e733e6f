"""Who holds a lock, without touching the lock: /proc/locks (proc_locks(5)).

To try a lock is no way to look at it: a queue program that finds the sender's lock taken relies
on its holder to send the mail.
"""

from __future__ import annotations

import os

LOCKS = "/proc/locks"


def holder(path: str, locks: str = LOCKS) -> int | None:
    """The pid that has a flock on a file; 0 for one of another PID namespace; None for nobody.

    Raises OSError where the kernel does not say.
    """
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with open(locks, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            # `1: FLOCK  ADVISORY  WRITE 708 00:13:8460 0 EOF`; `->` marks one that waits.
            if len(words) > 5 and words[1] == "FLOCK" and words[5] == wanted:
                return max(int(words[4]), 0)
    return None
