"""Another program's qmail-queue interface, from the caller's side: pipes, exit codes, explanations.

Hot where QMAILQUEUE is set; plain stdlib. Which program it is was decided by `handover`. It is
started in one of two ways. inject and sendmail fork, as a program that does nothing else may. The
library uses posix_spawn: between a fork and its exec another thread's lock may be held.
"""

from __future__ import annotations

import errno
import fcntl
import posix

from picoqmail.errors import (
    QUEUE_ADDRESS_TOO_LONG,
    QUEUE_EXPLAINED,
    QUEUE_HOME,
    QUEUE_READ,
    QUEUE_REFUSED,
    PicoqmailError,
)
from picoqmail.home.paths import environment
from picoqmail.submission.queue import ENVELOPE, EXPLANATION, MESSAGE
from picoqmail.submission.start_sender import IGNORED_BY_PYTHON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from picoqmail.home.paths import Home

    Descriptors = tuple[int, int, int]
    Start = Callable[[Descriptors], int]

_LONGEST_EXPLANATION_OCTETS = 1000
_EXEC_FAILED = 120
_ABOVE_THE_FIXED_FDS = 10

# qmail's qmail_close(): what the exit codes of a queue program mean.
_TEXTS = {
    11: "envelope address too long for qq (#5.1.3)",
    31: "mail server permanently rejected message (#5.3.0)",
    51: "qq out of memory (#4.3.0)",
    52: "qq timeout (#4.3.0)",
    53: "qq write error or disk full (#4.3.0)",
    54: "qq read error (#4.3.0)",
    55: "qq unable to read configuration (#4.3.0)",
    56: "qq trouble making network connection (#4.3.0)",
    61: "qq trouble in home directory (#4.3.0)",
    62: "qq trouble creating files in queue (#4.3.0)",
    63: "qq trouble creating files in queue (#4.3.0)",
    64: "qq trouble creating files in queue (#4.3.0)",
    65: "qq trouble creating files in queue (#4.3.0)",
    66: "qq trouble creating files in queue (#4.3.0)",
    71: "mail server temporarily rejected message (#4.3.0)",
    72: "connection to mail server timed out (#4.4.1)",
    73: "connection to mail server rejected (#4.4.1)",
    74: "communication with mail server failed (#4.4.2)",
    81: "qq internal bug (#4.3.0)",
    91: "qq internal bug (#4.3.0)",
    _EXEC_FAILED: "unable to exec qq (#4.3.0)",
}
_OLD_ADDRESS_TOO_LONG = 115


