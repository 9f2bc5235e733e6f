"""Checks of the database that keeps the mail, and of what this host has kept for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.admin.findings import CRITICAL, OK, WARNING, Finding
from picoqmail.admin.words import count, size
from picoqmail.errors import PicoqmailError, SpoolError
from picoqmail.home.values import rough_duration
from picoqmail.layout import CUR, NEW
from picoqmail.postgresql import health
from picoqmail.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.home.paths import Home
    from picoqmail.postgresql.health import DatabaseHealth
    from picoqmail.postgresql.store import PostgresStore

# A transaction that lives so long keeps vacuum from what thousands of messages leave behind.
LONG_TRANSACTION_SECONDS = 900
# From so many dead rows on, and more of them than living ones, claims become slow.
_MANY_DEAD_ROWS = 100_000
_LAG_SECONDS = 60
_CLOCK_SECONDS = 30
_FEW_SESSIONS = 0.9


def check_database(home: Home, store: PostgresStore) -> Iterator[Finding]:
    """Yield what the database and the directory of this host are like."""
    try:
        found = health.examine(store.connections)
    except PicoqmailError as exc:
        yield Finding("database", CRITICAL, str(exc))
    else:
        wrong = [*_durability(found), *_upkeep(found), *_standbys(found)]
        yield from wrong
        if not any(one.level for one in wrong):
            text = f"PostgreSQL {found.version}, tables of version {found.schema_version}"
            yield Finding("database", OK, f"{store.location}: {text}")
        yield _leases(found)
    yield from _on_this_host(home)


def _durability(found: DatabaseHealth) -> Iterator[Finding]:
    """What would lose mail that was accepted, or refuses it."""
    name = "database"
    for setting, is_on in (("fsync", found.fsync), ("full_page_writes", found.full_page_writes)):
        if not is_on:
            text = f"{setting} is off: a crash of its host loses mail that was accepted"
            yield Finding(name, CRITICAL, text, f"set {setting} = on in postgresql.conf")
    if found.in_recovery:
        text = "it is a standby in recovery, and takes no mail"
        yield Finding(name, CRITICAL, text, "name the primary server in the URL")
    if found.is_old:
        yield Finding(name, CRITICAL, f"PostgreSQL {found.version} is too old", "use 14 or later")
    if found.lacking:
        text = f"this database user lacks rights: {', '.join(found.lacking[:3])}"
        yield Finding(name, CRITICAL, text, "grant them, or use the owner of the tables")
    if found.default_commit == "off":
        text = "synchronous_commit is off by default; our programs set it to on for themselves"
        yield Finding(name, OK, text)


def _upkeep(found: DatabaseHealth) -> Iterator[Finding]:
    """What makes it slow, or will."""
    name = "database"
    seconds = found.oldest_seconds
    if found.oldest and (seconds is None or seconds > LONG_TRANSACTION_SECONDS):
        since = f" for {rough_duration(seconds)}" if seconds is not None else ""
        text = f"{found.oldest} keeps vacuum from removing old rows{since}"
        yield Finding(name, WARNING, text, "end that transaction; see pg_stat_activity")
    for table in found.tables:
        if table.dead_rows > max(_MANY_DEAD_ROWS, table.rows):
            text = f"table {table.name} has {table.dead_rows} dead rows and {table.rows} others"
            yield Finding(name, WARNING, text, f"VACUUM {table.name}; see whether autovacuum runs")
    if not found.autovacuum:
        yield Finding(name, WARNING, "autovacuum is off", "set autovacuum = on, or vacuum by cron")
    if found.sessions > found.most_sessions * _FEW_SESSIONS:
        text = f"{found.sessions} of {found.most_sessions} connections are in use"
        remedy = "use a pooler such as PgBouncer, or raise max_connections"
        yield Finding(name, WARNING, text, remedy)
    if abs(found.offset_seconds) > _CLOCK_SECONDS:
        text = f"this host's clock is {rough_duration(abs(found.offset_seconds))} off the server's"
        yield Finding("clock", WARNING, text, "let NTP set both")


def _standbys(found: DatabaseHealth) -> Iterator[Finding]:
    for one in found.standbys:
        if one.seconds is not None and one.seconds > _LAG_SECONDS:
            behind = f", {size(int(one.octets))}" if one.octets is not None else ""
            text = f"standby {one.name} is {rough_duration(one.seconds)}{behind} behind"
            yield Finding("standby", WARNING, text, "see pg_stat_replication on the server")


def _leases(found: DatabaseHealth) -> Finding:
    lost = f"; {count(found.lost_leases, 'lease')} ran out so far" if found.lost_leases else ""
    text = f"{count(found.held_leases, 'message')} in hand{lost}"
    if found.expired_leases:
        text += f"; {found.expired_leases} were in hand of workers that died, and are taken over"
    return Finding("workers", OK, text)


def _on_this_host(home: Home) -> Iterator[Finding]:
    """Mail that this host has accepted while the database was away."""
    try:
        states = DirectoryStore(home.spool).names().values()
    except SpoolError as exc:
        text = f"no directory of this host can take mail while the database is away: {exc}"
        yield Finding("fallback", WARNING, text, "make it with picoqmail init, or set fallback off")
        return
    waiting = sum(state in (NEW, CUR) for state in states)
    text = f"{count(waiting, 'message')} in {home.spool} to bring over"
    remedy = "picoqmail-cron or picoqmail worker does that once the database is there"
    yield Finding("fallback", WARNING if waiting else OK, text, remedy if waiting else "")
