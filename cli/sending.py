"""What picoqmail-send and picoqmail-cron say where they cannot go on."""

from __future__ import annotations

import sys

from picoqmail.errors import EX_CONFIG, EX_OSERR, ConfigurationError, PicoqmailError


def complain(program: str, exc: PicoqmailError) -> int:
    """Say what is wrong on standard error; returns the exit code for it."""
    print(f"{program}: {exc}", file=sys.stderr)
    return EX_CONFIG if isinstance(exc, ConfigurationError) else exc.sysexit


def complain_of_system(program: str, exc: OSError) -> int:
    """Say what the system would not do, where nobody foresaw it; the mail stays as it is."""
    where = f": {exc.filename}" if exc.filename else ""
    print(f"{program}: the system failed us: {exc.strerror or exc}{where}", file=sys.stderr)
    return EX_OSERR
