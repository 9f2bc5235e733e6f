"""One sync for all of a file system: believed only where it may be, and told where it fails."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

import picoqmail
from picoqmail import Mail
from picoqmail.admin import filesystem
from picoqmail.library.groups import GROUP_MESSAGES
from picoqmail.spool import mounts, syncfs
from picoqmail.spool.syncfs import (
    LEAST_MESSAGES,
    MOST_DIRTY_OCTETS,
    TRUSTED,
    FileSystemSync,
    dirty_octets,
    is_recent,
    open_for_sync,
)
from proof.device import FILE_SYSTEMS, FileSystem, make, mounted, shut_down, why_not
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EIO = 5


@pytest.fixture
def trusted(tmp_path: Path) -> FileSystemSync:
    """A sync of the tests' own file system."""
    found = open_for_sync(str(tmp_path))
    if found is None:
        pytest.skip(f"{filesystem.type_of(str(tmp_path))} is not trusted with a sync of all")
    return found


def mails(count: int, keys: int = 0) -> list[Mail]:
    """Messages, the first of them with keys."""
    return [
        Mail(
            b"Subject: %d\n\nbody\n" % number,
            "a@example.org",
            ["b@example.net"],
            idempotency_key=f"key {number}" if number < keys else None,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("expected", "name", "release"),
    [
        (True, "Linux", "5.17"),
        (True, "Linux", "5.17-rc3"),
        (True, "Linux", "6.1.0-18-amd64"),
        (True, "Linux", "10.0+"),
        (False, "Linux", "5.16.20"),
        (False, "Linux", "5.4.0-generic"),
        (False, "Linux", "4.19"),
        (False, "Linux", "six.one"),
        (False, "Linux", "6.one"),
        (False, "Linux", "six.1"),
        (False, "Linux", ""),
        (False, "FreeBSD", "14.0-RELEASE"),
        (False, "Darwin", "23.1.0"),
    ],
)
def test_only_kernels_that_report_all_errors(expected: bool, name: str, release: str) -> None:  # noqa: FBT001 - a table
    """Linux from 5.17 on; a number that makes no sense is none of them."""
    system = os.uname_result((name, "host", release, "version", "machine"))
    assert expected == is_recent(system)


def test_the_file_system_of_an_open_file_is_known(tmp_path: Path) -> None:
    """The mount of the descriptor says the same as the path; no mount says nothing."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert filesystem.type_of(str(tmp_path)) == mounts.type_of(descriptor)
    os.close(descriptor)
    assert "" == mounts.type_of(descriptor)
    reading, writing = os.pipe()
    assert mounts.type_of(reading) not in TRUSTED
    os.close(reading)
    os.close(writing)


def test_what_is_not_trusted_is_not_opened(tmp_path: Path) -> None:
    """/proc is no place for mail, and what is not there is somebody else's to tell."""
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    assert open_for_sync("/proc") is None
    assert open_for_sync(str(tmp_path / "missing")) is None
    assert open_for_sync(str(tmp_path / "file")) is None
    assert before == len(os.listdir("/proc/self/fd"))


def test_it_is_used_where_it_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system in memory has every call, and this kernel is one that reports all errors."""
    memory = "/dev/shm"
    if not os.path.isdir(memory) or "tmpfs" != filesystem.type_of(memory):
        pytest.skip("no tmpfs at /dev/shm")
    if not is_recent(os.uname()):
        pytest.skip("no Linux of 5.17 or later")
    monkeypatch.setattr(syncfs, "_calls", [])
    found = open_for_sync(memory)
    assert found is not None
    found.sync()
    found.close()


def test_a_sync_that_succeeds_can_be_repeated(
    trusted: FileSystemSync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of one descriptor from its opening on."""
    for number in range(3):
        (tmp_path / f"{number}").write_bytes(b"x")
        trusted.sync()
    monkeypatch.setattr(syncfs, "dirty_octets", lambda: 0)
    assert trusted.pays(LEAST_MESSAGES)
    assert not trusted.pays(LEAST_MESSAGES - 1)
    trusted.close()


def test_a_sync_that_failed_is_never_used_again() -> None:
    """The error was reported and is forgotten: a second try would say yes."""
    answers = iter([EIO, 0])
    sync = FileSystemSync(os.open("/", os.O_RDONLY), lambda _descriptor: next(answers))
    with pytest.raises(OSError, match="Input/output error") as caught:
        sync.sync()
    assert EIO == caught.value.errno
    assert not sync.pays(1000)
    sync.close()


def test_the_kernel_s_errno_is_told(tmp_path: Path) -> None:
    """Of the real call: a descriptor that is closed is EBADF."""
    found = open_for_sync(str(tmp_path))
    if found is None:
        pytest.skip("no syncfs to be trusted here")
    found.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        found.sync()


def test_much_that_is_not_written_yet_is_not_waited_for(
    trusted: FileSystemSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is not to wait for another program's gigabytes."""
    for octets, expected in ((MOST_DIRTY_OCTETS, True), (MOST_DIRTY_OCTETS + 1, False)):
        monkeypatch.setattr(syncfs, "dirty_octets", lambda octets=octets: octets)
        assert expected == trusted.pays(1000)
    trusted.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"MemTotal: 9 kB\nDirty:  12 kB\nWriteback: 3 kB\nWritebackTmp: 5 kB\n", 15 * 1024),
        (b"Dirty: 12 kB\n", MOST_DIRTY_OCTETS + 1),
        (b"Dirty: x kB\nWriteback: 3 kB\n", MOST_DIRTY_OCTETS + 1),
        (b"Dirty:\nWriteback: 3 kB\n", MOST_DIRTY_OCTETS + 1),
        (None, MOST_DIRTY_OCTETS + 1),
    ],
)
def test_what_the_kernel_says_of_its_writing(
    monkeypatch: pytest.MonkeyPatch, text: bytes | None, expected: int
) -> None:
    """As proc_meminfo(5) has it; much, where it says nothing."""

    def opened(*_: object) -> io.BytesIO:
        if text is None:
            raise PermissionError
        return io.BytesIO(text)

    monkeypatch.setattr(syncfs, "open", opened, raising=False)
    assert expected == dirty_octets()


