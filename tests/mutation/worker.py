"""The process that runs the tests: it has imported pytest already, and forks a child for each run.

It is started with the Python of the environment whose picoqmail is mutated, and never imports that
itself. It reads one JSON object a line, and answers with one. For mutants it keeps a child that has
collected the tests and with them imported the package; that one forks a child for each mutant, in
which the code of the mutated functions is exchanged (swapping.py). A mutant for which that does not
do gets a child of the first kind.

Each run has a process group, a session and a time limit of its own. What it leaves running is
ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FunctionType
    from typing import TextIO

_PRELOADED = (
    "pytest", "_pytest.assertion.rewrite", "aiosmtpd.controller", "attrs", "coverage",
    "email.message", "email.policy", "hypothesis", "multiprocessing", "portalocker",
    "rich.progress", "structlog", "subprocess", "tempfile", "trustme", "venv",
)  # fmt: skip
# More than any test needs: a mutant that writes without end is stopped.
_FILE_LIMIT_OCTETS = 1 << 29
_BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
# A test that takes longer than this, and so many times as long as without a mistake, has no end.
_LEAST_SECONDS, _TIMES_LONGER = 20.0, 10.0
_STARTS = frozenset(("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.forkpty"))


class Watch:
    """A plugin of pytest: it chooses the tests and their order, and notes what became of them.

    With `trace` it has coverage note which test runs which line, and notes which tests start other
    processes. With `serve` that is called once all tests are collected.
    """

    def __init__(
        self,
        tests: list[str],
        trace: Any = None,
        serve: Callable[[Watch, Any], None] | None = None,
    ) -> None:
        self._tests = tests
        self._trace = trace
        self._serve = serve
        self.failed = ""
        self.broken: set[str] = set()
        self.starting: set[str] = set()
        self.seconds: dict[str, float] = {}
        self._current = ""
        self.announce: Callable[[str], None] = lambda _: None
        if trace is not None:
            sys.addaudithook(self._audit)

    @property
    def is_serving(self) -> bool:
        """Is this the plugin of a child that collects all tests?"""
        return self._serve is not None

    def _audit(self, event: str, _arguments: object) -> None:
        if event in _STARTS:
            self.starting.add(self._current)

    def choose(self, items: list[Any], tests: list[str]) -> None:
        """Keep those tests, in their order."""
        order = {test: number for number, test in enumerate(tests)}
        items[:] = [one for one in items if one.nodeid in order]
        items.sort(key=lambda one: order[one.nodeid])

    # trylast: pytest puts the tests into the order of their fixtures before.
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests that were asked for, in this order."""
        if self._tests:
            self.choose(items, self._tests)

    # tryfirst, and returns nothing: then pytest runs the tests.
    def pytest_runtestloop(self, session: Any) -> None:
        """Serve, if that is wanted; only children that are to run tests come back."""
        if self._serve is not None:
            self._serve(self, session)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say which test begins."""
        self._current = nodeid
        self.announce(nodeid)
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


def _prepare_child(asked: dict[str, Any]) -> None:
    """Give a run its session, its limit, and its output."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT_OCTETS, resource.RLIM_INFINITY))
    said = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(null)
    os.close(said)


def _child(asked: dict[str, Any], announce: Callable[[str], None]) -> None:
    code = 1
    try:
        _prepare_child(asked)
        _report(asked, _run(asked, announce))
        code = 0
    except BaseException:  # noqa: BLE001 - it goes to the output of the run
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _report(asked: dict[str, Any], found: dict[str, Any]) -> None:
    with open(asked["report"], "w", encoding="utf-8") as file:
        json.dump(found, file)


def _main(watch: Watch, asked: dict[str, Any], *more: str) -> int:
    """Run pytest with that plugin."""
    import pytest

    for name, hook in (
        ("pytest_collection_modifyitems", pytest.hookimpl(trylast=True)),
        ("pytest_runtestloop", pytest.hookimpl(tryfirst=True)),
    ):
        setattr(Watch, name, hook(getattr(Watch, name)))
    files = asked["few"] if asked["tests"] and not watch.is_serving else asked["files"]
    arguments = [*asked["arguments"], f"--basetemp={asked['scratch']}", *more, *files]
    return int(pytest.main(arguments, plugins=[watch]))


def _run(asked: dict[str, Any], announce: Callable[[str], None]) -> dict[str, Any]:
    import coverage

    trace = None
    if asked["traced"]:
        trace = coverage.Coverage(data_file=None, include=asked["traced"], config_file=False)
        trace.start()
        # Else what a test imports first would count as run by that test alone.
        for name in asked["imported"]:
            importlib.import_module(name)
    watch = Watch(asked["tests"], trace)
    watch.announce = announce
    code = _main(watch, asked)
    lines: dict[str, dict[str, list[int]]] = {}
    if trace is not None:
        trace.stop()
        data = trace.get_data()
        for path in data.measured_files():
            by_test = lines.setdefault(path, {})
            for line, tests in data.contexts_by_lineno(path).items():
                for test in tests:
                    by_test.setdefault(test, []).append(line)
    return {**_said(watch, code), "lines": lines, "starting": sorted(watch.starting)}


def _said(watch: Watch, code: int) -> dict[str, Any]:
    return {
        "code": code,
        "failed": watch.failed,
        "broken": sorted(watch.broken),
        "seconds": watch.seconds,
    }


