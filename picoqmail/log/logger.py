"""Events for who runs this host: one line each, to standard error, syslog or a file.

What may live here: the choice of a place, the writing, and the rendering.  JSON and colour are
rendered by structlog; plain lines, which most senders write and then end, are not: to import it
takes longer than to send a mail.  Nothing of structlog's or logging's global configuration is
touched, for an application that imports picoqmail has its own.

A log never stops mail.  What cannot be written is counted in `lost`, and said in the next line that
can be.  Writing never waits for syslog either: a datagram that it has no room for is lost.

Without a setting (`auto`) events go where a person looks: to standard error if that is a terminal;
else to syslog, if the host has one; else to the file `log` in the spool, which is renamed to
`log.1` at a megabyte, so that it never fills a disk.  Cron mails what a run prints, so nothing is
printed there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import stat
import sys
import threading
import time

from picoqmail import durable, layout
from picoqmail.log.privacy import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from typing import Any, Protocol, Self, TextIO

    from picoqmail.home.paths import Home
    from picoqmail.home.values import LogChoice

    class Place(Protocol):
        """Where lines end up; nothing is opened before the first line.

        Both verbs may raise OSError or ValueError.
        """

        def write(self, line: str, level: str) -> None:
            """Write one line, which has no line end."""

        def close(self) -> None:
            """Let go of what `write` opened; it opens it again."""


# syslog's severities (RFC 5424 6.2.1) by the names of our levels, in rising order.
SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_RANK = {name: rank for rank, name in enumerate(SEVERITIES)}
_FACILITY_MAIL = 2

SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
SPOOL_LOG = "log"
SPOOL_LOG_OCTETS = 1 << 20
# rsyslog and syslog-ng cut at 8 KiB by default; a line cut by us still ends whole.
LONGEST_DATAGRAM = 8000

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# A value that holds one of these would be read wrongly without quotes.
_QUOTED = frozenset(' "=\\')
# What none of that can be in: most values, told apart in one call.
_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "1;31"}


class Log:
    """Where events go. Safe to share between threads; a fork writes to the same place.

    `event` costs one comparison if its level is off; structlog is imported with the first event
    that is written and needs it. `lost` counts the events that could not be written. Also a
    context manager.
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
        """`place` None is nowhere.

        `level` is the least that is written, of debug, info, warning and error; `render` is
        `text`, `bare` (syslog, which has a time and a level of its own), `colour` or `json`;
        `bound` are facts of every event; `privacy` is the setting logprivacy.
        """
        self._place = place
        self._level = _RANK[level] if place is not None else len(_RANK)
        self._render = render
        self._privacy = privacy
        self._bound: dict[str, Any] = dict(bound or {})
        self._logger: Any = None
        self._lock = threading.Lock()
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened; a later event opens it again. Raises nothing."""
        if self._place is not None:
            with self._lock, contextlib.suppress(OSError):
                # The kernel's late bad news about a log: there is nothing that we could do.
                self._place.close()

    def is_on(self, level: str) -> bool:
        """Whether events of a level are written: to spare the making of costly facts."""
        return _RANK[level] >= self._level

    def event(self, name: str, /, *, level: str = "info", **facts: object) -> None:
        """Tell one event; whatever a disk, a pipe or syslog does, nothing is raised for it.

        `name` is a word such as `relay_down`; the facts are what is to be known about it, and may
        have any name but `event`.
        """
        if _RANK[level] < self._level:
            return
        if self._privacy != "off":
            facts = mask(facts, self._privacy)
        with self._lock:
            if self._logger is None:
                self._logger = self._make()
            try:
                if isinstance(self._logger, _Plain):
                    self._logger.tell(level, name, facts)
                else:
                    getattr(self._logger, level)(name, **facts)
            except (OSError, ValueError):
                # ValueError: who imported us has closed standard error.
                self.lost += 1

    def _make(self) -> Any:  # noqa: ANN401 - structlog types its own loggers so
        if self._render in ("bare", "text"):
            return _Plain(self._put, self._bound, stamped=self._render == "text")
        import structlog

        renderer: Any = _as_coloured_line
        if self._render == "json":
            renderer = structlog.processors.JSONRenderer(default=str)
        return structlog.wrap_logger(
            _Levels(self._put),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=False,
            **self._bound,
        )

    def _put(self, line: str, level: str) -> None:
        """Write one line, and before it how many were lost."""
        if self._place is None:
            return
        if self.lost:
            self._place.write(f"{self.lost} events before this could not be written", "warning")
            self.lost = 0
        self._place.write(line, level)


class _Plain:
    """What structlog's bound logger is to the others: facts in, a rendered line out."""

    def __init__(
        self, put: Callable[[str, str], None], bound: Mapping[str, object], *, stamped: bool
    ) -> None:
        """`stamped` puts time and level in front; syslog has its own."""
        self._put = put
        self._bound = _words(bound)
        self._stamped = stamped

    def tell(self, level: str, event: str, facts: Mapping[str, object]) -> None:
        """Write one event; raises what the place raises."""
        text = f"{event}{self._bound}{_words(facts)}"
        if self._stamped:
            text = f"{_timestamp(time.time_ns())} {level:7} {text}"
        self._put(text, level)


