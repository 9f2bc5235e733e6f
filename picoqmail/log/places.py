"""The places of the log: standard error, a file, the spool's own file, syslog, the journal.

What may live here: opening and writing. Nothing is opened before the first line. No place ever
waits: a datagram for which syslog has no room is lost.
"""

from __future__ import annotations

import _socket
import errno
import posix
import stat
import time

from picoqmail import durable
from picoqmail.layout import MONTHS, PRIVATE_FILE_MODE
from picoqmail.log.text import encodable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TextIO

    class Place(Protocol):
        """One place; both methods may raise OSError or ValueError."""

        def write(self, line: str, level: str) -> None:
            """Write one line, which has no line end."""

        def close(self) -> None:
            """Close what `write` opened; the next `write` opens it again."""


# syslog's severities (RFC 5424 6.2.1) by the names of our levels.
_SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_FACILITY_MAIL = 2

SPOOL_LOG_OCTETS = 1 << 20
# rsyslog and syslog-ng cut lines at 8 KiB by default; ours are cut between characters before that.
LONGEST_DATAGRAM = 8000


class StandardError:
    """Standard error, or another text stream."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, line: str, _level: str) -> None:
        """Write one line."""
        if self._stream is None:
            raise ValueError("there is no standard error")
        self._stream.write(encodable(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave it open: it is not ours."""


# Links to what this process was given: whoever started it chose that.
_GIVEN = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


class NamedFile:
    """A file that the administrator named.

    It is a plain file with one name, or a pipe, that belongs to root or to the user of this
    process; or a device; or one of this process's own descriptors, such as /dev/stderr. It is not a
    link: another user may have made that, to have us write elsewhere.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def write(self, line: str, _level: str) -> None:
        """Write one line."""
        if self._descriptor < 0:
            self._descriptor = self._open()
        # One write for each line keeps the lines of several processes apart.
        durable.write_all(self._descriptor, encodable(line).encode() + b"\n")

    def close(self) -> None:
        """Let go of it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            posix.close(descriptor)

    def _open(self) -> int:
        # Without O_NONBLOCK a pipe without a reader would block the run here.
        flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_NONBLOCK | posix.O_CLOEXEC
        flags |= posix.O_NOCTTY
        if self._path.startswith(_GIVEN):
            return posix.open(self._path, flags, PRIVATE_FILE_MODE)
        descriptor = posix.open(self._path, flags | posix.O_NOFOLLOW, PRIVATE_FILE_MODE)
        if not _is_ours(posix.fstat(descriptor)):
            posix.close(descriptor)
            raise PermissionError(errno.EPERM, "is a file of another user, or has a second name")
        return descriptor


def _is_ours(status: posix.stat_result) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return True
    if status.st_uid not in (0, posix.geteuid()):
        return False
    return stat.S_ISFIFO(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)


class SpoolLog(NamedFile):
    """The spool's own log, which starts anew when it has reached a megabyte."""

    def _open(self) -> int:
        descriptor = durable.open_append(self._path)
        if posix.fstat(descriptor).st_size < SPOOL_LOG_OCTETS:
            return descriptor
        posix.close(descriptor)
        durable.rename(self._path, self._path + ".1")
        return durable.open_append(self._path)


class Syslog:
    """The host's syslog, used as syslog(3) does (facility mail), but without ever waiting."""

    def __init__(self, path: str, program: str) -> None:
        self._path = path
        self._program = program
        self._socket: _socket.socket | None = None

    def write(self, line: str, level: str) -> None:
        """Write one line."""
        now = time.localtime()
        head = (
            f"<{_FACILITY_MAIL << 3 | _SEVERITIES[level]}>"
            f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {now.tm_hour:02}:{now.tm_min:02}:"
            f"{now.tm_sec:02} {self._program}[{posix.getpid()}]: "
        )
        data = (head + encodable(line)).encode()
        if len(data) > LONGEST_DATAGRAM:
            data = data[:LONGEST_DATAGRAM].decode(errors="ignore").encode()
        try:
            self._send(data)
        except BlockingIOError:
            raise
        except OSError:
            # syslog was restarted since our last line, so its socket is a new one.
            self.close()
            self._send(data)

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = _connected(self._path, _socket.SOCK_DGRAM)
        if self._socket.type == _socket.SOCK_STREAM:
            data += b"\0"  # the separator on a stream, as in syslog(3) of the GNU C library
        if self._socket.send(data) < len(data):
            self.close()  # otherwise the rest would be read as the next record
            raise BlockingIOError(errno.EAGAIN, "syslog took a part of the line")


class Journal:
    """systemd's journal, by its native protocol: a datagram of `NAME=value` lines.

    See "Native Journal Protocol" of systemd. Our lines contain no line end.
    """

    def __init__(self, path: str, program: str) -> None:
        self._path = path
        self._program = program
        self._socket: _socket.socket | None = None

    def write(self, line: str, level: str) -> None:
        """Write one line."""
        fields = (
            f"MESSAGE={encodable(line)}",
            f"PRIORITY={_SEVERITIES[level]}",
            f"SYSLOG_FACILITY={_FACILITY_MAIL}",
            f"SYSLOG_IDENTIFIER={self._program}",
            f"SYSLOG_PID={posix.getpid()}",
        )
        if self._socket is None:
            self._socket = _connected(self._path, _socket.SOCK_DGRAM)
        try:
            self._socket.send("".join(f"{field}\n" for field in fields).encode())
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(path: str, kind: int) -> _socket.socket:
    link = _socket.socket(_socket.AF_UNIX, kind)
    try:
        link.settimeout(0)
        link.connect(path)
    except OSError as exc:
        link.close()
        if kind == _socket.SOCK_DGRAM and exc.errno == errno.EPROTOTYPE:
            return _connected(path, _socket.SOCK_STREAM)
        raise
    return link
