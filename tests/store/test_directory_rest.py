"""What a directory store does besides the steps on files that the journeys show."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import DamagedMessageError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.home.values import RateLimit
from picoqmail.layout import BODY, CUR, DROP, NEW, PROGRESS, SIDECAR, UNDELIVERED
from picoqmail.ledger.routes import Outage
from picoqmail.spool import retention
from picoqmail.spool.incoming import Incoming
from picoqmail.store.directory import DirectoryStore
from temporary_home import MESSAGE, TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path

    from picoqmail.spool.claim import Damage

NOW = 1_700_000_000
LIMITS = Limits("me.test")
UID = 4321
NO_NAME = "1" * 300
"""What no file system takes as a name, so that nobody can say whether it is there."""


@pytest.fixture
def store(home: TemporaryHome) -> DirectoryStore:
    """The store of a home, at a time that stands still."""
    return DirectoryStore(home.spool, clock=lambda: NOW)


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def submit(home: TemporaryHome, text: bytes = MESSAGE) -> str:
    """Accept a message in the drop, as the program of a user does."""
    part = f"{home.spool}/{DROP}/{UID}"
    for name in ("tmp", "new"):
        os.makedirs(f"{part}/{name}", exist_ok=True)
    incoming = Incoming(part, LIMITS, program="t", uid=UID, pid=7, mode=0o644)
    incoming.write(text)
    return incoming.commit("a@b.test", ["c@d.test"])


def test_what_runs_leave_for_later_runs_lies_in_the_spool(
    home: TemporaryHome, store: DirectoryStore
) -> None:
    """Routes that are down, the pace, what was learnt, and the totals: a file each."""
    assert home.spool == store.location
    outage = Outage(NOW, NOW + 9, 1, "connect", "no")
    store.routes(["a"]).change("a", lambda _: outage)
    assert {"a": outage} == store.routes().read()
    pace = store.pace(RateLimit(1, 60))
    assert [0.0, True] == [pace(), pace() > 0]
    assert store.report_limit(0) is not None
    assert {} == store.notes.read(NOW)
    store.totals.add({"delivered": 1}, NOW)
    assert 1 == store.totals.read()["delivered"]
    assert {"relay-down", "rate"} <= set(os.listdir(home.spool))


def test_a_message_begins_now(store: DirectoryStore) -> None:
    """Unless it is told another time."""
    with store.incoming(LIMITS, program="t", uid=1, pid=2) as incoming:
        assert int(incoming.id.partition(".")[0]) > NOW
    with store.incoming(LIMITS, program="t", uid=1, pid=2, now_ns=NOW * 10**9) as incoming:
        assert str(NOW) == incoming.id.partition(".")[0]


def test_mail_of_the_drop_is_taken_once(home: TemporaryHome) -> None:
    """What makes no sense is reported as damage; claims know what was taken."""
    damages: list[Damage] = []
    store = DirectoryStore(home.spool, on_damage=damages.append)
    taken, damaged = submit(home), submit(home)
    with open(f"{home.spool}/{DROP}/{UID}/new/{damaged}{SIDECAR}", "wb") as file:
        file.write(b"{")
    assert {taken, damaged} == set(store.collect(LIMITS, 9, pytest.fail))
    assert [damaged] == [one.id for one in damages]
    assert {taken, damaged} == store.collected


def test_what_is_destroyed_leaves_the_drop_too(home: TemporaryHome, store: DirectoryStore) -> None:
    """A run that died had taken it, and had not removed it from there."""
    message_id = submit(home)
    for suffix in (BODY, SIDECAR):
        os.link(
            f"{home.spool}/{DROP}/{UID}/new/{message_id}{suffix}",
            home.path(NEW, message_id, suffix),
        )
    before = open_files()
    assert store.destroy(message_id)
    store.flush()
    assert [] == home.everything()
    assert before == open_files()


def test_a_message_comes_in_once_until_it_is_handed_over(
    home: TemporaryHome, tmp_path: Path
) -> None:
    """A store remembers what came; what it has given away may come back."""
    store, other = DirectoryStore(home.spool), TemporaryHome(str(tmp_path / "other")).make()
    message_id = other.accepted()
    theirs = DirectoryStore(other.spool).claim(message_id)
    assert theirs is not None
    came = [store.bring_in(theirs.message, NEW, theirs) for _ in range(2)]
    assert [True, False] == came
    ours = store.claim(message_id)
    assert ours is not None
    store.hand_over(ours)
    ours.release()
    assert store.bring_in(theirs.message, NEW, theirs)
    theirs.release()


def test_where_to_look_first_may_be_told(home: TemporaryHome, store: DirectoryStore) -> None:
    """It matters where a crash has left two sidecars."""
    message_id = home.accepted()
    with open(home.path(NEW, message_id), "rb") as old, open(home.path(CUR, message_id), "wb") as f:
        f.write(old.read())
    assert [CUR, NEW] == [store.read(message_id, hint)[0] for hint in ("", NEW)]


def test_a_body_of_the_right_size_may_be_another(
    home: TemporaryHome, store: DirectoryStore
) -> None:
    """Its octets are compared; nothing stays open."""
    message_id = home.accepted()
    before = open_files()
    _, message = store.read(message_id)
    store.check_body(message)
    with open(home.path(NEW, message_id, BODY), "r+b") as file:
        file.write(b"X")
    with pytest.raises(DamagedMessageError):
        store.check_body(message)
    assert before == open_files()


def test_a_change_returns_the_message(home: TemporaryHome, store: DirectoryStore) -> None:
    """As it is recorded."""
    claim = store.claim(home.accepted())
    assert claim is not None
    revised = store.change(claim, "held", "by hand", held=True)
    claim.release()
    assert (CUR, revised) == store.read(claim.message.id)


def test_bodies_go_before_the_end_of_a_long_run(home: TemporaryHome, store: DirectoryStore) -> None:
    """When enough of them wait for a sync."""
    message_id = home.accepted()
    claim = store.claim(message_id)
    assert claim is not None
    store._files.doom(*[home.path(CUR, f"{number}.a") for number in range(199)])
    store.remove(claim)
    claim.release()
    assert [] == home.files()


def test_waiting_ends_in_short_steps(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run which is to stop does so soon."""
    now, slept = 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        assert len(slept) < 9, "without end"
        slept.append(seconds)
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr("picoqmail.store.directory.time", clock)
    store.wait(0.5, lambda: False)
    assert [0.2, 0.2, 0.1] == [round(one, 3) for one in slept]
    slept.clear()
    now = 0.0
    store.wait(0.125, lambda: False)
    assert [0.125] == slept
    store.wait(60.0, lambda: len(slept) == 3)
    assert [0.125, 0.2, 0.2] == slept


