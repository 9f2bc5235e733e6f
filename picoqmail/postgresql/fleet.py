"""What the workers of all hosts share: routes that are down, the pace, notes of relays, totals.

What each of them means is written down in the room `ledger`, where the directory store has them as
files. Nothing here loses mail: what a crash of the server undoes is noted anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.ledger.counters import LAST_DELIVERY, NAMES
from picoqmail.ledger.rate_limit import SLICES
from picoqmail.ledger.relay_notes import believed, lessons_of, news_of, sentences
from picoqmail.ledger.routes import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from picoqmail.home.values import RateLimit
    from picoqmail.postgresql.connections import Connections
    from picoqmail.smtp.lessons import Lessons

LOST_LEASES = "lost_leases"
"""A total: how many leases ran out, because their holder was killed, stopped or cut off."""

_REASON_CHARACTERS = 4000

# A lock of the transaction: a row that is not there cannot be locked.
_LOCK = "SELECT pg_advisory_xact_lock(hashtext(%(lock)s))"
_ROUTES = "SELECT name, since, until, failures, stage, reason FROM picoqmail.route ORDER BY name"
_ROUTE = """
    SELECT since, until, failures, stage, reason FROM picoqmail.route WHERE name = %(name)s
"""
_IS_DOWN = """
    INSERT INTO picoqmail.route (name, since, until, failures, stage, reason)
    VALUES (%(name)s, %(since)s, %(until)s, %(failures)s, %(stage)s, %(reason)s)
    ON CONFLICT (name) DO UPDATE SET since = excluded.since, until = excluded.until,
        failures = excluded.failures, stage = excluded.stage, reason = excluded.reason
"""
_IS_UP = "DELETE FROM picoqmail.route WHERE name = %(name)s"

# Three statements in one transaction: the count must be of what is there once the lock is ours.
# Slices of the future were counted before the clock was set back; they would wait for ever.
_PACE = """
    SELECT pg_advisory_xact_lock(hashtext(%(lock)s));
    DELETE FROM picoqmail.pace WHERE seconds <> %(seconds)s
        OR slice < floor(extract(epoch FROM clock_timestamp()) / %(width)s) - %(slices)s
        OR slice > floor(extract(epoch FROM clock_timestamp()) / %(width)s) + 1;
    WITH counted AS (
        SELECT coalesce(sum(messages), 0) AS messages, min(slice) AS first,
            extract(epoch FROM clock_timestamp())::float8 AS now
        FROM picoqmail.pace
    ), added AS (
        INSERT INTO picoqmail.pace AS pace (seconds, slice, messages)
        SELECT %(seconds)s, floor(now / %(width)s), 1 FROM counted WHERE messages < %(most)s
        ON CONFLICT (seconds, slice) DO UPDATE SET messages = pace.messages + 1
        RETURNING slice
    )
    SELECT CASE WHEN EXISTS (SELECT FROM added) THEN 0.0
        ELSE greatest((first + %(slices)s + 1) * %(width)s - now, 0.001) END::float8
    FROM counted
"""
_LESSONS = "SELECT relay, fact, value, learnt FROM picoqmail.lesson ORDER BY relay, fact"
_LEARN = """
    INSERT INTO picoqmail.lesson (relay, fact, value, learnt)
    SELECT relay, fact, value, %(learnt)s
    FROM unnest(%(relays)s::text[], %(facts)s::text[], %(values)s::text[])
        AS learnt (relay, fact, value)
    ON CONFLICT (relay, fact) DO UPDATE SET value = excluded.value, learnt = excluded.learnt
"""
_TOTALS = "SELECT name, value FROM picoqmail.total"
# In one order, so that two workers do not wait for each other.
_ADD = """
    INSERT INTO picoqmail.total AS total (name, value)
    SELECT name, value FROM unnest(%(names)s::text[], %(values)s::float8[]) AS added (name, value)
    ORDER BY name
    ON CONFLICT (name) DO UPDATE SET value = total.value + excluded.value
"""
_SET = """
    INSERT INTO picoqmail.total AS total (name, value) VALUES (%(name)s, %(value)s)
    ON CONFLICT (name) DO UPDATE SET value = greatest(total.value, excluded.value)
