"""The files of a spool's messages: their names, how they are read, and what is not durable yet.

What may live here: the steps on files that several verbs of the store share. In which order they
are made is up to those; transitions.py has it as data, and INTERNALS.md in sentences.
"""

from __future__ import annotations

import errno
import posix

from picoqmail import durable
from picoqmail.errors import NoSuchMessageError, SpoolError
from picoqmail.layout import (
    BLOCK_OCTETS,
    BODY,
    CUR,
    DIRECTORIES,
    NEW,
    RESULT,
    SIDECAR,
    STATES,
    TMP,
    UNDELIVERED,
)
from picoqmail.spool.message import LARGE_OCTETS, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Most sidecars have less; room for more costs more than the reading.
_SMALL_OCTETS = 4096
RESULT_LIMIT_OCTETS = 65536
# Bodies of delivered messages wait for one sync of their directory: so many share it.
_DOOMED_LIMIT = 200
# O_NONBLOCK is for what should not be there at all: opening a FIFO must not wait for a writer.
READ_FLAGS = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
# Where a body is searched for. The order must be the same everywhere: the first one is locked.
BODY_ORDER = (NEW, CUR, UNDELIVERED, TMP)
NO_BODY = "its body is missing"


class SpoolFiles:
    """The files of one spool directory, and the changes that `make_durable` has to sync."""

    __slots__ = ("_doomed", "_unsynced", "path")

    def __init__(self, path: str) -> None:
        """Nothing is opened."""
        self.path = path
        self._unsynced: set[str] = set()
        self._doomed: list[str] = []

    def join(self, directory: str, name: str = "") -> str:
        """Return the path of a directory, or of a file in it."""
        return f"{self.path}/{directory}/{name}" if name else f"{self.path}/{directory}"

    # --- Reading -----------------------------------------------------------------------------

    def where(self, message_id: str) -> list[str]:
        """Return the states that a message has a sidecar in; more than one only after a crash.

        Raises SpoolError where that cannot be known.
        """
        try:
            return [one for one in STATES if durable.is_there(self.join(one, message_id + SIDECAR))]
        except OSError as exc:
            raise SpoolError("look for", f"{self.path}/*/{message_id}", exc) from exc

    def read_sidecar(self, state: str, message_id: str) -> Message:
        """Read a sidecar. Raises OSError, DamagedMessageError."""
        path = self.join(state, message_id + SIDECAR)
        octets = read_whole(path, LARGE_OCTETS)
        if len(octets) <= LARGE_OCTETS:
            return Message.from_sidecar(octets, message_id)
        with open(path, "rb", opener=_open_plain) as file:
            return Message.from_sidecar(file, message_id)

    def open_body(self, message_id: str) -> int:
        """Open a body; return -1 if there is none. Raises SpoolError.

        As a rule it lies beside the sidecar, after a crash perhaps elsewhere.
        """
        return self._open_first(message_id + BODY, BODY_ORDER)

    def open_sidecar(self, message_id: str) -> int:
        """Open what is left of a message whose body is gone. Raises NoSuchMessageError."""
        descriptor = self._open_first(message_id + SIDECAR, STATES)
        if descriptor < 0:
            raise NoSuchMessageError(f"{message_id}: no such message in {self.path}")
        return descriptor

    def _open_first(self, name: str, directories: Iterable[str]) -> int:
        for directory in directories:
            path = self.join(directory, name)
            try:
                return posix.open(path, READ_FLAGS)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SpoolError("open", path, exc) from exc
        return -1

    def body_is_nowhere(self, message_id: str) -> bool:
        """Say whether a message has no body. Raises OSError where that cannot be known."""
        return not any(durable.is_there(self.join(d, message_id + BODY)) for d in DIRECTORIES)

    def read_result(self, message_id: str) -> str:
        """Return what relays have said of a message, "" if nothing was written. Raises OSError."""
        try:
            with open(self.join(UNDELIVERED, message_id + RESULT), "rb") as file:
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    # --- Changing ----------------------------------------------------------------------------

    def carry_body(self, message_id: str, target: str) -> None:
        """Put the body into `target` too, from wherever it is: the one that is locked."""
        path = self.join(target, message_id + BODY)
        for directory in BODY_ORDER:
            source = self.join(directory, message_id + BODY)
            if not durable.is_there(source):
                continue
            if directory != target and not is_same_file(source, path):
                if directory != TMP and durable.is_there(path):
                    self._replace_copy(message_id, source, path)
                else:
                    durable.unlink_if_there(path)
                    link_or_rename(source, path)
            return

    def _replace_copy(self, message_id: str, source: str, path: str) -> None:
        """Put the body in the place of another file of that name, left by a restore from backup.

        In one step: a sidecar never stands there without a body.
        """
        scratch = self.join(TMP, message_id + BODY)
        durable.unlink_if_there(scratch)
        try:
            durable.link(source, scratch)
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            scratch = source
        durable.rename(scratch, path)

    def drop_body(self, message_id: str, state: str) -> None:
        """Unlink the body in a state, if there is one."""
        durable.unlink_if_there(self.join(state, message_id + BODY))

    def append_result(self, message_id: str, text: str) -> None:
        """Append to undelivered/ID.result, replaced whole; the oldest goes when it is long."""
        path = self.join(UNDELIVERED, message_id + RESULT)
        try:
            with open(path, "rb") as file:
                before = file.read()
        except FileNotFoundError:
            before = b""
        data = before + text.encode(errors="replace")
        if len(data) > RESULT_LIMIT_OCTETS:
            data = data[-RESULT_LIMIT_OCTETS:]
            data = b"[...]\n" + data[data.find(b"\n") + 1 :]
        durable.replace(self.join(TMP, message_id + RESULT), path, data)
        self.sync_later(UNDELIVERED)

    def show_new_time(self, state: str) -> None:
        """Make a changed time of a sidecar visible in the directory's, which idle.py watches.

        Behind that change: a look that missed it must find another time than before.
        """
        posix.utime(self.join(state))

    def sync_later(self, state: str) -> None:
        """Note that a state's directory has changed: `make_durable` syncs it."""
        self._unsynced.add(state)

    def doom(self, *paths: str) -> None:
        """Have `make_durable` unlink files, after it has synced the directories."""
        self._doomed += paths

    def make_many_durable(self) -> None:
        """Do what `make_durable` does, if much waits for it. Raises SpoolError."""
        if len(self._doomed) >= _DOOMED_LIMIT:
            self.make_durable()

    def make_durable(self) -> None:
        """Make every removal and move so far durable, then unlink the files that were doomed.

        In this order, because power loss could otherwise bring a sidecar back without its body.
        Raises SpoolError.
        """
        while self._unsynced:
            self.sync(self._unsynced.pop())
        while self._doomed:
            path = self._doomed.pop()
            try:
                durable.unlink_if_there(path)
            except OSError as exc:
                raise SpoolError("remove", path, exc) from exc

    def sync(self, state: str) -> None:
        """Make sure that what can be seen in a state is also on disk. Raises SpoolError."""
        try:
            durable.sync_directory(self.join(state))
        except OSError as exc:
            raise SpoolError("make durable", self.join(state), exc) from exc


