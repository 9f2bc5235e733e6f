"""Turns the calls of a recorded run into operations on the spool and bytes for the relay.

The rule of this module: only this module reads strace's text. An unknown call on the spool is an
error, so that the model never omits anything silently.
"""

from __future__ import annotations

import codecs
import itertools
import re
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from picoqmail.layout import DIRECTORIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proof.disk import Key
    from proof.tracing import Call

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_DESCRIPTOR = re.compile(r"^(\d+)<")
_NUMBERS = re.compile(r", (-?\d+)\)\s+=")
_TIME = re.compile(r"tv_sec=(-?\d+)")
_MODE = re.compile(r", (0[0-7]+)\)\s+=")
_SOCKET_CALLS = frozenset({"sendto", "sendmsg", "recvfrom"})
_HARMLESS = frozenset(
    {
        "newfstatat", "fstat", "stat", "lstat", "statfs", "fstatfs", "getdents64", "ioctl",
        "pread64", "flock", "fcntl", "readlink", "access", "statx", "execve", "dup2", "dup",
        "chdir", "getcwd", "umask", "fadvise64", "copy_file_range", "faccessat2", "mmap",
    }
)  # fmt: skip
NOWHERE: Key = ("", "")


@frozen
class Operation:
    """One operation. `offset` is an offset, a length, a mode or a time, depending on the kind.

    `handle` is the number of an open file. From `open` on (which makes a missing file) it belongs
    to that file, whatever happens to its names. An operation on a name has handle 0.
    """

    kind: str
    key: Key = NOWHERE
    target: Key = NOWHERE
    data: bytes = b""
    offset: int = field(default=-1)
    handle: int = 0


def _text(raw: str) -> bytes:
    decoded = codecs.escape_decode(raw.encode("latin-1"))[0]
    assert isinstance(decoded, bytes)
    return decoded


def _strings(rest: str) -> list[bytes]:
    return [_text(one) for one in _STRING.findall(rest)]


def read_operations(calls: Sequence[Call], spool: str) -> list[Operation]:
    """Return all operations of a run on its spool, and `sent` and `heard` for its relay."""
    reader = _Reader(spool)
    for call in calls:
        if call.result is not None and call.result >= 0:
            reader.take(call, call.result)
    return reader.found


