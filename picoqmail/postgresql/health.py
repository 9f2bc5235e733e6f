"""What `picoqmail check` asks a database: plain values, which it judges.

Nothing is changed. What this user may not see is None.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from picoqmail.postgresql.fleet import TableTotals
from picoqmail.postgresql.versions import OLDEST_SERVER, PROGRAM_VERSION
from picoqmail.value import Value

if TYPE_CHECKING:
    from typing import Final

    from picoqmail.postgresql.connections import Connections

TABLES = (
    "message",
    "chunk",
    "result",
    "progress",
    "key",
    "ledger",
    "route",
    "pace",
    "lesson",
    "report_hour",
    "report_failure",
    "total",
)
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")

_SERVER = """
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
        current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
        pg_is_in_recovery(), current_setting('max_connections')::integer,
        current_setting('autovacuum') = 'on', pg_backend_pid(),
        current_setting('synchronous_standby_names'),
        extract(epoch FROM clock_timestamp())::float8
"""
# The default that other programs get, for ours set their own; and for `connection=`, where it
# is the caller's.
_DEFAULT_COMMIT = "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'"
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
# What vacuum must not remove is what the oldest of these can still see. Their databases do not
# matter, but for plain snapshots.
_OLDEST = """
    SELECT what, seconds, transactions FROM (
        SELECT 'session ' || pid || ' of ' || coalesce(usename, 'somebody')
                || ' (' || coalesce(nullif(application_name, ''), 'no name') || ')' AS what,
            extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
            age(backend_xmin) AS transactions
        FROM pg_stat_activity
        WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
            AND backend_type = 'client backend' AND datname = current_database()
        UNION ALL
        SELECT 'prepared transaction ' || gid,
            extract(epoch FROM clock_timestamp() - prepared)::float8, age(transaction)
        FROM pg_prepared_xacts
        UNION ALL
        SELECT 'replication slot ' || slot_name, NULL, age(xmin) FROM pg_replication_slots
        WHERE xmin IS NOT NULL
    ) AS holders ORDER BY transactions DESC NULLS LAST LIMIT 1
"""
_DEAD = """
    SELECT relname, n_live_tup, n_dead_tup,
        extract(epoch FROM greatest(last_vacuum, last_autovacuum))::float8
    FROM pg_stat_user_tables WHERE schemaname = %(schema)s
        AND relname IN ('message', 'chunk', 'result', 'ledger')
"""
_STANDBYS = """
    SELECT coalesce(nullif(application_name, ''), 'a standby'), sync_state,
        pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::float8,
        extract(epoch FROM replay_lag)::float8
    FROM pg_stat_replication
"""
_LEASES = """
    SELECT count(*) FILTER (WHERE leased_until > clock_timestamp()),
        count(*) FILTER (WHERE leased_until > '-infinity' AND leased_until <= clock_timestamp())
    FROM picoqmail.message WHERE leased_until > '-infinity'
"""
_LACKING = """
    SELECT wanted_table || ': ' || wanted_right
    FROM unnest(%(tables)s::text[]) AS wanted_table, unnest(%(rights)s::text[]) AS wanted_right
    WHERE NOT has_table_privilege(format('%%I.%%I', %(schema)s::text, wanted_table), wanted_right)
    ORDER BY 1
