"""The setting `log` as a value: `home` reads it, and the logger follows it. Pure."""

from __future__ import annotations

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LEVELS = ("debug", "info", "warning", "error")
"""In rising order."""

SINKS = ("auto", "stderr", "syslog", "journal", "json", "file", "off")


class LogChoice(Value):
    """Where events go: the sink, its path if it is a file, and the lowest level that is written.

    `sink` is one of `SINKS`, `path` is empty unless the sink is `file` or a `json` file.
    """

    __slots__ = ("sink", "path", "level")

    def __init__(self, sink: str, path: str, level: str) -> None:
        self.sink: Final = sink
        self.path: Final = path
        self.level: Final = level