def test_without_ctypes_each_message_is_synced_alone(home: TemporaryHome) -> None:
    """A Python that lacks it accepts groups all the same."""
    code = """
import sys
sys.modules["_ctypes"] = None
import picoqmail
from picoqmail.spool.syncfs import open_for_sync
assert open_for_sync("/") is None
mail = picoqmail.Mail(b"", "a@example.org", "b@example.net")
print([type(one).__name__ for one in picoqmail.enqueue_many([mail] * 9)])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert f"{['Receipt'] * 9}\n" == ran.stdout
    assert 18 == len(home.files())


def test_ctypes_is_not_imported_before_it_is_needed() -> None:
    """Neither by the first use of the library, nor by a single message's enqueue."""
    code = """
import sys
import picoqmail
picoqmail.enqueue, picoqmail.Spool
assert "picoqmail.spool.syncfs" in sys.modules
print("ctypes" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "False\n" == ran.stdout


def test_no_descriptor_is_left_open(home: TemporaryHome) -> None:
    """Of many groups, some of which are refused."""
    picoqmail.enqueue_many(mails(LEAST_MESSAGES))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        results = picoqmail.enqueue_many([*mails(LEAST_MESSAGES, keys=2), Mail(b"", "a b", "c")])
        assert isinstance(results[-1], picoqmail.EnvelopeError)
    assert before == len(os.listdir("/proc/self/fd"))
    assert len(home.ids()) == 8 + 8 + 6 + 6


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The errors of the next syncs, in turn; what is asked for beyond them is an error of ours."""
    answers: list[int] = []

    def call(_descriptor: int) -> int:
        return answers.pop(0)

    def opened(directory: str) -> Any:
        return FileSystemSync(os.open(directory, os.O_RDONLY), call)

    monkeypatch.setattr("picoqmail.library.groups.open_for_sync", opened)
    monkeypatch.setattr(syncfs, "dirty_octets", lambda: 0)
    yield answers
    assert not answers


