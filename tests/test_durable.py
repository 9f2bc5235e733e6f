"""Durable writes: each does one thing to the disk, never follows a link, never leaves a half."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail import durable
from proof import tracing
from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Replace = Callable[[str, str, bytes], None]


def test_a_new_file_is_private(tmp_path: Path) -> None:
    """Mode 0600, whatever the umask leaves."""
    path = str(tmp_path / "file")
    os.close(durable.create(path))
    assert 0o600 == stat.S_IMODE(os.stat(path).st_mode)


def test_nothing_that_is_there_is_opened_instead(tmp_path: Path) -> None:
    """Neither a file nor a symlink planted in its place, dangling or not."""
    (tmp_path / "file").write_bytes(b"x")
    os.symlink(tmp_path / "elsewhere", tmp_path / "dangling")
    for name in ("file", "dangling"):
        with pytest.raises(FileExistsError):
            durable.create(str(tmp_path / name))
    with pytest.raises(OSError, match="Too many levels"):
        durable.open_append(str(tmp_path / "dangling"))
    assert not (tmp_path / "elsewhere").exists()
    assert b"x" == (tmp_path / "file").read_bytes()


def test_a_short_write_is_gone_on_with(tmp_path: Path) -> None:
    """A pipe takes less than it is given: everything comes through all the same."""
    data = os.urandom(300_000)
    reading, writing = os.pipe()
    with open(tmp_path / "out", "wb") as out, subprocess.Popen(
        ["cat"], stdin=reading, stdout=out
    ) as process:  # fmt: skip
        os.close(reading)
        durable.write_all(writing, data)
        os.close(writing)
        process.wait(30)
    assert data == (tmp_path / "out").read_bytes()


def test_a_file_that_could_not_be_written_whole_is_gone(tmp_path: Path) -> None:
    """A file size limit strikes in the middle: no half file stays, and the error is told."""
    script = (
        "import resource, signal, sys\n"
        "from picoqmail import durable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    durable.create_whole(sys.argv[1], b'x' * 5000)\n"
        "except OSError as exc:\n"
        "    print(exc.errno)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert f"{errno.EFBIG}\n" == ran.stdout
    assert [] == os.listdir(tmp_path)


def test_replace_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """The file is replaced whole, with the time it is given; no scratch file stays."""
    path, scratch = str(tmp_path / "file"), str(tmp_path / "scratch")
    durable.replace(scratch, path, b"old")
    durable.replace(scratch, path, b"new", 1_000_000_000)
    assert (b"new", 1_000_000_000) == ((tmp_path / "file").read_bytes(), os.stat(path).st_mtime)
    assert ["file"] == os.listdir(tmp_path)


@pytest.mark.parametrize("replace", [durable.replace, durable.replace_unsynced])
def test_a_scratch_file_of_a_crash_is_in_nobodys_way(tmp_path: Path, replace: Replace) -> None:
    """What a killed process left under the scratch name goes first."""
    (tmp_path / "scratch").write_bytes(b"half")
    replace(str(tmp_path / "scratch"), str(tmp_path / "file"), b"whole")
    assert b"whole" == (tmp_path / "file").read_bytes()
    assert ["file"] == os.listdir(tmp_path)


@pytest.mark.parametrize("replace", [durable.replace, durable.replace_unsynced])
def test_a_failed_replace_tidies_up_and_keeps_the_old(tmp_path: Path, replace: Replace) -> None:
    """Where the rename fails (the target is a directory) nothing of the attempt stays."""
    os.mkdir(tmp_path / "target")
    (tmp_path / "target" / "x").write_bytes(b"")
    with pytest.raises(OSError, match="directory"):
        replace(str(tmp_path / "scratch"), str(tmp_path / "target"), b"new")
    assert ["target"] == os.listdir(tmp_path)


def test_unlinking_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    """It says whether there was anything."""
    (tmp_path / "file").write_bytes(b"")
    assert durable.unlink_if_there(str(tmp_path / "file"))
    assert not durable.unlink_if_there(str(tmp_path / "file"))


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    """With private mode; False if it is there."""
    path = str(tmp_path / "new")
    assert durable.make_directory(path)
    assert not durable.make_directory(path)
    assert 0o700 == stat.S_IMODE(os.stat(path).st_mode)


def test_a_link_put_in_a_directory_s_place_is_not_followed(tmp_path: Path) -> None:
    """Where somebody swaps what root has just made, nothing else's mode is changed."""
    victim = tmp_path / "victim"
    victim.mkdir(0o500)
    os.symlink(victim, tmp_path / "new")
    with pytest.raises(NotADirectoryError):
        # What make_directory calls under an odd umask, at the moment after the swap.
        durable._restore_directory(str(tmp_path / "new"), 0o700)
    assert 0o500 == stat.S_IMODE(os.stat(victim).st_mode)


