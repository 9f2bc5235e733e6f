"""The disk that is measured: an ext4 image with a journal where root may mount one; a neighbour."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
IMAGE_OCTETS = 24 * GIB
"""The image is a sparse file: it takes what is written."""

OCTETS_AN_INODE = 8192
NEIGHBOUR_OCTETS_PER_SECOND = 20 * 1000 * 1000
_TOOLS = "/usr/sbin:/sbin:/usr/bin:/bin"
_UNMOUNT_SECONDS = 20


@frozen
class Disk:
    """A scratch directory, and what the machine's facts say of the disk below it."""

    path: str
    facts: str


@contextlib.contextmanager
def scratch_directory() -> Iterator[Disk]:
    """A new directory for everything, removed at the end, also after a failure.

    BENCH_SCRATCH names a directory on the disk to measure. Without it that disk is an image of an
    ext4 with a journal, which most users have; where none can be mounted it is the disk that
    temporary files are on.
    """
    named = os.environ.get("BENCH_SCRATCH")
    path = tempfile.mkdtemp(prefix="picoqmail-bench-", dir=named)
    os.chmod(path, 0o755)  # noqa: S103 - rivals with users of their own must get in
    try:
        if named:
            yield Disk(path, f"{description(path)}, as BENCH_SCRATCH says")
            return
        with contextlib.ExitStack() as mounted:
            try:
                where = mounted.enter_context(_journalled(path))
            except (OSError, subprocess.CalledProcessError) as exc:
                yield Disk(path, f"{description(path)} (no image of an ext4: {_reason(exc)})")
                return
            yield Disk(where, f"{description(where)}, an image on {description(path)}")
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _journalled(directory: str) -> Iterator[str]:
    """Mount a new ext4 with a journal for a while. Raises OSError, CalledProcessError."""
    if os.geteuid():
        raise PermissionError(1, "only root may mount one")
    image, where = f"{directory}/image", f"{directory}/disk"
    with open(image, "wb") as file:
        file.truncate(IMAGE_OCTETS)
    # Otherwise the kernel writes the tables of inodes meanwhile, and that is measured too.
    now = "lazy_itable_init=0,lazy_journal_init=0"
    make = ("-q", "-F", "-O", "has_journal", "-i", str(OCTETS_AN_INODE), "-E", now)
    _run("mkfs.ext4", *make, image)
    os.mkdir(where)
    _run("mount", "-t", "ext4", "-o", "loop", image, where)
    try:
        os.chmod(where, 0o755)  # noqa: S103 - as above
        yield where
    finally:
        _unmount(where)


def _unmount(where: str) -> None:
    """Unmount, waiting for programs that are about to end; at last without waiting for them."""
    deadline = time.monotonic() + _UNMOUNT_SECONDS
    while True:
        try:
            _run("umount", where)
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                _run("umount", "-l", where)
                return
            time.sleep(0.2)
        else:
            return


def _run(program: str, *arguments: str) -> None:
    path = shutil.which(program, path=_TOOLS)
    if path is None:
        raise FileNotFoundError(2, f"there is no {program}")
    subprocess.run([path, *arguments], check=True, capture_output=True, timeout=120)


def _reason(exc: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return " ".join(exc.stderr.decode(errors="replace").split())


@contextlib.contextmanager
def temporary_files_in(directory: str) -> Iterator[None]:
    """Have this process and its programs make their temporary files there for a while.

    So the roots of the rivals, with their queues, lie on the disk that is measured.
    """
    before = os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = directory
    try:
        yield
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before


def description(path: str) -> str:
    """Return the file system of a path in words: its name, and whether it has a journal."""
    asked = ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", path]
    found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    kind, _, source = found.stdout.strip().partition(" ")
    if not kind:
        return "an unknown file system"
    if not kind.startswith("ext"):
        return kind
    device = os.path.basename(os.path.realpath(source.strip()))
    # The kernel lists the journals in use there.
    has_journal = bool(glob.glob(f"/proc/fs/jbd2/{glob.escape(device)}-*"))
    return f"{kind} {'with' if has_journal else 'without'} a journal"


_WRITER = """
import os, sys, time
path, rate = sys.argv[1], int(sys.argv[2])
piece = os.urandom(1 << 20)
file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
began, number = time.monotonic(), 0
print(flush=True)
while True:
    os.pwrite(file, piece, number % 256 * len(piece))
    number += 1
    time.sleep(max(0, began + number * len(piece) / rate - time.monotonic()))
"""


@contextlib.contextmanager
def neighbour(directory: str) -> Iterator[None]:
    """Another program that writes 20 MB a second to the same disk, into one file of 256 MiB."""
    path = tempfile.mktemp(prefix="neighbour-", dir=directory)  # noqa: S306 - our own directory
    argv = [sys.executable, "-I", "-c", _WRITER, path, str(NEIGHBOUR_OCTETS_PER_SECOND)]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        yield
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
