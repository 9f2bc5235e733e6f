"""Acceptance by the library: a yes is durable, a no leaves nothing, nobody gets in between."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

from picoqmail.errors import MessageTooLargeError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.layout import DIRECTORIES, TMP, is_id
from picoqmail.spool.incoming import Incoming, publish

if TYPE_CHECKING:
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
    message = incoming(spool, databytes=line + 10)
    message.write(b"x" * 10)
    message.commit("a@b", ["c@d"])
    with incoming(spool, databytes=line + 10) as message:
        message.write(b"x" * 10)
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
