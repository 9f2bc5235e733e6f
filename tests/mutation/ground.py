"""An installation whose modules are mutated, and the process that tests it.

The wheel is installed once. Then one file at a time is overwritten in `site-packages`, with its
compiled form. The merged files are removed, so that the programs use the modules, too.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

import installation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# A whole run gets so many seconds, and so many times what its tests take without a mistake. Each
# test has a limit of its own, too (worker.py).
_LEAST_LIMIT_SECONDS, _TIMES_LONGER = 60.0, 10.0
# The name of the variable by which conftest.py is told which installation to test.
VARIABLE = "PICOQMAIL_INSTALLED"
_HERE = os.path.dirname(os.path.abspath(__file__))
_PYTEST = (
    "-x",
    "-q",
    "--no-header",
    "--tb=line",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-p",
    "no:randomly",
    "-p",
    "no:cacheprovider",
    "--hypothesis-seed=0",
)


def wheel_of_checkout(directory: str) -> str:
    """Return the path of the wheel, which is built there once for each state of the sources."""
    digest = hashlib.sha256()
    for name in installation.SOURCES:
        top = os.path.join(installation.CHECKOUT, name)
        paths = [top] if os.path.isfile(top) else glob.glob(f"{top}/**", recursive=True)
        for path in sorted(paths):
            if os.path.isfile(path) and "__pycache__" not in path:
                with open(path, "rb") as file:
                    digest.update(path.encode() + file.read())
    where = f"{directory}/wheel-{digest.hexdigest()[:16]}"
    if not os.path.exists(where):
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            built = installation.build_wheel(scratch)
            os.mkdir(f"{scratch}/whole")
            os.rename(built, f"{scratch}/whole/{os.path.basename(built)}")
            os.rename(f"{scratch}/whole", where)
    (wheel,) = glob.glob(f"{where}/*.whl")
    return wheel


@frozen
class Run:
    """What became of a run of tests.

    `lines` are the lines that each test ran, by module; `starting` are the tests that started other
    processes.
    """

    ended: bool
    took: float
    failed: str = ""
    broken: frozenset[str] = frozenset()
    seconds: dict[str, float] = field(factory=dict)
    lines: dict[str, dict[str, list[int]]] = field(factory=dict)
    starting: list[str] = field(factory=list)


@define
class Ground:
    """The installation, and its worker (worker.py)."""

    root: str
    package: str
    worker: subprocess.Popen[str]
    collected: tuple[str, ...] = ()
    """The files of tests that the worker has collected, and with them imported the package."""

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, root: str, wheel: str) -> Iterator[Ground]:
        """Install the wheel below `root`, an empty directory, and start the worker."""
        environment = installation.make_environment(f"{root}/environment")
        installation.install(wheel, environment.python)
        installation.share_dependencies(environment.python)
        (package,) = glob.glob(f"{root}/environment/lib/python3*/site-packages/picoqmail")
        shutil.rmtree(f"{package}/merged")
        with subprocess.Popen(
            [environment.python, "-P", f"{_HERE}/worker.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, VARIABLE: f"{root}/environment"},
        ) as worker:
            yield cls(root, package, worker)
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()

    def path_of(self, module: str) -> str:
        """Return the path of a module, as `spool/claim`, in the installation."""
        return f"{self.package}/{module}.py"

    @contextlib.contextmanager
    def _planted(self, module: str, text: str) -> Iterator[str]:
        """Have a module be this text for a while; yield what it was before."""
        path = self.path_of(module)
        with open(path, encoding="utf-8") as file:
            before = file.read()
        self._put(path, text)
        try:
            yield before
        finally:
            self._put(path, before)

    @staticmethod
    def _put(path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        # Python compares times in seconds and sizes: another text may have both of them.
        py_compile.compile(path, doraise=True)

    def trace(self, files: Sequence[str], modules: Sequence[str], limit: float) -> Run:
        """Run all tests of files; note the lines of these modules that each of them runs."""
        return self._run({"files": files, "modules": modules, "limit": limit})

    def collect(self, files: Sequence[str], limit: float, *, run: bool) -> Run:
        """Have the worker collect these files, before anything is planted.

        With `run` it also runs all tests, without a mistake, as it will for each mutant.
        """
        self.collected = tuple(files)
        tests = () if run else ("none",)
        # No module is at this path, so nothing is exchanged.
        return self._run({"files": files, "tests": tests, "path": "none", "limit": limit})

    def try_mutant(
        self, module: str, text: str, tests: Sequence[str], seconds: Mapping[str, float]
    ) -> Run:
        """Run tests of the collected files, in this order, while a module is this text.

        The first failure ends the run. `seconds` is what each takes without a mistake.
        """
        usual = {test: seconds[test] for test in tests}
        with self._planted(module, text) as before:
            asked = {"tests": tests, "path": self.path_of(module), "before": before, "text": text}
            limit = _LEAST_LIMIT_SECONDS + _TIMES_LONGER * sum(usual.values())
            files = [one for one in self.collected if any(f"/{one}::" in test for test in tests)]
            more = {"files": self.collected, "few": files, "seconds": usual, "limit": limit}
            return self._run({**asked, **more})

    def _run(self, given: Mapping[str, Any]) -> Run:
        def paths(files: Sequence[str]) -> list[str]:
            return [os.path.join(installation.CHECKOUT, "tests", one) for one in files]

        traced = [self.path_of(module) for module in given.get("modules", ())]
        asked = {
            "path": "",
            "tests": [],
            "seconds": {},
            **given,
            "files": paths(given["files"]),
            "few": paths(given.get("few", given["files"])),
            "traced": traced,
            "imported": [f"picoqmail.{one.replace('/', '.')}" for one in given.get("modules", ())],
            "arguments": [
                f"--rootdir={installation.CHECKOUT}",
                f"--config-file={installation.CHECKOUT}/pyproject.toml",
                *(_PYTEST[1:] if traced else _PYTEST),
            ],
            "scratch": f"{self.root}/scratch",
            "output": f"{self.root}/output",
            "report": f"{self.root}/report",
        }
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(json.dumps(asked) + "\n")
        self.worker.stdin.flush()
        line = self.worker.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker is gone: {self.output()[-2000:]}")
        return self._read(json.loads(line))

    def _read(self, found: dict[str, Any]) -> Run:
        lines = {
            os.path.relpath(path, self.package).removesuffix(".py"): tests
            for path, tests in found.get("lines", {}).items()
        }
        failed = found.get("failed", "")
        if found["ended"] and not failed and found.get("code") not in (0, 5):
            # The run itself broke: a module that pytest needs could not be loaded, or it died.
            failed = "(the run died)"
        return Run(
            found["ended"],
            found["took"],
            failed,
            frozenset(found.get("broken", ())),
            found.get("seconds", {}),
            lines,
            found.get("starting", []),
        )

    def output(self) -> str:
        """Return what the last run has printed."""
        with open(f"{self.root}/output", encoding="utf-8", errors="replace") as file:
            return file.read()
