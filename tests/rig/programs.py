"""Programs of Debian packages: found (or the test is skipped), started in time, stopped by pid."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from rig.waiting import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

START_SECONDS = 60
STOP_SECONDS = 60


def missing(what: str) -> None:
    """Skip the test; with CI=true, where nothing may be missing, fail it.

    Raises:
        pytest.skip.Exception: without CI=true.
        pytest.fail.Exception: with CI=true.
    """
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def find(program: str, package: str) -> str:
    """Return the path of a program in PATH or in /usr/sbin."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        missing(f"no {program} here: apt-get install {package}")
        raise AssertionError("unreachable: missing() does not return")
    return path


def discard(directory: str) -> None:
    """Remove a directory of the rig, unless PICOQMAIL_RIG_KEEP is set."""
    if not os.environ.get("PICOQMAIL_RIG_KEEP"):
        # A server that was just stopped may still be removing files.
        shutil.rmtree(directory, ignore_errors=True)


class Daemon:
    """A server that runs in the foreground as our child; a context manager.

    `ready` is called until it returns true. The program's output is in `log`, and in the error if
    the program dies or does not become ready.
    """

    def __init__(
        self,
        argv: Sequence[str],
        ready: Callable[[], object],
        log: str,
        *,
        directory: str = "/",
        environ: dict[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self._ready = ready
        self._directory = directory
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=self._environ,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"{self.argv[0]} did not start: {self.said()}")
            time.sleep(POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The pid of the running program."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def said(self) -> str:
        """Return the program's output so far."""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()