@define
class _Reader:
    """Follows the open files of one process, and turns its calls into operations."""

    spool: str
    found: list[Operation] = field(factory=list)
    files: dict[int, tuple[Key, int]] = field(factory=dict)
    directories: dict[int, str] = field(factory=dict)
    positions: dict[int, int] = field(factory=dict)
    handles: itertools.count[int] = field(factory=lambda: itertools.count(1))

    def take(self, call: Call, result: int) -> None:
        """Process one successful call."""
        number = int(match[1]) if (match := _DESCRIPTOR.match(call.rest)) else -1
        handler = _HANDLERS.get(call.name)
        if handler is not None:
            handler(self, call.rest, number, result)
        elif call.name in _SOCKET_CALLS:
            if "TCP" in call.rest:
                kind = "heard" if call.name == "recvfrom" else "sent"
                self.found.append(Operation(kind, data=b"".join(_strings(call.rest))[:result]))
        elif call.name not in _HARMLESS and (
            number in self.files or self.spool in call.rest.split(" = ")[0]
        ):
            raise AssertionError(f"a call on the spool that the model does not know: {call}")

    def _key(self, raw: bytes) -> Key | None:
        """Return directory and name of a path in the spool; None for other paths."""
        path = raw.decode()
        if path == self.spool:
            return "", ""
        if not path.startswith(self.spool + "/"):
            return None
        directory, _, name = path[len(self.spool) + 1 :].rpartition("/")
        return directory, name

    def _touch(self, kind: str, number: int, data: bytes = b"", offset: int = -1) -> None:
        """Record an operation on an open file, if the file belongs to the spool."""
        if number in self.files:
            key, handle = self.files[number]
            self.found.append(Operation(kind, key, data=data, offset=offset, handle=handle))

    def open(self, rest: str, _number: int, result: int) -> None:
        """Open a file or a directory."""
        self.close(rest, result, 0)
        key = self._key(_strings(rest)[0])
        if key is None:
            return
        if "O_DIRECTORY" in rest or (not key[0] and key[1] in {"", *DIRECTORIES}):
            self.directories[result] = "/".join(part for part in key if part)
            return
        self.files[result] = key, next(self.handles)
        self.positions[result] = -1 if "O_APPEND" in rest else 0
        self._touch("open", result)
        if "O_TRUNC" in rest:
            self._touch("truncate", result, offset=0)

    def close(self, _rest: str, number: int, _result: int) -> None:
        """Forget a descriptor."""
        self.files.pop(number, None)
        self.positions.pop(number, None)
        self.directories.pop(number, None)

    def rename(self, rest: str, _number: int, _result: int) -> None:
        """Give a file another name."""
        self._two_names("rename", rest)

    def link(self, rest: str, _number: int, _result: int) -> None:
        """Give a file a second name."""
        self._two_names("link", rest)

    def _two_names(self, kind: str, rest: str) -> None:
        first, second = [self._key(one) for one in _strings(rest)[:2]]
        if first and second:
            self.found.append(Operation(kind, first, second))
        elif first or second:
            raise AssertionError(f"across the edge of the spool: {kind} {rest}")

    def unlink(self, rest: str, _number: int, _result: int) -> None:
        """Remove a name."""
        self._one_name("unlink", rest)

    def mkdir(self, rest: str, _number: int, _result: int) -> None:
        """Make a directory."""
        self._one_name("mkdir", rest)

    def _one_name(self, kind: str, rest: str) -> None:
        key = self._key(_strings(rest)[0])
        if key:
            self.found.append(Operation(kind, key))

    def sync(self, _rest: str, number: int, _result: int) -> None:
        """Make a file's data, or a directory's entries, durable."""
        if number in self.directories:
            self.found.append(Operation("syncdir", (self.directories[number], "")))
        self._touch("sync", number)

    def sync_all(self, _rest: str, number: int, _result: int) -> None:
        """Make the whole file system durable, if it is that of the spool."""
        if number in self.directories or number in self.files:
            self.found.append(Operation("syncfs"))

    def write(self, rest: str, number: int, result: int) -> None:
        """Write at the descriptor's offset."""
        if number not in self.files:
            return
        at = self.positions[number]
        if at >= 0:
            self.positions[number] += result
        self._touch("write", number, _strings(rest)[0][:result], at)

    def read(self, _rest: str, number: int, result: int) -> None:
        """Move the descriptor's offset."""
        if self.positions.get(number, -1) >= 0:
            self.positions[number] += result

    def seek(self, _rest: str, number: int, result: int) -> None:
        """Set the descriptor's offset, but where everything is appended."""
        if self.positions.get(number, -1) >= 0:
            self.positions[number] = result

    def pwrite(self, rest: str, number: int, result: int) -> None:
        """Write at an offset."""
        if number in self.files:
            self._touch("write", number, _strings(rest)[0][:result], int(_last(_NUMBERS, rest)))

    def truncate(self, rest: str, number: int, _result: int) -> None:
        """Set the length."""
        if number in self.files:
            self._touch("truncate", number, offset=int(_last(_NUMBERS, rest)))

    def chmod(self, rest: str, number: int, _result: int) -> None:
        """Set the mode of an open file or of a name."""
        names = _strings(rest)
        if number in self.files:
            self._touch("chmod", number, offset=int(_last(_MODE, rest), 8))
        elif names and (key := self._key(names[0])):
            self.found.append(Operation("chmod", key, offset=int(_last(_MODE, rest), 8)))

    def utime(self, rest: str, number: int, _result: int) -> None:
        """Set the time of an open file or of a name."""
        if not _TIME.search(rest):
            return  # That of a directory becomes now: the model has no times of directories.
        names = _strings(rest)
        if number in self.files:
            self._touch("utime", number, offset=int(_last(_TIME, rest)))
        elif names and (key := self._key(names[0])):
            self.found.append(Operation("utime", key, offset=int(_last(_TIME, rest))))


def _last(pattern: re.Pattern[str], rest: str) -> str:
    found: str = pattern.findall(rest)[-1]
    return found


_HANDLERS: dict[str, Callable[[_Reader, str, int, int], None]] = {
    "openat": _Reader.open,
    "close": _Reader.close,
    "rename": _Reader.rename,
    "renameat": _Reader.rename,
    "renameat2": _Reader.rename,
    "link": _Reader.link,
    "linkat": _Reader.link,
    "unlink": _Reader.unlink,
    "unlinkat": _Reader.unlink,
    "mkdir": _Reader.mkdir,
    "mkdirat": _Reader.mkdir,
    "fsync": _Reader.sync,
    "fdatasync": _Reader.sync,
    "syncfs": _Reader.sync_all,
    "write": _Reader.write,
    "read": _Reader.read,
    "lseek": _Reader.seek,
    "pwrite64": _Reader.pwrite,
    "ftruncate": _Reader.truncate,
    "fchmod": _Reader.chmod,
    "fchmodat": _Reader.chmod,
    "chmod": _Reader.chmod,
    "utimensat": _Reader.utime,
}
