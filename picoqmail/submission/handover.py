"""Where an injected message goes: to a queue program, into the spool, or nowhere.

Hot; plain stdlib. What is in the message does not matter here.
"""

from __future__ import annotations

import posix

from picoqmail.errors import ConfigurationError
from picoqmail.home.hands import DIRECTORY_TYPE, TYPE_BITS
from picoqmail.home.limits import read_limits
from picoqmail.home.owner import refuse_root
from picoqmail.home.paths import is_privileged
from picoqmail.layout import NEW, TMP
from picoqmail.message import envelope
from picoqmail.submission.way_in import begin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from picoqmail.home.control import Control
    from picoqmail.home.paths import Home


def named_program(environ: Mapping[bytes, bytes]) -> bytes:
    """Return the program that QMAILQUEUE names, b"" if none; a set-id process ignores it."""
    return b"" if is_privileged() else environ.get(b"QMAILQUEUE", b"")


def hand_over(  # noqa: PLR0913 - the envelope and where it came from
    home: Home,
    environ: Mapping[bytes, bytes],
    sender: bytes,
    recipients: list[bytes],
    pieces: Iterable[bytes],
    *,
    extra: dict[str, Any] | None = None,
    program: str = "inject",
    control: Control | None = None,
) -> bool:
    """Hand one message over; return when another program, or the spool, has it durably.

    Return True if the caller has to start a sender.

    It goes to the program that QMAILQUEUE names (not for a set-id process, whose caller chose it);
    else into the spool, if that is ours and we may write there; else to the home's bin/qmail-queue.
    A message without recipients is read to its end and dropped (qmail-queue(8)).

    The octets of the message come from `pieces`, which is asked for the first one when the way is
    open; an error that it raises takes the message back. `extra` are further keys of the sidecar,
    which a queue program does not get. `program` is recorded as the origin. `control` are the
    settings of the home, if they were read before. Root has become the home's user if it has to
    (`become_submitter`). Raises PicoqmailError; nothing was accepted then.
    """
    named = named_program(environ)
    if named:
        _to_program(named, home, sender, recipients, pieces)
        return False
    if not recipients:
        for _ in pieces:
            pass
        return False
    fronted = program_in_front(home, is_safe=True)
    if fronted:
        _to_program(fronted.encode("utf-8", "surrogateescape"), home, sender, recipients, pieces)
        return False
    # A wrong setting is reported before the bad addresses that follow from it, and those before any
    # file exists.
    limits = read_limits(home, control)
    checked_sender = envelope.decode_sender(sender)
    checked_recipients = envelope.decode_recipients(recipients)
    uid, pid = posix.getuid(), posix.getpid()
    with begin(home, limits, program=program, uid=uid, pid=pid, control=control) as incoming:
        for piece in pieces:
            incoming.write(piece)
        incoming.commit(checked_sender, checked_recipients, extra)
    return environ.get(b"PICOQMAIL_SEND", b"") != b"off"


def _to_program(
    program: bytes, home: Home, sender: bytes, recipients: list[bytes], pieces: Iterable[bytes]
) -> None:
    # Not for every mail: a module costs start-up time even when it is not used.
    from picoqmail.submission.queue_program import QueueProgram, forked

    name = program.decode("utf-8", "replace")
    with QueueProgram(name, forked(program, home.root)) as queue:
        for piece in pieces:
            queue.write(piece)
        queue.commit(sender, recipients)


def program_in_front(home: Home, *, is_safe: bool = False) -> str:
    """Return the queue program that stands in front of the spool for this process.

    "" if this process should write to the spool itself. With `is_safe` the caller has called
    refuse_root for the home, which then need not be judged again. Raises ConfigurationError if this
    process may not write, and the home has no such program.
    """
    program = f"{home.bin}/qmail-queue"
    # Who was given a database needs no right to a directory.
    if home.database or may_spool(home.spool):
        program = ""
    if program or not is_safe:
        refuse_root(home, program)
    if not program:
        return ""
    if posix.access(program, posix.X_OK):
        return program
    for path in (home.spool, *(f"{home.spool}/{one}" for one in (NEW, TMP))):
        if _is_missing(path):
            raise ConfigurationError(
                path, "is missing, or is not a directory", "make it with: picoqmail init"
            )
    raise ConfigurationError(
        home.spool,
        "you may not write to this spool, and its home has no bin/qmail-queue",
        "ask the owner of the spool to run picoqmail init again",
    )


def is_directory(path: str) -> bool:
    """Say whether there is a directory of this name."""
    try:
        return posix.stat(path).st_mode & TYPE_BITS == DIRECTORY_TYPE
    except OSError:
        return False


def _is_missing(path: str) -> bool:
    """Say whether there is surely no directory of this name; one that is private may be there."""
    try:
        return posix.stat(path).st_mode & TYPE_BITS != DIRECTORY_TYPE
    except FileNotFoundError:
        return True
    except OSError:
        return False


def may_spool(spool: str) -> bool:
    """Say whether this process should write to the spool itself.

    Root may write anywhere, but the owner's sender cannot read a file of root's in another user's
    spool. So the spool has to belong to this user.
    """
    try:
        ours = posix.stat(f"{spool}/{NEW}").st_uid == posix.geteuid()
    except OSError:
        return False
    return ours and posix.access(f"{spool}/{TMP}", posix.W_OK | posix.X_OK)
