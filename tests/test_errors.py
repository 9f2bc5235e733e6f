"""The tree of errors: each with its builtin, its exit codes, and a text that says what to do."""

from __future__ import annotations

import copy
import errno
import importlib
import json
import multiprocessing
import pickle
import pkgutil
from typing import Any

import pytest

import picoqmail
from failing import fail
from picoqmail import errors
from picoqmail.errors import PicoqmailError, SpoolError, classify_errno
from picoqmail.home.make import InitError
from picoqmail.message.completion import UnparsableError
from picoqmail.submission.queue_program import judge

TREE = [
    (errors.EnvelopeError, ValueError, 91, 65),
    (errors.AddressError, ValueError, 31, 65),
    (errors.AddressTooLongError, ValueError, 11, 65),
    (errors.HeaderError, ValueError, 31, 65),
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
    (errors.LostClaimError, OSError, 53, 74),
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


FULL = OSError(errno.ENOSPC, "No space left on device")
MADE = [
    errors.EnvelopeError("there is no recipient: the list is empty"),
    errors.AddressError("it holds a control character", "a\nb@\udcff", 2),
    errors.AddressError("it is empty"),
    errors.AddressTooLongError("the address is long"),
    errors.TruncatedEnvelopeError("the envelope ended"),
    errors.MessageTooLargeError("too large"),
    errors.MessageError("no message"),
    errors.MessageTypeError("int is not a message"),
    errors.KeyReusedError("the key"),
    errors.InputError(errno.EIO, "the message cannot be read: I/O error"),
    errors.InputError(None, "the stream has nothing"),
    errors.InputError(errno.EIO, "read error", "descriptor 0"),
    errors.ConfigurationError("/c/me:3", "is odd", "do this"),
    errors.ConfigurationError("/c/me", "is odd"),
    errors.DamagedMessageError("cut"),
    errors.NoSuchMessageError("X: no such message"),
    SpoolError("write", "/s/x", FULL),
    SpoolError("lock", "/s/x", OSError(errno.EACCES, "odd text"), errors.QUEUE_SPOOL),
    SpoolError("accept mail", "/s", OSError("without a number"), errors.QUEUE_SPOOL),
    SpoolError("write", "/s/x", errno.EIO),
    InitError("/h", "belongs to another user", "run this as that user"),
    UnparsableError.of_line(b"To: (\xff", "the environment"),
    judge(53),
    judge(82, b"Zsay no more"),
]


def facts(error: BaseException) -> tuple[Any, ...]:
    """What somebody who catches an error can see of it."""
    names = ("errno", "strerror", "filename", "permanent", "sysexit", "qmail_status")
    seen = {name: getattr(error, name, None) for name in names}
    return (type(error), str(error), repr(error), error.args, vars(error), seen)


@pytest.mark.parametrize("error", MADE, ids=lambda one: type(one).__name__)
def test_errors_survive_pickle_and_copy(error: PicoqmailError) -> None:
    """Type, attributes, text and notes are the same in another process, or in a copy."""
    error = copy.copy(error)
    error.add_note("of the fourth message")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert facts(error) == facts(pickle.loads(pickle.dumps(error, protocol)))  # noqa: S301
    assert facts(error) == facts(copy.copy(error))
    assert facts(error) == facts(copy.deepcopy(error))


@pytest.mark.parametrize("error", MADE, ids=lambda one: type(one).__name__)
def test_errors_survive_json(error: PicoqmailError) -> None:
    """Celery keeps module, name and arguments of an error as JSON, and calls the class again."""
    arguments = json.loads(json.dumps(error.args))
    again = type(error)(*arguments)
    if getattr(error, "filename", None) != "descriptor 0":  # OSError's own arguments lack it.
        assert facts(error) == facts(again)


def test_all_errors_are_among_them() -> None:
    """Each error of the package that has arguments of its own is tried above."""
    modules = [one.name for one in pkgutil.walk_packages(picoqmail.__path__, "picoqmail.")]
    for name in modules:
        if not name.startswith("picoqmail.django"):
            importlib.import_module(name)

    def below(base: type[PicoqmailError]) -> set[type[PicoqmailError]]:
        children = base.__subclasses__()
        return {*children}.union(*(below(one) for one in children))

    own = {
        one
        for one in below(PicoqmailError)
        if one.__module__.startswith("picoqmail.") and "__init__" in vars(one)
    }
    assert set() == own - {type(one) for one in MADE}


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_errors_come_out_of_a_process_pool(way: Any) -> None:
    """A pool hands each error to the caller; none breaks the pool."""
    with multiprocessing.get_context(way).Pool(1) as pool:
        for error in MADE:
            with pytest.raises(type(error)) as caught:
                pool.apply_async(fail, (error,)).get(60)
            assert str(error) == str(caught.value)
            assert facts(error)[3:] == facts(caught.value)[3:]
