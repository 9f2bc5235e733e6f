"""The errors of picoqmail: one tree. Nothing else may live here.

    PicoqmailError
    ├── EnvelopeError(ValueError)          the envelope as a whole is malformed             91
    │   ├── AddressError                   an address that can never be sent                31
    │   ├── AddressTooLongError            an address over 1002 octets                      11
    │   ├── HeaderError                    the header does not say who gets the mail        31
    │   └── TruncatedEnvelopeError         the envelope ended before its final NUL          54
    ├── MessageTooLargeError(ValueError)   more octets than the setting databytes allows    31
    ├── MessageError(ValueError)           the message, its time or its key is invalid      31
    │   ├── MessageTypeError(TypeError)    the object is not a message                      31
    │   └── KeyReusedError                 its idempotency key belongs to another message   31
    ├── InputError(OSError)                the message or envelope could not be read        54
    ├── ConfigurationError(ValueError)     a setting is missing or wrong                    55
    ├── DamagedMessageError(ValueError)    a spooled message that must not be sent          --
    ├── NoSuchMessageError(LookupError)    no message of that name in the spool             --
    └── SpoolError(OSError)                the spool could not be read or written     51 to 66
        └── LostClaimError                 another process may have the message         --

The numbers are the exit codes of the qmail-queue interface (qmail-queue(8)). There 11 to 40 are
permanent; all others are temporary. `sysexit` is the exit code of the other programs (sysexits.h).
Each error is also the builtin exception that fits it, so that callers need not know this tree.

`type(error)(*error.args)` makes the same error again. That is how pickle, copy, multiprocessing
and Celery carry an error from one process to another, with type, attributes and text.
"""

from __future__ import annotations

import posix

# Exit codes of the qmail-queue interface.
QUEUE_ADDRESS_TOO_LONG = 11
QUEUE_REFUSED = 31
QUEUE_NO_MEMORY = 51
QUEUE_TIMEOUT = 52
QUEUE_WRITE = 53
QUEUE_READ = 54
QUEUE_CONFIGURATION = 55
QUEUE_HOME = 61
QUEUE_SPOOL = 62
QUEUE_BODY = 63
QUEUE_SIDECAR = 64
QUEUE_BODY_RENAME = 65
QUEUE_SIDECAR_RENAME = 66
QUEUE_TRY_LATER = 71
QUEUE_BUG = 81
QUEUE_EXPLAINED = 82
QUEUE_ENVELOPE = 91

# sysexits.h
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_OSERR = 71
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_CONFIG = 78


class PicoqmailError(Exception):
    """Base of every error that picoqmail raises on purpose.

    `qmail_status` is the exit code of the queue program, `sysexit` that of the others.
    """

    qmail_status: int = QUEUE_BUG
    sysexit: int = EX_SOFTWARE

    @property
    def permanent(self) -> bool:
        """True if trying the same again cannot help (qmail-queue(8): codes 11 to 40)."""
        return 11 <= self.qmail_status <= 40


class EnvelopeError(PicoqmailError, ValueError):
    """The envelope does not have the form of the qmail-queue interface."""

    qmail_status = QUEUE_ENVELOPE
    sysexit = EX_DATAERR


class AddressError(EnvelopeError):
    """An address that can never be sent to a relay; `index` is None for the sender."""

    qmail_status = QUEUE_REFUSED

    def __init__(self, reason: str, address: str = "", index: int | None = None) -> None:
        """`reason` is a sentence; `address` is shown as the caller gave it, escaped."""
        super().__init__(reason, address, index)
        self.reason = reason
        self.address = address
        self.index = index

    def __str__(self) -> str:
        """Say which address, and why."""
        who = "the sender" if self.index is None else f"recipient {self.index + 1}"
        return f"{who} {self.address!a} cannot be sent: {self.reason}"


class AddressTooLongError(EnvelopeError):
    """An address over 1002 octets, the limit of qmail-queue."""

    qmail_status = QUEUE_ADDRESS_TOO_LONG


