"""Events through structlog: each as a JSON object, or as a line in colour.

Nothing of the global configuration of structlog or logging is touched, because an application that
imports picoqmail has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from picoqmail.log.text import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "1;31"}


class StructuredLines:
    """Renders each event as a line, and passes it on with its level."""

    def __init__(
        self, put: Callable[[str, str], None], bound: Mapping[str, Any], *, as_json: bool
    ) -> None:
        """`bound` are facts of every event; a line is JSON or coloured."""
        renderer: Any = structlog.processors.JSONRenderer(default=str)
        self._logger: Any = structlog.wrap_logger(
            _Levels(put),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer if as_json else _as_coloured_line,
            ],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=False,
            **bound,
        )

    def write(self, level: str, event: str, facts: Mapping[str, object]) -> None:
        """Write one event. Raises what the place raises."""
        getattr(self._logger, level)(event, **facts)


class _Levels:
    """The logger under structlog's: a method for each level, which passes on the rendered line."""

    def __init__(self, put: Callable[[str, str], None]) -> None:
        self._put = put

    def debug(self, line: str) -> None:
        self._put(line, "debug")

    def info(self, line: str) -> None:
        self._put(line, "info")

    def warning(self, line: str) -> None:
        self._put(line, "warning")

    def error(self, line: str) -> None:
        self._put(line, "error")


def _as_coloured_line(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> str:
    """Return a line for a terminal: time, level in colour, event and facts."""
    time_, level = facts.pop("timestamp"), facts.pop("level")
    event = str(facts.pop("event"))
    return f"{time_} \x1b[{_COLOURS[level]}m{level:7}\x1b[0m {event}{words(facts)}"
