"""Whether the relay is down, by one stat of the file `relay-down`. Hot; builtins only.

Its modification time is the next time at which the relay is tried. relay/breaker.py writes it.
"""

from __future__ import annotations

import posix

from picoqmail.layout import BREAKER

# Longer than the breaker ever waits: a time further off is a clock that jumped.
BREAKER_LIMIT_SECONDS = 600


def relay_is_down(spool: str, now: float) -> bool:
    """Return whether the breaker is open at `now` (Unix seconds)."""
    return is_noted_until(f"{spool}/{BREAKER}", now, BREAKER_LIMIT_SECONDS)


def is_noted_until(path: str, now: float, limit_seconds: float) -> bool:
    """Say whether the time of a file is still to come, and no further off than the limit."""
    try:
        until = posix.stat(path).st_mtime
    except OSError:
        return False
    return now < until <= now + limit_seconds
