"""Looking without opening: what is due by the hint, what is unpaired, what is left over."""

from __future__ import annotations

import os
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import CUR, DIRECTORIES, HELD_UNTIL, LEFTOVER_AGE_SECONDS, NEW, UNDELIVERED
from picoqmail.spool import figures as figures_module
from picoqmail.spool import scan
from picoqmail.spool.figures import figures_of
from temporary_home import age

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from picoqmail.spool.figures import Figures

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


def due_at(spool: str, stem: str, seconds: float, octets: int = 0) -> None:
    """Make a message of cur/ that is due so many seconds from now."""
    put(spool, f"cur/{stem}.json", seconds_old=-seconds)
    with open(f"{spool}/cur/{stem}.eml", "wb") as file:
        file.truncate(octets)


def test_the_next_due_time_is_known(spool: str) -> None:
    """That of the first message that waits; without one it is that of held messages."""
    assert scan.look(spool, CUR, time.time()).next_due == HELD_UNTIL
    for stem, seconds in (("1.a", 3600), ("2.b", 60), ("3.c", 7200)):
        due_at(spool, stem, seconds)
    assert os.stat(f"{spool}/cur/2.b.json").st_mtime == scan.look(spool, CUR, time.time()).next_due


def test_due_messages_come_page_by_page(spool: str) -> None:
    """The oldest first, each once, however long a page is; what waits is on none of them."""
    stems = [f"{number}.x" for number in range(100, 160)]
    for stem in reversed(stems):
        due_at(spool, stem, -5)
    due_at(spool, "130.waits", 600)
    for most in (1, 7, 59, 60, 61):
        found, after = [], ""
        while True:
            sight = scan.look(spool, CUR, time.time(), most=most, after=after)
            assert len(sight.due) <= most
            found += sight.due
            if not sight.is_cut:
                break
            after = sight.due[-1]
        assert stems == found


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_all_messages_come_page_by_page(
    spool: str,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    backwards: bool,  # noqa: FBT001 - a table
) -> None:
    """In their order, each once, also one in two states, whose later state counts."""
    monkeypatch.setattr(scan, "_FIRST_PAGE", most)
    expected = {}
    for number in range(40):
        stem = f"{1000 + number}.x"
        for state in [NEW, CUR, UNDELIVERED][: number % 3 + 1]:
            put(spool, f"{state}/{stem}.json", f"{state}/{stem}.eml")
            expected[stem] = state
    put(spool, "cur/1010.x.b.json")
    expected["1010.x.b"] = CUR
    found = list(scan.walk(spool, (UNDELIVERED, CUR, NEW), backwards=backwards))
    assert sorted(expected.items(), reverse=backwards) == found


def test_very_many_halves_are_seen_in_turn(spool: str) -> None:
    """More than are remembered at once: what is seen are halves, and the rest comes later."""
    bodies = {f"{number}.b" for number in range(3000)}
    sidecars = {f"{number}.s" for number in range(3000)}
    put(spool, *(f"new/{stem}.eml" for stem in bodies), *(f"new/{one}.json" for one in sidecars))
    put(spool, *(f"new/{n}.w{suffix}" for n in range(500) for suffix in (".eml", ".json")))
    rounds = 0
    while bodies or sidecars:
        sight = scan.look(spool, NEW, time.time())
        assert sight.bodies <= bodies
        assert sight.sidecars <= sidecars
        assert sight.bodies or sight.sidecars
        for one in sight.bodies:
            os.unlink(f"{spool}/new/{one}.eml")
        for one in sight.sidecars:
            os.unlink(f"{spool}/new/{one}.json")
        bodies -= sight.bodies
        sidecars -= sight.sidecars
        rounds += 1
    assert 1 < rounds < 10


def peak_octets(work: Callable[[], object]) -> int:
    """The memory that the work takes at its peak."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_look_keeps_nothing_of_what_is_not_due(spool: str) -> None:
    """Ten times as many messages take no more memory; neither do their figures."""
    peaks = []
    for begin, end in ((0, 300), (300, 3000)):
        for number in range(begin, end):
            due_at(spool, f"{1700000000 + number}.x", 600)
        peaks.append(peak_octets(lambda: scan.look(spool, CUR, time.time())))
        peaks.append(peak_octets(lambda: figures_of(spool, time.time())))
    assert peaks[2] < peaks[0] + 20_000
    assert peaks[3] < peaks[1] + 20_000


def test_figures_of_many_bodies_are_estimated(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and times stay exact; octets are those of a sample, and that is said."""
    for number in range(320):
        due_at(spool, f"{1700000000 + number}.x", 600 - number, octets=1000)
    exact = figures_of(spool, time.time())
    assert (320, 320_000, 1700000000, False) == figures(exact)
    monkeypatch.setattr(figures_module, "SAMPLED_FROM", 160)
    many = figures_of(spool, time.time())
    assert (320, 320_000, 1700000000, True) == figures(many)
    assert (exact.due, exact.held, exact.next_attempt) == (many.due, many.held, many.next_attempt)


def figures(found: Figures) -> tuple[int, int, int | None, bool]:
    """What is known of cur/."""
    heap = found.heaps[CUR]
    return heap.messages, heap.octets, heap.oldest, heap.estimated


def test_the_oldest_is_found_among_odd_names(spool: str) -> None:
    """Ages of fewer digits than today's are less, whatever their names sort like."""
    for stem in ("1700000000.a", "5.b", "1.c", "30.d"):
        due_at(spool, stem, 60)
    now = time.time()
    due_at(spool, f"{int(now) - 10}.e", 60)
    heap = figures_of(spool, now).heaps[CUR]
    assert (5, 1, 1) == (heap.messages, heap.oldest, heap.fresh)