"""


class Standby(Value):
    """One standby: its name, sync_state of the server, and how far it is behind.

    `octets` of what is written ahead, `seconds` of time; None where that is not known.
    """

    __slots__ = ("name", "state", "octets", "seconds")

    def __init__(
        self, name: str, state: str | None, octets: float | None, seconds: float | None
    ) -> None:
        self.name: Final = name
        self.state: Final = state
        self.octets: Final = octets
        self.seconds: Final = seconds


class TableHealth(Value):
    """One table: its rows, those that vacuum has to remove, and when it last did (Unix seconds)."""

    __slots__ = ("name", "rows", "dead_rows", "vacuumed")

    def __init__(self, name: str, rows: int, dead_rows: int, vacuumed: float | None) -> None:
        self.name: Final = name
        self.rows: Final = rows
        self.dead_rows: Final = dead_rows
        self.vacuumed: Final = vacuumed


class DatabaseHealth(Value):
    """What a database says of itself.

    `is_old`: older than what we need. `fsync`, `full_page_writes` and `autovacuum` are settings of
    the server: without the first two, a crash of the machine loses mail that was accepted.
    `default_commit` is synchronous_commit as other programs get it; ours set it. `is_pooled`: a
    pooler is in between. `offset_seconds` is how far this host's clock is ahead of the server's.
    `oldest` is what keeps vacuum from removing rows, "" if nothing does, `oldest_seconds` its age,
    `oldest_transactions` the transactions since. `held_leases` are claims in use, `expired_leases`
    claims whose holder died, and that nobody has taken over yet; `lost_leases` counts these since
    the tables were made. `lacking` are rights that this user has not, as "table: RIGHT".
    """

    __slots__ = (
        "version",
        "is_old",
        "fsync",
        "full_page_writes",
        "autovacuum",
        "default_commit",
        "in_recovery",
        "is_pooled",
        "offset_seconds",
        "sessions",
        "most_sessions",
        "synchronous_standbys",
        "oldest",
        "oldest_seconds",
        "oldest_transactions",
        "tables",
        "standbys",
        "held_leases",
        "expired_leases",
        "lost_leases",
        "schema_version",
        "program_version",
        "lacking",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        *,
        version: str,
        is_old: bool,
        fsync: bool,
        full_page_writes: bool,
        autovacuum: bool,
        default_commit: str,
        in_recovery: bool,
        is_pooled: bool,
        offset_seconds: float,
        sessions: int,
        most_sessions: int,
        synchronous_standbys: str,
        oldest: str,
        oldest_seconds: float | None,
        oldest_transactions: int | None,
        tables: tuple[TableHealth, ...],
        standbys: tuple[Standby, ...],
        held_leases: int,
        expired_leases: int,
        lost_leases: int,
        schema_version: int,
        program_version: int,
        lacking: tuple[str, ...],
    ) -> None:
        self.version: Final = version
        self.is_old: Final = is_old
        self.fsync: Final = fsync
        self.full_page_writes: Final = full_page_writes
        self.autovacuum: Final = autovacuum
        self.default_commit: Final = default_commit
        self.in_recovery: Final = in_recovery
        self.is_pooled: Final = is_pooled
        self.offset_seconds: Final = offset_seconds
        self.sessions: Final = sessions
        self.most_sessions: Final = most_sessions
        self.synchronous_standbys: Final = synchronous_standbys
        self.oldest: Final = oldest
        self.oldest_seconds: Final = oldest_seconds
        self.oldest_transactions: Final = oldest_transactions
        self.tables: Final = tables
        self.standbys: Final = standbys
        self.held_leases: Final = held_leases
        self.expired_leases: Final = expired_leases
        self.lost_leases: Final = lost_leases
        self.schema_version: Final = schema_version
        self.program_version: Final = program_version
        self.lacking: Final = lacking


def examine(connections: Connections) -> DatabaseHealth:
    """Ask a database for its health. Raises SpoolError, ConfigurationError.

    A schema that is missing, too old or too new is such a ConfigurationError.
    """
    doing = "examine the database"
    schema = connections.address.schema
    before = time.time()
    (server,) = connections.run(doing, _SERVER)
    number, version, fsync, pages, in_recovery, most, vacuums, pid, names, now = server
    ((commit,),) = connections.run(doing, _DEFAULT_COMMIT)
    ((sessions,),) = connections.run(doing, _SESSIONS)
    oldest = connections.run(doing, _OLDEST)
    what, seconds, transactions = oldest[0] if oldest else ("", None, None)
    wanted = {"schema": schema, "tables": list(TABLES), "rights": list(_RIGHTS)}
    lacking = tuple(one for (one,) in connections.run(doing, _LACKING, wanted))
    # Those of a standby are its primary's to know.
    standbys = () if in_recovery else tuple(connections.run(doing, _STANDBYS))
    held, expired = 0, 0
    if not _lacks(lacking, "message"):
        ((held, expired),) = connections.run(doing, _LEASES)
    ((schema_version,),) = connections.run(doing, "SELECT max(number) FROM picoqmail.migration")
    lost = 0 if _lacks(lacking, "total") else TableTotals(connections).lost_leases()
    return DatabaseHealth(
        version=version,
        is_old=number < OLDEST_SERVER,
        fsync=fsync,
        full_page_writes=pages,
        autovacuum=vacuums,
        default_commit=commit,
        in_recovery=in_recovery,
        is_pooled=connections.is_pooled(pid),
        offset_seconds=(before + time.time()) / 2 - now,
        sessions=sessions,
        most_sessions=most,
        synchronous_standbys=names,
        oldest=what,
        oldest_seconds=seconds,
        oldest_transactions=transactions,
        tables=tuple(TableHealth(*row) for row in connections.run(doing, _DEAD, wanted)),
        standbys=tuple(Standby(*row) for row in standbys),
        held_leases=held,
        expired_leases=expired,
        lost_leases=lost,
        schema_version=schema_version,
        program_version=PROGRAM_VERSION,
        lacking=lacking,
    )


def _lacks(lacking: tuple[str, ...], table: str) -> bool:
    return f"{table}: SELECT" in lacking
