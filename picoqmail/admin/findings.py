"""What a check found, with the levels of monitoring plugins."""

from __future__ import annotations

from attrs import frozen

OK, WARNING, CRITICAL, UNKNOWN = range(4)
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
# The worst of several: that nothing is known is worse than a warning, and a fault worse than that.
_WORST = (CRITICAL, UNKNOWN, WARNING, OK)


@frozen
class Finding:
    """One thing that was checked: its name, its level, what was found and what to do."""

    name: str
    level: int
    text: str
    remedy: str = ""


def worst(findings: list[Finding]) -> int:
    """Return the level of all together: the exit code of a monitoring plugin."""
    levels = {one.level for one in findings}
    return next((level for level in _WORST if level in levels), UNKNOWN)
