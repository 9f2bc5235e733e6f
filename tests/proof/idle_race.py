"""A program: one process changes spools while another notes that they are idle. No change may hide.

    python idle_race.py DIRECTORY SECONDS [COPY]      at most so many seconds

At first one process changes each spool, looks at it and changes it again. Then two processes race.
The writer renames a sidecar into the cur/ of one spool, some times within a few milliseconds, and
goes on to the next. The reader does for each spool what an idle run of cron does. If it finds the
file `idle` believed although a change was begun after the look and finished before, that change was
hidden. Prints how many looks were noted, how many notes a change made void, and how many changes
were hidden. COPY is a directory with another copy of the package.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

# Each spool is left alone for some seconds before the writer comes back.
SPOOLS = 1200
BURST = 6
PAUSE_SECONDS = 0.0005
# So many notes that a change made void, or should have, are enough.
ENOUGH = 300
_COUNTER_OCTETS = 8


class Counters:
    """How many changes of each spool were begun, or finished, in memory that processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SPOOLS * _COUNTER_OCTETS)
        self._view = memoryview(self._memory).cast("q")

    def __getitem__(self, spool: int) -> int:
        return self._view[spool]

    def add(self, spool: int) -> None:
        """Count one more."""
        self._view[spool] += 1


def prepare(spool: str, due: float) -> None:
    """Make a sidecar that is due then, in tmp/."""
    scratch = f"{spool}/tmp/1.a.json"
    os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT, 0o600))
    os.utime(scratch, (due, due))


def change(spool: str) -> None:
    """Rename the sidecar into cur/."""
    os.rename(f"{spool}/tmp/1.a.json", f"{spool}/cur/1.a.json")


def look_between(spools: list[str]) -> int:
    """Change each spool, look, and change it again; return how many of the second changes hid.

    Where time has long steps both changes mostly get the same time, whatever else this host does.
    """
    from picoqmail.spool import idle, scan

    hidden = 0
    for spool in spools:
        now = time.time()
        prepare(spool, now + 3600)
        change(spool)
        before = idle.observe(spool)
        idle.note_idle(spool, now, before, scan.look(spool, "cur", now).next_due)
        prepare(spool, now + 3601)
        change(spool)
        hidden += idle.is_idle(spool, now)
    return hidden


def write(spools: list[str], begun: Counters, done: Counters) -> None:
    """Change one spool after the other, until killed."""
    due = int(time.time()) + 3600
    while True:
        for number, spool in enumerate(spools):
            for later in range(BURST):
                prepare(spool, due + later)
                begun.add(number)
                change(spool)
                done.add(number)
                time.sleep(PAUSE_SECONDS)


def read(
    spools: list[str], begun: Counters, done: Counters, seconds: float, hidden: int
) -> tuple[int, ...]:
    """Look at all spools again and again; return the three counts. `hidden` were so before."""
    from picoqmail.spool import idle, scan

    seen: dict[int, int] = {}
    noted = void = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until and void + hidden < ENOUGH:
        for number, spool in enumerate(spools):
            finished = done[number]
            now = time.time()
            if idle.is_idle(spool, now):
                hidden += finished > seen[number]
                continue
            void += number in seen
            seen.pop(number, None)
            before = idle.observe(spool)
            sight = scan.look(spool, "cur", now)
            after = begun[number]
            idle.note_idle(spool, now, before, sight.next_due)
            if before.marks in hint(spool):
                seen[number] = after
                noted += 1
    return noted, void, hidden


def hint(spool: str) -> str:
    """What the file `idle` of a spool holds."""
    try:
        with open(f"{spool}/idle", encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main(directory: str, seconds: float, copy: str = "") -> None:
    """Run both, and print the counts."""
    if copy:
        sys.path.insert(0, copy)
    spools = [f"{directory}/{number}" for number in range(SPOOLS)]
    for spool in spools:
        for name in ("tmp", "cur", "new"):
            os.makedirs(f"{spool}/{name}")
    hidden = look_between(spools)
    begun, done = Counters(), Counters()
    writer = os.fork()
    if not writer:
        try:
            write(spools, begun, done)
        finally:
            os._exit(1)
    try:
        counts = read(spools, begun, done, seconds, hidden)
        sys.stdout.write(" ".join(map(str, counts)))
    finally:
        os.kill(writer, 9)
        os.waitpid(writer, 0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
