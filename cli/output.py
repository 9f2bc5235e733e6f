"""What the administrator's commands print: plain text for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from picoqmail.errors import EX_OSERR, PicoqmailError

if TYPE_CHECKING:
    from collections.abc import Callable

EX_INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


def print_json(document: object) -> None:
    """Print one JSON document on standard output; what JSON does not know is printed as text."""
    print(json.dumps(document, indent=2, ensure_ascii=True, default=str))


def is_terminal() -> bool:
    """Say whether a person is at both ends, so that questions can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def bold(text: str) -> str:
    """Return a text in bold if standard output is a terminal that wants it (no-color.org)."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[1m{text}\x1b[0m"
    return text


def complain(text: str) -> None:
    """Print one line of complaint."""
    print(f"picoqmail: {text}", file=sys.stderr)


def report_errors(command: str, run: Callable[[], int], *, as_json: bool = False) -> int:
    """Call `run`, which does what a command is for; return its exit code.

    Print an error of it on standard error, and with `as_json` also on standard output.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has closed it. Python must not complain of that at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OSERR
    except (PicoqmailError, OSError) as exc:
        code = exc.sysexit if isinstance(exc, PicoqmailError) else EX_OSERR
        print(f"{command}: {exc}", file=sys.stderr)
        if as_json:
            print_json({"error": str(exc), "exit": code})
        return code
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    return code
