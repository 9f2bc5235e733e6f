"""How fast a relay that says "too fast" still gets mail in one run.

The rule of this module: time comes in as an argument, and nothing is sent, logged or remembered
beyond the run. What one run leaves to the next is the breaker's business.
"""

from __future__ import annotations

FIRST_SECONDS = 0.5
"""The pause after the first "too fast"; each further one doubles it, each success halves it."""

LONGEST_PAUSE_SECONDS = 10.0
"""A relay that wants longer pauses gets nothing more in this run; each try charges a message."""


class Throttle:
    """Slows down one lane's messages when the relay asks for it. Times in seconds of one clock.

    ``is_on``: messages have to wait for each other. ``reason`` is what the relay said when it
    became hopeless to go on, ``""`` before that.
    """

    __slots__ = ("_delay", "_is_probe", "_until", "is_on", "reason")

    def __init__(self, *, is_probe: bool) -> None:
        """`is_probe`: the last run ended because of this; one more "too fast" is hopeless."""
        self._is_probe = is_probe
        self._delay = 0.0
        self._until = 0.0
        self.is_on = False
        self.reason = ""

    def slow_down(self, text: str, now: float) -> None:
        """Lengthen the pause, because the relay asked for it with this text."""
        self._delay = max(FIRST_SECONDS, 2 * self._delay)
        self._until = now + self._delay
        self.is_on = True
        if self._is_probe or self._delay > LONGEST_PAUSE_SECONDS:
            self.reason = text

    def speed_up(self) -> None:
        """Shorten the pause, because the relay took a message."""
        self._is_probe = False
        self._delay /= 2
        if self._delay < FIRST_SECONDS / 2:
            self._delay = 0.0
            self.is_on = False

    def wait(self, now: float) -> float:
        """Return how long the next message has to wait; 0.0 if it may begin."""
        return max(0.0, self._until - now) if self.is_on else 0.0

    def begun(self, now: float) -> None:
        """Note that a message was begun now."""
        self._until = now + self._delay
