"""Against storms of reports, for all workers: so many an hour for one address, and one digest.

As DirectoryReportLimit in ledger/report_limit.py: the name of an hour is `HASH-BEGIN`, and
`HASH-BEGIN.ID` while the digest of that ID is made. A digest names its hour, and a program that is
about to send the digest removes the hour first. So no crash makes a digest twice.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from picoqmail.ledger.report_limit import KEPT, Overdue
from picoqmail.spool.scan import REPORT_WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from picoqmail.postgresql.connections import Connections, DatabaseTransaction

# A digest is made in a moment. What was taken so long ago was left half made by a crash.
_UNFINISHED_SECONDS = 600

_LOCK = "SELECT pg_advisory_xact_lock(hashtext(%(lock)s))"
# The dash is the octet before the dot: these are the names of one address.
_CURRENT = """
    SELECT name, sent FROM picoqmail.report_hour
    WHERE name >= %(hash)s || '-' AND name < %(hash)s || '.' AND digest = ''
        AND begin <= %(now)s AND begin + %(window)s > %(now)s
    ORDER BY begin DESC LIMIT 1
"""
_BEGIN = """
    INSERT INTO picoqmail.report_hour (name, address, begin) VALUES (%(name)s, %(address)s, %(now)s)
    ON CONFLICT (name) DO NOTHING
"""
_COUNT = "UPDATE picoqmail.report_hour SET sent = sent + 1 WHERE name = %(name)s"
_KEEP = "INSERT INTO picoqmail.report_failure (hour, failure) VALUES (%(name)s, %(failure)s)"
_OVERDUE = """
    SELECT name, digest FROM picoqmail.report_hour
    WHERE (digest = '' AND NOT (begin <= %(now)s AND %(now)s < begin + %(window)s))
        OR (digest <> '' AND taken < extract(epoch FROM clock_timestamp()) - %(unfinished)s)
    ORDER BY name
"""
_TAKE = """
    SELECT address, digest FROM picoqmail.report_hour
    WHERE name = %(name)s AND digest = %(before)s FOR UPDATE SKIP LOCKED
"""
_FAILURES = "SELECT failure FROM picoqmail.report_failure WHERE hour = %(name)s ORDER BY number"
_TAKEN = """
    UPDATE picoqmail.report_hour
    SET digest = %(digest)s, taken = extract(epoch FROM clock_timestamp()) WHERE name = %(name)s
"""
_FINISH = "DELETE FROM picoqmail.report_hour WHERE name = %(name)s AND digest = %(before)s"


class TableReportLimit:
    """The limit for all workers: `limit` reports an hour for one address; 0 means no limit."""

    def __init__(self, connections: Connections, limit: int) -> None:
        self._connections = connections
        self.limit = limit

    def may_report(self, address: str, now: float) -> bool:
        """Say whether one more report may be made for an address now, and count it if so.

        `now` is Unix seconds. Raises SpoolError.
        """
        if not self.limit:
            return True
        doing = "count reports"
        with self._connections.transaction(doing, durable=False) as counting:
            name, sent = self._hour(counting, address, now)
            if sent >= self.limit:
                return False
            counting.queue(_COUNT, {"name": name})
        return True

    def keep(self, address: str, failures: Iterable[Mapping[str, Any]], now: float) -> None:
        """Keep failures for the digest, durably. Raises SpoolError."""
        with self._connections.transaction("keep a failure for a digest") as keeping:
            name, _ = self._hour(keeping, address, now)
            for failure in failures:
                line = {"what": KEPT, "address": address, "when": int(now), **failure}
                # In ASCII, so that no text of a relay is one that a table cannot hold.
                keeping.queue(_KEEP, {"name": name, "failure": json.dumps(line)})

    def overdue(self, now: float) -> list[str]:
        """Return the names of hours that are over, or whose digest a crash interrupted.

        Raises SpoolError.
        """
        values = {"now": now, "window": REPORT_WINDOW_SECONDS, "unfinished": _UNFINISHED_SECONDS}
        rows = self._connections.run("look for digests", _OVERDUE, values)
        return [f"{name}.{digest}" if digest else name for name, digest in rows]

    def take(self, name: str, digest: str) -> Overdue | None:
        """Take an hour for the digest of this ID; None if it is gone or another process has it.

        From now on the hour has the ID in its name. Raises SpoolError.
        """
        base, _, before = name.partition(".")
        with self._connections.transaction("take failures for a digest") as taking:
            rows = taking.run(_TAKE, {"name": base, "before": before})
            if not rows:
                return None
            ((address, _),) = rows
            kept = tuple(json.loads(line) for (line,) in taking.run(_FAILURES, {"name": base}))
            if kept:
                taking.queue(_TAKEN, {"name": base, "digest": digest})
        return Overdue(f"{base}.{digest}" if kept else name, address, kept, before)

    def finish(self, name: str) -> None:
        """Remove an hour: its digest was made, or nothing was kept. Raises SpoolError."""
        base, _, before = name.partition(".")
        values = {"name": base, "before": before}
        self._connections.run("finish a digest", _FINISH, values, durable=True)

    def _hour(self, transaction: DatabaseTransaction, address: str, now: float) -> tuple[str, int]:
        """Return the hour of an address, and its reports; nobody else changes it meanwhile."""
        hashed = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:32]
        transaction.queue(_LOCK, {"lock": f"{self._connections.address.schema}.report {hashed}"})
        values = {"hash": hashed, "now": now, "window": REPORT_WINDOW_SECONDS}
        rows = transaction.run(_CURRENT, values)
        if rows:
            ((name, sent),) = rows
            return name, sent
        name = f"{hashed}-{int(now)}"
        shown = address.replace("\0", " ").encode(errors="replace").decode()
        transaction.queue(_BEGIN, {"name": name, "address": shown, "now": float(int(now))})
        return name, 0
