"""How fast a relay that says "too fast" still gets mail from one run.

The rule of this module: time comes in as an argument, and nothing is sent, logged or remembered
beyond the run; what holds across runs is the breaker's.
"""

from __future__ import annotations

FIRST_SECONDS = 0.5
"""The pause after the first "too fast"; each further one doubles it, each success halves it."""

LONGEST_PAUSE_SECONDS = 10.0
"""A relay that wants longer pauses gets nothing more in this run: each try charges a message."""


class Throttle:
    """Slows down one lane's messages when the relay asks for it. Times in seconds of one clock.

    ``told`` is what the relay said when it became hopeless to go on, ``""`` before that.
    """

    __slots__ = ("_delay", "_is_probe", "_until", "told")

    def __init__(self, *, is_probe: bool) -> None:
        """`is_probe`: it said so in the last run; until it takes a message once is enough."""
        self._is_probe = is_probe
        self._delay = 0.0
        self._until = 0.0
        self.told = ""

    @property
    def is_on(self) -> bool:
        """Whether messages have to wait for each other."""
        return self._delay > 0

    def asked(self, text: str, now: float) -> None:
        """Take note that the relay asked us to be slower."""
        self._delay = max(FIRST_SECONDS, 2 * self._delay)
        self._until = now + self._delay
        if self._is_probe or self._delay > LONGEST_PAUSE_SECONDS:
            self.told = text

    def served(self) -> None:
        """Take note that it took a message."""
        self._is_probe = False
        self._delay /= 2
        if self._delay < FIRST_SECONDS / 2:
            self._delay = 0.0

    def wait(self, now: float) -> float:
        """Return how long the next message has to wait; 0.0 if it may begin."""
        return max(0.0, self._until - now) if self._delay else 0.0

    def begun(self, now: float) -> None:
        """Take note that a message was begun."""
        self._until = now + self._delay
