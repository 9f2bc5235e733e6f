"""The file `idle`: believed only while a look would find nothing, as the last one did."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.admin.change import Admin
from picoqmail.admin.filesystem import type_of
from picoqmail.layout import CUR, HELD_UNTIL, IDLE, NEW, SIDECAR
from picoqmail.spool import idle, scan
from picoqmail.store.directory import DirectoryStore
from proof.idling import await_step
from rig.programs import find
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Runs of these tests are later than the changes before them, as those of cron would be.
LATER = 60


@pytest.fixture
def home(tmp_path: Path) -> TemporaryHome:
    """A home with one message, which is due in half an hour."""
    made = TemporaryHome(str(tmp_path / "home")).make()
    made.deferred(next_attempt=int(time.time()) + 1800)
    if type_of(made.spool) not in idle.LOCAL:
        pytest.skip(f"nothing is noted on {type_of(made.spool)}")
    return made


def look(spool: str, now: float) -> list[str]:
    """Do what a run of cron does; return what is due."""
    await_step(spool)
    before = idle.observe(spool)
    sights = [scan.look(spool, state, now) for state in (NEW, CUR)]
    due = [one for sight in sights for one in sight.due]
    if not due:
        idle.note_idle(spool, now, before, min(sight.next_due for sight in sights))
    return due


def noted(home: TemporaryHome) -> float:
    """Have an idle run note what it found; return its time."""
    now = time.time() + LATER
    assert [] == look(home.spool, now)
    assert idle.is_idle(home.spool, now)
    return now


def test_it_holds_until_the_next_message_is_due(home: TemporaryHome) -> None:
    """Not a second longer, and not from before it was noted."""
    (message_id,) = home.ids(CUR)
    due = int(time.time()) + LATER + 300
    os.utime(home.path(CUR, message_id), (due, due))
    now = noted(home)
    assert idle.is_idle(home.spool, due - 1)
    assert not idle.is_idle(home.spool, due)
    assert not idle.is_idle(home.spool, now - 2)


def test_it_holds_for_some_minutes_only(home: TemporaryHome) -> None:
    """However far off the next message is: what changes no directory is seen then."""
    now = noted(home)
    assert idle.is_idle(home.spool, now + idle.LOOK_SECONDS - 2)
    assert not idle.is_idle(home.spool, now + idle.LOOK_SECONDS + 1)
    (message_id,) = home.ids(CUR)
    with open(home.path(CUR, message_id), "r+b"):
        os.utime(home.path(CUR, message_id))
    assert [message_id] == look(home.spool, now + idle.LOOK_SECONDS + 1)


def test_a_held_message_is_never_due(home: TemporaryHome) -> None:
    """Its time in 2100 does not make the note last."""
    (message_id,) = home.ids(CUR)
    Admin(DirectoryStore(home.spool), 1000).hold(message_id)
    assert HELD_UNTIL == os.stat(home.path(CUR, message_id)).st_mtime
    now = noted(home)
    assert not idle.is_idle(home.spool, now + idle.LOOK_SECONDS + 1)


def changes() -> dict[str, Callable[[TemporaryHome, str], object]]:
    """All that may make a message due, or that makes another directory of this one."""

    def admin(home: TemporaryHome) -> Admin:
        return Admin(DirectoryStore(home.spool), 100_000)

    def release(home: TemporaryHome, one: str) -> None:
        admin(home).hold(one)
        noted(home)
        admin(home).release(one)

    def requeue(home: TemporaryHome, one: str) -> None:
        for suffix in (".eml", SIDECAR):
            os.rename(home.path(CUR, one, suffix), home.path("undelivered", one, suffix))
        noted(home)
        admin(home).requeue(one)

    def collected_digest(home: TemporaryHome, _: str) -> None:
        os.mkdir(f"{home.spool}/reports")

    def corrected(home: TemporaryHome, one: str) -> None:
        os.utime(home.path(CUR, one), (time.time() + 900,) * 2)
        noted(home)
        store = DirectoryStore(home.spool)
        claim = store.claim(one)
        assert claim is not None
        store.repeat_due_time(claim)
        claim.release()

    def aside(home: TemporaryHome, one: str) -> None:
        DirectoryStore(home.spool).put_off(one, int(time.time()) + 60)

    def removed(home: TemporaryHome, one: str) -> None:
        os.unlink(home.path(CUR, one, ".eml"))

    def replaced(home: TemporaryHome, one: str) -> None:
        shutil.copy2(home.path(CUR, one), f"{home.spool}/tmp/{one}.json")
        os.rename(f"{home.spool}/tmp/{one}.json", home.path(CUR, one))

    def copied(home: TemporaryHome, _: str) -> None:
        os.rename(home.spool, f"{home.root}/before")
        subprocess.run(["cp", "-a", f"{home.root}/before", home.spool], check=True)

    def restored(home: TemporaryHome, _: str) -> None:
        rsync = [find("rsync", "rsync"), "-a", "--delete"]
        subprocess.run([*rsync, f"{home.spool}/", f"{home.root}/backup"], check=True)
        home.accepted()
        subprocess.run([*rsync, f"{home.root}/backup/", f"{home.spool}/"], check=True)

    return {
        "accepted": lambda home, _: home.accepted(),
        "released": release,
        "retried": lambda home, one: admin(home).retry(one),
        "requeued": requeue,
        "a report that waits": collected_digest,
        "a time that delivery corrects": corrected,
        "a message that delivery puts off": aside,
        "a body that is gone": removed,
        "a sidecar replaced by one of the same time": replaced,
        "a copy in its place": copied,
        "a restore into its place": restored,
    }


@pytest.mark.parametrize("name", changes())
def test_a_change_is_seen(home: TemporaryHome, name: str) -> None:
    """At once, although it may take no more than a microsecond."""
    (message_id,) = home.ids(CUR)
    now = noted(home)
    changes()[name](home, message_id)
    assert not idle.is_idle(home.spool, now)


def test_a_directory_that_changed_just_now_is_not_believed(home: TemporaryHome) -> None:
    """It may change once more in the same step of the kernel's clock. Nor is one of the future."""
    for seconds in (0.5, idle.STEP_SECONDS - 0.1, -LATER):
        now = os.stat(f"{home.spool}/{CUR}").st_ctime + seconds
        before = idle.observe(home.spool)
        idle.note_idle(home.spool, now, before, now + 600)
        assert not os.path.exists(f"{home.spool}/{IDLE}")


