"""What picoqmail-inject and picoqmail-sendmail share: arguments, complaints, exit codes."""

from __future__ import annotations

import posix
import sys
import time

from picoqmail.errors import PicoqmailError
from picoqmail.home.paths import locate
from picoqmail.submission.inject import Request, inject, read_stdin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ACCEPTED, PERMANENT, TEMPORARY = 0, 100, 111


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
