"""What every store keeps between runs: routes that are down, pace, notes, reports, totals."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from picoqmail.home.values import RateLimit
from picoqmail.ledger.routes import Outage
from picoqmail.relay import breaker
from picoqmail.smtp.lessons import LONE_DOT, SERVED, Lessons

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.store.protocol import Store
    from store.conformance.conftest import Opener

NOW = 1_800_000_000


def together(work: Callable[[int], None], count: int = 4) -> None:
    """Do the same in several threads at once."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def test_a_route_is_noted_for_all(store: Store, opener: Opener) -> None:
    """Down, down again, up."""
    routes, others = store.routes(["a", "b"]), opener().routes(["a", "b"])
    first = routes.change("a", lambda _: Outage(NOW, NOW + 3, 1, "connect", 'a "b" ü\n'))
    assert {"a": first} == others.read()
    second = others.change("a", lambda one: breaker.failed(one, now=NOW, stage="tls", reason="x"))
    assert second is not None
    assert (2, NOW) == (second.failures, second.since)
    assert None is routes.change("a", lambda _: None)
    assert {} == others.read()
    assert None is routes.change("a", lambda one: one)


def test_no_change_of_a_route_is_lost(opener: Opener) -> None:
    """Many find the same relay down at the same moment."""

    def fail(number: int) -> None:
        routes = opener().routes(["a", "b"])
        for _ in range(20):
            routes.change("a", lambda one: breaker.failed(one, now=NOW, stage="x", reason="y"))
            routes.change(f"own {number}", lambda _: Outage(NOW, NOW, 1, "x", "y"))

    together(fail)
    noted = opener().routes().read()
    assert 80 == noted["a"].failures
    assert 5 == len(noted)


def test_the_pace_is_that_of_all(store: Store, opener: Opener) -> None:
    """So many messages in a period, over all processes; then it says how long to wait."""
    limit = RateLimit(10, 3600)
    free: list[int] = []

    def begin(number: int) -> None:
        allowed = opener().pace(limit)
        free.extend(number for _ in range(5) if allowed() == 0.0)

    together(begin)
    assert 10 == len(free)
    assert store.pace(limit)() > 0
    # Another limit counts for itself.
    assert 0.0 == store.pace(RateLimit(10, 60))()


def test_totals_add_up(store: Store, opener: Opener) -> None:
    """Over all processes; the last delivery is the last one."""
    assert 0 == store.totals.read()["delivered"]
    together(lambda _: opener().totals.add({"delivered": 2, "failed": 1}, NOW))
    found = opener().totals.read()
    assert (8, 4, 0, NOW) == (
        found["delivered"],
        found["failed"],
        found["bounced"],
        found["last_delivery"],
    )


def test_lessons_are_shared(store: Store, opener: Opener) -> None:
    """What one run learnt, the next one knows, until it is too old."""
    notes = store.notes
    lessons = notes.load(NOW)
    assert {} == lessons
    known = {"relay.test:25": Lessons()}
    known["relay.test:25"].learn(LONE_DOT, "")
    known["relay.test:25"].learn(SERVED, "joe")
    said = notes.save(known, NOW)
    assert ["relay.test:25"] == [name for name, _ in said]
    found = opener().notes.read(NOW + 10)
    assert ("joe", NOW) == found["relay.test:25"][SERVED]
    assert {} == opener().notes.read(NOW + 400 * 86400)


def test_reports_are_limited_for_all(store: Store, opener: Opener) -> None:
    """So many an hour for one address; the rest is kept, once, for a digest."""
    limit = store.report_limit(3)
    allowed = [opener().report_limit(3).may_report("a@b.test", NOW + n) for n in range(5)]
    assert [True, True, True, False, False] == allowed
    assert limit.may_report("c@d.test", NOW)
    failure = {"id": "1.a", "index": 0, "sender": "s@t", "recipient": "r@t", "reply": "550 no"}
    limit.keep("a@b.test", [failure], NOW + 10)
    assert [] == limit.overdue(NOW + 20)
    taken = [limit.take(one, "1.digest") for one in limit.overdue(NOW + 4000)]
    kept = [one for one in taken if one is not None and one.kept]
    assert ["a@b.test"] == [one.address for one in kept]
    assert ["r@t"] == [line["recipient"] for line in kept[0].kept]
    for one in taken:
        if one is not None:
            limit.finish(one.name)
    assert [] == limit.overdue(NOW + 4000)


def test_a_limit_of_nothing_is_none(store: Store) -> None:
    """0 reports an hour means as many as there are."""
    limit = store.report_limit(0)
    assert all(limit.may_report("a@b.test", NOW) for _ in range(50))
