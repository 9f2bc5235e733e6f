"""The limit of reports in tables: so many an hour for one address, one digest, nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picoqmail.postgresql.store import PostgresStore
    from rig.postgresql import PrivatePostgreSQL

FAILURE: dict[str, Any] = {
    "id": "1.M1P1.me",
    "index": 0,
    "sender": "a@example.org",
    "recipient": "ü@example.net",
    "reply": "550 \0 no",
}


def test_so_many_an_hour(store: PostgresStore, other: PostgresStore) -> None:
    """Over all workers; another address, and the next hour, count anew."""
    limit, theirs = store.report_limit(2), other.report_limit(2)
    assert [True, True, False] == [
        limit.may_report("a@x.org", 1000),
        theirs.may_report("a@x.org", 1500),
        limit.may_report("a@x.org", 4599),
    ]
    assert limit.may_report("b@x.org", 1500)
    assert limit.may_report("a@x.org", 4600)
    assert store.report_limit(0).may_report("a@x.org", 1500)


def test_what_is_kept_becomes_one_digest(store: PostgresStore, other: PostgresStore) -> None:
    """When the hour is over; one worker takes it, and whoever comes later finds it taken."""
    limit, theirs = store.report_limit(1), other.report_limit(1)
    limit.may_report("a@x.org", 1000)
    limit.keep("a@x.org", [FAILURE, FAILURE], 1100)
    theirs.keep("a@x.org", [FAILURE], 1200)
    assert [] == limit.overdue(4000)
    (name,) = limit.overdue(5000)
    overdue = limit.take(name, "5.M1P1.digest")
    assert overdue is not None
    assert (f"{name}.5.M1P1.digest", "a@x.org", "") == (
        overdue.name,
        overdue.address,
        overdue.digest,
    )
    assert 3 == len(overdue.kept)
    assert FAILURE.items() <= overdue.kept[0].items()
    assert theirs.take(name, "5.M1P1.other") is None
    assert [] == theirs.overdue(5000)
    limit.finish(name)
    theirs.finish(overdue.name)
    assert [] == limit.overdue(10**9)


def test_a_digest_that_a_crash_interrupted_is_found(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore
) -> None:
    """After ten minutes, with the ID of what may have been made of it."""
    limit = store.report_limit(1)
    limit.keep("a@x.org", [FAILURE], 1000)
    (name,) = limit.overdue(5000)
    taken = limit.take(name, "5.M1P1.first")
    assert taken is not None
    postgresql.execute("UPDATE picoqmail.report_hour SET taken = taken - 700", database)
    assert [taken.name] == limit.overdue(5000)
    again = limit.take(taken.name, "6.M1P1.second")
    assert again is not None
    assert ("5.M1P1.first", f"{name}.6.M1P1.second") == (again.digest, again.name)
    assert 1 == len(again.kept)


def test_an_hour_without_a_failure_needs_no_digest(store: PostgresStore) -> None:
    """It is only removed."""
    limit = store.report_limit(5)
    limit.may_report("a@x.org", 1000)
    (name,) = limit.overdue(5000)
    overdue = limit.take(name, "5.M1P1.digest")
    assert overdue is not None
    assert ((), name) == (overdue.kept, overdue.name)
    limit.finish(overdue.name)
    assert [] == limit.overdue(5000)
