"""An installation whose modules are mutated, and the process that tests it.

The wheel is built and installed once. Then one file at a time is overwritten in `site-packages`,
with its compiled form. The merged files are removed, so that the programs use the modules, too.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import py_compile
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

import installation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


@frozen
class Run:
    """What became of a run of tests. `lines` are the lines that each test ran, by module."""

    ended: bool
    took: float
    failed: str = ""
    broken: frozenset[str] = frozenset()
    seconds: dict[str, float] = field(factory=dict)
    lines: dict[str, dict[str, list[int]]] = field(factory=dict)


@define
class Ground:
    """The installation, and its worker (worker.py)."""

    root: str
    package: str
    worker: subprocess.Popen[str]

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, root: str) -> Iterator[Ground]:
        """Install the checkout below `root`, an empty directory, and start the worker."""
        environment = installation.make_environment(f"{root}/environment")
        installation.install(installation.build_wheel(root), environment.python)
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
            worker.stdin.close()

    def path_of(self, module: str) -> str:
        """Return the path of a module, as `spool/claim`, in the installation."""
        return f"{self.package}/{module}.py"

    @contextlib.contextmanager
    def planted(self, module: str, text: str) -> Iterator[None]:
        """Have a module be this text for a while."""
        path = self.path_of(module)
        with open(path, encoding="utf-8") as file:
            before = file.read()
        self._put(path, text)
        try:
            yield
        finally:
            self._put(path, before)

    @staticmethod
    def _put(path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        # Python compares times in seconds and sizes: another text may have both of them.
        py_compile.compile(path, doraise=True)

    def run(
        self,
        files: Sequence[str],
        tests: Sequence[str] = (),
        *,
        limit: float,
        traced: Sequence[str] = (),
    ) -> Run:
        """Run tests, all of the files or those named, in this order; `limit` in seconds.

        The first failure ends the run, unless modules are `traced`: then all tests are run, and the
        lines of these modules that each of them runs are noted.
        """
        asked = {
            "files": [os.path.join(installation.CHECKOUT, "tests", one) for one in files],
            "tests": list(tests),
            "limit": limit,
            "traced": [self.path_of(module) for module in traced],
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
            raise RuntimeError("the worker is gone")
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
        )

    def output(self) -> str:
        """Return what the last run has printed."""
        with open(f"{self.root}/output", encoding="utf-8", errors="replace") as file:
            return file.read()
