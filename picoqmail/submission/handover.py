"""Where an injected message goes: a queue program, the spool, standard output, or nowhere.

All of them are used alike: made with the envelope, `write` for each piece of the message, then
`commit`; or `abort`. Hot; plain stdlib. What is in the message is nobody's business here.
"""

from __future__ import annotations

import posix
import time

from picoqmail.errors import ConfigurationError
from picoqmail.home.limits import read_limits
from picoqmail.home.paths import is_privileged
from picoqmail.layout import NEW, TMP
from picoqmail.message import envelope
from picoqmail.spool.incoming import Incoming
from picoqmail.submission.start_sender import start_sender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from picoqmail.home.paths import Home

    class Handover(Protocol):
        """One message on its way out of our hands."""

        def write(self, data: bytes) -> None:
            """Take more of the message."""

        def commit(self) -> None:
            """Say that the message is whole; returns only when it is somebody else's."""

        def abort(self) -> None:
            """Take everything back; never raises."""


# Of st_mode; the module stat would be one more to import.
_TYPE_BITS = 0o170000
_DIRECTORY_TYPE = 0o040000


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
            home.spool, limits, program=program, uid=posix.getuid(), pid=posix.getpid()
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
            view = view[posix.write(self._descriptor, view) :]

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


def named_program(environ: Mapping[bytes, bytes]) -> bytes:
    """Return the program that QMAILQUEUE names, b"" if none; a set-id process is not told."""
    return b"" if is_privileged() else environ.get(b"QMAILQUEUE", b"")


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
    named = named_program(environ)
    if named:
        return _queue_program(named, home, sender, recipients)
    if not recipients:
        return Nobody()
    program_of_home = f"{home.bin}/qmail-queue"
    if not may_spool(home.spool):
        if posix.access(program_of_home, posix.X_OK):
            return _queue_program(
                program_of_home.encode("utf-8", "surrogateescape"), home, sender, recipients
            )
        if not is_directory(home.spool):
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


def _queue_program(program: bytes, home: Home, sender: bytes, recipients: list[bytes]) -> Handover:
    # Not for every mail: a module costs start-up time even when it is not used.
    from picoqmail.submission.queue_program import QueueProgram

    return QueueProgram(program, home.root, sender, recipients)


def is_directory(path: str) -> bool:
    """Tell whether there is a directory of this name."""
    try:
        return posix.stat(path).st_mode & _TYPE_BITS == _DIRECTORY_TYPE
    except OSError:
        return False


def may_spool(spool: str) -> bool:
    """Tell whether this process should write to the spool itself.

    Root may write anywhere, but a file of root's in another user's spool is one that the owner's
    sender cannot read: so it has to be ours.
    """
    try:
        ours = posix.stat(f"{spool}/{NEW}").st_uid == posix.geteuid()
    except OSError:
        return False
    return ours and posix.access(f"{spool}/{TMP}", posix.W_OK | posix.X_OK)
