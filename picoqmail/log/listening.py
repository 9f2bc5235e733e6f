"""A log whose events go to a function, for programs that deliver within their own process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.log.logger import Log

if TYPE_CHECKING:
    from collections.abc import Callable


class Listening(Log):
    """Calls `listener` with the name and the facts of each event of level info and above.

    A log never stops mail: what the listener raises is kept until `raise_what_came`.
    """

    def __init__(self, listener: Callable[[str, dict[str, object]], None]) -> None:
        super().__init__(None)
        self._listener = listener
        self._error: Exception | None = None

    def is_on(self, level: str) -> bool:
        """Say whether the listener gets events of a level."""
        return level != "debug"

    def event(self, name: str, /, *, level: str = "info", **facts: object) -> None:
        """Call the listener with one event, its level among the facts."""
        if not self.is_on(level):
            return
        try:
            self._listener(name, {"level": level, **facts})
        except Exception as exc:  # noqa: BLE001 - raised later, when no mail depends on it
            self._error = self._error or exc

    def raise_what_came(self) -> None:
        """Raise the first error of the listener, if there was one."""
        if self._error is not None:
            raise self._error
