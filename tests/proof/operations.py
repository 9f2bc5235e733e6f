"""From the calls of a recorded run to operations on the spool, and what the relay was told.

The rule of this module: it reads strace's text, and nothing else does. A call on the spool that it
does not know is an error, so that nothing is left out of the model in silence.
"""

from __future__ import annotations

import codecs
import itertools
import re
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        "newfstatat", "fstat", "stat", "lstat", "statfs", "fstatfs", "getdents64", "lseek", "ioctl",
        "read", "pread64", "flock", "fcntl", "readlink", "access", "statx", "execve", "dup2", "dup",
        "chdir", "getcwd", "umask", "posix_fadvise", "copy_file_range", "faccessat2", "mmap",
    }
)  # fmt: skip
NOWHERE: Key = ("", "")
KEPT = b"2.0.0 Kept"


@frozen
class Operation:
    """One thing done. `offset` is an offset, a length, a mode or a time, as the kind has it.

    `handle` is the number of an open file: from `open` (which makes the file where there is none)
    on it stays that file's, whatever becomes of its names. What is done by name has handle 0.
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


def read_operations(calls: Sequence[Call], spool: str) -> list[Operation]:  # noqa: C901, PLR0912 - one branch a call
    """Everything that a run did to its spool, and `sent` and `heard` for its relay."""
    found: list[Operation] = []
    files: dict[int, tuple[Key, int]] = {}
    handles = itertools.count(1)
    directories: dict[int, str] = {}
    positions: dict[int, int] = {}

    def key_of(raw: bytes) -> Key | None:
        path = raw.decode()
        if not path.startswith(spool + "/"):
            return None
        directory, _, name = path[len(spool) + 1 :].rpartition("/")
        return directory, name

    for call in calls:
        name, rest = call.name, call.rest
        if call.result is None or call.result < 0:
            continue
        number = int(match[1]) if (match := _DESCRIPTOR.match(rest)) else -1
        if name == "openat":
            key = key_of(_strings(rest)[0])
            files.pop(call.result, None)
            directories.pop(call.result, None)
            if key is None:
                continue
            if "O_DIRECTORY" in rest:
                directories[call.result] = "/".join(part for part in key if part)
                continue
            files[call.result] = key, next(handles)
            positions[call.result] = -1 if "O_APPEND" in rest else 0
            found.append(Operation("open", key, handle=files[call.result][1]))
            if "O_TRUNC" in rest:
                found.append(Operation("truncate", key, offset=0, handle=files[call.result][1]))
        elif name == "close":
            files.pop(number, None)
            directories.pop(number, None)
        elif name in ("rename", "link", "linkat", "renameat2", "renameat"):
            first, second = [key_of(one) for one in _strings(rest)[:2]]
            if first and second:
                kind = "rename" if name.startswith("rename") else "link"
                found.append(Operation(kind, first, second))
            elif first or second:
                raise AssertionError(f"across the edge of the spool: {call}")
        elif name in ("unlink", "unlinkat"):
            key = key_of(_strings(rest)[0])
            if key:
                found.append(Operation("unlink", key))
        elif name in ("mkdir", "mkdirat"):
            key = key_of(_strings(rest)[0])
            if key:
                found.append(Operation("mkdir", key))
        elif name in ("fsync", "fdatasync"):
            if number in directories:
                found.append(Operation("syncdir", (directories[number], "")))
            elif number in files:
                found.append(Operation("sync", files[number][0], handle=files[number][1]))
        elif number in files and name in ("write", "pwrite64"):
            data = _strings(rest)[0][: call.result]
            at = positions[number]
            if name == "pwrite64":
                at = int(_NUMBERS.findall(rest)[-1])
            elif at >= 0:
                positions[number] += len(data)
            key, handle = files[number]
            found.append(Operation("write", key, data=data, offset=at, handle=handle))
        elif number in files and name == "ftruncate":
            key, handle = files[number]
            length = int(_NUMBERS.findall(rest)[-1])
            found.append(Operation("truncate", key, offset=length, handle=handle))
        elif number in files and name == "fchmod":
            key, handle = files[number]
            mode = int(_MODE.findall(rest)[-1], 8)
            found.append(Operation("chmod", key, offset=mode, handle=handle))
        elif name == "utimensat":
            when = int(_TIME.findall(rest)[-1])
            if number in files:
                key, handle = files[number]
                found.append(Operation("utime", key, offset=when, handle=handle))
            elif _strings(rest) and (key := key_of(_strings(rest)[0])):
                found.append(Operation("utime", key, offset=when))
        elif name in _SOCKET_CALLS and "TCP" in rest:
            kind = "heard" if name == "recvfrom" else "sent"
            found.append(Operation(kind, data=b"".join(_strings(rest))[: call.result]))
        elif name not in _HARMLESS and (number in files or spool in rest.split(" = ")[0]):
            raise AssertionError(f"a call on the spool that the model does not know: {call}")
    return found