def test_only_on_file_systems_of_this_host(home: TemporaryHome) -> None:
    """The time of a change may be another host's elsewhere, or no time at all."""
    before = idle.observe(home.spool)
    now = time.time() + LATER
    os.rename(f"{home.spool}/{CUR}", f"{home.spool}/away")
    os.symlink("/proc/self/task", f"{home.spool}/{CUR}")
    idle.note_idle(home.spool, now, before, now + 600)
    assert not os.path.exists(f"{home.spool}/{IDLE}")


def damages(good: bytes) -> list[bytes]:
    """Contents that are not, or not quite, what was noted."""
    fields = good.partition(b"\n")[0].split(b" ")
    others = [b"", b"-1", b"0", b"99999999999", b"1" * 5000, b"nan", b"\xff", b"none", b"\0"]
    lines = [b" ".join([*fields[:n], one, *fields[n + 1 :]]) for n in range(6) for one in others]
    cut = [good[:n] for n in range(len(good))]
    flipped = [good[:n] + bytes([good[n] ^ 4]) + good[n + 1 :] for n in range(len(good))]
    return [
        *(b"", b"\n\n", b"\0" * len(good), good + b"x", good * 2),
        *((line + b"\n") * 2 for line in lines if line.split(b" ") != fields),
        *(*cut, *flipped),
    ]


def test_damage_only_costs_a_look(home: TemporaryHome) -> None:
    """Empty, cut, zeros, one bit, other values: not believed, and replaced by the next look."""
    now = noted(home)
    with open(f"{home.spool}/{IDLE}", "rb") as file:
        good = file.read()
    for bad in damages(good):
        with open(f"{home.spool}/{IDLE}", "wb") as file:
            file.write(bad)
        assert not idle.is_idle(home.spool, now), bad
    noted(home)


def test_a_lie_does_not_last(home: TemporaryHome) -> None:
    """However far off it says the next message is, or that it was noted just now."""
    now = noted(home)
    marks = idle.observe(home.spool).marks
    for begun, until in ((now, 1 << 40), (now + 5, now + 10), (now - 600, now), (0, now + 9)):
        with open(f"{home.spool}/{IDLE}", "w", encoding="ascii") as file:
            file.write(f"1 {int(begun)} {int(until)} {marks}\n" * 2)
        assert not idle.is_idle(home.spool, now)


@pytest.mark.parametrize("what", ["directory", "fifo", "link", "open to others", "unreadable"])
def test_what_is_no_file_of_ours_is_not_read(home: TemporaryHome, what: str) -> None:
    """And no run hangs on it, or follows it; what can be replaced is replaced by the next look."""
    now = noted(home)
    path = f"{home.spool}/{IDLE}"
    os.rename(path, f"{home.root}/{IDLE}")
    match what:
        case "directory":
            os.mkdir(path)
        case "fifo":
            os.mkfifo(path, 0o600)
        case "link":
            os.symlink(f"{home.root}/{IDLE}", path)
        case "open to others":
            shutil.copy(f"{home.root}/{IDLE}", path)
            os.chmod(path, 0o666)
        case _:
            os.mkdir(path, 0)
    assert not idle.is_idle(home.spool, now)
    assert [] == look(home.spool, now)
    assert idle.is_idle(home.spool, now) == (what not in {"directory", "unreadable"})


def test_another_users_file_is_not_believed(home: TemporaryHome) -> None:
    """Whoever could write there once may have left it."""
    now = noted(home)
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(f"{home.spool}/{IDLE}", 65534, 65534)
    assert not idle.is_idle(home.spool, now)


def test_nothing_is_left_where_nothing_can_be_noted(home: TemporaryHome) -> None:
    """Neither a scratch file, nor an error."""
    os.mkdir(f"{home.spool}/{IDLE}")
    look(home.spool, time.time() + LATER)
    assert [] == home.names("tmp")
    shutil.rmtree(f"{home.spool}/tmp")
    look(home.spool, time.time() + LATER)
