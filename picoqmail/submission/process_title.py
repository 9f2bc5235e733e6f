"""What ps(1) and /proc show of a process that became another program without exec(2).

A forked child shows the command line and the environment of its parent: of the program that took a
mail, with its recipients and all variables of the caller. `show_as` replaces both where the kernel
keeps them, in the memory of the process itself. Linux only; nothing depends on it but people.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FROM_START = 0  # SEEK_SET of lseek(2)
_STAT_OCTETS = 4096
# proc_pid_stat(5) numbers its fields from 1; the state, which follows the name, is the third.
_ARGUMENTS_START = 48 - 3


def show_as(words: Sequence[bytes], environ: Mapping[bytes, bytes]) -> None:
    """Show these words as the command line, the first as the name, and these variables.

    What does not fit into the place of the old ones is left out, whole variables at a time. Nothing
    may refer to the old environment any more: C's environ(7) has to consist of copies. Where the
    kernel does not allow it, all stays as it is.
    """
    try:
        _write("/proc/self/comm", words[0])  # its first 15 octets
        stat = posix.open("/proc/self/stat", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            fields = posix.read(stat, _STAT_OCTETS).rpartition(b")")[2].split()
        finally:
            posix.close(stat)
        places = [int(field) for field in fields[_ARGUMENTS_START : _ARGUMENTS_START + 4]]
        if len(places) < 4 or not all(places):
            return
        variables = [name + b"=" + value for name, value in environ.items()]
        _overwrite(words, *places[:2])
        _overwrite(variables, *places[2:])
    except OSError:
        # ps shows the program that this process was; /proc may not be mounted, or be closed.
        return


def _overwrite(entries: Sequence[bytes], start: int, end: int) -> None:
    """Write entries, each with its NUL, and more NULs up to the end; leave out what does not fit.

    Raises OSError.
    """
    data = b""
    for entry in entries:
        if len(data) + len(entry) < end - start:
            data += entry + b"\0"
    _write("/proc/self/mem", data.ljust(end - start, b"\0"), start)


def _write(path: str, data: bytes, place: int = 0) -> None:
    descriptor = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        if place:
            posix.lseek(descriptor, place, _FROM_START)
        posix.write(descriptor, data)
    finally:
        posix.close(descriptor)
