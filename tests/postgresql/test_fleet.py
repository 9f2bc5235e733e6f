"""What the workers of all hosts share."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from picoqmail.home.values import RateLimit
from picoqmail.ledger.routes import Outage
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.smtp.lessons import LONE_DOT, SERVED, Lessons
from picoqmail.value import evolve
from rig.waiting import wait_until

if TYPE_CHECKING:
    import pytest

    from picoqmail.postgresql.store import PostgresStore
    from postgresql.conftest import Accept
    from rig.postgresql import PrivatePgBouncer


WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


def test_a_route_is_noted_for_all(store: PostgresStore, other: PostgresStore) -> None:
    """Down, further down, and up again; others are not touched."""
    first = Outage(100, 103, 1, "connect", "refused \0 ü")
    assert {} == store.routes().read()
    assert first == store.routes(["a", "b"]).change("a", lambda _: first)
    other.routes().change("b", lambda _: Outage(1, 2, 3, "tls", "x"))
    seen: list[Outage | None] = []
    second = Outage(100, 109, 2, "connect", "refused")

    def again(before: Outage | None) -> Outage:
        seen.append(before)
        return second

    assert second == other.routes().change("a", again)
    assert [Outage(100, 103, 1, "connect", "refused   ü")] == seen
    assert {"a": second, "b": Outage(1, 2, 3, "tls", "x")} == store.routes().read()
    assert store.routes().change("a", lambda _: None) is None
    assert ["b"] == list(other.routes().read())


def test_of_many_workers_one_probes(store: PostgresStore, other: PostgresStore) -> None:
    """Whoever asks while another moves the time on waits for that, and sees it."""
    store.routes().change("a", lambda _: Outage(0, 50, 1, "connect", "refused"))
    inside, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def probe(before: Outage | None) -> Outage:
        assert before is not None
        inside.set()
        go_on.wait(60)
        return evolve(before, until=60)

    def look(before: Outage | None) -> Outage | None:
        assert before is not None
        seen.append(before.until)
        return before

    first = threading.Thread(target=lambda: store.routes().change("a", probe))
    second = threading.Thread(target=lambda: other.routes().change("a", look))
    first.start()
    assert inside.wait(60)
    second.start()
    wait_until(
        lambda: seen or store.connections.run("see", WAITING), "the second waits for the first"
    )
    go_on.set()
    first.join()
    second.join()
    assert [60] == seen


def test_the_pace_is_that_of_all_together(url: str, store: PostgresStore) -> None:
    """No more than so many in so many seconds, whoever begins them, also at the same moment."""
    limit = RateLimit(10, 60)
    stores = [open_postgresql(url) for _ in range(2)]
    lock = "SELECT pg_advisory_xact_lock(hashtext('picoqmail.pace'))"
    assert 10 == sum(one.pace(limit)() == 0.0 for _ in range(6) for one in stores)
    # Nine are counted, and two more ask while another transaction is counting.
    with store.connections.transaction("count") as counting:
        counting.run("DELETE FROM picoqmail.pace")
        counting.run(
            "INSERT INTO picoqmail.pace VALUES"
            " (60, floor(extract(epoch FROM clock_timestamp())), 9)"
        )
        counting.run(lock)
        waits: list[float] = []
        threads = [
            threading.Thread(target=lambda one=one: waits.append(one.pace(limit)()))
            for one in stores
        ]
        for thread in threads:
            thread.start()
        wait_until(
            lambda: len(waits) == 2 or len(counting.run(WAITING)) == 2, "both wait for the count"
        )
    for thread in threads:
        thread.join()
    # One had room, and the other finds what that one has counted.
    assert [0.0] == [one for one in waits if not one]
    (wait,) = [one for one in waits if one]
    assert 58 < wait <= 62
    # Another limit is another count.
    assert 0.0 == stores[0].pace(RateLimit(10, 120))()
    for one in stores:
        one.close()


def test_a_slice_that_has_passed_allows_more(store: PostgresStore) -> None:
    """The wait that was named is enough."""
    pace = store.pace(RateLimit(2, 1))
    assert [0.0, 0.0] == [pace(), pace()]
    wait = pace()
    assert 0 < wait < 1.1
    time.sleep(wait)
    assert 0.0 == pace()


def test_what_is_learnt_is_known_to_all(store: PostgresStore, other: PostgresStore) -> None:
    """Facts of several relays; what is too old is not believed."""
    now = int(store.clock())
    lessons = {"a": Lessons(), "b": Lessons()}
    lessons["a"].learn(LONE_DOT)
    lessons["b"].learn(SERVED, "joe")
    said = store.notes.save(lessons, now)
    assert [("a", "takes nothing behind the final dot before it has replied to that")] == said
    assert [] == store.notes.save(lessons, now)
    known = other.notes.load(now)
    assert known["a"].knows(LONE_DOT)
    assert "joe" == known["b"].facts[SERVED]
    lessons["b"].learn(SERVED, "jane")
    other.notes.save(lessons, now + 5)
    assert ("jane", now + 5) == store.notes.read(now + 5)["b"][SERVED]
    assert {} == store.notes.read(now + 8 * 86400)


def test_totals_add_up(store: PostgresStore, other: PostgresStore) -> None:
    """From all workers; the last delivery is the latest."""
    assert {0} == set(store.totals.read().values())
    store.totals.add({"delivered": 2, "deferred": 0, "failed": 1}, 500)
    other.totals.add({"delivered": 3}, 400)
    other.totals.add({"deferred": 7}, 900)
    found = store.totals.read()
    assert (5, 7, 1, 0) == tuple(
        found[name] for name in ("delivered", "deferred", "failed", "damaged")
    )
    assert 500 == found["last_delivery"]


# --- Waiting --------------------------------------------------------------------------------------


def test_an_acceptance_wakes_a_worker(other: PostgresStore, accept: Accept) -> None:
    """Long before it would look again; and the stop is heard."""
    woken = threading.Event()

    def run() -> None:
        other.wait(60, lambda: False)
        woken.set()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(
        lambda: other.connections.run(
            "see", "SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        ),
        "the worker listens",
    )
    accept()
    assert woken.wait(30)
    thread.join()
    began = time.monotonic()
    other.wait(60, lambda: True)
    assert time.monotonic() - began < 60


def test_a_burst_wakes_once_a_second(
    store: PostgresStore, accept: Accept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For commits that notify wait for each other."""
    monkeypatch.setattr("picoqmail.postgresql.connections.NOTICE_SECONDS", 3600.0)
    assert store.connections.may_notify()
    accept()
    assert not store.connections.may_notify()
    monkeypatch.setattr("picoqmail.postgresql.connections.NOTICE_SECONDS", 0.0)
    assert store.connections.may_notify()


def test_behind_a_pooler_time_passes(pgbouncer: PrivatePgBouncer, database: str) -> None:
    """Nothing listens there: the session would be somebody else's next."""
    store = open_postgresql(pgbouncer.url(database))
    began = time.monotonic()
    store.wait(0.5, lambda: False)
    assert 0.5 <= time.monotonic() - began
    assert store._wake_ups._link is None
    assert not store.connections.run(
        "see", "SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
    )
    store.close()


def test_without_a_database_time_passes() -> None:
    """Whoever looks after that reports what is wrong."""
    store = open_postgresql("postgresql:///mail?host=/nowhere")
    began = time.monotonic()
    store.wait(0.3, lambda: False)
    assert 0.3 <= time.monotonic() - began
