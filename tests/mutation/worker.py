"""The process that runs the tests: it has imported pytest already, and forks a child for each run.

It is started with the Python of the environment whose picoqmail is mutated, and never imports that
itself. It reads one JSON object a line, and answers with one. Its children get a process group, a
session and a time limit of their own; what they leave running is ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRELOADED = (
    "pytest", "_pytest.assertion.rewrite", "aiosmtpd.controller", "attrs", "coverage",
    "email.message", "email.policy", "hypothesis", "multiprocessing", "portalocker",
    "rich.progress", "structlog", "subprocess", "tempfile", "trustme", "venv",
)  # fmt: skip
# More than any test needs: a mutant that writes without end is stopped.
_FILE_LIMIT_OCTETS = 1 << 29
_BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)


class Watch:
    """A plugin of pytest: it chooses the tests and their order, and notes what became of them.

    With `trace` it has coverage note which test runs which line.
    """

    def __init__(self, tests: list[str], trace: Any) -> None:
        self._order = {test: number for number, test in enumerate(tests)}
        self._trace = trace
        self.failed = ""
        self.broken: set[str] = set()
        self.seconds: dict[str, float] = {}

    # trylast: pytest puts the tests into the order of their fixtures before.
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests that were asked for, in this order."""
        if self._order:
            items[:] = [one for one in items if one.nodeid in self._order]
            items.sort(key=lambda one: self._order[one.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell coverage which test begins."""
        if self._trace is not None:
            self._trace.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note what became of a test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid
            self.broken.add(report.nodeid)
        elif report.skipped:
            self.seconds.pop(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Note that a module of tests cannot even be imported."""
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"


def _child(asked: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT_OCTETS, resource.RLIM_INFINITY))
        said = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        found = _run(asked)
        with open(asked["report"], "w", encoding="utf-8") as file:
            json.dump(found, file)
        code = 0
    except BaseException:  # noqa: BLE001 - it goes to the output of the run
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    import coverage
    import pytest

    trace = None
    if asked["traced"]:
        trace = coverage.Coverage(data_file=None, include=asked["traced"], config_file=False)
        trace.start()
    watch = Watch(asked["tests"], trace)
    hook = Watch.pytest_collection_modifyitems
    Watch.pytest_collection_modifyitems = pytest.hookimpl(trylast=True)(hook)  # type: ignore[method-assign]
    arguments = [*asked["arguments"], f"--basetemp={asked['scratch']}", *asked["files"]]
    code = int(pytest.main(arguments, plugins=[watch]))
    lines: dict[str, dict[str, list[int]]] = {}
    if trace is not None:
        trace.stop()
        data = trace.get_data()
        for path in data.measured_files():
            by_test = lines.setdefault(path, {})
            for line, tests in data.contexts_by_lineno(path).items():
                for test in tests:
                    by_test.setdefault(test, []).append(line)
    return {
        "code": code,
        "failed": watch.failed,
        "broken": sorted(watch.broken),
        "seconds": watch.seconds,
        "lines": lines,
    }


def _descendants() -> Iterator[int]:
    """Yield the pids of our children; orphans below them have become ours, too."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        yield from map(int, file.read().split())


def _end_all() -> None:
    """End what a run has left; ending a process may give us its children."""
    while pids := list(_descendants()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(asked["report"])
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(asked)
    ended = _wait(pid, asked["limit"])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
    _end_all()
    found: dict[str, Any] = {}
    if ended and os.path.exists(asked["report"]):
        with open(asked["report"], encoding="utf-8") as file:
            found = json.load(file)
    return {"ended": ended, "took": time.monotonic() - begun, **found}


def _wait(pid: int, seconds: float) -> bool:
    """Wait for a child; False if it takes longer."""
    import select

    descriptor = os.pidfd_open(pid)
    try:
        ready = select.select([descriptor], [], [], seconds)[0]
    finally:
        os.close(descriptor)
    if ready:
        os.waitpid(pid, 0)
    return bool(ready)


def main() -> None:
    """Serve until the input ends."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    for name in _PRELOADED:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "picoqmail"]
    if loaded:
        raise RuntimeError(f"the tested package was imported too early: {loaded}")
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
