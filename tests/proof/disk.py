"""The states that a disk may be in after a power loss.

This models a file system that keeps only the promises of POSIX and fsync(2):

- File data that were not fsynced may be present, missing, cut, or zeros. Data that were fsynced
  stay, unless something was written over them since.
- A directory entry that changed since the last fsync of its directory may have any value that it
had
  since then. It is independent of all other entries: changes may be lost in any order, and a rename
  across directories may have happened in only one of them.
- A mode that was not fsynced may be the old one or the new one.
- syncfs(2) is an fsync of every file and every directory at that moment.

No journalling file system loses that much. A state that such a file system could also leave (all
operations up to some point, and none after it) is marked as `ordered`.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from picoqmail.layout import DIRECTORIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proof.operations import Operation

Key = tuple[str, str]


@define
class Inode:
    """One file: its content, and its durable content (None: nothing was ever synced).

    Directories have no such object; they are numbers below 0.
    """

    data: bytes = b""
    durable: bytes | None = None
    mode: int = 0o600
    durable_mode: int | None = None
    mtime: float | None = None
    untouched: int = 0
    """How many of the durable octets nothing was written over since: an append keeps them all."""

    def variants(self) -> list[bytes]:
        """Return the contents that a reader may find after the loss."""
        if self.durable is not None and self.durable == self.data:
            return [self.data]
        kept, rest = self.data[: self.untouched], self.data[self.untouched :]
        found = [self.data, kept, kept + rest[: len(rest) // 2], kept + bytes(len(rest))]
        if self.durable is not None:
            found.append(self.durable)
        return list(dict.fromkeys(found))

    def sync(self) -> None:
        """Make content and mode durable."""
        self.durable, self.durable_mode = self.data, self.mode
        self.untouched = len(self.data)

    def modes(self) -> list[int]:
        """Return the modes that a reader may find."""
        known = self.durable_mode
        return [self.mode] if known is None else list(dict.fromkeys([self.mode, known]))


@frozen
class State:
    """One disk after the loss: entries, and data and mode by inode."""

    entries: tuple[tuple[Key, int], ...]
    data: tuple[tuple[int, bytes], ...]
    modes: tuple[tuple[int, int], ...]
    mtimes: tuple[tuple[int, float | None], ...]
    ordered: bool = field(eq=False)

    def materialise(self, spool: str) -> None:
        """Write it into an empty directory, including hard links."""
        for directory in DIRECTORIES:
            os.makedirs(f"{spool}/{directory}", 0o700)
        data, modes, mtimes = dict(self.data), dict(self.modes), dict(self.mtimes)
        first: dict[int, str] = {}
        for (directory, name), inode in self.entries:
            path = f"{spool}/{directory}/{name}" if directory else f"{spool}/{name}"
            if inode < 0:
                os.mkdir(path, 0o700)
                continue
            if inode in first:
                os.link(first[inode], path)
                continue
            first[inode] = path
            with open(path, "wb") as file:
                file.write(data[inode])
            os.chmod(path, modes[inode])
            when = mtimes[inode]
            if when is not None:
                os.utime(path, (when, when))


@define
class Disk:
    """A spool and its history since the last fsyncs. `apply` operations, then call `states`."""

    inodes: dict[int, Inode] = field(factory=dict)
    # All values of an entry since its directory was last synced; the first is durable.
    entries: dict[Key, list[int | None]] = field(factory=dict)
    # The same changes as a journal has them: a group for each operation.
    journal: list[list[tuple[Key, int | None]]] = field(factory=list)
    handles: dict[int, int] = field(factory=dict)
    _committed: dict[Key, int | None] = field(factory=dict)
    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))

    @classmethod
    def load(cls, spool: str) -> Disk:
        """Return the disk of a spool in which everything is durable."""
        disk = cls()
        known: dict[int, int] = {}
        for place, directories, names in os.walk(spool):
            directory = os.path.relpath(place, spool) if place != spool else ""
            for one in directories:
                if directory or one not in DIRECTORIES:
                    disk._put((directory, one), -next(disk._numbers))
            for one in names:
                path = f"{place}/{one}"
                found = os.lstat(path)
                if not stat.S_ISREG(found.st_mode):
                    continue
                if found.st_ino not in known:
                    known[found.st_ino] = next(disk._numbers)
                    with open(path, "rb") as file:
                        data = file.read()
                    mode = found.st_mode & 0o7777
                    disk.inodes[known[found.st_ino]] = Inode(
                        data, data, mode, mode, found.st_mtime, len(data)
                    )
                disk._put((directory, one), known[found.st_ino])
        disk._commit()
        return disk

    def _put(self, key: Key, inode: int | None) -> None:
        self.entries.setdefault(key, [None]).append(inode)

    def _commit(self) -> None:
        """Make all entries so far durable."""
        for key, values in self.entries.items():
            self._committed[key] = values[-1]
            del values[:-1]
        self.journal.clear()

    def current(self, key: Key) -> int | None:
        """Return the inode that a name has now."""
        return self.entries.get(key, [None])[-1]

    def _change(self, *changes: tuple[Key, int | None]) -> None:
        for key, inode in changes:
            self._put(key, inode)
        self.journal.append(list(changes))

    def apply(self, operation: Operation) -> None:
        """Apply one operation."""
        kind, key, target = operation.kind, operation.key, operation.target
        inode = self.handles.get(operation.handle) or self.current(key)
        if kind == "open":
            inode = self.current(key)
            if inode is None:
                inode = next(self._numbers)
                self.inodes[inode] = Inode()
                self._change((key, inode))
            self.handles[operation.handle] = inode
        elif kind == "mkdir":
            self._change((key, -next(self._numbers)))
        elif kind == "rename":
            self._change((target, inode), (key, None))
        elif kind == "link":
            self._change((target, inode))
        elif kind == "unlink":
            self._change((key, None))
        elif kind == "syncdir":
            self._sync_directory(key[0])
        elif kind == "syncfs":
            for file in self.inodes.values():
                file.sync()
            self._commit()
        elif kind == "chmod" and (key == ("", "") or (inode or 0) < 0):
            pass  # Of a directory: its mode has no part in what recovery finds.
        elif inode is None:
            raise AssertionError(f"{operation}: no such file in the model")
        else:
            self._touch(self.inodes[inode], operation)

    @staticmethod
    def _touch(file: Inode, operation: Operation) -> None:
        if operation.kind == "write":
            at = len(file.data) if operation.offset < 0 else operation.offset
            file.untouched = min(file.untouched, at)
            head = file.data[:at].ljust(at, b"\0")
            file.data = head + operation.data + file.data[at + len(operation.data) :]
        elif operation.kind == "truncate":
            file.untouched = min(file.untouched, operation.offset)
            file.data = file.data[: operation.offset].ljust(operation.offset, b"\0")
        elif operation.kind == "chmod":
            if file.durable_mode is None and file.durable is not None:
                file.durable_mode = file.mode
            file.mode = operation.offset
        elif operation.kind == "utime":
            file.mtime = float(operation.offset)
        elif operation.kind == "sync":
            file.sync()
        else:
            raise AssertionError(f"{operation}: unknown to the model")

    def _sync_directory(self, directory: str) -> None:
        for key, values in self.entries.items():
            if key[0] == directory:
                del values[:-1]
        # A journal also commits everything before.
        for changes in self.journal:
            self._committed.update(changes)
        self.journal.clear()

    # --- After the loss ---------------------------------------------------------------------------

    def ordered_entries(self) -> list[dict[Key, int | None]]:
        """Return the entries after each number of operations that a journal may have committed."""
        now = dict(self._committed)
        found = [dict(now)]
        for changes in self.journal:
            now.update(changes)
            found.append(dict(now))
        return found

    def states(self, *, limit: int, seed: object) -> Iterator[State]:
        """Return all legal states, or `limit` of them: those of a journal, both ends, a sample."""
        for entries in self.ordered_entries():
            yield from self._with_data(entries, ordered=True)
        keys = list(self.entries)
        choices = [list(dict.fromkeys(self.entries[key])) for key in keys]
        total = 1
        for one in choices:
            total *= len(one)
        if total <= limit:
            combinations: Iterator[Sequence[int | None]] = itertools.product(*choices)
        else:
            # The choice for an entry depends on nothing else. So the next operation meets the same
            # combinations, and those that it does not change are not tried again.
            combinations = (
                [
                    _chosen(f"{seed} {number} {key}", one)
                    for key, one in zip(keys, choices, strict=True)
                ]
                for number in range(limit)
            )
        for values in combinations:
            yield from self._with_data(dict(zip(keys, values, strict=True)), ordered=False)

    def _with_data(self, entries: dict[Key, int | None], *, ordered: bool) -> Iterator[State]:
        directories = {"", *DIRECTORIES}
        directories |= {
            "/".join(filter(None, key)) for key, inode in entries.items() if inode and inode < 0
        }
        there = sorted(
            (key, inode)
            for key, inode in entries.items()
            if inode is not None and key[0] in directories
        )
        numbers = sorted({inode for _, inode in there if inode > 0})
        data = [self.inodes[number].variants() for number in numbers]
        modes = [self.inodes[number].modes() for number in numbers]
        mtimes = tuple((number, self.inodes[number].mtime) for number in numbers)
        # The variants of one file at a time, with the others whole, and of all files at once. Two
        # damaged files of one message have no effect that one of them does not have alone.
        plain = State(
            tuple(there),
            tuple(zip(numbers, [one[0] for one in data], strict=True)),
            tuple(zip(numbers, [one[0] for one in modes], strict=True)),
            mtimes,
            ordered,
        )
        yield plain
        for index, number in enumerate(numbers):
            for variant in data[index][1:]:
                changed = dict(plain.data) | {number: variant}
                yield evolve(plain, data=tuple(sorted(changed.items())))
            for mode in modes[index][1:]:
                changed_modes = dict(plain.modes) | {number: mode}
                yield evolve(plain, modes=tuple(sorted(changed_modes.items())))
        if sum(len(one) > 1 for one in data) > 1:
            yield evolve(plain, data=tuple(zip(numbers, [one[-1] for one in data], strict=True)))


def _chosen(seed: str, values: Sequence[int | None]) -> int | None:
    """Return one of the values, the same one for the same seed and values."""
    return random.Random(seed).choice(values)  # noqa: S311 - a seeded choice