def test_what_is_no_directory_cannot_be_synced_as_one(tmp_path: Path) -> None:
    """A file in its place is an error, not a sync of something else."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        durable.sync_directory(str(tmp_path / "file"))
    durable.sync_directory(str(tmp_path))


@pytest.mark.parametrize("umask", [0o777, 0o400, 0o077, 0])
def test_an_odd_umask_withholds_nothing_from_the_owner(tmp_path: Path, umask: int) -> None:
    """Modes are 0600 and 0700 also in an application whose umask takes the owner's rights."""
    script = (
        "import os, sys\n"
        "from picoqmail import durable\nfrom picoqmail.spool.locks import take_lock\n"
        "os.umask(int(sys.argv[1]))\n"
        "durable.make_directory('directory')\n"
        "os.close(durable.create('directory/created', any_umask=True))\n"
        "written = durable.create_written('directory/whole', b'x', 1.0, any_umask=True)\n"
        "os.close(written)\n"
        "os.close(take_lock('directory/lock', any_umask=True))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(umask)], check=True, cwd=tmp_path)
    found = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.rglob("*")}
    assert {"directory": 0o700, "created": 0o600, "whole": 0o600, "lock": 0o600} == found


def test_directories_above_are_made_too(tmp_path: Path) -> None:
    """All that are missing, with that mode; those that are there keep theirs."""
    (tmp_path / "there").mkdir(mode=0o750)
    for _ in range(2):
        durable.make_directories(str(tmp_path / "there" / "a" / "b"), 0o700)
    modes = [stat.S_IMODE(os.stat(tmp_path / "there" / one).st_mode) for one in (".", "a", "a/b")]
    assert [0o750, 0o700, 0o700] == modes
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotADirectoryError):
        durable.make_directories(str(tmp_path / "file" / "a" / "b"))


def test_directories_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made below the working directory, and synced there."""
    monkeypatch.chdir(tmp_path)
    durable.make_directories("a/b")
    assert (tmp_path / "a" / "b").is_dir()
    assert durable.make_directory("c")
    assert (tmp_path / "c").is_dir()


def test_nothing_is_made_below_a_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path has no parent that could be made."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for path in ("a", "a/b"):
        with pytest.raises(FileNotFoundError):
            durable.make_directories(path)


# Makes calls, and prints of each: what it returned or its errno, how many descriptors it left open,
# and the names in the directory.
CALLS = """
import os, sys
from picoqmail import durable
os.chdir(sys.argv[1])
for call in sys.argv[2:]:
    before = len(os.listdir("/proc/self/fd"))
    try:
        result = eval(call)
    except (OSError, OverflowError) as exc:
        result = type(exc).__name__
    left = len(os.listdir("/proc/self/fd")) - before
    print(call, result, left, *sorted(os.listdir(".")), flush=True)
