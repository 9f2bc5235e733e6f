"""Another program's qmail-queue interface, from the caller's side: pipes, exit codes, explanations.

Hot where QMAILQUEUE is set; plain stdlib. Which program it is was decided by `handover`.
"""

from __future__ import annotations

import errno
import fcntl
import posix

from picoqmail.errors import QUEUE_ADDRESS_TOO_LONG, QUEUE_READ, QUEUE_REFUSED, PicoqmailError

_EXPLANATION_FD = 6
_EXPLAINED = 82
_LONGEST_EXPLANATION_BYTES = 1000
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
    """A queue program said no, or could not be run; `qmail_status` is what it said."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, status)
        self.qmail_status = status

    def __str__(self) -> str:
        """What it said, or what its exit code means."""
        return str(self.args[0])


def judge(status: int, explanation: bytes = b"") -> QueueProgramError:
    """Return the error for a queue program's exit code other than 0 (qmail-queue(8)).

    Code 82 is explained on descriptor 6: `D` for a permanent or `Z` for a temporary problem, then
    the text for the user; without one it is a temporary problem like any other.
    """
    if status == _OLD_ADDRESS_TOO_LONG:
        status = QUEUE_ADDRESS_TOO_LONG
    if status == _EXPLAINED and explanation[:1] in (b"D", b"Z") and len(explanation) > 1:
        text = explanation[1:].decode("utf-8", "replace").replace("\n", " ").strip()
        return QueueProgramError(text, QUEUE_REFUSED if explanation[:1] == b"D" else _EXPLAINED)
    permanent = QueueProgramError("", status).permanent
    usual = "qq permanent problem (#5.3.0)" if permanent else "qq temporary problem (#4.3.0)"
    return QueueProgramError(_TEXTS.get(status, usual), status)


class QueueProgram:
    """A program that speaks the qmail-queue interface: message on its fd 0, envelope on its fd 1.

    It runs in the home, as qmail runs it, so that a relative name is one in the home. Raises
    QueueProgramError, from `commit` too.
    """

    __slots__ = ("_envelope", "_explanation", "_failed", "_message", "_pid", "_wire")

    def __init__(
        self, program: bytes, directory: str, sender: bytes, recipients: list[bytes]
    ) -> None:
        """Start it, to run in `directory`. Raises QueueProgramError."""
        self._failed = False
        self._wire = b"".join(
            (b"F", sender, b"\0", *(b"T" + one + b"\0" for one in recipients), b"\0")
        )
        try:
            pipes = [posix.pipe() for _ in range(3)]
            self._pid = posix.fork()
        except OSError as exc:
            text = f"unable to run {program.decode('utf-8', 'replace')}: {exc.strerror} (#4.3.0)"
            raise QueueProgramError(text, _EXEC_FAILED) from exc
        (message_in, self._message), (envelope_in, self._envelope) = pipes[:2]
        self._explanation, explanation_out = pipes[2]
        if not self._pid:
            _become(program, directory, (message_in, envelope_in, explanation_out))
        for descriptor in (message_in, envelope_in, explanation_out):
            posix.close(descriptor)

    def _put(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self._failed:
                view = view[posix.write(descriptor, view) :]
        except OSError as exc:
            if exc.errno != errno.EPIPE:
                raise
            # It stopped reading: its exit code says why, and is asked for in commit.
            self._failed = True

    def write(self, data: bytes) -> None:
        """Send more of the message."""
        self._put(self._message, data)

    def commit(self) -> None:
        """Send the envelope and wait for the verdict. Raises QueueProgramError."""
        self._message = _close(self._message)
        self._put(self._envelope, self._wire)
        self._envelope = _close(self._envelope)
        _, found = posix.waitpid(self._pid, 0)
        # Not read to its end: somebody in the background may still hold the other side.
        posix.set_blocking(self._explanation, False)
        try:
            explanation = posix.read(self._explanation, _LONGEST_EXPLANATION_BYTES)
        except BlockingIOError:
            explanation = b""
        self._explanation = _close(self._explanation)
        status = posix.waitstatus_to_exitcode(found)
        if status < 0:
            text = "qq crashed (#4.3.0)"
            raise QueueProgramError(text, _EXEC_FAILED)
        if status:
            raise judge(status, explanation)
        if self._failed:
            raise judge(QUEUE_READ)

    def abort(self) -> None:
        """Hang up before the envelope: the program then keeps nothing. Waits for its end."""
        self._message = _close(self._message)
        self._envelope = _close(self._envelope)
        self._explanation = _close(self._explanation)
        posix.waitpid(self._pid, 0)


def _close(descriptor: int) -> int:
    if descriptor >= 0:
        posix.close(descriptor)
    return -1


def _become(program: bytes, directory: str, descriptors: tuple[int, int, int]) -> None:
    """Turn the forked child into the queue program; never returns."""
    try:
        # Our pipes may themselves have got the numbers 0, 1 or 6, if those were closed.
        high = [
            fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_THE_FIXED_FDS)
            for descriptor in descriptors
        ]
        for descriptor, number in zip(high, (0, 1, _EXPLANATION_FD), strict=True):
            posix.dup2(descriptor, number)
        try:
            posix.chdir(directory)
        except OSError:
            posix._exit(61)  # noqa: SLF001 - public as os._exit
        posix.execv(program, [program])
    except OSError:
        posix._exit(_EXEC_FAILED)  # noqa: SLF001 - public as os._exit
    finally:
        # Also after what nobody thought of: a second copy of the caller must not go on.
        posix._exit(_EXEC_FAILED)  # noqa: SLF001 - public as os._exit
