"""What the database refuses, as errors of picoqmail: one line that says what to do.

The rule of this module: what the driver says about the URL is never repeated, for that may hold a
password. What the server says about a statement is.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import psycopg

from picoqmail.errors import QUEUE_SPOOL, QUEUE_WRITE, ConfigurationError, SpoolError

if TYPE_CHECKING:
    from picoqmail.errors import PicoqmailError
    from picoqmail.postgresql.address import DatabaseAddress

# SQLSTATE (PostgreSQL's manual, appendix A).
_MISSING = frozenset({"42P01", "3F000", "42703"})
_NO_RIGHTS = "42501"
_READ_ONLY = "25006"
_ERRNO = {"53100": errno.ENOSPC, "53200": errno.ENOMEM, "58030": errno.EIO}
_TRY_AGAIN = frozenset({"40001", "40P01"})
# What the server says to whom it does not let in; it has no SQLSTATE by then.
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "permission denied for database",
)


class UncertainAcceptanceError(SpoolError):
    """The answer to a COMMIT was lost, and it could not be found out what it was.

    The message may have been accepted. Brought in later under the same ID, it comes in once.
    """


def is_worth_another_try(exc: psycopg.Error) -> bool:
    """Say whether the server gave up a statement that may work if it is sent once more."""
    return exc.sqlstate in _TRY_AGAIN


def translate(exc: psycopg.Error, address: DatabaseAddress, doing: str) -> PicoqmailError:
    """Return our error for one of the driver's; `doing` is what was tried ("claim a message")."""
    state, said = exc.sqlstate or "", _primary(exc)
    if state == _NO_RIGHTS:
        return ConfigurationError(
            address.location,
            f"this database user cannot {doing}: {said}",
            f"grant it what it needs in the schema {address.schema}, or use the tables' owner",
        )
    if state in _MISSING:
        return ConfigurationError(
            address.location,
            f"the schema {address.schema} lacks tables of picoqmail: {said}",
            "run: picoqmail migrate",
        )
    if state == _READ_ONLY:
        said = "it is read-only, or a standby in recovery; the URL must name the primary server"
    return SpoolError(doing, address.location, _ERRNO.get(state), QUEUE_WRITE, said)


def translate_refusal(exc: psycopg.Error, address: DatabaseAddress) -> PicoqmailError:
    """Return our error for a connection that could not be made."""
    if isinstance(exc, psycopg.ProgrammingError):
        # libpq could not read the URL, and says so by quoting it.
        return ConfigurationError(
            address.location,
            "the URL has a part that PostgreSQL does not know",
            'see "Connection URIs" and "Parameter Key Words" in PostgreSQL\'s manual',
        )
    said = _primary(exc)
    if any(words in said for words in _REFUSALS):
        return ConfigurationError(address.location, said, "correct the URL, or the server's rights")
    return SpoolError("connect to the database", address.location, None, QUEUE_SPOOL, said)


def _primary(exc: psycopg.Error) -> str:
    """Return what the server or the driver says, in one line."""
    said = exc.diag.message_primary or str(exc)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = lines[0] if lines else type(exc).__name__
    _, fatal, reason = text.rpartition("FATAL: ")
    return reason.strip() if fatal else text
