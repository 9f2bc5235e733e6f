"""picoqmail-inject: parse the flags, inject one message, map the outcome to 0, 100 or 111."""

from __future__ import annotations

import posix
import sys
import time

from picoqmail.errors import PicoqmailError
from picoqmail.home.paths import locate
from picoqmail.submission.flags import PLAIN, WITH_ARGUMENT, UsageError, cut
from picoqmail.submission.inject import (
    FROM_ARGUMENTS,
    FROM_BOTH,
    FROM_EITHER,
    FROM_HEADER,
    Request,
    inject,
    read_stdin,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ACCEPTED, PERMANENT, TEMPORARY = 0, 100, 111

_FLAGS = {
    b"a": PLAIN,
    b"A": PLAIN,
    b"h": PLAIN,
    b"H": PLAIN,
    b"n": PLAIN,
    b"N": PLAIN,
    b"f": WITH_ARGUMENT,
}
_SOURCES = {b"a": FROM_ARGUMENTS, b"A": FROM_EITHER, b"h": FROM_HEADER, b"H": FROM_BOTH}


def say(text: str) -> None:
    """Tell the user; a standard error that is closed or full is no reason to fail the mail."""
    try:
        posix.write(2, f"{text}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        return


def octets(words: list[str]) -> list[bytes]:
    """Return arguments as the caller gave them; Python decodes them with surrogateescape."""
    encoding = sys.getfilesystemencoding()
    return [word.encode(encoding, "surrogateescape") for word in words]


def request_of(words: list[bytes]) -> Request:
    """Return what the command line asks for. Raises UsageError."""
    request = Request()
    flags, request.arguments = cut(words, _FLAGS)
    for letter, argument in flags:
        if letter in _SOURCES:
            request.recipients_from = _SOURCES[letter]
        elif letter == b"f":
            request.sender = argument
        else:
            request.queue = letter == b"N"
    return request


def run(
    request: Request, environ: dict[bytes, bytes], read: Callable[[], bytes] = read_stdin
) -> int:
    """Inject the message that `read` gives, of descriptor 0; return the exit code."""
    try:
        inject(
            request,
            environ,
            locate(),
            read,
            now=time.time(),
            pid=posix.getpid(),
            warn=lambda text: say(f"qmail-inject: warning: {text}"),
        )
    except PicoqmailError as exc:
        say(f"qmail-inject: fatal: {str(exc).removesuffix(chr(10))}")
        return PERMANENT if exc.permanent else TEMPORARY
    except OSError as exc:
        say(f"qmail-inject: fatal: {exc}")
        return TEMPORARY
    except MemoryError:
        say("qmail-inject: fatal: out of memory")
        return TEMPORARY
    except KeyboardInterrupt:
        say("qmail-inject: fatal: interrupted")
        return TEMPORARY
    except Exception as exc:  # noqa: BLE001 - the caller must not take 1 for an answer
        say(f"qmail-inject: fatal: internal bug, please report it: {exc!r}")
        return TEMPORARY
    return ACCEPTED


def main(arguments: list[str]) -> int:
    """Run the program; `arguments` are those after its name."""
    # Ours: under a caller's 0777 nobody could read what was accepted.
    posix.umask(0o077)
    try:
        request = request_of(octets(arguments))
    except UsageError as exc:
        say(f"{sys.argv[0].rpartition('/')[2]}: {exc}")
        return PERMANENT
    return run(request, dict(posix.environ))