class HeaderError(EnvelopeError):
    """A header field that should name sender or recipients cannot be read, or is missing."""

    qmail_status = QUEUE_REFUSED


class TruncatedEnvelopeError(EnvelopeError):
    """The envelope ended before its final NUL: the message is not accepted, and nothing is kept."""

    qmail_status = QUEUE_READ


class MessageTooLargeError(PicoqmailError, ValueError):
    """The message has more octets than the setting databytes allows."""

    qmail_status = QUEUE_REFUSED
    sysexit = EX_DATAERR


class MessageError(PicoqmailError, ValueError):
    """The message cannot be turned into octets, or its time or key is invalid."""

    qmail_status = QUEUE_REFUSED
    sysexit = EX_DATAERR


class MessageTypeError(MessageError, TypeError):
    """The object is not a message, or the stream returned no octets."""


class KeyReusedError(MessageError):
    """The idempotency key was used before for another message or envelope."""


class ConfigurationError(PicoqmailError, ValueError):
    """A setting is missing or wrong. `where` is `file` or `file:line`."""

    qmail_status = QUEUE_CONFIGURATION
    sysexit = EX_CONFIG

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        """`problem` says what is wrong; `remedy` says what is allowed, or what to do."""
        super().__init__(where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        """Say where, what, and what to do."""
        return f"{self.where}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


class DamagedMessageError(PicoqmailError, ValueError):
    """The sidecar or body of a message is not what was accepted; it is kept, and never sent."""

    sysexit = EX_DATAERR


class NoSuchMessageError(PicoqmailError, LookupError):
    """No message of that name is in the spool."""

    sysexit = EX_NOINPUT

    def __str__(self) -> str:
        """Return the plain text; KeyError and its like would quote it."""
        return Exception.__str__(self)


class InputError(PicoqmailError, OSError):
    """The message or the envelope could not be read from the caller."""

    qmail_status = QUEUE_READ
    sysexit = EX_IOERR

    def __str__(self) -> str:
        """Return the sentence alone; OSError would put the number before it."""
        return str(self.strerror)


class SpoolError(PicoqmailError, OSError):
    """The spool could not be read or written. This is temporary, and nothing was accepted."""

    qmail_status = QUEUE_WRITE
    sysexit = EX_IOERR

    def __init__(
        self,
        action: str,
        path: str,
        cause: OSError | int | None,
        status: int = QUEUE_WRITE,
        reason: str = "",
    ) -> None:
        """`action` is what was tried ("write"); `status` is the queue's exit code for that step.

        `cause` is the system's error or its errno; `reason` replaces the text of that error.
        """
        number = cause.errno if isinstance(cause, OSError) else cause
        if isinstance(cause, OSError):
            reason = reason or cause.strerror or str(cause)
        elif number is not None and not reason:
            reason = posix.strerror(number)
        super().__init__(number, f"cannot {action}: {reason}", path)
        # OSError would keep only the errno and the text.
        self.args = (action, path, number, status, reason)
        self.qmail_status = classify_errno(number, status)

    def __str__(self) -> str:
        """Say what and where: `cannot write: No space left on device: /path`."""
        return f"{self.strerror}: {self.filename}"


class LostClaimError(SpoolError):
    """The claim on a message is lost: another process may have the message by now.

    Nothing more may be done with the message, and the end of its data must not be sent.
    """


def classify_errno(number: int | None, step_status: int) -> int:
    """Return the queue's exit code for an errno at a step. Only this function classifies errno.

    A full disk or quota, an I/O error or a file limit is 53, and lack of memory is 51, at every
    step. Everything else is the step's own code.
    """
    # A late import: the programs that start once a mail seldom need it.
    import errno

    if number == errno.ENOMEM:
        return QUEUE_NO_MEMORY
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
        return QUEUE_WRITE
    return step_status
