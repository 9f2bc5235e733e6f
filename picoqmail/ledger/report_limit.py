"""Against storms of reports: so many an hour for one address, and the rest in one digest.

Each address that got a report within the hour has a small file in the spool's `reports/`, named
`HASH-BEGIN`. A line is one report that was made, or one failure that is kept for the digest; such a
failure is fsynced before it counts as reported. When the hour is over, what was kept becomes a
digest, and the file goes.

While its digest is made, a file has the digest's ID behind its name, `HASH-BEGIN.ID`. A digest
names its file, and a program that is about to send the digest unlinks the file first. So no crash
makes a digest twice. The file gets the new name before it loses the old one; power loss may leave
both, and whoever takes or removes one takes or removes both.
"""

from __future__ import annotations

import hashlib
import json
import os

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import REPORTS
from picoqmail.spool import scan
from picoqmail.spool.files import lines_of, link_or_rename
from picoqmail.spool.locks import is_at, try_lock, wait_for_lock
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, Final, Self

SENT = "sent"
KEPT = "kept"
# To wait for another process that writes to the same file: many times what it needs.
_PATIENCE_SECONDS = 30.0
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Overdue(Value):
    """An hour that is over: its name, the address, and what was kept for the digest.

    `digest` is the ID of a digest that a crash may have left half made, "" if there is none.
    """

    __slots__ = ("name", "address", "kept", "digest")

    def __init__(
        self, name: str, address: str, kept: tuple[Mapping[str, Any], ...], digest: str
    ) -> None:
        self.name: Final = name
        self.address: Final = address
        self.kept: Final = kept
        self.digest: Final = digest


class DirectoryReportLimit:
    """The limit of one spool: `limit` reports an hour for one address; 0 means no limit."""

    __slots__ = ("limit", "spool")

    def __init__(self, spool: str, limit: int) -> None:
        self.spool = spool
        self.limit = limit

    @property
    def directory(self) -> str:
        """Where the files are. It is made with the first of them."""
        return f"{self.spool}/{REPORTS}"

    def may_report(self, address: str, now: float) -> bool:
        """Say whether one more report may be made for an address now, and count it if so.

        Raises SpoolError.
        """
        if not self.limit:
            return True
        with _Ledger(self.directory, address, now) as ledger:
            if sum(line["what"] == SENT for line in ledger.lines()) >= self.limit:
                return False
            ledger.append({"what": SENT, "address": address, "when": int(now)})
            return True

    def keep(self, address: str, failures: Iterable[Mapping[str, Any]], now: float) -> None:
        """Keep failures for the digest, durably. Raises SpoolError."""
        with _Ledger(self.directory, address, now) as ledger:
            for failure in failures:
                ledger.append({"what": KEPT, "address": address, "when": int(now), **failure})
            ledger.make_durable()

    def overdue(self, now: float) -> list[str]:
        """Return the names of files whose hour is over, or whose digest a crash interrupted.

        Raises SpoolError.
        """
        try:
            return [os.path.basename(path) for path in scan.overdue_reports(self.spool, now)]
        except OSError as exc:
            raise SpoolError("read", self.directory, exc) from exc

    def take(self, name: str, digest: str) -> Overdue | None:
        """Take a file for the digest of this ID; None if it is gone or another process has it.

        From now on the file has the ID in its name. Raises SpoolError.
        """
        path = f"{self.directory}/{name}"
        try:
            descriptor = os.open(path, _OPEN)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SpoolError("open", path, exc) from exc
        try:
            if not try_lock(descriptor) or not is_at(path, descriptor):
                return None
            lines = list(_read(descriptor))
            kept = tuple(line for line in lines if line["what"] == KEPT)
            names = self._names_of(name)
            base = name.partition(".")[0]
            target = f"{base}.{digest}"
            if kept:
                link_or_rename(path, f"{self.directory}/{target}")
                durable.sync_directory(self.directory)
                self._unlink(names)
            before = [one.partition(".")[2] for one in names if "." in one]
            address = lines[0]["address"] if lines else ""
            return Overdue(target if kept else name, address, kept, before[0] if before else "")
        except OSError as exc:
            raise SpoolError("take", path, exc) from exc
        finally:
            os.close(descriptor)

    def finish(self, name: str) -> None:
        """Remove a file: its digest was made, or nothing was kept. Raises SpoolError."""
        path = f"{self.directory}/{name}"
        try:
            self._unlink(self._names_of(name))
        except OSError as exc:
            raise SpoolError("remove", path, exc) from exc

    def _names_of(self, name: str) -> list[str]:
        """Return the names of a file: after a power loss it may have several. Raises OSError."""
        base = name.partition(".")[0]
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(one for one in names if one.partition(".")[0] == base)

    def _unlink(self, names: Iterable[str]) -> None:
        """Remove names, durably. Raises OSError."""
        if [name for name in names if durable.unlink_if_there(f"{self.directory}/{name}")]:
            durable.sync_directory(self.directory)


class _Ledger:
    """The file of one address and hour, locked while it is open; a context manager."""

    def __init__(self, directory: str, address: str, now: float) -> None:
        self._directory = directory
        self._hash = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:32]
        self._now = now
        self._descriptor = -1
        self._path = ""

    def __enter__(self) -> Self:
        try:
            durable.make_directory(self._directory)
            while self._descriptor < 0:
                self._open()
            # Lines are added behind those that are there.
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as exc:
            raise SpoolError("write", self._directory, exc) from exc
        return self

    def _open(self) -> None:
        """Open and lock the file, unless it becomes a digest before we have its lock."""
        mine = [n for n in os.listdir(self._directory) if n.startswith(self._hash + "-")]
        current = [name for name in sorted(mine) if not scan.is_report_over(name, self._now)]
        name = current[-1] if current else f"{self._hash}-{int(self._now)}"
        self._path = f"{self._directory}/{name}"
        self._descriptor = wait_for_lock(self._path, _PATIENCE_SECONDS)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Return what stands there."""
        return _read(self._descriptor)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        try:
            durable.write_all(self._descriptor, json.dumps(line).encode() + b"\n")
        except OSError as exc:
            raise SpoolError("write", self._path, exc) from exc

    def make_durable(self) -> None:
        """Put it on disk, with its entry in the directory."""
        try:
            durable.sync(self._descriptor)
            durable.sync_directory(self._directory)
        except OSError as exc:
            raise SpoolError("make durable", self._path, exc) from exc


def _read(descriptor: int) -> Iterator[dict[str, Any]]:
    for line in lines_of(descriptor):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a crash or a full disk cut this line
        if isinstance(found, dict) and found.get("what") in (SENT, KEPT) and _is_proper(found):
            yield found


def _is_proper(line: dict[str, Any]) -> bool:
    """Say whether the values of a line are of their types, and text that can be written."""
    texts = ["address", *(("id", "sender", "recipient", "reply") if line["what"] == KEPT else ())]
    try:
        whole = "".join(line[name] for name in texts)
        whole.encode()
    except (KeyError, TypeError, UnicodeEncodeError):
        return False
    return "\0" not in whole