def _descendants() -> Iterator[int]:
    """Yield the pids of our children; orphans below them have become ours, too."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        yield from map(int, file.read().split())


def _end_all(but: int = 0) -> None:
    """End what a run has left; ending a process may give us its children."""
    while pids := [one for one in _descendants() if one != but]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _supervise(
    asked: dict[str, Any], child: Callable[[Callable[[str], None]], None], but: int = 0
) -> dict[str, Any]:
    """Fork, have the child run, and wait for it; return what it reports. `but` is left alone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(asked["report"])
    reading, writing = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(reading)

        def announce(test: str) -> None:
            usual = asked["seconds"].get(test)
            limit = asked["limit"] if usual is None else _LEAST_SECONDS + _TIMES_LONGER * usual
            os.write(writing, f"{limit}\n".encode())

        child(announce)
        os._exit(1)
    os.close(writing)
    ended = _wait(pid, reading, asked["limit"])
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _end_all(but)
    found: dict[str, Any] = {}
    if ended and os.path.exists(asked["report"]):
        with open(asked["report"], encoding="utf-8") as file:
            found = json.load(file)
    return {"ended": ended, "took": time.monotonic() - begun, **found}


def _wait(pid: int, announced: int, seconds: float) -> bool:
    """Wait for the end of a child; False if a test takes longer than it announced, or all of it."""
    descriptor = os.pidfd_open(pid)
    end = time.monotonic() + seconds
    until, watched = end, [descriptor, announced]
    try:
        while True:
            ready = select.select(watched, [], [], max(min(end, until) - time.monotonic(), 0))[0]
            if descriptor in ready:
                return True
            if not ready:
                return False
            lines = os.read(announced, 4096).split()
            if lines:
                until = time.monotonic() + float(lines[-1])
            else:
                watched = [descriptor]
    finally:
        os.close(descriptor)


class Collected:
    """A child that has collected the tests of some files, and runs them for each mutant."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.files = asked["files"]
        asking, self._asks = os.pipe()
        self._answers, answering = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._asks)
            os.close(self._answers)
            try:
                _prepare_child(asked)
                _become_subreaper()
                server = _Server(os.fdopen(asking), os.fdopen(answering, "w"))
                _main(Watch([], None, server.serve), asked, "--capture=no")
            finally:
                os._exit(1)
        os.close(asking)
        os.close(answering)
        self._in = os.fdopen(self._answers, encoding="utf-8")
        self._out = os.fdopen(self._asks, "w", encoding="utf-8")

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Run tests for a mutant; nothing if this child cannot do it."""
        try:
            self._out.write(json.dumps(asked) + "\n")
            self._out.flush()
        except BrokenPipeError:
            return {}
        line = self._in.readline()
        found: dict[str, Any] = json.loads(line) if line else {}
        return found

    def end(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self._out.close()
        self._in.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class _Server:
    """What such a child does once it has collected the tests."""

    def __init__(self, asking: TextIO, answering: TextIO) -> None:
        self._asking = asking
        self._answering = answering

    def serve(self, watch: Watch, session: Any) -> None:
        """Fork for each mutant. Returns only in such a child, to run the chosen tests."""
        loaded = _functions()
        for line in self._asking:
            asked = json.loads(line)

            def child(announce: Callable[[str], None], asked: dict[str, Any] = asked) -> None:
                try:
                    self._run(asked, announce, watch, session, loaded)
                except BaseException:  # noqa: BLE001 - it goes to the output of the run
                    import traceback

                    traceback.print_exc()

            found = _supervise(asked, child)
            self._answering.write(json.dumps(found) + "\n")
            self._answering.flush()
        os._exit(0)

    @staticmethod
    def _run(
        asked: dict[str, Any],
        announce: Callable[[str], None],
        watch: Watch,
        session: Any,
        loaded: dict[str, list[FunctionType]],
    ) -> None:
        from mutation.swapping import swap

        _prepare_child(asked)
        path = asked["path"]
        if path in loaded and not swap(loaded[path], path, asked["before"], asked["text"]):
            _report(asked, {"beyond": True})
            os._exit(0)
        if asked["tests"]:
            watch.choose(session.items, asked["tests"])
        session.config.option.maxfail = 1 if asked["tests"] else 0
        watch.announce = announce
        with contextlib.suppress(session.Failed):
            _pytest_main().pytest_runtestloop(session)
        _report(asked, _said(watch, 1 if watch.failed else 0))
        os._exit(0)


def _pytest_main() -> Any:
    return importlib.import_module("_pytest.main")


def _functions() -> dict[str, list[FunctionType]]:
    """Return the functions of the tested package that are in memory, by file."""
    from mutation.swapping import functions_of

    paths = [
        str(module.__file__)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "picoqmail" and getattr(module, "__file__", None)
    ]
    return {path: functions_of(path) for path in paths}


def _become_subreaper() -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Serve until the input ends."""
    _become_subreaper()
    for name in _PRELOADED:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "picoqmail"]
    if loaded:
        raise RuntimeError(f"the tested package was imported too early: {loaded}")
    collected: Collected | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        found: dict[str, Any] = {"beyond": True}
        if asked["path"]:
            if collected is None or collected.files != asked["files"]:
                if collected is not None:
                    collected.end()
                collected = Collected(asked)
            found = collected.answer(asked)
            if not found:
                collected.end()
                raise RuntimeError("the tests cannot be collected")
        if found.get("beyond"):
            but = collected.pid if collected is not None else 0
            found = _supervise(asked, lambda announce: _child(asked, announce), but)  # noqa: B023
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
    if collected is not None:
        collected.end()


if __name__ == "__main__":
    main()
