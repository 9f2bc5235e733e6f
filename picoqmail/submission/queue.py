"""Mail by the qmail-queue interface (qmail-queue(8)): picoqmail-queue. Hot; builtins only.

The message comes on descriptor 0, the envelope on descriptor 1; exit code 0 means durable. The
reason for any other code goes to descriptor 2, and to descriptor 6 if the caller made a pipe there
(code 82 protocol of notqmail: a letter, D for permanent or Z for temporary, and one line).
"""

from __future__ import annotations

import posix
import time

from picoqmail.errors import (
    QUEUE_BUG,
    QUEUE_EXPLAINED,
    QUEUE_HOME,
    QUEUE_NO_MEMORY,
    QUEUE_TIMEOUT,
    ConfigurationError,
    InputError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.home.control import Control
from picoqmail.home.limits import read_limits
from picoqmail.home.owner import become_owner
from picoqmail.home.paths import (
    caller_uid,
    environment,
    exists,
    is_privileged,
    locate,
)
from picoqmail.layout import DROP, PIPE_BLOCK_OCTETS, QUEUE_TIME_LIMIT_SECONDS
from picoqmail.message.envelope import EnvelopeParser, decode_recipients, decode_sender
from picoqmail.submission.start_sender import BECOME_SENDER, leave_a_sender, start_in_front
from picoqmail.submission.way_in import begin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home
    from picoqmail.submission.quota import Share

MESSAGE = 0
ENVELOPE = 1
COMPLAINT = 2
EXPLANATION = 6


class _TooLateError(Exception):
    """The alarm clock rang. Not an OSError, which would be taken for trouble with a descriptor."""


def receive() -> int:
    """Take one message from descriptors 0 and 1 into the spool; return the exit code.

    Then start the sender, unless PICOQMAIL_SEND is off. The process does nothing else after this:
    its umask, signals and descriptors are changed. The code is BECOME_SENDER in a child that has to
    become the sender (start_sender.py).
    """
    explain_to = _settle_descriptors()
    # Set by the set-id program: the caller's part of the drop, which this process is in.
    drop = environment().get("PICOQMAIL_DROP", "")
    if drop:
        # The real group was the caller's, so that the kernel hides this process from the caller.
        posix.setresgid(*[posix.getegid()] * 3)
    privileged = is_privileged()
    home: Home | None = None
    try:
        home = locate(privileged=privileged)
        posix.umask(0o027 if drop else 0o077)
        _limit_time()
        accepted = _accept(home, drop)
    except PicoqmailError as exc:
        status = exc.qmail_status
        is_home = home is not None and exists(home.root)
        if drop and home is not None and isinstance(exc, SpoolError):
            text = f"{exc} (below {home.spool}/{DROP}/{caller_uid(environment())})"
            return _complain(explain_to, status, text)
        if isinstance(exc, (ConfigurationError, SpoolError)) and not is_home:
            status = QUEUE_HOME
        return _complain(explain_to, status, str(exc))
    except MemoryError:
        return _complain(explain_to, QUEUE_NO_MEMORY, "out of memory; try again later")
    except _TooLateError:
        return _complain(explain_to, QUEUE_TIMEOUT, "the message took over 24 hours to arrive")
    except Exception as exc:  # noqa: BLE001 - a bug has its own code, and is never a success
        return _complain(explain_to, QUEUE_BUG, f"internal error, please report it: {exc!r}")
    if accepted and drop:
        start_in_front(home)
    sends = not drop and (privileged or environment().get("PICOQMAIL_SEND") != "off")
    return BECOME_SENDER if accepted and sends and leave_a_sender(home, time.time()) else 0


def _settle_descriptors() -> int:
    """Make sure that no file of ours gets a number that means something else.

    Return the descriptor for explanations, -1 if the caller gave no pipe there.
    """
    for standard in (MESSAGE, ENVELOPE, COMPLAINT):
        try:
            posix.fstat(standard)
        except OSError:
            # A directory cannot be read, so a closed 0 or 1 is still reported as unreadable.
            _put_at(standard, posix.open("/", posix.O_RDONLY | posix.O_CLOEXEC))
    try:
        # A pipe: S_IFIFO is the stat module's 0o010000.
        return EXPLANATION if posix.fstat(EXPLANATION).st_mode & 0o170000 == 0o010000 else -1
    except OSError:
        return -1


def _put_at(number: int, descriptor: int) -> None:
    if descriptor != number:
        posix.dup2(descriptor, number, inheritable=False)
        posix.close(descriptor)


def _limit_time() -> None:
    """Give up after 24 hours, long before the sweep takes what we write (after 36)."""
    import _signal

    def too_late(_number: int, _frame: object) -> None:
        raise _TooLateError

    _signal.signal(_signal.SIGALRM, too_late)
    _signal.alarm(QUEUE_TIME_LIMIT_SECONDS)


def _accept(home: Home, drop: str) -> bool:
    """Read message and envelope and make them durable; return False if there is no recipient.

    They go into the spool, or into `drop` if the caller may only add to the spool.
    """
    uid = caller_uid(environment())
    if not drop:
        become_owner(home)
    spool = drop or home.spool
    share: Share | None = None
    if drop or uid != posix.getuid():
        from picoqmail.submission.quota import Share

        share = Share(home, uid)
        share.charge(spool, time.time())
    control = Control(home.control)
    with begin(
        home,
        read_limits(home, control),
        program="picoqmail-queue",
        uid=uid,
        pid=posix.getpid(),
        drop=drop,
        control=control,
    ) as incoming:
        while block := _read(MESSAGE, "message"):
            incoming.write(block)
        envelope = EnvelopeParser()
        octets = 0
        while block := _read(ENVELOPE, "envelope"):
            octets += len(block)
            is_complete = envelope.feed(block)
            if share is not None:
                share.check_envelope(octets, len(envelope.recipients))
            if is_complete:
                break
        envelope.close()
        sender = decode_sender(envelope.sender or b"")
        recipients = decode_recipients(envelope.recipients)
        if not recipients:
            return False
        incoming.commit(sender, recipients)
    return True


def _read(descriptor: int, name: str) -> bytes:
    try:
        return posix.read(descriptor, PIPE_BLOCK_OCTETS)
    except OSError as exc:
        raise InputError(
            exc.errno, f"the {name} on descriptor {descriptor} cannot be read: {exc.strerror}"
        ) from exc


def _complain(explain_to: int, status: int, text: str) -> int:
    """Give the reason on descriptor 2, and on the caller's pipe if there is one.

    Return the exit code.
    """
    line = "".join([c if c.isprintable() else "?" for c in text]).encode(errors="replace")
    _say(COMPLAINT, b"picoqmail-queue: " + line + b"\n")
    if explain_to >= 0:
        letter = b"D" if 11 <= status <= 40 else b"Z"
        if _say(explain_to, letter + line):
            return QUEUE_EXPLAINED
    return status


def _say(descriptor: int, data: bytes) -> bool:
    try:
        posix.write(descriptor, data)
    except OSError:
        # Nobody reads it; the exit code says the same.
        return False
    return True