def test_what_cannot_be_known_is_an_error(home: TemporaryHome, store: DirectoryStore) -> None:
    """And never a no."""
    with pytest.raises(SpoolError, match="look for"):
        store.is_whole(NO_NAME)
    with pytest.raises(SpoolError, match="open"):
        store.put_off(NO_NAME, NOW)
    message_id = home.accepted(recipients=["a@b.test", "c@d.test"])
    claim = store.claim(message_id)
    assert claim is not None
    os.mkdir(home.path(NEW, message_id, PROGRESS))
    with pytest.raises(SpoolError, match="read"):
        store.doubts(claim)
    claim.release()


def test_a_body_that_cannot_be_brought_home_is_an_error(
    home: TemporaryHome, store: DirectoryStore
) -> None:
    """A directory has its name."""
    message_id = home.accepted()
    os.rename(home.path(NEW, message_id), home.path(CUR, message_id))
    claim = store.claim(message_id)
    assert claim is not None
    os.mkdir(home.path(CUR, message_id, BODY))
    with pytest.raises(SpoolError, match="gather"):
        store.gather(claim)
    claim.release()


def test_old_failures_go_although_one_has_gone_already(
    home: TemporaryHome, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deleted it since the directory was read."""
    message_id = home.accepted()
    for suffix in (BODY, SIDECAR):
        source, target = (home.path(one, message_id, suffix) for one in (NEW, UNDELIVERED))
        os.rename(source, target)
    monkeypatch.setattr(retention, "older", lambda *_: ["1.gone", message_id])
    assert 1 == store.purge(0)
    assert [] == home.files()


def test_trouble_while_old_failures_go_is_told_once(
    home: TemporaryHome, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the error of the message, or by one of the directory."""
    os.mkdir(home.path(UNDELIVERED, "1.a"))
    os.close(os.open(home.path(UNDELIVERED, "1.a", BODY), os.O_CREAT))
    with monkeypatch.context() as patch:
        patch.setattr(retention, "older", lambda *_: ["1.a"])
        with pytest.raises(SpoolError, match=r"^cannot remove"):
            store.purge(0)
    os.rename(f"{home.spool}/{UNDELIVERED}", f"{home.spool}/gone")
    with pytest.raises(SpoolError, match=r"^cannot purge"):
        store.purge(0)


def test_nothing_to_sweep(store: DirectoryStore) -> None:
    """Neither paths nor errors."""
    assert ([], []) == store.sweep([])