class _Levels:
    """The logger under both: each level is a method, which hands on the rendered line."""

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


def open_log(  # noqa: PLR0913 - places that tests choose
    choice: LogChoice,
    home: Home,
    *,
    program: str = "picoqmail",
    stderr: TextIO | None = None,
    syslog_socket: str = SYSLOG_SOCKET,
    journal_socket: str = JOURNAL_SOCKET,
    privacy: str = "off",
) -> Log:
    """Return the log that the setting `log` asks for; nothing is opened before the first event.

    `program` is the name under which syslog files the lines. `stderr` is sys.stderr if not given.
    Raises nothing: a log that cannot be opened loses its events, and stops no mail.
    """
    stream = sys.stderr if stderr is None else stderr
    sink = _automatic(stream, syslog_socket) if choice.sink == "auto" else choice.sink
    bound = {"program": program, "pid": os.getpid()}
    if sink == "stderr":
        render = "colour" if _is_terminal(stream) and not os.environ.get("NO_COLOR") else "text"
        return Log(_Stream(stream), level=choice.level, render=render, privacy=privacy)
    place: Place | None = None
    render = "text"
    if sink in ("syslog", "journal"):
        # These note time, level and program by themselves.
        render, bound = "bare", {}
        is_journal = sink == "journal"
        place = _Journal(journal_socket, program) if is_journal else _Syslog(syslog_socket, program)
    elif sink == "json":
        render = "json"
        place = _File(choice.path) if choice.path else _Stream(stream)
    elif sink == "file":
        place = _File(choice.path)
    elif sink == "spool":
        place = _SpoolFile(f"{home.spool}/{SPOOL_LOG}")
    return Log(place, level=choice.level, render=render, bound=bound, privacy=privacy)


def _automatic(stream: TextIO | None, syslog_socket: str) -> str:
    """Return where events go if nothing is set: see the docstring of the module."""
    if _is_terminal(stream):
        return "stderr"
    try:
        has_syslog = stat.S_ISSOCK(os.stat(syslog_socket).st_mode)
    except OSError:
        has_syslog = False
    return "syslog" if has_syslog else "spool"


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False  # closed


# --- places --------------------------------------------------------------------------------------


class _Stream:
    """Standard error, or what stands in for it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, line: str, _level: str) -> None:
        if self._stream is None:
            raise ValueError("there is no standard error")
        self._stream.write(_encodable(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave it open: it is not ours."""


class _File:
    """A file that the administrator named; it may be a link, a pipe or a device."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def write(self, line: str, _level: str) -> None:
        if self._descriptor < 0:
            self._descriptor = self._open()
        # One write a line: lines of several processes stay apart.
        durable.write_all(self._descriptor, _encodable(line).encode() + b"\n")

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> int:
        # Without O_NONBLOCK a pipe that nobody reads would stop the run here.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(self._path, flags, layout.PRIVATE_FILE_MODE)


class _SpoolFile(_File):
    """The spool's own log, which begins anew when it has grown to a megabyte."""

    def _open(self) -> int:
        descriptor = durable.open_append(self._path)
        if os.fstat(descriptor).st_size < SPOOL_LOG_OCTETS:
            return descriptor
        os.close(descriptor)
        durable.rename(self._path, self._path + ".1")
        return durable.open_append(self._path)


