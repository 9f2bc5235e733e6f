"""What the spool's file system can do: tested, not believed.

What may live here: a test for each promise of the kernel that the spool relies on, made with files
of its own in `tmp/`, which are removed afterwards. A test that fails is a reason to move the spool.
What cannot be tested, such as a server that loses power, is known from the file system's name.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail import durable
from picoqmail.layout import CUR, NEW, TMP, UNDELIVERED
from picoqmail.spool import mounts
from picoqmail.spool.locks import lock_at_once, try_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from picoqmail.home.paths import Home

_ENTROPY_OCTETS = 8
# File systems whose locks or durability do not depend on this host's kernel alone.
DOUBTFUL = {
    "nfs": "locks and durability are the server's: safe with NFSv4 and a server that exports with "
    "sync; only one host may run picoqmail on it",
    "nfs4": "locks and durability are the server's: safe with a server that exports with sync; "
    "only one host may run picoqmail on it",
    "cifs": "locks and durability are the server's, and owners and modes may be made up",
    "smb3": "locks and durability are the server's, and owners and modes may be made up",
    "fuse": "what fsync does is up to the program behind it",
    "9p": "what fsync does is up to the host of this virtual machine",
    "virtiofs": "what fsync does is up to the host of this virtual machine",
    "overlay": "it is deleted with its container: mount a volume there",
    "tmpfs": "it is memory: mail is lost when the host restarts",
    "ramfs": "it is memory: mail is lost when the host restarts",
    "vfat": "it has no owners and modes, and no links",
    "exfat": "it has no owners and modes, and no links",
}


@frozen
class Shortcoming:
    """What a file system does not do: `grave` if mail can be lost, doubled or seen by that."""

    what: str
    grave: bool


def examine(home: Home) -> list[Shortcoming]:
    """Test everything that the spool relies on; return what fails.

    Raises OSError if the spool cannot be used at all. It writes a few octets to tmp/ and new/ and
    removes them.
    """
    found = [Shortcoming(what, grave=True) for what in _tried(home.spool)]
    name = type_of(home.spool)
    doubt = DOUBTFUL.get(name) or DOUBTFUL.get(name.partition(".")[0])
    if doubt is not None:
        found.append(Shortcoming(f"the file system is {name}: {doubt}", grave=False))
    if len({os.stat(f"{home.spool}/{one}").st_dev for one in (TMP, NEW, CUR, UNDELIVERED)}) > 1:
        text = "its directories are on different file systems, between which no file can be renamed"
        found.append(Shortcoming(text, grave=True))
    return found


def type_of(path: str) -> str:
    """Return the name of the file system at a path, as in mount(8): `ext4`, `nfs4`; "" if unknown.

    Raises OSError if there is nothing at the path.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mounts.type_of(descriptor)
    finally:
        os.close(descriptor)


def _tried(spool: str) -> Iterator[str]:
    """Yield the promises that were not kept, each as a sentence's end."""
    base = f"{spool}/{TMP}/probe-{os.urandom(_ENTROPY_OCTETS).hex()}"
    made = [base, f"{base}.link", f"{spool}/{NEW}/{os.path.basename(base)}.tmp"]
    descriptor = durable.create(base)
    try:
        for probe in (_exclusive, _locks, _permissions, _links, _renames, _syncs):
            try:
                complaint = probe(descriptor, made)
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                complaint = f"{_NAMES[probe]} does not work: {exc.strerror}"
            if complaint:
                yield complaint
    finally:
        os.close(descriptor)
        for path in made:
            durable.unlink_if_there(path)


def _exclusive(_descriptor: int, made: list[str]) -> str:
    try:
        os.close(durable.create(made[0]))
    except FileExistsError:
        return ""
    return "a file can be made twice (O_EXCL): two messages could get one name"


def _locks(descriptor: int, made: list[str]) -> str:
    lock_at_once(descriptor)
    # By another open of the file, as another process would have it.
    other = os.open(made[0], os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not try_lock(other):
            return ""
    finally:
        os.close(other)
    return "a lock (flock) does not keep another process out: mail would be sent twice"


def _permissions(descriptor: int, made: list[str]) -> str:
    modes = (0o700, 0o600)
    for mode in modes:
        os.fchmod(descriptor, mode)
        if os.stat(made[0]).st_mode & 0o777 != mode:
            return "modes are not kept (chmod): mail is not private, and doubt is not marked"
    if os.fstat(descriptor).st_uid != os.geteuid():
        return "files do not belong to the user who made them: mail is not private"
    return ""


def _links(_descriptor: int, made: list[str]) -> str:
    durable.link(made[0], made[1])
    same = os.stat(made[0]).st_ino == os.stat(made[1]).st_ino
    return "" if same else "a link (link) is another file: a moved message would lose its lock"


def _renames(descriptor: int, made: list[str]) -> str:
    durable.write_all(descriptor, b"whole")
    # Its second name, if there can be such.
    source = made[1] if durable.is_there(made[1]) else made[0]
    durable.rename(source, made[2])
    if os.stat(made[2]).st_ino != os.fstat(descriptor).st_ino:
        return "a renamed file is another one: a message would lose its lock"
    if os.path.lexists(source):
        return "a renamed file is still there under its old name"
    return ""


def _syncs(descriptor: int, made: list[str]) -> str:
    durable.sync(descriptor)
    try:
        durable.sync_directory(os.path.dirname(made[0]))
    except OSError as exc:
        return (
            f"a directory cannot be made durable (fsync): {exc.strerror}; accepted mail would be "
            "lost with the power"
        )
    return ""


_NAMES: dict[Callable[[int, list[str]], str], str] = {
    _exclusive: "making a file of its own (O_EXCL)",
    _locks: "locking (flock)",
    _permissions: "setting modes (chmod)",
    _links: "a second name for a file (link)",
    _renames: "renaming between tmp/ and new/",
    _syncs: "making a file durable (fsync)",
}
