"""The log: one line for each event, to standard error, syslog or a file.

A log never stops mail. `lost` counts the events that could not be written, and the next line that
can be written reports the number.

By default (`auto`) events go to standard error if that is a terminal, else to syslog if the host
has one, else to the file `log` in the spool. That file is renamed to `log.1` at a megabyte, so that
it never fills a disk. Under cron nothing is printed, because cron would mail it.
"""

from __future__ import annotations

import _thread
import posix
import stat
import sys

from picoqmail.log.choice import LEVELS
from picoqmail.log.places import Journal, NamedFile, SpoolLog, StandardError, Syslog
from picoqmail.log.privacy import mask
from picoqmail.log.text import PlainLines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self, TextIO

    from picoqmail.log.choice import LogChoice
    from picoqmail.log.places import Place
    from picoqmail.log.structured import StructuredLines

_RANK = {name: rank for rank, name in enumerate(LEVELS)}

SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
SPOOL_LOG = "log"


class Log:
    """Writes events to one place. Threads may share it; a forked child writes to the same place.

    `event` costs one comparison if its level is off. structlog is imported with the first event
    that needs it. `lost` counts the events that could not be written. Also a context manager.
    """

    def __init__(
        self,
        place: Place | None,
        *,
        level: str = "info",
        render: str = "text",
        bound: Mapping[str, object] | None = None,
        privacy: str = "off",
    ) -> None:
        """With `place` None nothing is written.

        `level` is the lowest level that is written: debug, info, warning or error. `render` is
        `text`, `bare` (for syslog, which adds time and level itself), `colour` or `json`. `bound`
        are facts of every event. `privacy` is the setting logprivacy.
        """
        self._place = place
        self._level = _RANK[level] if place is not None else len(_RANK)
        self._render = render
        self._privacy = privacy
        self._bound: dict[str, Any] = dict(bound or {})
        self._lines: PlainLines | StructuredLines | None = None
        self._lock = _thread.allocate_lock()
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened; a later event opens it again. Raises nothing."""
        if self._place is not None:
            with self._lock:
                try:
                    self._place.close()
                except OSError:
                    # The kernel reports a late error of the log; nothing can be done about it.
                    return

    def is_on(self, level: str) -> bool:
        """Say whether events of a level are written, so that callers can skip costly facts."""
        return _RANK[level] >= self._level

    def event(self, name: str, /, *, level: str = "info", **facts: object) -> None:
        """Log one event. Nothing is raised, whatever a disk, a pipe or syslog does.

        `name` is a word such as `relay_down`. Facts may have any name except `event`.
        """
        if _RANK[level] < self._level:
            return
        if self._privacy != "off":
            facts = mask(facts, self._privacy)
        with self._lock:
            if self._lines is None:
                self._lines = self._make()
            try:
                self._lines.write(level, name, facts)
            except (OSError, ValueError):
                # ValueError: the application has closed standard error.
                self.lost += 1

    def _make(self) -> PlainLines | StructuredLines:
        if self._render in ("bare", "text"):
            return PlainLines(self._put, self._bound, stamped=self._render == "text")
        from picoqmail.log.structured import StructuredLines

        return StructuredLines(self._put, self._bound, as_json=self._render == "json")

    def _put(self, line: str, level: str) -> None:
        """Write one line, and before it the number of lost ones."""
        if self._place is None:
            return
        if self.lost:
            self._place.write(f"{self.lost} events before this could not be written", "warning")
            self.lost = 0
        self._place.write(line, level)


def open_log(  # noqa: PLR0913 - places that tests choose
    choice: LogChoice,
    spool: str,
    *,
    program: str = "picoqmail",
    stderr: TextIO | None = None,
    syslog_socket: str = SYSLOG_SOCKET,
    journal_socket: str = JOURNAL_SOCKET,
    privacy: str = "off",
) -> Log:
    """Return the log that the setting `log` chooses; nothing is opened before the first event.

    `spool` is the spool's directory; its file `log` is the last resort. `program` is the name of
    the lines in syslog. `stderr` defaults to sys.stderr. Raises nothing: a log that cannot be
    opened loses its events, but stops no mail.
    """
    stream = sys.stderr if stderr is None else stderr
    sink = _automatic(stream, syslog_socket) if choice.sink == "auto" else choice.sink
    bound = {"program": program, "pid": posix.getpid()}
    if sink == "stderr":
        render = "colour" if _is_terminal(stream) and _may_colour() else "text"
        return Log(StandardError(stream), level=choice.level, render=render, privacy=privacy)
    place: Place | None = None
    render = "text"
    if sink in ("syslog", "journal"):
        # These add time, level and program themselves.
        render, bound = "bare", {}
        is_journal = sink == "journal"
        place = Journal(journal_socket, program) if is_journal else Syslog(syslog_socket, program)
    elif sink == "json":
        render = "json"
        place = NamedFile(choice.path) if choice.path else StandardError(stream)
    elif sink == "file":
        place = NamedFile(choice.path)
    elif sink == "spool":
        place = SpoolLog(f"{spool}/{SPOOL_LOG}")
    return Log(place, level=choice.level, render=render, bound=bound, privacy=privacy)


def _automatic(stream: TextIO | None, syslog_socket: str) -> str:
    """Return where events go by default; see the docstring of the module."""
    if _is_terminal(stream):
        return "stderr"
    try:
        has_syslog = stat.S_ISSOCK(posix.stat(syslog_socket).st_mode)
    except OSError:
        has_syslog = False
    return "syslog" if has_syslog else "spool"


def _may_colour() -> bool:
    # An application may have changed the environment, and only os knows that.
    import os

    return not os.environ.get("NO_COLOR")


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False  # closed
