"""What a section of the suite is given: how much to measure, and with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ours import Ours


@define
class Bench:
    """How much to measure, and with what; and what is missing."""

    scratch: str
    ours: Ours
    rounds: int
    repeats: int
    mails: int
    backlogs: tuple[int, ...]
    sizes: tuple[int, ...]
    crowds: tuple[int, ...]
    save: Callable[[str, dict[str, Any]], None] = field(default=lambda _name, _section: None)
    """Writes what a section has so far."""
    missing: dict[str, str] = field(factory=dict)
