"""picoqmail-inject: parse the flags and inject one message; exit code 0, 100 or 111."""

from __future__ import annotations

import posix
import sys

from picoqmail.submission.caller import PERMANENT, octets, say
from picoqmail.submission.flags import PLAIN, WITH_ARGUMENT, UsageError, cut
from picoqmail.submission.inject import (
    FROM_ARGUMENTS,
    FROM_BOTH,
    FROM_EITHER,
    FROM_HEADER,
    Request,
    run,
)

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
