"""Clocks: a child process that does nothing else runs the programs; a summary of their times."""

from __future__ import annotations

import os
import pickle
import resource  # noqa: F401 - os.wait4 needs it, and after chroot it cannot be found
import statistics
import sys
import time
import traceback
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen
from compare import SPREAD, TO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self

KIB = 1024


@frozen
class Taken:
    """The cost of one run of a program: wall seconds, processor seconds, and peak memory."""

    wall: float
    cpu: float
    rss_mib: float
    status: int


@frozen
class Program:
    """A command as its callers start it: `stdin` and `stdout` are files, opened anew each time.

    `root` is the directory to chroot into, "" for none. `ok` are the exit codes of success.
    """

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    stdin: str = "/dev/null"
    stdout: str = "/dev/null"
    root: str = ""
    ok: tuple[int, ...] = (0,)
    clean: Callable[[], None] = field(default=lambda: None, eq=False)


def run_here(program: Program) -> Taken:
    """Run it once, as a child of this process.

    Its peak memory is at least the memory of this process, with which a child begins.
    """
    reading = os.open(program.stdin, os.O_RDONLY | os.O_CLOEXEC)
    # The qmail-queue interface reads its envelope from this descriptor.
    flags = os.O_RDONLY if program.stdout != "/dev/null" else os.O_WRONLY
    writing = os.open(program.stdout, flags | os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, reading, 0),
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        before = time.perf_counter()
        pid = os.posix_spawn(
            program.argv[0], program.argv, dict(program.environ), file_actions=actions
        )
        _, status, used = os.wait4(pid, 0)
        wall = time.perf_counter() - before
    finally:
        os.close(reading)
        os.close(writing)
    code = os.waitstatus_to_exitcode(status)
    return Taken(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / KIB, code)


# This parent is smaller than anything it starts.
_SMALL_PARENT = """
import sys, time, posix
report, *argv = sys.argv[1:]
before = time.perf_counter()
pid = posix.posix_spawn(argv[0], argv, posix.environ)
status, used = posix.wait4(pid, 0)[1:]
wall = time.perf_counter() - before
taken = wall, used[0] + used[1], used[2], status
with open(report, "w") as file: file.write(" ".join(map(str, taken)))
"""


def run_alone(program: Program, report: str) -> Taken:
    """Run it once with its true peak memory; `report` is a file that may be overwritten."""
    argv = (sys.executable, "-I", "-S", "-c", _SMALL_PARENT, report, *program.argv)
    run_here(evolve(program, argv=argv))
    with open(report, encoding="utf-8") as file:
        wall, cpu, rss, status = file.read().split()
    os.unlink(report)
    code = os.waitstatus_to_exitcode(int(status))
    return Taken(float(wall), float(cpu), float(rss) / KIB, code)


class Starter:
    """A small process that starts one program again and again, in its root; a context manager.

    Several of them run at the same time: `begin` all, then `end` all.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        request, self._asking = os.pipe()
        self._answers, answer = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            # Also the pipes of other starters, which would not see their end otherwise.
            keep = {request, answer}
            for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
                if descriptor > 2:
                    _close(descriptor)
            status = 1
            try:
                _serve(program, request, answer)
                status = 0
            except BaseException:  # noqa: BLE001 - printed, and the parent sees that we are gone
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(request)
        os.close(answer)

    def begin(self, times: int) -> None:
        """Start the program this many times, one run after the other."""
        os.write(self._asking, times.to_bytes(4, "big"))

    def end(self) -> list[Taken]:
        """Wait, and return the cost of each run. Raises RuntimeError if one of them failed."""
        size = int.from_bytes(_read(self._answers, 4), "big")
        taken: list[Taken] = pickle.loads(_read(self._answers, size))  # noqa: S301 - our child's
        bad = {one.status for one in taken}.difference(self.program.ok)
        if bad:
            raise RuntimeError(f"{self.program.name} ended with {bad}: {self.program.argv}")
        return taken

    def run(self, times: int = 1) -> list[Taken]:
        """Begin and end."""
        self.begin(times)
        return self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._asking)
        os.close(self._answers)
        os.waitpid(self._pid, 0)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return  # The descriptor of the listing itself.


def _serve(program: Program, request: int, answer: int) -> None:
    # Opened before chroot, because outside files cannot be seen inside.
    if program.root:
        os.chroot(program.root)
        os.chdir("/")
    while wanted := os.read(request, 4):
        taken = [run_here(program) for _ in range(int.from_bytes(wanted, "big"))]
        data = pickle.dumps(taken)
        os.write(answer, len(data).to_bytes(4, "big") + data)


def _read(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 65536))
        if not part:
            raise RuntimeError("the process that starts programs died")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def paired(programs: Sequence[Program], rounds: int) -> dict[str, list[Taken]]:
    """Run programs in turn, so that disturbances of the machine affect all of them."""
    taken: dict[str, list[Taken]] = {program.name: [] for program in programs}
    starters = [Starter(program) for program in programs]
    try:
        for starter in starters:
            starter.run()  # A first start, which reads from disk, is not measured.
        for done in range(rounds):
            for starter in starters:
                taken[starter.program.name] += starter.run()
            progress("rounds", done + 1, rounds)
            if done % 20 == 0:
                for program in programs:
                    program.clean()
    finally:
        for starter in starters:
            starter.__exit__()
    return taken


def median_ratio(taken: Sequence[Taken], base: Sequence[Taken], what: str) -> float:
    """Return the median of the ratios of runs in the same round."""
    pairs = zip(taken, base, strict=True)
    return float(statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs))


def progress(what: str, done: int, whole: int) -> None:
    """Draw a bar on a terminal."""
    if sys.stderr.isatty():
        filled = 30 * done // max(whole, 1)
        end = "\n" if done >= whole else ""
        bar = "#" * filled + "." * (30 - filled)
        print(f"\r  [{bar}] {done}/{whole} {what} ", end=end, file=sys.stderr, flush=True)


def figure(name: str, values: Sequence[float], digits: int | None = None) -> dict[str, Any]:
    """Return the cells of one figure: its median, and its spread, the middle half of the values."""
    median = statistics.median(values)
    low, high = middle_half(values)
    return {
        name: round(median, digits),
        name + SPREAD: f"{round(low, digits)}{TO}{round(high, digits)}",
    }


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest value without the outer quarters (of five: one each)."""
    ordered = sorted(values)
    away = (len(ordered) + 1) // 4
    if 2 * away >= len(ordered):
        away = 0
    return ordered[away], ordered[len(ordered) - 1 - away]
