"""Acceptance by the library: a yes is durable, a no leaves nothing, nobody gets in between."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from picoqmail import durable
from picoqmail.errors import MessageTooLargeError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.layout import DIRECTORIES, TMP, is_id
from picoqmail.spool.incoming import Incoming, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW_NS = 1_700_000_000_123_456_789


@pytest.fixture
def spool(tmp_path: Path) -> str:
    """An empty spool."""
    for name in DIRECTORIES:
        os.mkdir(tmp_path / name, 0o700)
    return str(tmp_path)


def incoming(spool: str, now_ns: int = NOW_NS, **limits: int) -> Incoming:
    """A message on its way in."""
    return Incoming(
        spool, Limits("me.test", **limits), program="trial", uid=1000, pid=77, now_ns=now_ns
    )


def files(spool: str) -> list[str]:
    """All files of the spool."""
    return sorted(
        f"{state}/{name}" for state in DIRECTORIES for name in os.listdir(f"{spool}/{state}")
    )


def test_a_message_is_two_files_in_new(spool: str) -> None:
    """Body with our Received line and then the octets as they came; the sidecar says the rest."""
    message = incoming(spool)
    message.write(b"Subject: x\r\n\n.\0\xff")
    message.write(b"no end of line")
    message_id = message.commit("a@b", ["c@d", "c@d"], {"dsn": {"ret": "HDRS"}})
    assert [f"new/{message_id}.eml", f"new/{message_id}.json"] == files(spool)
    with open(f"{spool}/new/{message_id}.eml", "rb") as file:
        received, _, rest = (body := file.read()).partition(b"\n")
    assert b"Subject: x\r\n\n.\0\xffno end of line" == rest
    assert (
        f"Received: by me.test (picoqmail 77 invoked by uid 1000) id {message_id}; "
        "14 Nov 2023 22:13:20 -0000"
    ).encode() == received
    with open(f"{spool}/new/{message_id}.json", encoding="utf-8") as file:
        record = json.load(file)
    assert {
        "version": 1,
        "id": message_id,
        "sender": "a@b",
        "recipients": [{"address": "c@d", "state": "pending", "reply": None}] * 2,
        "created": 1_700_000_000,
        "next_attempt": 1_700_000_000,
        "expires": 1_700_000_000 + 604800,
        "attempts": 0,
        "size": len(body),
        "crc32": crc32(body),
        "held": False,
        "history": [],
        "origin": {"uid": 1000, "pid": 77, "program": "trial"},
        "revision": 0,
        "dsn": {"ret": "HDRS"},
    } == record
    for name in files(spool):
        assert 0o600 == stat.S_IMODE(os.stat(f"{spool}/{name}").st_mode)
    assert is_id(message_id)


def test_nothing_is_visible_before_the_commit(spool: str) -> None:
    """While it is written there is one locked file in tmp/."""
    message = incoming(spool)
    message.write(b"x" * 100_000)
    assert [f"{TMP}/{message.id}.eml"] == files(spool)
    with open(f"{spool}/{TMP}/{message.id}.eml", "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    message.abort()
    assert [] == files(spool)
    message.abort()


def test_a_message_for_later_goes_to_cron(spool: str) -> None:
    """With a time in the future it lies in cur/, and the hint says when it is due."""
    now = time.time_ns()
    due = now // 10**9 + 3600
    message_id = incoming(spool, now).commit("a@b", ["c@d"], {"next_attempt": due})
    assert [f"cur/{message_id}.eml", f"cur/{message_id}.json"] == files(spool)
    assert due == os.stat(f"{spool}/cur/{message_id}.json").st_mtime


def test_too_many_octets_leave_nothing(spool: str) -> None:
    """At databytes it is accepted, one octet more and everything goes. Our line counts."""
    probe = incoming(spool)
    line = probe.size
    probe.abort()
    # Of an ID that has one digit more, our line is longer.
    message = incoming(spool, databytes=line + 10)
    message.write(b"x" * (line + 10 - message.size))
    message.commit("a@b", ["c@d"])
    with incoming(spool, databytes=line + 10) as message:
        message.write(b"x" * (line + 10 - message.size))
        with pytest.raises(MessageTooLargeError, match="databytes") as caught:
            message.write(b"x")
    assert 31 == caught.value.qmail_status
    assert 2 == len(files(spool))


def test_too_little_space_is_temporary(spool: str) -> None:
    """Less than minfree: refused for now, before anything is made."""
    with pytest.raises(SpoolError, match="minfree") as caught:
        incoming(spool, minfree=2**62)
    assert (53, False) == (caught.value.qmail_status, caught.value.permanent)
    assert [] == files(spool)


@pytest.mark.parametrize(
    ("missing", "status"), [("tmp", 62), ("new", 65)], ids=["no tmp", "no new"]
)
def test_a_spool_that_lacks_a_directory_takes_nothing(
    spool: str, missing: str, status: int
) -> None:
    """The error names the path and the step; nothing stays behind."""
    os.rmdir(f"{spool}/{missing}")
    with pytest.raises(SpoolError) as caught:
        incoming(spool).commit("a@b", ["c@d"])
    assert status == caught.value.qmail_status
    assert caught.value.filename.startswith(f"{spool}/{missing}/")
    os.mkdir(f"{spool}/{missing}")
    assert [] == files(spool)


def test_a_group_is_accepted_whole_or_not_at_all(spool: str) -> None:
    """Several messages share one sync; if one cannot get in, none is."""
    group = [incoming(spool) for _ in range(3)]
    for message in group:
        message.prepare("a@b", ["c@d"], None)
    assert 6 == len(files(spool))
    # The middle one cannot get in: its name is taken by a directory.
    os.mkdir(f"{spool}/new/{group[1].id}.json")
    with ExitStack() as taken_back:
        for message in group:
            taken_back.enter_context(message)
        with pytest.raises(SpoolError) as caught:
            publish(group)
    assert 66 == caught.value.qmail_status
    os.rmdir(f"{spool}/new/{group[1].id}.json")
    assert [] == files(spool)
    whole = [incoming(spool) for _ in range(3)]
    for message in whole:
        message.prepare("a@b", ["c@d"], None)
    publish(whole)
    assert 6 == len(os.listdir(f"{spool}/new"))


def test_threads_do_not_meet(spool: str) -> None:
    """Many at once, in the same microsecond of one process: each has its own name."""
    ids: list[str] = []

    def accept() -> None:
        for _ in range(25):
            message = incoming(spool)
            message.write(b"x\n")
            ids.append(message.commit("a@b", ["c@d"]))

    threads = [threading.Thread(target=accept) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 200 == len(set(ids))
    assert 400 == len(os.listdir(f"{spool}/new"))


def test_a_fork_and_its_parent_do_not_meet(spool: str) -> None:
    """A process forked after the import makes names of its own."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            incoming(spool).commit("a@b", ["c@d"])
            status = 0
        finally:
            os._exit(status)
    incoming(spool).commit("a@b", ["c@d"])
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 4 == len(os.listdir(f"{spool}/new"))


