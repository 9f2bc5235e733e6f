"""Programs that were damaged, or are given too little: a clear line, or the ordinary way.

No file of an installation, and no limit of the system, makes a program say yes to a mail that is
not whole in the spool, or print a traceback.
"""

from __future__ import annotations

import glob
import os
import random
import resource
import shutil
import subprocess
import tempfile
from functools import partial
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from attrs import frozen

from installation import PROGRAMS, Installation
from picoqmail.layout import CUR, NEW
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

pytestmark = pytest.mark.slow

SEED = 20
SECONDS = 60
MESSAGE = b"Subject: x\n\n" + b"a line of the body\n" * 40
ENVELOPE = b"Fa@example.org\0Tb@example.net\0Tc@example.net\0\0"
RECIPIENTS = ["b@example.net", "c@example.net"]
WORDS = {
    "inject": ["-fa@example.org", *RECIPIENTS],
    "sendmail": ["-i", "-fa@example.org", *RECIPIENTS],
}
ACCEPTING = ("queue", "inject", "sendmail")
# Said by the system or by Python before any code of ours.
NOT_OURS = (
    b"error while loading shared libraries",
    b"Fatal Python error",
    # dash needs a descriptor from 10 on.
    b"/bin/sh: 0: 3: Invalid argument",
)
# The exit codes of each program where it cannot go on; a signal is a negative number.
MAY_FAIL = {
    "queue": {51, 53, 54, 55, 61, 62, 63, 64, 65, 66, 71, 81, 91},
    "inject": {100, 111},
    "sendmail": {100, 111},
    "send": {70, 71, 74, 78},
    "cron": {70, 71, 74, 78},
}


@frozen
class Ended:
    """How a program ended."""

    code: int
    said: bytes


def run(
    installed: Installation,
    home: TemporaryHome,
    program: str,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Hand a mail to a program, or have it look for one; `before` is called in its process."""
    with tempfile.TemporaryFile() as zero, tempfile.TemporaryFile() as one:
        zero.write(MESSAGE)
        one.write(ENVELOPE if program == "queue" else b"")
        zero.seek(0)
        one.seek(0)
        ran = subprocess.run(
            [installed.program(program), *WORDS.get(program, [])],
            stdin=zero,
            stdout=one,
            stderr=subprocess.PIPE,
            env=home.variables(),
            timeout=SECONDS,
            check=False,
            preexec_fn=before,
        )
    return Ended(ran.returncode, ran.stderr)


def breaches(home: TemporaryHome, program: str, ended: Ended, *, may_die: bool = False) -> str:
    """Return what is wrong with an end, "" if a yes is one, and a no is the program's own."""
    if ended.code == 0:
        return what_is_missing(home) if program in ACCEPTING else ""
    # The latter is Python's, if it could not even compile what -c gave it.
    is_foreign = any(words in ended.said for words in NOT_OURS) or ended.said == b"MemoryError\n"
    if is_foreign and ended.code > 0:
        return ""
    if b"Traceback" in ended.said:
        return f"a traceback: {ended}"
    if ended.code < 0:
        return "" if may_die else f"died: {ended}"
    if ended.code not in MAY_FAIL[program] or ended.said.count(b"\n") != 1:
        return f"not its words: {ended}"
    return ""


def what_is_missing(home: TemporaryHome) -> str:
    """Return what a mail lacks that the spool must have as it was given."""
    found = {*home.ids(NEW), *home.ids(CUR)}
    if len(found) != 1:
        return f"a wrong yes: {len(found)} messages in the spool"
    (message_id,) = found
    record = home.sidecar(message_id)
    with open(home.path(home.state(message_id), message_id, ".eml"), "rb") as file:
        body = file.read()
    has = {
        "body": body.endswith(MESSAGE) and body.startswith(b"Received: "),
        "size": len(body) == record["size"],
        "crc32": crc32(body) == record["crc32"],
        "id": (1, message_id) == (record["version"], record["id"]),
        "sender": record["sender"] == "a@example.org",
        "recipients": [one["address"] for one in record["recipients"]] == RECIPIENTS,
        "state": {one["state"] for one in record["recipients"]} == {"pending"},
    }
    return "".join([f"a wrong yes: {name}; " for name, is_right in has.items() if not is_right])


def empty(home: TemporaryHome) -> None:
    """Remove all mail."""
    for path in glob.glob(f"{home.spool}/*/*"):
        os.unlink(path)


@pytest.fixture
def home(tmp_path: Path) -> TemporaryHome:
    """A home with a name and an empty spool."""
    return TemporaryHome(str(tmp_path / "home")).make(relay="127.0.0.1:1")


@pytest.fixture
def own(installed: Installation, tmp_path: Path) -> Installation:
    """An installation that a test may damage."""
    directory = tmp_path / "environment"
    shutil.copytree(os.path.dirname(installed.bin), directory, symlinks=True)
    return Installation(str(directory / "bin"), str(directory / "bin" / "python3"))


def files_of(own: Installation, program: str) -> list[str]:
    """The checked code of a program, its compiled file, and the text of both."""
    (merged,) = glob.glob(f"{own.bin}/../lib/python3*/site-packages/picoqmail/merged")
    (compiled,) = glob.glob(f"{merged}/__pycache__/picoqmail_{program}.*.pyc")
    return [f"{merged}/picoqmail_{program}.code", compiled, f"{merged}/picoqmail_{program}.py"]


def octets_of(path: str) -> bytes:
    """What a file holds."""
    with open(path, "rb") as file:
        return file.read()


def replace(path: str, data: bytes) -> None:
    """Write a file as a whole, with the times that it had."""
    found = os.stat(path)
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, (found.st_atime, found.st_mtime))


