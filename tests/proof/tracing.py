"""The use of strace: record the calls of a program, or strike it at one call.

`when=` counts the calls of one name, so a point in a run is a pair of name and ordinal.
--seccomp-bpf is never used: with it strace 6.1 silently drops injected signals.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

_CALL = re.compile(r"^(?P<name>[a-z_0-9]+)\((?P<rest>.*)$", re.DOTALL)
_RESULT = re.compile(r" = (?P<value>-?\d+|\?|0x[0-9a-f]+)[^=]*$", re.DOTALL)
_SOCKET = re.compile(r"<(?:TCP|TCPv6|UDP|UNIX[^:]*|socket):")
STRING_OCTETS = 4000000
# Calls that change nothing on disk and send nothing to a relay. A strike there has the same effect
# as a strike at the next call that does.
LOOKING = frozenset(
    {
        "newfstatat", "fstat", "stat", "lstat", "statfs", "fstatfs", "getdents64", "lseek", "ioctl",
        "readlink", "readlinkat", "access", "faccessat2", "getsockname", "getsockopt", "setsockopt",
        "fcntl", "read", "pread64", "getcwd", "epoll_wait", "epoll_ctl", "poll", "statx", "chdir",
        "execve", "mmap", "accept4", "bind", "listen", "geteuid", "getpeername", "dup", "dup2",
    }
)  # fmt: skip


@frozen
class Call:
    """One system call of a recorded run; `result` is -1 if it failed, None if unknown."""

    name: str
    ordinal: int
    rest: str
    result: int | None
    injected: bool

    def concerns(self, home: str) -> bool:
        """Say whether the call touches the home or a socket."""
        return home in self.rest or _SOCKET.search(self.rest) is not None

    @property
    def place(self) -> str:
        """Describe the point in the run."""
        return f"{self.name}#{self.ordinal}"


def strace_path() -> str | None:
    """Return the path of strace, None without it."""
    return shutil.which("strace")


def record_command(output: str, command: Sequence[str]) -> list[str]:
    """Return the command that records a run, with the data of all writes."""
    return ["strace", "-yy", "-s", str(STRING_OCTETS), "-o", output, *command]


def strike_command(
    call: Call, action: str, command: Sequence[str], output: str = "/dev/null"
) -> list[str]:
    """Return the command that strikes a run at a call: `signal=KILL`, `error=EIO` and so on.

    Calls of that name are recorded, and all that make something durable: strace takes long over
    each call that it writes down.
    """
    inject = f"inject={call.name}:{action}:when={call.ordinal}"
    what = f"fsync,fdatasync,syncfs,{call.name}" if output != "/dev/null" else call.name
    return ["strace", "-yy", "-o", output, "-e", f"trace={what}", "-e", inject, *command]


def read_calls(path: str) -> list[Call]:
    """Return the calls of a recorded run, in order."""
    calls: list[Call] = []
    ordinals: dict[str, int] = {}
    with open(path, encoding="latin-1") as file:
        text = file.read()
    for line in text.split("\n"):
        match = _CALL.match(line)
        if match is None:
            continue
        name, rest = match["name"], match["rest"]
        ordinals[name] = ordinals.get(name, 0) + 1
        found = _RESULT.search(rest)
        value = found["value"] if found else "?"
        result = None if value == "?" or value.startswith("0x") else int(value)
        calls.append(Call(name, ordinals[name], rest, result, "(INJECTED)" in rest[-40:]))
    return calls


def places(calls: Sequence[Call], home: str, *, looking: bool = True) -> list[Call]:
    """Return the calls to strike at: all that concern the home or the relay, and the end."""
    found = [
        call for call in calls if call.concerns(home) and (looking or call.name not in LOOKING)
    ]
    return found + [call for call in calls if call.name == "exit_group"]


def is_there() -> bool:
    """Say whether strace is installed, and tracing is allowed."""
    path = strace_path()
    if path is None:
        return False
    tried = subprocess.run([path, "-o", "/dev/null", "true"], capture_output=True, check=False)
    return tried.returncode == 0