def read_whole(path: str, most: int | None = None) -> bytes:
    """Return a small file's octets, by fewer calls than a file object makes. Raises OSError.

    Of a file with more than `most` octets only the beginning, which is longer than that.
    """
    descriptor = posix.open(path, READ_FLAGS)
    try:
        blocks = [posix.read(descriptor, _SMALL_OCTETS)]
        # Only at the end of a file is less read than was asked for.
        if len(blocks[0]) == _SMALL_OCTETS:
            while blocks[-1] and (most is None or sum(map(len, blocks)) <= most):
                blocks.append(posix.read(descriptor, BLOCK_OCTETS))
    finally:
        posix.close(descriptor)
    return b"".join(blocks)


def is_same_inode(one: posix.stat_result, other: posix.stat_result) -> bool:
    """Say whether two statuses are of one file."""
    return (one.st_ino, one.st_dev) == (other.st_ino, other.st_dev)


def _open_plain(path: str, _flags: int) -> int:
    return posix.open(path, READ_FLAGS)


def read_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a file, which is never held as a whole. Raises OSError."""
    descriptor = posix.open(path, READ_FLAGS)
    try:
        yield from lines_of(descriptor)
    finally:
        posix.close(descriptor)


def lines_of(descriptor: int) -> Iterator[bytes]:
    """Yield the lines of an open file from its beginning, wherever it is now. Raises OSError."""
    rest, offset = b"", 0
    while block := posix.pread(descriptor, BLOCK_OCTETS, offset):
        offset += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def is_same_file(one: str, other: str) -> bool:
    """Say whether two names are of one file."""
    try:
        return is_same_inode(posix.lstat(one), posix.lstat(other))
    except FileNotFoundError:
        return False


_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)


def link_or_rename(source: str, target: str) -> None:
    """Give a file a second name; rename it where the file system has no links.

    That the target is there already is the trace of a crash after this very step.
    """
    try:
        durable.link(source, target)
    except FileExistsError:
        return
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        durable.rename(source, target)
