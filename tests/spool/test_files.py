"""The files of a spool's messages: how they are read, and what of them waits for the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from typing import TYPE_CHECKING

import pytest

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import BLOCK_OCTETS, BODY, CUR, NEW, TMP, UNDELIVERED
from picoqmail.spool.files import SpoolFiles, read_lines, read_whole

if TYPE_CHECKING:
    from pathlib import Path

    from temporary_home import TemporaryHome

FIRST_READ = 4096
RESULT_OCTETS = 65536
DOOMED = 200


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def numbered(octets: int) -> bytes:
    """So many octets, no two lines of which are the same."""
    return b"".join(b"%09d\n" % number for number in range(octets // 10 + 1))[:octets]


@pytest.mark.parametrize(
    "size", [0, 1, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, FIRST_READ + BLOCK_OCTETS + 1]
)
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    """Whatever its size, and nothing stays open."""
    path, data = tmp_path / "file", random.Random(1).randbytes(size)  # noqa: S311 - a seeded choice
    path.write_bytes(data)
    before = open_files()
    assert data == read_whole(str(path))
    assert data == b"".join(line + b"\n" for line in read_lines(str(path)))[:size]
    assert before == open_files()


@pytest.mark.parametrize("more", [0, 1, 2 * BLOCK_OCTETS])
def test_of_a_large_file_more_is_read_than_may_be(tmp_path: Path, more: int) -> None:
    """So its length tells that it is too large; but it is not read to its end."""
    most = FIRST_READ
    path, data = tmp_path / "file", random.Random(1).randbytes(most + more)  # noqa: S311 - seeded
    path.write_bytes(data)
    found = read_whole(str(path), most)
    assert data.startswith(found)
    assert min(most + more, most + 1) <= len(found) <= most + BLOCK_OCTETS


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody writes to it: it is as good as empty."""
    os.mkfifo(tmp_path / "fifo")
    assert b"" == read_whole(str(tmp_path / "fifo"))


def test_a_sidecar_of_very_many_is_read(home: TemporaryHome) -> None:
    """One that is too large to be held whole is read from its file."""
    recipients = [f"{number}@example.net" for number in range(2000)]
    message_id = home.accepted(recipients=recipients)
    message = SpoolFiles(home.spool).read_sidecar(NEW, message_id)
    assert recipients == [one.address for one in message.recipients]


def test_where_a_message_is_may_be_unknown(home: TemporaryHome) -> None:
    """An error is not "nowhere": what is nowhere might be removed."""
    with pytest.raises(SpoolError, match="look for"):
        SpoolFiles(home.spool).where("1" * 300)


@pytest.mark.parametrize("before", [0, 10])
def test_what_relays_said_is_kept_up_to_a_limit(home: TemporaryHome, before: int) -> None:
    """The oldest lines go first, and never a part of a line."""
    files = SpoolFiles(home.spool)
    for text in (numbered(before), numbered(RESULT_OCTETS)[before:]):
        files.append_result("1.a", text.decode())
    assert numbered(RESULT_OCTETS).decode() == files.read_result("1.a")
    files.append_result("1.a", "\n")
    expected = (b"[...]\n" + numbered(RESULT_OCTETS)[10:] + b"\n").decode()
    assert expected == files.read_result("1.a")
    assert "" == files.read_result("2.b")


def test_bodies_that_are_to_go_wait_for_one_sync(home: TemporaryHome) -> None:
    """So many share it; then they go, and with them the sync that is due."""
    files = SpoolFiles(home.spool)
    paths = [home.path(CUR, f"{number}.a", BODY) for number in range(DOOMED)]
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    files.doom(*paths[1:])
    files.make_many_durable()
    assert DOOMED == len(home.names(CUR))
    files.doom(paths[0])
    files.make_many_durable()
    assert [] == home.names(CUR)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EIO])
def test_a_copy_is_replaced_where_there_are_no_links(
    home: TemporaryHome, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """By the body itself, which leaves its place; any other error leaves both as they are."""
    for state, text in ((NEW, b"body"), (UNDELIVERED, b"copy")):
        with open(home.path(state, "1.a", BODY), "wb") as written:
            written.write(text)

    def failing(source: str, target: str) -> None:
        raise OSError(error, f"{source} {target}")

    monkeypatch.setattr(durable, "link", failing)
    files = SpoolFiles(home.spool)
    if error == errno.EPERM:
        files.carry_body("1.a", UNDELIVERED)
        assert [] == home.names(NEW) + home.names(TMP)
    else:
        with pytest.raises(OSError, match=home.path(NEW, "1.a", BODY)):
            files.carry_body("1.a", UNDELIVERED)
    with open(home.path(UNDELIVERED, "1.a", BODY), "rb") as file:
        assert (b"body" if error == errno.EPERM else b"copy") == file.read()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EIO])
def test_a_body_is_moved_where_there_are_no_links(
    home: TemporaryHome, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Any other error leaves it where it is."""
    with open(home.path(NEW, "1.a", BODY), "wb") as written:
        written.write(b"body")

    def failing(source: str, target: str) -> None:
        raise OSError(error, f"{source} {target}")

    monkeypatch.setattr(durable, "link", failing)
    with contextlib.suppress(OSError) if error == errno.EIO else contextlib.nullcontext():
        SpoolFiles(home.spool).carry_body("1.a", CUR)
    found = [f"{NEW if error == errno.EIO else CUR}/1.a{BODY}"]
    assert found == home.files()


def test_the_first_body_is_the_one_that_is_carried(home: TemporaryHome) -> None:
    """The order is that of the locks; what lies behind it is a copy."""
    for state in (NEW, UNDELIVERED):
        with open(home.path(state, "1.a", BODY), "w", encoding="utf-8") as file:
            file.write(state)
    SpoolFiles(home.spool).carry_body("1.a", CUR)
    with open(home.path(CUR, "1.a", BODY), encoding="utf-8") as file:
        assert NEW == file.read()
