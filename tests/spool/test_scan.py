"""Looking without opening: what is due by the hint, what is unpaired, what is left over."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import CUR, DIRECTORIES, HELD_UNTIL, LEFTOVER_AGE_SECONDS, NEW, UNDELIVERED
from picoqmail.spool import scan
from temporary_home import age

if TYPE_CHECKING:
    from pathlib import Path

OLD = LEFTOVER_AGE_SECONDS + 60


@pytest.fixture
def spool(tmp_path: Path) -> str:
    """An empty spool."""
    for name in DIRECTORIES:
        os.mkdir(tmp_path / name)
    return str(tmp_path)


def put(spool: str, *paths: str, seconds_old: float = 0) -> None:
    """Make files of that age; a negative one lies in the future."""
    for path in paths:
        with open(f"{spool}/{path}", "wb"):
            pass
        age(f"{spool}/{path}", seconds_old)


def test_a_hint_of_a_distant_time_is_not_believed(spool: str) -> None:
    """More than a day ahead: a clock that was ahead may have planned it, so the sidecar is read."""
    put(spool, "cur/1.a.json", "cur/1.a.eml", seconds_old=-400 * 86400)
    put(spool, "cur/2.b.json", "cur/2.b.eml", seconds_old=-80_000)
    assert ["1.a"] == scan.look(spool, CUR, time.time()).due


def test_the_hint_says_what_is_due(spool: str) -> None:
    """In cur/ by the sidecar's time; sorted by name, which is by age."""
    for stem, seconds in (("3.c", 5), ("1.a", 0.5), ("2.b", -3600), ("4.held", 0)):
        put(spool, f"cur/{stem}.json", seconds_old=seconds)
        put(spool, f"cur/{stem}.eml")
    os.utime(f"{spool}/cur/4.held.json", (HELD_UNTIL, HELD_UNTIL))
    sight = scan.look(spool, CUR, time.time())
    assert (["1.a", "3.c"], 2, set(), set()) == (
        sight.due,
        sight.waiting,
        sight.sidecars,
        sight.bodies,
    )


def test_new_is_due_whatever_its_time(spool: str) -> None:
    """Its first attempt waits for nothing."""
    put(spool, "new/1.a.json", "new/1.a.eml", seconds_old=-3600)
    assert ["1.a"] == scan.look(spool, NEW, time.time()).due


def test_a_hint_from_before_the_clock_was_set_back_is_not_believed(spool: str) -> None:
    """The file was changed in our future: then its due time is worth nothing."""
    put(spool, "cur/1.a.json", "cur/1.a.eml", seconds_old=-3600)
    assert [] == scan.look(spool, CUR, time.time()).due
    assert ["1.a"] == scan.look(spool, CUR, time.time() - 600).due


def test_halves_without_their_partner_are_seen(spool: str) -> None:
    """Also a sidecar that is not due, so that it need not wait to be put aside."""
    put(spool, "cur/1.a.json", seconds_old=-3600)
    put(spool, "cur/2.b.eml", "cur/3.c.json", "cur/3.c.eml", "cur/4.d.progress", "cur/odd")
    sight = scan.look(spool, CUR, time.time())
    assert ({"1.a"}, {"2.b"}) == (sight.sidecars, sight.bodies)
    assert ["4.d.progress", "odd"] == sorted(sight.others)


def found(spool: str) -> list[str]:
    """What the sweep would be told to look at."""
    now = time.time()
    sights = {state: scan.look(spool, state, now) for state in (NEW, CUR)}
    paths = scan.leftovers(spool, now, sights) + scan.undelivered_leftovers(spool, now)
    return sorted(os.path.relpath(path, spool) for path in paths)


def test_leftovers_are_what_is_old_and_nobodys(spool: str) -> None:
    """Everything in tmp/, bodies and progress without a sidecar, results of no message."""
    old = [
        "tmp/1.a.eml",
        "tmp/1.a.json",
        "new/2.b.eml",
        "cur/3.c.eml",
        "cur/3.c.progress",
        "undelivered/4.d.eml",
        "undelivered/5.e.result",
    ]
    put(spool, *old, seconds_old=OLD)
    # Of messages: these stay.
    put(spool, "new/6.f.eml", "new/6.f.json", "cur/7.g.eml", "cur/7.g.json", seconds_old=OLD)
    put(spool, "undelivered/7.g.result", "undelivered/8.h.result", seconds_old=OLD)
    put(spool, "undelivered/8.h.eml", "undelivered/8.h.json", seconds_old=OLD)
    assert sorted(old) == found(spool)


def test_what_is_young_is_no_leftover(spool: str) -> None:
    """Under 36 hours somebody may still be writing it."""
    put(spool, "tmp/1.a.eml", "new/2.b.eml", "undelivered/4.d.eml", seconds_old=OLD - 600)
    assert [] == found(spool)


def test_a_failed_message_whose_body_lies_elsewhere_is_seen(spool: str) -> None:
    """Not one that has its body, nor one whose body is nowhere: there is nothing to settle."""
    put(spool, "undelivered/1.a.json", "cur/1.a.json", "cur/1.a.eml", "undelivered/2.b.json")
    put(spool, "undelivered/3.c.json", "undelivered/3.c.eml", "cur/3.c.eml")
    put(spool, "undelivered/4.d.json", "new/4.d.eml")
    leftovers, halves = scan.look_at_undelivered(spool, time.time())
    assert ([], ["1.a", "4.d"]) == (leftovers, sorted(halves))


def test_a_missing_directory_is_an_error(spool: str) -> None:
    """It is not taken for an empty one."""
    os.rmdir(f"{spool}/{UNDELIVERED}")
    with pytest.raises(FileNotFoundError):
        scan.undelivered_leftovers(spool, time.time())
    os.rmdir(f"{spool}/{NEW}")
    with pytest.raises(FileNotFoundError):
        scan.look(spool, NEW, time.time())
