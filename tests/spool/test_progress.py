"""What is noted of some recipients counts after a crash, line by line; a cut line does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import SpoolError
from picoqmail.layout import NEW, PROGRESS
from picoqmail.spool import progress
from picoqmail.spool.files import SpoolFiles
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Message
from picoqmail.spool.progress import IN_DOUBT
from picoqmail.spool.recipient import Recipient
from picoqmail.value import evolve
from proof import tracing
from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Results = Mapping[int, tuple[str, str]]


def message(count: int = 3, revision: int = 2) -> Message:
    """A message for so many, all pending."""
    return Message(
        id="1700000000.M1P1Q1R1.me.test",
        sender="a@b",
        recipients=tuple(Recipient(f"r{index}@d") for index in range(count)),
        created=0,
        next_attempt=0,
        expires=0,
        attempts=0,
        size=1,
        crc32=1,
        held=False,
        history=(),
        origin={},
        revision=revision,
    )


@pytest.fixture
def files(tmp_path: Path) -> SpoolFiles:
    """A spool with one state."""
    os.mkdir(tmp_path / NEW)
    return SpoolFiles(str(tmp_path))


def path_of(files: SpoolFiles) -> str:
    """Return the path of the progress."""
    return files.join(NEW, message().id + PROGRESS)


def note(files: SpoolFiles, results: Results, revision: int = 2, *, is_first: bool = False) -> None:
    """Note results."""
    progress.append_progress(files, message(3, revision), NEW, results, is_first=is_first)


def read(files: SpoolFiles, before: Message | None = None) -> list[tuple[str, str | None]]:
    """Return states and replies as a claim finds them."""
    found, has_file = progress.merge_progress(files, before or message(), NEW)
    assert has_file == os.path.exists(path_of(files))
    return [(one.state, one.reply) for one in found.recipients]


def test_what_was_noted_counts(files: SpoolFiles) -> None:
    """Each state that a transaction can end with; what is not noted is as it was."""
    assert [(PENDING, None)] * 3 == read(files)
    note(files, {0: (DELIVERED, "250 ok")}, is_first=True)
    note(files, {1: (FAILED, "550 no"), 2: (PENDING, "451 later")})
    expected = [(DELIVERED, "250 ok"), (FAILED, "550 no"), (PENDING, "451 later")]
    assert expected == read(files)


def test_only_lines_of_this_revision_count(files: SpoolFiles) -> None:
    """What was noted before the sidecar was replaced is in it."""
    note(files, {0: (DELIVERED, "old")}, revision=1)
    note(files, {1: (DELIVERED, "new")})
    note(files, {2: (DELIVERED, "old")}, revision=3)
    assert [(PENDING, None), (DELIVERED, "new"), (PENDING, None)] == read(files)


def test_what_is_settled_is_not_changed(files: SpoolFiles) -> None:
    """By whatever a line says; nor is a state believed that is none."""
    note(files, {0: (FAILED, "550 no"), 1: ("eaten", "")})
    recipients = (Recipient("a@b", DELIVERED, "250 ok"), *message().recipients[1:])
    before = evolve(message(), recipients=recipients)
    assert [(DELIVERED, "250 ok"), (PENDING, None), (PENDING, None)] == read(files, before)


@pytest.mark.parametrize(
    "line",
    [
        b'[2, [[0, "deliv',
        b"",
        b"7",
        b"[2, 5]",
        b'[2, [[9, "delivered", ""]]]',
        b'[2, [["0", "delivered", ""]]]',
        b"[" * 100_000,
    ],
)
def test_a_line_that_was_cut_is_passed_over(files: SpoolFiles, line: bytes) -> None:
    """What comes behind it stands in a line of its own."""
    with open(path_of(files), "wb") as file:
        file.write(line)
    note(files, {1: (DELIVERED, "250 ok")})
    assert [(PENDING, None), (DELIVERED, "250 ok"), (PENDING, None)] == read(files)


def test_whose_transactions_were_in_doubt(files: SpoolFiles) -> None:
    """As many as were begun, less those that came to an end; never fewer than none."""
    assert {} == progress.read_doubts(files, message(), NEW)
    note(files, {0: (DELIVERED, ""), 1: (IN_DOUBT, ""), 2: (IN_DOUBT, "")})
    note(files, {0: (IN_DOUBT, ""), 1: (PENDING, "451 later"), 2: (IN_DOUBT, "")})
    assert {0: 1, 2: 2} == progress.read_doubts(files, message(), NEW)
    note(files, {2: (FAILED, "550 no")})
    assert {0: 1, 2: 1} == progress.read_doubts(files, message(), NEW)
    assert {} == progress.read_doubts(files, message(3, 7), NEW)


def test_nothing_is_noted_of_a_message_of_one_part(files: SpoolFiles) -> None:
    """So nothing is read, whatever lies there."""
    note(files, {0: (DELIVERED, "")})
    note(files, {0: (IN_DOUBT, "")})
    assert {} == progress.read_doubts(files, message(1), NEW)
    assert (message(1), False) == progress.merge_progress(files, message(1), NEW)


def test_the_file_goes_once_and_that_is_synced_later(files: SpoolFiles) -> None:
    """A file that is not there changes nothing."""
    progress.drop_progress(files, message().id, NEW)
    assert set() == files._unsynced
    note(files, {0: (DELIVERED, "")})
    progress.drop_progress(files, message().id, NEW)
    assert {NEW} == files._unsynced
    assert not os.path.exists(path_of(files))


def test_an_error_names_the_file(files: SpoolFiles) -> None:
    """And is one of the spool."""
    os.mkdir(path_of(files))
    with pytest.raises(SpoolError, match="note progress in") as caught:
        note(files, {0: (DELIVERED, "")})
    assert path_of(files) == caught.value.filename


NOTES = """
import os, sys
from picoqmail.spool import progress
from picoqmail.spool.files import SpoolFiles
from picoqmail.spool.message import Message
files, data = SpoolFiles(sys.argv[1]), open(sys.argv[2], "rb").read()
message = Message.from_sidecar(data, sys.argv[3])
before = len(os.listdir("/proc/self/fd"))
for first, more in ((True, {}), (False, {}), (False, {"is_synced": False})):
    progress.append_progress(
        files, message, "new", {0: ("delivered", "")}, is_first=first, **more
    )
assert before == len(os.listdir("/proc/self/fd"))
"""


def test_what_is_synced(files: SpoolFiles, tmp_path: Path) -> None:
    """Each line, and the directory if the file is new; the mark before the end of data is not."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    (tmp_path / "sidecar").write_bytes(message().to_sidecar())
    arguments = [files.path, str(tmp_path / "sidecar"), message().id]
    trace = f"{tmp_path}/trace"
    strace = ["strace", "-y", "-o", trace, "-e", "trace=fsync", sys.executable, "-c", NOTES]
    subprocess.run([*strace, *arguments], check=True, timeout=60)
    with open(trace, encoding="utf-8") as file:
        synced = [line.partition("<")[2].partition(">")[0] for line in file if "fsync(" in line]
    assert [path_of(files), files.join(NEW), path_of(files)] == synced
    with open(path_of(files), encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert ["", json.dumps([2, [[0, "delivered", ""]]])] * 3 == lines