def test_no_descriptor_is_left_open(spool: str) -> None:
    """Neither after a yes nor after a no."""
    before = sorted(os.listdir("/proc/self/fd"))
    incoming(spool).commit("a@b", ["c@d"])
    incoming(spool).abort()
    os.rmdir(f"{spool}/{TMP}")
    with pytest.raises(SpoolError):
        incoming(spool)
    assert before == sorted(os.listdir("/proc/self/fd"))


def test_a_symlink_in_the_place_of_new_body_is_not_followed(spool: str, tmp_path: Path) -> None:
    """A rename replaces a planted link and never writes through it."""
    message = incoming(spool)
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    os.symlink(target, f"{spool}/new/{message.id}.eml")
    message.commit("a@b", ["c@d"])
    assert b"precious" == target.read_bytes()
    assert not os.path.islink(f"{spool}/new/{message.id}.eml")


class Space:
    """A file system with so much space, and how often it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, octets: int = 0) -> None:
        self.octets = octets
        self.asked = 0
        monkeypatch.setattr("posix.statvfs", self)

    def __call__(self, _path: str) -> Any:
        """Answer as statvfs does."""
        self.asked += 1
        return SimpleNamespace(f_bavail=self.octets // 100, f_frsize=100)


def test_as_much_space_as_is_wanted_is_enough(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block less is not."""
    space = Space(monkeypatch, 5000)
    incoming(spool, minfree=5000).abort()
    space.octets = 4900
    with pytest.raises(SpoolError, match="minfree"):
        incoming(spool, minfree=5000)
    incoming(spool).abort()
    assert 2 == space.asked


