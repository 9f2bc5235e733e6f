"""Where an injected message goes: a queue program, the spool, standard output, or nowhere.

All of them are used alike: made with the envelope, `write` for each piece of the message, then
`commit`; or `abort`. Hot; plain stdlib. What is in the message is nobody's business here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from picoqmail import envelope
from picoqmail.accept import Incoming
from picoqmail.errors import (
    QUEUE_ADDRESS_TOO_LONG,
    QUEUE_REFUSED,
    ConfigurationError,
    PicoqmailError,
)
from picoqmail.home import is_privileged
from picoqmail.launch import start_sender
from picoqmail.layout import NEW, TMP
from picoqmail.limits import read_limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from picoqmail.home import Home

    class Handover(Protocol):
        """One message on its way out of our hands."""

        def write(self, data: bytes) -> None:
            """Take more of the message."""

        def commit(self) -> None:
            """Say that the message is whole; returns only when it is somebody else's."""

        def abort(self) -> None:
            """Take everything back; never raises."""


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
        super().__init__(text)
        self.qmail_status = status


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
    error = QueueProgramError("", status)
    usual = "qq permanent problem (#5.3.0)" if error.permanent else "qq temporary problem (#4.3.0)"
    error.args = (_TEXTS.get(status, usual),)
    return error