"""


class TableRoutes:
    """The routes that are down, for all workers."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def read(self) -> dict[str, Outage]:
        """Return the routes that are down, by name. Raises SpoolError."""
        rows = self._connections.run("read which relays are down", _ROUTES)
        return {name: Outage(*facts) for name, *facts in rows}

    def change(self, name: str, how: Callable[[Outage | None], Outage | None]) -> Outage | None:
        """Replace what is noted of a route by what `how` makes of it, and return that.

        None means that the route is not down. No other process changes it meanwhile. Raises
        SpoolError.
        """
        lock = f"{self._connections.address.schema}.route {name}"
        with self._connections.transaction("note that a relay is down", durable=False) as changing:
            changing.queue(_LOCK, {"lock": lock})
            rows = changing.run(_ROUTE, {"name": name})
            before = Outage(*rows[0]) if rows else None
            after = how(before)
            if after is None and before is not None:
                changing.queue(_IS_UP, {"name": name})
            elif after is not None and after != before:
                values = {
                    "name": name,
                    "since": after.since,
                    "until": after.until,
                    "failures": after.failures,
                    "stage": after.stage,
                    "reason": _plain(after.reason),
                }
                changing.queue(_IS_DOWN, values)
        return after


def _plain(text: str) -> str:
    """Return a text that a table can hold, of a sane length."""
    text = text.replace("\0", " ")[:_REASON_CHARACTERS]
    return text.encode(errors="replace").decode()


class TablePace:
    """The setting ratelimit over all workers: no more than so many messages in so many seconds.

    As RateLimiter in ledger/rate_limit.py, by the server's clock.
    """

    def __init__(self, connections: Connections, limit: RateLimit) -> None:
        self._connections = connections
        self._values = {
            "lock": f"{connections.address.schema}.pace",
            "seconds": limit.seconds,
            "most": limit.messages,
            "slices": SLICES,
            "width": limit.seconds / SLICES,
        }

    def __call__(self) -> float:
        """Count one message and return 0.0, or return the seconds to wait before asking again.

        Raises SpoolError.
        """
        ((wait,),) = self._connections.run("count messages", _PACE, self._values)
        return float(wait)


class TableNotes:
    """What was learnt of relays, for all workers. It saves detours, and nothing relies on it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def read(self, now: float) -> dict[str, dict[str, tuple[str, int]]]:
        """Return for each relay its facts, each with its value and when it was learnt.

        Times are Unix seconds. What is too old, or makes no sense, is left out. Raises SpoolError.
        """
        relays: dict[str, dict[str, dict[str, object]]] = {}
        for relay, fact, value, learnt in self._connections.run("read notes of relays", _LESSONS):
            relays.setdefault(relay, {})[fact] = {"value": value, "learnt": learnt}
        return believed(relays.items(), now)

    def load(self, now: float) -> dict[str, Lessons]:
        """Return what is known of each relay, by its name. Raises SpoolError."""
        return lessons_of(self.read(now))

    def save(self, lessons: Mapping[str, Lessons], now: float) -> list[tuple[str, str]]:
        """Add what was learnt since it was loaded; return a sentence for each fact worth mention.

        Raises SpoolError.
        """
        fresh = news_of(lessons)
        if not fresh:
            return []
        rows = [(name, *fact) for name, facts in sorted(fresh.items()) for fact in facts.items()]
        values = {
            "relays": [relay for relay, _, _ in rows],
            "facts": [fact for _, fact, _ in rows],
            "values": [_plain(value) for _, _, value in rows],
            "learnt": int(now),
        }
        self._connections.run("note what was learnt of relays", _LEARN, values)
        return sentences(fresh)


class TableTotals:
    """Counts of results since the tables were made, for people and graphs."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def read(self) -> dict[str, int]:
        """Return all of them, and `last_delivery` in Unix seconds, 0 if there was none.

        Raises SpoolError.
        """
        found = self._read()
        return {name: int(found.get(name, 0)) for name in (*NAMES, LAST_DELIVERY)}

    def lost_leases(self) -> int:
        """Return how many leases ran out. Raises SpoolError."""
        return int(self._read().get(LOST_LEASES, 0))

    def _read(self) -> dict[str, float]:
        return {name: value for name, value in self._connections.run("read the totals", _TOTALS)}  # noqa: C416 - rows

    def add(self, counts: Mapping[str, int], now: int) -> None:
        """Add to them; `now` becomes the last delivery if anything was delivered.

        Raises SpoolError.
        """
        added = {name: count for name, count in counts.items() if count}
        if not added:
            return
        values = {"names": list(added), "values": [float(one) for one in added.values()]}
        self._connections.run("add to the totals", _ADD, values)
        if counts.get("delivered"):
            last = {"name": LAST_DELIVERY, "value": float(now)}
            self._connections.run("add to the totals", _SET, last)

    def add_one(self, name: str) -> None:
        """Add one to a total. Raises SpoolError."""
        self._connections.run("add to the totals", _ADD, {"names": [name], "values": [1.0]})