def test_the_space_is_checked_at_each_megabyte(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each write; a disk that fills meanwhile is noticed before the next megabyte."""
    space = Space(monkeypatch, 5000)
    message = incoming(spool, minfree=1000)
    message.write(b"x" * ((1 << 20) - message.size - 1))
    assert 1 == space.asked
    message.write(b"x")
    message.write(b"x" * ((1 << 20) - 1))
    assert 2 == space.asked
    space.octets = 0
    with message, pytest.raises(SpoolError, match="minfree"):
        message.write(b"x")
    assert 3 == space.asked
    assert [] == files(spool)


def test_a_space_that_nobody_knows_is_an_error(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is temporary, and nothing was made."""

    def unknown(_path: str) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr("posix.statvfs", unknown)
    with pytest.raises(SpoolError, match="check the space of"):
        incoming(spool, minfree=1)
    assert [] == files(spool)


def fails(what: str, status: int, *, when: int = 1) -> Any:
    """A step that fails at its n-th call, and the exit code of the queue program then."""
    return pytest.param(what, when, status, id=f"{what} {when}")


@pytest.mark.parametrize(
    ("what", "when", "status"),
    [
        fails("durable.write_all", 53),
        fails("durable.write_all", 64, when=2),
        fails("durable.sync", 53),
        fails("durable.sync", 64, when=2),
        fails("durable.rename", 66),
        fails("durable.sync_directory", 53),
        fails("spool.incoming.lock_at_once", 63),
    ],
)
def test_a_step_that_fails_leaves_nothing(
    spool: str, monkeypatch: pytest.MonkeyPatch, what: str, when: int, status: int
) -> None:
    """Each with its own exit code; the message is not committed, and no descriptor stays."""
    before = sorted(os.listdir("/proc/self/fd"))
    module, _, name = f"picoqmail.{what}".rpartition(".")
    step = getattr(sys.modules[module], name)
    calls = []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == when:
            raise OSError(13, "Permission denied")
        return step(*arguments, **options)

    monkeypatch.setattr(f"{module}.{name}", failing)
    with pytest.raises(SpoolError, match="denied") as caught, incoming(spool) as message:
        message.commit("a@b", ["c@d"])
    assert status == caught.value.qmail_status
    assert [] == files(spool)
    assert before == sorted(os.listdir("/proc/self/fd"))


def test_a_name_that_is_taken_is_not_taken_twice(
    spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is tried, ten in all."""
    names = ["1.taken"] * 9 + ["1.free"]
    monkeypatch.setattr("picoqmail.spool.incoming.make_id", lambda *_: names.pop(0))
    with open(f"{spool}/{TMP}/1.taken.eml", "xb"):
        pass
    incoming(spool).abort()
    names[:] = ["1.taken"] * 10 + ["1.free"]
    with pytest.raises(SpoolError, match="File exists") as caught:
        incoming(spool)
    assert (63, ["1.free"]) == (caught.value.qmail_status, names)
    assert [f"{TMP}/1.taken.eml"] == files(spool)


def test_a_signal_while_it_is_made_leaves_nothing(
    spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler may raise anywhere."""

    def interrupted(_seconds: int) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("picoqmail.spool.incoming.header_date", interrupted)
    with pytest.raises(KeyboardInterrupt):
        incoming(spool)
    assert [] == files(spool)


class Interrupted:
    """A group; a signal comes after the first of it was marked as committed."""

    def __init__(self, *group: Incoming) -> None:
        self._group = group
        self._walks = 0

    def __iter__(self) -> Iterator[Incoming]:
        """Yield the messages; the third walk marks them."""
        self._walks += 1
        yield self._group[0]
        if self._walks == 3:
            raise KeyboardInterrupt
        yield from self._group[1:]


def test_a_signal_while_a_group_is_marked_commits_none(spool: str) -> None:
    """All or none; and all are taken back."""
    one, two = incoming(spool), incoming(spool)
    group: Any = Interrupted(one, two)
    with one, two:
        for message in (one, two):
            message.prepare("a@b", ["c@d"])
        with pytest.raises(KeyboardInterrupt):
            publish(group)
        assert [False, False] == [one.committed, two.committed]
    assert [] == files(spool)


def is_free(path: str) -> bool:
    """Say whether nobody has the lock of a file."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_lock_goes_whatever_fails_in_the_end(
    spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a child has the file open, and if the name in tmp/ stays."""
    message = incoming(spool)
    shared = os.dup(message._descriptor)

    def failing(_path: str) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(durable, "unlink_if_there", failing)
    message_id = message.commit("a@b", ["c@d"])
    assert is_free(f"{spool}/new/{message_id}.eml")
    os.close(shared)
    other = incoming(spool)
    other.begin("a@b", ["c@d"])
    path, shared = f"{spool}/{TMP}/{other.id}.eml", os.dup(other._descriptor)
    # What is closed twice is an error, as a file system that reports one at the close.
    os.close(other._sidecar)
    other.abort()
    assert is_free(path)
    os.close(shared)


def test_a_parked_message_is_locked_again(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is gone, before or after it was opened, or something else lies there."""
    message = incoming(spool)
    message.prepare("a@b", ["c@d"])
    path = f"{spool}/{TMP}/{message.id}.eml"
    message.park()
    assert is_free(path)
    message.unpark()
    assert not is_free(path)
    os.close(message._descriptor)
    with pytest.raises(SpoolError, match="close"):
        message.park()
    os.rename(path, f"{path}.away")
    os.symlink(f"{path}.away", path)
    with pytest.raises(SpoolError, match="symbolic"):
        message.unpark()
    os.replace(f"{path}.away", path)
    monkeypatch.setattr("picoqmail.spool.incoming.lock_at_once", lambda _: os.unlink(path))
    with pytest.raises(SpoolError, match="No such file") as caught:
        message.unpark()
    assert 63 == caught.value.qmail_status
    message.abort()


def test_without_a_time_it_is_now_and_the_umask_counts(spool: str) -> None:
    """As in our programs; an application has its umask overruled."""
    before = os.umask(0o777)
    try:
        message = Incoming(spool, Limits("me.test"), program="trial", uid=1, pid=7)
        mode = stat.S_IMODE(os.stat(f"{spool}/{TMP}/{message.id}.eml").st_mode)
        message.abort()
    finally:
        os.umask(before)
    assert 0 == mode
    assert abs(time.time() - int(message.id.partition(".")[0])) < 3600


WITHOUT_STDIN = """
import os, sys
from picoqmail.home.limits import Limits
from picoqmail.spool.incoming import Incoming
os.close(0)
message = Incoming(sys.argv[1], Limits("me.test"), program="trial", uid=1, pid=7)
assert message._descriptor == 0
message.park()
message.unpark()
message.unpark()
assert message._descriptor == 0
message.close()
os.fstat(0)
"""


def test_a_caller_without_standard_input(spool: str) -> None:
    """The body gets descriptor 0, which is closed like any other."""
    command = [sys.executable, "-c", WITHOUT_STDIN, spool]
    ran = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=60)
    assert b"Bad file descriptor" in ran.stderr.splitlines()[-1]