def test_an_error_refuses_all_of_the_group(home: TemporaryHome, failing: list[int]) -> None:
    """Whose data it was nobody can tell: each is told the same, and nothing is left of any."""
    failing[:] = [EIO]
    results = picoqmail.enqueue_many([*mails(10), Mail(b"", "a b", "c")])
    assert ["SpoolError"] * 10 + ["AddressError"] == [type(one).__name__ for one in results]
    assert "spool/tmp" in str(results[0])
    assert not getattr(results[0], "permanent", True)
    assert [] == home.files()


def test_the_next_group_has_a_chance_of_its_own(home: TemporaryHome, failing: list[int]) -> None:
    """An error is that of the group that was under way."""
    failing[:] = [EIO, 0]
    results = picoqmail.enqueue_many(mails(GROUP_MESSAGES + 10))
    refused, accepted = results[:GROUP_MESSAGES], results[GROUP_MESSAGES:]
    assert GROUP_MESSAGES == sum(isinstance(one, picoqmail.SpoolError) for one in refused)
    assert 10 == sum(isinstance(one, picoqmail.Receipt) for one in accepted)
    assert 10 == len(home.ids())


def test_an_error_of_the_keys_refuses_those_alone(home: TemporaryHome, failing: list[int]) -> None:
    """The others were durable before; and the keys are free again."""
    failing[:] = [0, EIO, 0, 0]
    results = picoqmail.enqueue_many(mails(10, keys=4))
    kinds = ["SpoolError"] * 4 + ["Receipt"] * 6
    assert kinds == [type(one).__name__ for one in results]
    assert 6 == len(home.ids())
    again = picoqmail.enqueue_many(mails(10, keys=4))
    assert [False] * 10 == [getattr(one, "repeated", None) for one in again]


def test_a_key_twice_in_a_group_whose_sync_fails(home: TemporaryHome, failing: list[int]) -> None:
    """The second of the key comes after the error: it is synced alone, and accepted."""
    failing[:] = [EIO]
    several = [*mails(9, keys=1), *mails(1, keys=1)]
    results = picoqmail.enqueue_many(several)
    assert ["SpoolError"] * 9 + ["Receipt"] == [type(one).__name__ for one in results]
    assert 1 == len(home.ids())


# Btrfs cannot be shut down.
@pytest.mark.parametrize("system", FILE_SYSTEMS[:2], ids=lambda one: one.name)
def test_a_file_system_that_dies_under_a_group_says_no(system: FileSystem) -> None:
    """Shut down while the group is written: whatever its syncfs answers, nobody is told yes."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as root:
        if reason := why_not(system, root):
            pytest.skip(reason)
        image = f"{root}/image"
        make(system, image)
        with mounted(system, image, f"{root}/live") as where:
            os.mkdir(f"{where}/home")
            home = TemporaryHome(f"{where}/home").make()
            spool = picoqmail.Spool(home.root, send=False)
            results = spool.enqueue_many(mails(LEAST_MESSAGES))
            assert LEAST_MESSAGES == sum(isinstance(one, picoqmail.Receipt) for one in results)

            class Last(io.BytesIO):
                """The last message; to be asked for it is the end of its spool."""

                def read(self, _size: int | None = -1) -> bytes:
                    """Shut the file system down."""
                    assert shut_down(where)
                    return b""

            last = Mail(Last(), "a@example.org", "b@example.net")
            results = spool.enqueue_many([*mails(LEAST_MESSAGES - 1), last])
        assert ["SpoolError"] * LEAST_MESSAGES == [type(one).__name__ for one in results]