class QueueProgramError(PicoqmailError):
    """A queue program refused the message, or could not be run; `qmail_status` is its code."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, status)
        self.qmail_status = status

    def __str__(self) -> str:
        """Return what it said, or what its exit code means."""
        return str(self.args[0])


def judge(status: int, explanation: bytes = b"") -> QueueProgramError:
    """Return the error for a queue program's exit code other than 0 (qmail-queue(8)).

    Code 82 is explained on descriptor 6: `D` for a permanent or `Z` for a temporary problem, then
    the text for the user; without an explanation it is a temporary problem like any other.
    """
    if status == _OLD_ADDRESS_TOO_LONG:
        status = QUEUE_ADDRESS_TOO_LONG
    if status == QUEUE_EXPLAINED and explanation[:1] in (b"D", b"Z") and len(explanation) > 1:
        text = explanation[1:].decode("utf-8", "replace").replace("\n", " ").strip()
        permanent = explanation[:1] == b"D"
        return QueueProgramError(text, QUEUE_REFUSED if permanent else QUEUE_EXPLAINED)
    permanent = QueueProgramError("", status).permanent
    usual = "qq permanent problem (#5.3.0)" if permanent else "qq temporary problem (#4.3.0)"
    return QueueProgramError(_TEXTS.get(status, usual), status)


class QueueProgram:
    """One message for a program that speaks the qmail-queue interface.

    Use it in a `with` statement: `write` the message, then `commit`. If the block ends before the
    envelope was sent, the program gets no envelope, and keeps nothing. Raises QueueProgramError,
    from `commit` too.
    """

    __slots__ = ("_envelope", "_explanation", "_failed", "_message", "_pid")

    def __init__(self, program: str, start: Start) -> None:
        """Start it: `start`, of `forked` or `spawned`, gets its three ends of the pipes.

        `program` is its name for errors. Raises QueueProgramError.
        """
        self._failed = False
        opened: list[int] = []
        try:
            message, self._message = _pipe(opened)
            envelope, self._envelope = _pipe(opened)
            self._explanation, explanation = _pipe(opened)
            self._pid = start((message, envelope, explanation))
        except OSError as exc:
            for descriptor in opened:
                posix.close(descriptor)
            raise QueueProgramError(
                f"unable to run {program}: {exc.strerror} (#4.3.0)", _EXEC_FAILED
            ) from exc
        for descriptor in (message, envelope, explanation):
            posix.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up, and wait for the program's end, unless the whole envelope was sent."""
        hangs_up = self._envelope >= 0
        self._message = _close(self._message)
        self._envelope = _close(self._envelope)
        # Before the wait: the program may be writing more there than a pipe holds.
        self._explanation = _close(self._explanation)
        if hangs_up:
            posix.waitpid(self._pid, 0)

    def _put(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self._failed:
                view = view[posix.write(descriptor, view) :]
        except OSError as exc:
            if exc.errno != errno.EPIPE:
                raise
            # It stopped reading: its exit code says why, and `commit` asks for that.
            self._failed = True

    def write(self, data: bytes) -> None:
        """Send more of the message."""
        self._put(self._message, data)

    def commit(self, sender: bytes, recipients: list[bytes]) -> None:
        """Send the envelope and wait for the exit code. Raises QueueProgramError."""
        self._message = _close(self._message)
        wire = b"".join((b"F", sender, b"\0", *(b"T" + one + b"\0" for one in recipients), b"\0"))
        self._put(self._envelope, wire)
        self._envelope = _close(self._envelope)
        _, found = posix.waitpid(self._pid, 0)
        # Not read to its end: a process in the background may still hold the other side.
        posix.set_blocking(self._explanation, False)
        try:
            explanation = posix.read(self._explanation, _LONGEST_EXPLANATION_OCTETS)
        except BlockingIOError:
            explanation = b""
        status = posix.waitstatus_to_exitcode(found)
        if status < 0:
            text = "qq crashed (#4.3.0)"
            raise QueueProgramError(text, _EXEC_FAILED)
        if status:
            raise judge(status, explanation)
        if self._failed:
            raise judge(QUEUE_READ)


def _pipe(opened: list[int]) -> tuple[int, int]:
    """Make a pipe whose descriptors are not among the numbers that the program gets."""
    low = posix.pipe()
    opened += low
    ends = []
    for descriptor in low:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_THE_FIXED_FDS)
        opened.append(high)
        ends.append(high)
        posix.close(descriptor)
        opened.remove(descriptor)
    return ends[0], ends[1]


def _close(descriptor: int) -> int:
    if descriptor >= 0:
        posix.close(descriptor)
    return -1


_NUMBERS = (MESSAGE, ENVELOPE, EXPLANATION)


def spawned(program: str, home: Home, *, send: bool) -> Start:
    """Start a home's queue program by posix_spawn, in the environment of this process."""
    environ = {**environment(), "PICOQMAIL_HOME": home.root}
    if not send:
        environ["PICOQMAIL_SEND"] = "off"

    def start(descriptors: Descriptors) -> int:
        pairs = zip(descriptors, _NUMBERS, strict=True)
        return posix.posix_spawn(
            program,
            [program],
            environ,
            file_actions=[(posix.POSIX_SPAWN_DUP2, *pair) for pair in pairs],
            setsigdef=IGNORED_BY_PYTHON,
        )

    return start


def forked(program: bytes, directory: str) -> Start:
    """Start a program by fork and exec, in `directory`, the home.

    qmail runs it there, so that a relative name is one in the home.
    """

    def start(descriptors: Descriptors) -> int:
        pid = posix.fork()
        if not pid:
            _become(program, directory, descriptors)
        return pid

    return start


def _become(program: bytes, directory: str, descriptors: Descriptors) -> None:
    """Turn the forked child into the queue program; never return."""
    try:
        for descriptor, number in zip(descriptors, _NUMBERS, strict=True):
            posix.dup2(descriptor, number)
        try:
            posix.chdir(directory)
        except OSError:
            posix._exit(QUEUE_HOME)  # noqa: SLF001 - public as os._exit
        posix.execv(program, [program])
    except OSError:
        posix._exit(_EXEC_FAILED)  # noqa: SLF001 - public as os._exit
    finally:
        # Also after an error that was not foreseen: a second copy of the caller must not go on.
        posix._exit(_EXEC_FAILED)  # noqa: SLF001 - public as os._exit