class QueueProgram:
    """A program that speaks the qmail-queue interface: message on its fd 0, envelope on its fd 1.

    It runs in the home, as qmail runs it, so that a relative name is one in the home. Raises
    QueueProgramError, from `commit` too.
    """

    __slots__ = ("_envelope", "_explanation", "_failed", "_message", "_pid", "_wire")

    def __init__(self, program: bytes, home: Home, sender: bytes, recipients: list[bytes]) -> None:
        self._failed = False
        self._wire = b"".join(
            (b"F", sender, b"\0", *(b"T" + one + b"\0" for one in recipients), b"\0")
        )
        try:
            pipes = [os.pipe() for _ in range(3)]
            self._pid = os.fork()
        except OSError as exc:
            text = f"unable to run {os.fsdecode(program)}: {exc.strerror} (#4.3.0)"
            raise QueueProgramError(text, _EXEC_FAILED) from exc
        (message_in, self._message), (envelope_in, self._envelope) = pipes[:2]
        self._explanation, explanation_out = pipes[2]
        if not self._pid:
            _become(program, home.root, (message_in, envelope_in, explanation_out))
        for descriptor in (message_in, envelope_in, explanation_out):
            os.close(descriptor)

    def _put(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self._failed:
                view = view[os.write(descriptor, view) :]
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
        _, found = os.waitpid(self._pid, 0)
        # Not read to its end: somebody in the background may still hold the other side.
        os.set_blocking(self._explanation, False)
        try:
            explanation = os.read(self._explanation, _LONGEST_EXPLANATION_BYTES)
        except BlockingIOError:
            explanation = b""
        self._explanation = _close(self._explanation)
        status = os.waitstatus_to_exitcode(found)
        if status < 0:
            text = "qq crashed (#4.3.0)"
            raise QueueProgramError(text, _EXEC_FAILED)
        if status:
            raise judge(status, explanation)
        if self._failed:
            raise judge(54)

    def abort(self) -> None:
        """Hang up before the envelope: the program then keeps nothing. Waits for its end."""
        self._message = _close(self._message)
        self._envelope = _close(self._envelope)
        self._explanation = _close(self._explanation)
        os.waitpid(self._pid, 0)


def _close(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
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
            os.dup2(descriptor, number)
        try:
            os.chdir(directory)
        except OSError:
            os._exit(61)
        os.execv(program, [program])  # noqa: S606 - no shell is wanted, the caller named it
    except OSError:
        os._exit(_EXEC_FAILED)
    finally:
        # Also after what nobody thought of: a second copy of the caller must not go on.
        os._exit(_EXEC_FAILED)


class SpoolDirectly:
    """The spool, written by this very process."""

    __slots__ = ("_extra", "_home", "_incoming", "_leaving", "_recipients", "_send", "_sender")

    def __init__(  # noqa: PLR0913 - the envelope and where it came from
        self,
        home: Home,
        sender: bytes,
        recipients: list[bytes],
        extra: dict[str, Any] | None,
        *,
        program: str,
        send: bool,
        leaving: bool,
    ) -> None:
        """Refuse a bad envelope before any file exists; then make the body.

        `send`: start the sender in the background after the commit; `leaving`: this process does
        nothing else after it. Raises AddressError, AddressTooLongError, ConfigurationError,
        SpoolError.
        """
        self._leaving = leaving
        self._home = home
        self._extra = extra
        self._send = send
        self._sender = envelope.decode_sender(sender)
        self._recipients = envelope.decode_recipients(recipients)
        limits = read_limits(home)
        self._incoming = Incoming(
            home.spool, limits, program=program, uid=os.getuid(), pid=os.getpid()
        )

    def write(self, data: bytes) -> None:
        """Append to the body. Raises SpoolError, MessageTooLargeError."""
        self._incoming.write(data)

    def commit(self) -> None:
        """Make the message durable, then have it sent. Raises SpoolError."""
        self._incoming.commit(self._sender, self._recipients, self._extra)
        if self._send:
            start_sender(self._home, time.time(), leaving=self._leaving)

    def abort(self) -> None:
        """Take the body back."""
        self._incoming.abort()


class Output:
    """A descriptor that gets the message and not the envelope: the flag -n."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Print. Raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def commit(self) -> None:
        """There is nothing to promise."""

    def abort(self) -> None:
        """What is printed stays printed."""


class Nobody:
    """A message without recipients: read to its end, and that is all (qmail-queue(8))."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Let it pass."""

    def commit(self) -> None:
        """There is nobody to promise anything to."""

    def abort(self) -> None:
        """Nothing was kept."""


def hand_over(  # noqa: PLR0913 - the envelope and where it came from
    home: Home,
    environ: Mapping[bytes, bytes],
    sender: bytes,
    recipients: list[bytes],
    *,
    extra: dict[str, Any] | None = None,
    program: str = "inject",
    leaving: bool = True,
) -> Handover:
    """Choose the way of one message and open it.

    The program that QMAILQUEUE names (not for a set-id process, whose caller chose it); else the
    spool, if it is ours and we may write there; else the home's bin/qmail-queue. `extra` are
    further keys of the sidecar, which only the second way can carry. Raises PicoqmailError.
    """
    named = environ.get(b"QMAILQUEUE", b"")
    if named and not is_privileged():
        return QueueProgram(named, home, sender, recipients)
    if not recipients:
        return Nobody()
    program_of_home = f"{home.bin}/qmail-queue"
    if not may_spool(home.spool):
        if os.access(program_of_home, os.X_OK):
            return QueueProgram(os.fsencode(program_of_home), home, sender, recipients)
        if not os.path.isdir(home.spool):
            raise ConfigurationError(
                home.spool, "there is no spool", "make a home with: picoqmail init"
            )
        raise ConfigurationError(
            home.spool,
            "you may not write to this spool, and its home has no bin/qmail-queue",
            "ask for picoqmail init to be run again by the spool's owner",
        )
    send = environ.get(b"PICOQMAIL_SEND", b"") != b"off"
    return SpoolDirectly(
        home, sender, recipients, extra, program=program, send=send, leaving=leaving
    )


def may_spool(spool: str) -> bool:
    """Tell whether this process should write to the spool itself.

    Root may write anywhere, but a file of root's in another user's spool is one that the owner's
    sender cannot read: so it has to be ours.
    """
    try:
        ours = os.stat(f"{spool}/{NEW}").st_uid == os.geteuid()
    except OSError:
        return False
    return ours and os.access(f"{spool}/{TMP}", os.W_OK | os.X_OK)
