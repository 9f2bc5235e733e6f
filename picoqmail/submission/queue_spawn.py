"""The home's queue program, started from a process that may have threads.

`queue_program` forks, which is right for a small program that does nothing else; here the child
is made by posix_spawn, for between a fork and its exec a lock of another thread may be held.
"""

from __future__ import annotations

import fcntl
import os
import signal
from typing import TYPE_CHECKING

from picoqmail.submission.queue_program import QueueProgram, QueueProgramError

if TYPE_CHECKING:
    from picoqmail.home.paths import Home

_MESSAGE, _ENVELOPE, _EXPLANATION = 0, 1, 6
_ABOVE_THE_FIXED_FDS = 10
_EXEC_FAILED = 120
# Python ignores these, and an ignored signal stays ignored over exec.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class SpawnedQueue(QueueProgram):
    """A queue program of a home, for one message; see QueueProgram for its verbs."""

    __slots__ = ()

    def __init__(
        self, program: str, home: Home, sender: str, recipients: list[str], *, send: bool
    ) -> None:
        """Start it. Raises QueueProgramError."""
        self._failed = False
        self._wire = b"".join(
            (b"F", sender.encode(), b"\0", *(b"T%b\0" % one.encode() for one in recipients), b"\0")
        )
        environ = {**os.environ, "PICOQMAIL_HOME": home.root}
        if not send:
            environ["PICOQMAIL_SEND"] = "off"
        opened: list[int] = []
        try:
            message = self._pipe(opened)
            envelope = self._pipe(opened)
            explanation = self._pipe(opened)
            self._pid = os.posix_spawn(
                program,
                [program],
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, message[0], _MESSAGE),
                    (os.POSIX_SPAWN_DUP2, envelope[0], _ENVELOPE),
                    (os.POSIX_SPAWN_DUP2, explanation[1], _EXPLANATION),
                ],
                setsigdef=_IGNORED_BY_PYTHON,
            )
        except OSError as exc:
            for descriptor in opened:
                os.close(descriptor)
            raise QueueProgramError(
                f"unable to run {program}: {exc.strerror} (#4.3.0)", _EXEC_FAILED
            ) from exc
        self._message, self._envelope, self._explanation = message[1], envelope[1], explanation[0]
        for descriptor in (message[0], envelope[0], explanation[1]):
            os.close(descriptor)

    @staticmethod
    def _pipe(opened: list[int]) -> tuple[int, int]:
        """A pipe whose descriptors are out of the way of the numbers that the child gets."""
        low = os.pipe()
        opened += low
        ends = []
        for descriptor in low:
            high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_THE_FIXED_FDS)
            opened.append(high)
            ends.append(high)
            os.close(descriptor)
            opened.remove(descriptor)
        return ends[0], ends[1]