class _Syslog:
    """The host's syslog, spoken to as syslog(3) does, facility mail, but without ever waiting."""

    def __init__(self, path: str, program: str) -> None:
        self._path = path
        self._program = program
        self._socket: socket.socket | None = None

    def write(self, line: str, level: str) -> None:
        now = time.localtime()
        head = (
            f"<{_FACILITY_MAIL << 3 | SEVERITIES[level]}>"
            f"{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {now.tm_hour:02}:{now.tm_min:02}:"
            f"{now.tm_sec:02} {self._program}[{os.getpid()}]: "
        )
        data = (head + _encodable(line)).encode()
        if len(data) > LONGEST_DATAGRAM:
            data = data[:LONGEST_DATAGRAM].decode(errors="ignore").encode()
        try:
            self._send(data)
        except BlockingIOError:
            raise
        except OSError:
            # syslog was started again since our last line: its socket is a new one.
            self.close()
            self._send(data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = _connected(self._path, socket.SOCK_DGRAM)
        if self._socket.type == socket.SOCK_STREAM:
            data += b"\0"  # what parts records on a stream, see syslog(3) of the GNU C library
        if self._socket.send(data) < len(data):
            self.close()  # the rest of this record would be taken for the next one
            raise BlockingIOError(errno.EAGAIN, "syslog took a part of the line")


class _Journal:
    """systemd's journal, in its native protocol: a datagram of `NAME=value` lines.

    See "Native Journal Protocol" of systemd. A line of ours has no line end in it.
    """

    def __init__(self, path: str, program: str) -> None:
        self._path = path
        self._program = program
        self._socket: socket.socket | None = None

    def write(self, line: str, level: str) -> None:
        fields = (
            f"MESSAGE={_encodable(line)}",
            f"PRIORITY={SEVERITIES[level]}",
            f"SYSLOG_FACILITY={_FACILITY_MAIL}",
            f"SYSLOG_IDENTIFIER={self._program}",
            f"SYSLOG_PID={os.getpid()}",
        )
        if self._socket is None:
            self._socket = _connected(self._path, socket.SOCK_DGRAM)
        try:
            self._socket.send("".join(f"{field}\n" for field in fields).encode())
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(path: str, kind: socket.SocketKind) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, kind)
    try:
        link.settimeout(0)
        link.connect(path)
    except OSError as error:
        link.close()
        if kind == socket.SOCK_DGRAM and error.errno == errno.EPROTOTYPE:
            return _connected(path, socket.SOCK_STREAM)
        raise
    return link


# --- rendering: in the form of structlog's last processor ----------------------------------------


def _timestamp(nanoseconds: int) -> str:
    """Return a moment (Unix time) as structlog does: ISO 8601, UTC, with microseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06}Z"


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    """Return the part that the lines of one second share: a busy run writes thousands."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _words(facts: Mapping[str, object]) -> str:
    """Return ` name=value` for each fact; a value is quoted if it would be read wrongly."""
    words = []
    for name, value in facts.items():
        if value is not None:
            text = value if type(value) is str else str(value)
            words.append(f" {name}={text if _is_plain(text) else _quoted(text)}")
    return "".join(words)


def _as_coloured_line(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> str:
    """Return a line for a terminal, time and level in front, the level in a colour of its own."""
    time_, level = facts.pop("timestamp"), facts.pop("level")
    event = str(facts.pop("event"))
    return f"{time_} \x1b[{_COLOURS[level]}m{level:7}\x1b[0m {event}{_words(facts)}"


def _quoted(text: str) -> str:
    """Return a fact's text on one line; nothing that came from outside can forge a second one."""
    if text.isprintable():
        if text and _QUOTED.isdisjoint(text):
            return text  # plain, but beyond ASCII
        if '"' not in text and "\\" not in text:
            return f'"{text}"'
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def _encodable(line: str) -> str:
    """Return a line without lone surrogates, which bytes of unknown encoding leave in a str."""
    return line.encode(errors="backslashreplace").decode()