def noise(octets: int) -> bytes:
    """The same octets each time."""
    return random.Random(SEED).randbytes(octets)  # noqa: S311 - nothing is to be kept secret


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing in it": lambda _: b"",
    "one octet": lambda data: data[:1],
    "the header alone": lambda data: data[:16],
    "the first half": lambda data: data[: len(data) // 2],
    "all but the last octet": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
    "a page of zeros": lambda data: data[:8192] + bytes(4096) + data[12288:],
    "noise": lambda data: noise(len(data)),
    "noise behind the header": lambda data: data[:16] + noise(len(data)),
    "something more": lambda data: data + b"more",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_damaged_file(own: Installation, home: TemporaryHome, program: str, damage: str) -> None:
    """The checked code alone, what stands in for it, too, or the text that all were made from."""
    code, compiled, text = files_of(own, program)
    whole = {path: octets_of(path) for path in (code, compiled, text)}
    found = []
    for paths in ((code,), (code, compiled), (code, compiled, text), (text,)):
        for path in paths:
            replace(path, DAMAGE[damage](whole[path]))
        # A page of zeros in the code of a function may be executed, if nothing checks it.
        may_die = damage == "a page of zeros" and compiled in paths
        found.append(breaches(home, program, run(own, home, program), may_die=may_die))
        for path in paths:
            replace(path, whole[path])
        empty(home)
    assert ["", "", "", ""] == found


@pytest.mark.parametrize("program", ACCEPTING)
def test_a_flipped_bit(own: Installation, home: TemporaryHome, program: str) -> None:
    """A bit of the code that the disk changed is noticed, and the mail accepted all the same."""
    code, *_ = files_of(own, program)
    whole = octets_of(code)
    draw = random.Random(SEED)  # noqa: S311 - nothing is to be kept secret
    found = {}
    for bit in (*range(0, 64, 9), *draw.sample(range(64, 8 * len(whole)), 40)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        replace(code, bytes(data))
        ended = run(own, home, program)
        found[bit] = what_is_missing(home) if ended == Ended(0, b"") else str(ended)
        empty(home)
    assert {} == {bit: what for bit, what in found.items() if what}


def test_a_launcher_that_was_cut(own: Installation, home: TemporaryHome) -> None:
    """Wherever behind its first line it ends: an error of the shell, and no mail."""
    path = own.program("queue")
    whole = octets_of(path)
    begin = len(b"#!/bin/sh\n{")
    codes = set()
    for length in (*range(begin, len(whole), 97), len(whole) - len(b"}\n")):
        replace(path, whole[:length])
        ended = run(own, home, "queue")
        assert b"yntax error" in ended.said
        codes.add(ended.code)
    assert {2} == codes
    assert [] == home.ids(NEW)


def limited(
    installed: Installation, home: TemporaryHome, program: str, kind: int, limits: Iterable[int]
) -> dict[int, str]:
    """Run a program under each of these limits; return what is wrong with an end, by limit."""
    found = {}
    for most in limits:
        ended = run(installed, home, program, partial(resource.setrlimit, kind, (most, most)))
        found[most] = breaches(home, program, ended, may_die=True)
        empty(home)
    return {most: what for most, what in found.items() if what}


@pytest.mark.parametrize("program", PROGRAMS)
def test_few_descriptors(installed: Installation, home: TemporaryHome, program: str) -> None:
    """From none left to plenty (`ulimit -n`)."""
    assert {} == limited(installed, home, program, resource.RLIMIT_NOFILE, range(3, 17))


@pytest.mark.parametrize("program", PROGRAMS)
def test_little_memory(installed: Installation, home: TemporaryHome, program: str) -> None:
    """From too little for Python to plenty (`ulimit -v`)."""
    limits = [mebibytes << 20 for mebibytes in (8, 12, 14, 16, 18, 20, 24, 28, 32, 48, 64)]
    assert {} == limited(installed, home, program, resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("program", PROGRAMS)
def test_small_files(installed: Installation, home: TemporaryHome, program: str) -> None:
    """No file may become longer than that (`ulimit -f`)."""
    limits = (0, 1, 100, 512, 1024, 4096)
    assert {} == limited(installed, home, program, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_closed_descriptors(
    installed: Installation, home: TemporaryHome, program: str, closed: tuple[int, ...]
) -> None:
    """Programs that are started without one of the three."""

    def close() -> None:
        for number in closed:
            os.close(number)

    ended = run(installed, home, program, close)
    if 0 in closed and program in ACCEPTING:
        assert 0 != ended.code
    if ended.code != 0 and 2 in closed:
        assert ended.code in MAY_FAIL[program]
    else:
        assert "" == breaches(home, program, ended)
