"""The tree of errors: each with its builtin, its exit codes, and a text that says what to do."""

from __future__ import annotations

import errno

import pytest

from picoqmail import errors
from picoqmail.errors import PicoqmailError, SpoolError, classify_errno

TREE = [
    (errors.EnvelopeError, ValueError, 91, 65),
    (errors.AddressError, ValueError, 31, 65),
    (errors.AddressTooLongError, ValueError, 11, 65),
    (errors.TruncatedEnvelopeError, ValueError, 54, 65),
    (errors.MessageTooLargeError, ValueError, 31, 65),
    (errors.MessageError, ValueError, 31, 65),
    (errors.MessageTypeError, TypeError, 31, 65),
    (errors.KeyReusedError, ValueError, 31, 65),
    (errors.InputError, OSError, 54, 74),
    (errors.ConfigurationError, ValueError, 55, 78),
    (errors.DamagedMessageError, ValueError, 81, 65),
    (errors.NoSuchMessageError, LookupError, 81, 66),
    (errors.SpoolError, OSError, 53, 74),
]


def every_error(base: type[PicoqmailError] = PicoqmailError) -> set[type[PicoqmailError]]:
    """All classes below `base`, of this module."""
    found = {base}
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= every_error(child)
    return found


@pytest.mark.parametrize(("error", "builtin", "status", "sysexit"), TREE)
def test_each_error_is_a_builtin_and_has_its_exit_codes(
    error: type[PicoqmailError], builtin: type[Exception], status: int, sysexit: int
) -> None:
    """Who does not know our tree catches a ValueError, OSError or LookupError."""
    assert issubclass(error, builtin)
    assert (status, sysexit) == (error.qmail_status, error.sysexit)


def test_the_tree_is_whole() -> None:
    """The table above, the drawing in the docstring and the classes are the same."""
    assert every_error() - {PicoqmailError} == {row[0] for row in TREE}
    assert [] == [row[0].__name__ for row in TREE if row[0].__name__ not in str(errors.__doc__)]


def test_only_11_to_40_is_permanent() -> None:
    """qmail-queue(8): callers treat 11 to 40 as permanent, all else as temporary."""
    cause = OSError(errno.ENOENT, "no")
    statuses = [11, 31, 40, 10, 41, 51, 53, 61, 81, 91, 120]
    permanent = []
    for status in statuses:
        error = SpoolError("write", "/x", cause, status)
        if error.permanent:
            permanent.append(status)
    assert [11, 31, 40] == permanent


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOMEM, 51),
        (errno.ENOSPC, 53),
        (errno.EDQUOT, 53),
        (errno.EIO, 53),
        (errno.EFBIG, 53),
        (errno.EACCES, 64),
        (errno.EROFS, 64),
        (None, 64),
    ],
)
def test_errno_decides_before_the_step_does(number: int | None, status: int) -> None:
    """A full disk is 53 at whatever step it shows; anything else is the step's own code."""
    assert status == classify_errno(number, 64)


def test_texts_say_what_and_where() -> None:
    """Each message names the thing, its place, and escapes what could forge a line."""
    cause = OSError(errno.ENOSPC, "No space left on device")
    assert "cannot write: No space left on device: /s/x" == str(SpoolError("write", "/s/x", cause))
    assert "recipient 3 'a\\nb' cannot be sent: it is odd" == str(
        errors.AddressError("it is odd", "a\nb", 2)
    )
    assert "the sender 'x' cannot be sent: it is odd" == str(errors.AddressError("it is odd", "x"))
    assert "/c/me:3: is odd; do this" == str(
        errors.ConfigurationError("/c/me:3", "is odd", "do this")
    )
    assert "X: no such message" == str(errors.NoSuchMessageError("X: no such message"))
