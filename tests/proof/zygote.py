"""A process that has imported the programs already, and forks one for each run.

It runs the same `main` of the same modules as the installed program. It only saves the quarter of a
second that the imports take, which matters for some thousands of recoveries. Its clock can be
shifted, for later runs.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHILD_SECONDS = 50
_offset = 0.0


class Zygote:
    """The zygote process; a context manager, safe in threads (one run at a time)."""

    def __init__(self, copy: str = "") -> None:
        """`copy` is a directory with a patched package; empty for the installed one."""
        command = [sys.executable, "-I", os.path.abspath(__file__)]
        self._process = subprocess.Popen(
            [*command, copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(CHILD_SECONDS)
        self._process.stdout.close()

    def run(self, home: str, program: str, *arguments: str, offset: float = 0.0) -> tuple[int, str]:
        """Run picoqmail-PROGRAM on a home, `offset` seconds from now; exit code and stderr.

        `main` is picoqmail itself. A run that a signal ended has a negative code.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"home": home, "program": program, "arguments": arguments, "offset": offset}
        with self._lock:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote is gone")
        answer = json.loads(line)
        return answer["status"], answer["said"]


def _serve(copy: str) -> None:
    if copy:
        sys.path.insert(0, copy)
    real_time = time.time

    def shifted_time() -> float:
        return real_time() + _offset

    # Set before the first import of the package, so that every default clock is this one.
    time.time = shifted_time
    mains = {
        name: importlib.import_module(f"picoqmail.cli.{name}").main
        for name in ("queue", "send", "cron", "main")
    }
    for name in (
        "delivery.run",
        "log.logger",
        "home.settings",
        "delivery.deliver",
        "relay.breaker",
    ):
        importlib.import_module(f"picoqmail.{name}")
    importlib.import_module("structlog")
    for line in sys.stdin:
        asked = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            _child(mains[asked["program"]], asked, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            said = file.read().decode(errors="replace")
        _, status = os.waitpid(pid, 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "said": said}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _child(main: object, asked: dict[str, object], writer: int) -> None:
    global _offset  # noqa: PLW0603 - the clock of this process
    status = 70
    try:
        signal.alarm(CHILD_SECONDS)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(writer, 2)
        os.closerange(3, 64)
        # A program that hangs says where before the alarm ends it.
        faulthandler.register(signal.SIGALRM, file=2, chain=True)
        environ = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
        os.environ.clear()
        os.environ.update(environ, PICOQMAIL_HOME=str(asked["home"]), PICOQMAIL_SEND="off")
        _offset = float(str(asked["offset"]))
        assert callable(main)
        arguments = asked["arguments"]
        assert isinstance(arguments, list)
        status = main(arguments)
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - a traceback is a finding: it goes to the report
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
