"""Dates as mail headers want them. Pure."""

from __future__ import annotations

import time

from picoqmail.layout import MONTHS


def header_date(seconds: float) -> str:
    """Return a date as qmail writes it: `22 Nov 2026 11:29:37 -0000`. `seconds` are Unix seconds.

    RFC 5322 section 3.3: -0000 says that nothing is known of the local zone.
    """
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return f"{day} {MONTHS[month - 1]} {year} {hour:02}:{minute:02}:{second:02} -0000"