"""


def traced(tmp_path: Path, calls: Sequence[str], *options: str) -> tuple[list[str], list[str]]:
    """Run calls under strace; return what they print, and what was synced, relative to tmp_path."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    output = f"{tmp_path}.calls"
    strace = ["strace", "-y", "-o", output, "-e", "trace=fsync", *options]
    ran = subprocess.run(
        [*strace, sys.executable, "-c", CALLS, str(tmp_path), *calls],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    with open(output, encoding="utf-8") as file:
        paths = [line.partition("<")[2].partition(">")[0] for line in file if "fsync(" in line]
    said = [
        line.removeprefix(call) for call, line in zip(calls, ran.stdout.splitlines(), strict=True)
    ]
    return said, [os.path.relpath(path, tmp_path) for path in paths]


def test_what_is_durable_was_synced(tmp_path: Path) -> None:
    """A file's content, a directory's entries, a new directory's entry in its parent."""
    calls = (
        "durable.create_whole('whole', b'x')",
        "durable.replace('scratch', 'whole', b'y', 7)",
        "durable.sync_directory('.')",
        "durable.make_directory('new')",
        "durable.make_directory('new')",
        "durable.make_directories('new/a/b')",
        "durable.replace_unsynced('scratch', 'quick', b'z')",
    )
    said, synced = traced(tmp_path, calls)
    assert [
        " None 0 whole",
        " None 0 whole",
        " None 0 whole",
        " True 0 new whole",
        " False 0 new whole",
        " None 0 new whole",
        " None 0 new quick whole",
    ] == said
    assert ["whole", "scratch", ".", ".", "new", "new/a"] == synced
    assert b"y" == (tmp_path / "whole").read_bytes()
    assert b"z" == (tmp_path / "quick").read_bytes()
    assert 7 == (tmp_path / "whole").stat().st_mtime


def test_a_failed_sync_leaves_no_file_and_no_descriptor(tmp_path: Path) -> None:
    """The error is reported; the same descriptor is never synced again."""
    (tmp_path / "old").write_bytes(b"old")
    calls = (
        "durable.create_whole('whole', b'x')",
        "durable.replace('scratch', 'old', b'y')",
        "durable.sync_directory('.')",
        "durable.make_directory('new')",
    )
    said, synced = traced(tmp_path, calls, "-e", "inject=fsync:error=EIO")
    assert [" OSError 0 old", " OSError 0 old", " OSError 0 old", " OSError 0 new old"] == said
    assert ["whole", "scratch", ".", "."] == synced
    assert b"old" == (tmp_path / "old").read_bytes()


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    """A time that no file can have, a target that is a directory, a disk that takes no octet."""
    (tmp_path / "there").mkdir()
    calls = (
        "durable.create_written('file', b'x', 1e300)",
        "durable.replace('scratch', 'there', b'x')",
        "durable.replace_unsynced('scratch', 'there', b'x')",
        "durable.sync_directory('absent')",
        "durable.make_directories('/proc/self/absent/x')",
    )
    said, synced = traced(tmp_path, calls)
    assert [
        " OverflowError 0 there",
        " IsADirectoryError 0 there",
        " IsADirectoryError 0 there",
        " FileNotFoundError 0 there",
        " FileNotFoundError 0 there",
    ] == said
    assert ["scratch"] == synced
    said, _ = traced(
        tmp_path,
        ["durable.create_written('file', b'x')"],
        *("-e", "trace=fsync,write", "-e", "inject=write:error=ENOSPC:when=1"),
    )
    assert [" OSError 0 there"] == said


@pytest.mark.parametrize("data", [b"abc", [b"a", b"bc"], (b"abc",)])
def test_a_file_is_written_whole_or_in_blocks(
    tmp_path: Path, data: bytes | Sequence[bytes]
) -> None:
    """All of it, and with the time that it is given."""
    os.close(durable.create_written(f"{tmp_path}/file", data, 1.5))
    assert b"abc" == (tmp_path / "file").read_bytes()
    assert 1.5 == os.stat(tmp_path / "file").st_mtime


def test_a_umask_is_obeyed_unless_told_otherwise(tmp_path: Path) -> None:
    """Then the owner gets the rights to the file, and nobody any others."""
    before = os.umask(0o600)
    try:
        for name, mode, told in (
            ("ours", 0o044, {}),
            ("an application's", 0o644, {"any_umask": True}),
        ):
            paths = f"{tmp_path}/{name}", f"{tmp_path}/{name}, written"
            os.close(durable.create(paths[0], mode=0o644, **told))
            os.close(durable.create_written(paths[1], b"x", mode=0o644, **told))
            assert [mode] * 2 == [stat.S_IMODE(os.stat(one).st_mode) for one in paths]
    finally:
        os.umask(before)


def test_rights_that_cannot_be_restored_leave_no_file(tmp_path: Path) -> None:
    """The file system refuses the mode: an error, no file and no descriptor.

    The mode of a directory is set by its name; it is made durable before its entry.
    """
    calls = (
        "os.umask(0o777) * 0",
        "durable.create('file', any_umask=True)",
        "durable.make_directory('there')",
    )
    strace = "-e", "trace=fsync,fchmod", "-e", "inject=fchmod:error=EPERM"
    said, synced = traced(tmp_path, calls, *strace)
    assert ["there", "."] == synced
    assert [" 0 0", " PermissionError 0", " True 0 there"] == said
    assert 0o700 == stat.S_IMODE((tmp_path / "there").stat().st_mode)


def test_a_umask_may_withhold_a_directory_from_others(tmp_path: Path) -> None:
    """Only the owner's rights are given back."""
    before = os.umask(0o027)
    try:
        assert durable.make_directory(f"{tmp_path}/made", 0o755)
    finally:
        os.umask(before)
    assert 0o750 == stat.S_IMODE((tmp_path / "made").stat().st_mode)
