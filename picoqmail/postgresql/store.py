"""The store: what delivery and administration ask for, in statements.

Each verb is one short transaction, most of them one round trip. Which of them are durable, and what
a crash leaves: INTERNALS.md.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from picoqmail.errors import DamagedMessageError, NoSuchMessageError, SpoolError
from picoqmail.layout import (
    BODY,
    CUR,
    LEFTOVER_AGE_SECONDS,
    NEW,
    RESULT,
    SIDECAR,
    STATES,
    TMP,
    UNDELIVERED,
    accepted_at,
    is_id,
)
from picoqmail.postgresql.claim import Lease, LeasedClaim, Leases, measure
from picoqmail.postgresql.connections import Connections
from picoqmail.postgresql.fleet import (
    LOST_LEASES,
    TableNotes,
    TablePace,
    TableRoutes,
    TableTotals,
)
from picoqmail.postgresql.incoming import TableIncoming
from picoqmail.postgresql.insertion import CHUNK_OCTETS
from picoqmail.postgresql.keys import SWEEP_KEYS, find_key
from picoqmail.postgresql.reports import TableReportLimit
from picoqmail.postgresql.transfer import bring_in
from picoqmail.postgresql.wake import WakeUps
from picoqmail.spool.claim import Damage, RunDiedError
from picoqmail.spool.figures import Figures, Heap
from picoqmail.spool.files import NO_BODY, RESULT_LIMIT_OCTETS
from picoqmail.spool.message import Event, Message
from picoqmail.spool.progress import doubts_of_lines, merge_lines
from picoqmail.value import evolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from picoqmail.home.limits import Limits
    from picoqmail.home.values import RateLimit
    from picoqmail.postgresql.address import DatabaseAddress

    class AnyClaim(Protocol):
        """A claim, of which the protocol of stores does not say whose."""

        @property
        def message(self) -> Message:
            """What is kept of it."""

        @property
        def state(self) -> str:
            """Where it is."""

    class ClaimedBody(Protocol):
        """What a claim of another store has to give to this one."""

        @property
        def was_in_doubt(self) -> bool:
            """Whether its end of data went to a relay, and no reply is recorded."""

        def blocks(self) -> Iterator[bytes]:
            """Yield the body's octets. Raises OSError."""


DEPARTED_SECONDS = 2 * 86400
"""How long the ledger has the ID of a message that has left."""

ARRIVED_SECONDS = 30 * 86400
"""How long the ledger has the ID of one that was brought in: longer than a message lives."""

_ENTROPY_OCTETS = 8
# So many chunks are read at once: a megabyte.
_CHUNKS_AT_ONCE = 4
_DELETED_AT_ONCE = 500
_NAMES_AT_ONCE = 10_000
_CUT = b"[...]\n"

_DUE = """
    SELECT id FROM picoqmail.message
    WHERE state IN ('new', 'cur') AND state = ANY (%(states)s)
        AND due <= extract(epoch FROM statement_timestamp())::float8
        AND leased_until <= clock_timestamp() AND NOT id = ANY (%(skip)s)
    ORDER BY due, id LIMIT %(most)s
"""
_NEXT_DUE = """
    SELECT min(greatest(due, extract(epoch FROM leased_until)::float8)) FROM (
        SELECT due, leased_until FROM picoqmail.message
        WHERE state IN ('new', 'cur') AND due < 'Infinity' ORDER BY due, id LIMIT 1000
    ) AS first
"""
# The lease that was found tells whether its holder gave it up or lost it. The number may be there
# already if the answer to this very statement was lost. What a run died of is marked before any of
# it is read, for that may be what kills.
_CLAIM = """
    WITH found AS (
        SELECT id, leased_until, suspect AS was_suspect,
            in_hand AND fence <> %(fence)s AS was_in_hand
        FROM picoqmail.message
        WHERE id = ANY (%(ids)s) AND state = ANY (%(states)s) AND state <> 'tmp'
            AND (leased_until <= clock_timestamp() OR fence = %(fence)s)
        FOR UPDATE SKIP LOCKED
    ), judged AS (
        SELECT *, %(in_hand)s AND (was_in_hand OR was_suspect AND NOT %(suspects)s) AS is_left
        FROM found
    ), taken AS (
        UPDATE picoqmail.message AS message
        SET fence = %(fence)s,
            holder = CASE WHEN is_left THEN '' ELSE %(holder)s END,
            leased_until = CASE WHEN is_left THEN '-infinity'
                ELSE clock_timestamp() + %(lease)s * interval '1 second' END,
            in_hand = CASE WHEN %(in_hand)s THEN NOT is_left ELSE in_hand END,
            suspect = suspect OR %(in_hand)s AND was_in_hand
        FROM judged WHERE message.id = judged.id
        RETURNING message.id, state, sidecar, doubt, due,
            judged.leased_until > '-infinity' AS expired, is_left, was_in_hand, was_suspect
    )
    SELECT taken.id, state, sidecar, doubt, due, expired, is_left, was_in_hand, was_suspect,
        chunk.octets,
        EXISTS (SELECT FROM picoqmail.progress WHERE message = taken.id),
        extract(epoch FROM clock_timestamp())::float8
    FROM taken LEFT JOIN picoqmail.chunk ON chunk.message = taken.id AND chunk.number = 0
"""
_CHUNKS = """
    SELECT octets FROM picoqmail.chunk
    WHERE message = %(id)s AND number >= %(first)s ORDER BY number LIMIT %(most)s
"""
_PROGRESS = (
    "SELECT revision, outcomes FROM picoqmail.progress WHERE message = %(id)s ORDER BY number"
)
_NOTE = """
    INSERT INTO picoqmail.progress (message, revision, outcomes)
    SELECT id, %(revision)s, %(outcomes)s FROM picoqmail.message
    WHERE id = %(id)s AND fence = %(fence)s FOR KEY SHARE
    RETURNING message
"""
# What relays said is kept up to a size. The oldest goes, by whole lines.
_AND_RESULT = """
    said AS (
        INSERT INTO picoqmail.result AS result (message, octets)
        SELECT id, %(result)s::bytea FROM kept WHERE %(has_result)s
        ON CONFLICT (message) DO UPDATE SET octets = CASE
            WHEN length(result.octets || excluded.octets) <= %(limit)s
            THEN result.octets || excluded.octets
            ELSE %(cut)s::bytea || substring(
                substring(result.octets || excluded.octets
                    FROM length(result.octets || excluded.octets) - %(limit)s + 1)
                FROM position(%(newline)s::bytea IN
                    substring(result.octets || excluded.octets
                        FROM length(result.octets || excluded.octets) - %(limit)s + 1)) + 1)
            END
    )
    SELECT id FROM kept
"""
# One statement each, so that all of it is done or nothing.
_RECORD = (
    """
    WITH kept AS (
        UPDATE picoqmail.message
        SET state = %(state)s, due = %(due)s, sidecar = %(sidecar)s,
            doubt = doubt AND %(keeps_doubt)s,
            entered = CASE WHEN state = %(state)s THEN entered
                ELSE extract(epoch FROM clock_timestamp()) END,
            leased_until = clock_timestamp() + %(lease)s * interval '1 second', suspect = false
        WHERE id = %(id)s AND fence = %(fence)s
        RETURNING id
    ), gone AS (
        DELETE FROM picoqmail.progress USING kept WHERE message = kept.id
    ),
    """  # noqa: S608 - both halves are ours
    + _AND_RESULT
)
_PUT_ASIDE = (
    """
    WITH kept AS (
        UPDATE picoqmail.message
        SET state = 'undelivered', leased_until = '-infinity', holder = '',
            entered = CASE WHEN state = 'undelivered' THEN entered
                ELSE extract(epoch FROM clock_timestamp()) END
        WHERE id = %(id)s AND fence = %(fence)s
        RETURNING id
    ),
    """  # noqa: S608 - both halves are ours
    + _AND_RESULT
)
# Who leaves is noted in the ledger, in the same statement.
_AND_LEDGER = """
    RETURNING id
    ), noted AS (
        INSERT INTO picoqmail.ledger AS ledger (id, forgotten_at)
        SELECT id, extract(epoch FROM clock_timestamp())::float8 + %(remembered)s FROM gone
        ON CONFLICT (id) DO UPDATE
        SET forgotten_at = greatest(ledger.forgotten_at, excluded.forgotten_at)
    )
    SELECT id FROM gone
"""
_REMOVE = (
    """
    WITH gone AS (
        DELETE FROM picoqmail.message WHERE id = %(id)s AND fence = %(fence)s
    """  # noqa: S608 - both halves are ours
    + _AND_LEDGER
)
_HAND_OVER = """
    WITH gone AS (
        DELETE FROM picoqmail.message WHERE id = %(id)s AND fence = %(fence)s RETURNING id
    ), forgotten AS (
        DELETE FROM picoqmail.ledger USING gone WHERE ledger.id = gone.id
    )
    SELECT id FROM gone
"""
_FENCE = "SELECT fence FROM picoqmail.message WHERE id = %(id)s"
_DESTROY = (
    """
    WITH gone AS (
        DELETE FROM picoqmail.message
        WHERE id = %(id)s AND state <> 'tmp' AND leased_until <= clock_timestamp()
    """  # noqa: S608 - both halves are ours
    + _AND_LEDGER
)
_WHERE = "SELECT state FROM picoqmail.message WHERE id = %(id)s AND state <> 'tmp'"
_IS_WHOLE = """
    SELECT FROM picoqmail.message
    WHERE id = %(id)s AND state <> 'tmp'
        AND EXISTS (SELECT FROM picoqmail.chunk WHERE message = %(id)s)
"""
_READ = "SELECT state, sidecar FROM picoqmail.message WHERE id = %(id)s AND state <> 'tmp'"
_RESULT = "SELECT octets FROM picoqmail.result WHERE message = %(id)s"
_SELECT = """
    SELECT id, state, sidecar FROM picoqmail.message
    WHERE state = ANY (%(states)s) AND id > %(after)s AND id < %(before)s ORDER BY id LIMIT %(most)s
"""
_SELECT_NEWEST = """
    SELECT id, state, sidecar FROM picoqmail.message
    WHERE state = ANY (%(states)s) AND id > %(after)s AND id < %(before)s
    ORDER BY id DESC LIMIT %(most)s
"""
_PUT_OFF = """
    UPDATE picoqmail.message SET due = %(due)s, state = 'cur'
    WHERE id = %(id)s AND state IN ('new', 'cur') AND due < 'Infinity'
        AND leased_until <= clock_timestamp()
"""
_CORRECT_DUE = """
    UPDATE picoqmail.message SET due = %(due)s WHERE id = %(id)s AND fence = %(fence)s
"""
_PURGE = (
    """
    WITH gone AS (
        DELETE FROM picoqmail.message WHERE id IN (
            SELECT id FROM picoqmail.message
            WHERE state = 'undelivered' AND id < %(before)s AND entered < %(oldest)s
                AND leased_until <= clock_timestamp()
            LIMIT %(most)s FOR UPDATE SKIP LOCKED
        )
    """  # noqa: S608 - both halves are ours
    + _AND_LEDGER
)
_SWEEP_LEDGER = """
    DELETE FROM picoqmail.ledger WHERE id IN (
        SELECT id FROM picoqmail.ledger
        WHERE forgotten_at <= extract(epoch FROM clock_timestamp())
        ORDER BY forgotten_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ) RETURNING id
"""
_NAMES = """
    SELECT id, state FROM picoqmail.message
    WHERE state <> 'tmp' AND id > %(after)s ORDER BY id LIMIT %(most)s
"""
# The oldest is the oldest that is neither held nor in doubt. Due times in doubt end in half a
# second (SUSPENDED_FRACTION).
_FIGURES = """
    WITH messages AS (
        SELECT *, due < 'Infinity' AND due - floor(due) = 0.5 AS is_in_doubt FROM picoqmail.message
    )
    SELECT state, count(*), count(*) FILTER (WHERE due = 'Infinity'),
        count(*) FILTER (WHERE is_in_doubt),
        count(*) FILTER (
            WHERE due <= extract(epoch FROM statement_timestamp())::float8 AND NOT is_in_doubt
        ),
        min(due) FILTER (WHERE due < 'Infinity' AND NOT is_in_doubt), sum(octets)::bigint,
        min(id) FILTER (WHERE due < 'Infinity' AND NOT is_in_doubt OR state = 'undelivered'),
        count(*) FILTER (WHERE id > %(day_ago)s)
    FROM messages GROUP BY state
"""
_SWEEP = """
    DELETE FROM picoqmail.message WHERE id IN (
        SELECT id FROM picoqmail.message
        WHERE state = 'tmp' AND entered < extract(epoch FROM clock_timestamp()) - %(age)s
        LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ) RETURNING id
"""
# Later than every ID: these begin with a digit.
_LAST = ":"


def _due_of(message: Message) -> float:
    return float("inf") if message.held else message.due_hint


def nothing(_what: object) -> None:
    """Do nothing with it."""


class PostgresStore:
    """The messages of one schema of one database, for any number of processes on any hosts.

    `on_damage` is called for each message that is put aside.
    """

    def __init__(
        self,
        address: DatabaseAddress,
        on_damage: Callable[[Damage], None] = nothing,
        on_takeover: Callable[[str], None] = nothing,
    ) -> None:
        """Nothing is connected yet.

        `on_takeover` gets the ID of each message that is claimed although its last holder never
        gave it up: its lease ran out.
        """
        self.address = address
        self.connections = Connections(address)
        self.clock = self.connections.clock
        self.collected: set[str] = set()
        self.notes = TableNotes(self.connections)
        self.totals = TableTotals(self.connections)
        self._leases = Leases(self.connections)
        self._wake_ups = WakeUps(self.connections)
        self._on_damage = on_damage
        self._on_takeover = on_takeover
        self._needs_flush = False

    def __repr__(self) -> str:
        """Show where it is, without the password."""
        return f"PostgresStore({self.location!r})"

    @property
    def location(self) -> str:
        """What people are shown: the URL without its password."""
        return self.address.location

    def close(self) -> None:
        """Close the connections that are not in use; leases that are left will run out."""
        self._leases.abandon()
        self._wake_ups.close()
        self.connections.close()

    # --- The way in ------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the server's time (Unix seconds), and connect if that was not done yet.

        Raises SpoolError, ConfigurationError.
        """
        self.connections.measure()
        return self.clock()

    def incoming(  # noqa: PLR0913 - all that an origin is
        self,
        limits: Limits,
        *,
        program: str,
        uid: int,
        pid: int,
        now_ns: int = 0,
        message_id: str = "",
    ) -> TableIncoming:
        """Begin a message. `now_ns` is the server's time (Unix nanoseconds), 0 for now.

        `message_id` is the ID that it has elsewhere, too; "" for a new one.

        Raises SpoolError, ConfigurationError.
        """
        self.connections.measure()
        return TableIncoming(
            self.connections,
            limits,
            program=program,
            uid=uid,
            pid=pid,
            now_ns=now_ns or int(self.clock() * 1e9),
            entropy=os.urandom(_ENTROPY_OCTETS),
            message_id=message_id,
        )

    def find_key(self, key: str) -> dict[str, Any] | None:
        """Return the record of what an idempotency key stands for, None if nothing.

        Raises SpoolError; MessageError for what is no key.
        """
        return find_key(self.connections, key)

    def collect(self, limits: Limits, most: int, on_trouble: Callable[[str], None]) -> list[str]:
        """Return nothing: mail that a host has taken is brought in from its directory."""
        del limits, most, on_trouble
        return []

    def bring_in(self, message: Message, state: str, body: ClaimedBody, result: str = "") -> bool:
        """Put a message of another store into a state, durably; False if it has arrived before.

        It keeps its ID. The ledger has that for longer than a message lives, also after it has left
        this store. Raises SpoolError; then the same is to be done again.
        """
        return bring_in(
            self.connections,
            message.id,
            state,
            message.to_sidecar(),
            body.blocks(),
            due=_due_of(message),
            result=result.encode(errors="replace")[-RESULT_LIMIT_OCTETS:],
            doubt=body.was_in_doubt,
            remembered=ARRIVED_SECONDS,
        )

    # --- What is due -----------------------------------------------------------------------------

    def due(
        self, most: int, states: Iterable[str] = (NEW, CUR), skip: Iterable[str] = ()
    ) -> list[str]:
        """Return the next messages that are due, without a lock, the oldest first.

        The most overdue are taken; those of `skip`, and those that somebody has, are left out.
        Raises SpoolError.
        """
        values = {"most": most, "states": list(states), "skip": list(skip)}
        rows = self.connections.run("look for what is due", _DUE, values)
        return sorted(message_id for (message_id,) in rows)

    def next_due(self) -> float | None:
        """Return when the next message is due (Unix seconds), None if none waits.

        Raises SpoolError.
        """
        ((due,),) = self.connections.run("look for what is due next", _NEXT_DUE)
        return None if due is None else float(due)

    def wait(self, seconds: float, is_stopped: Callable[[], bool]) -> None:
        """Wait until a commit wakes us, at most so long, or until `is_stopped`. Raises nothing."""
        self._wake_ups.wait(seconds, is_stopped)

    # --- Delivery --------------------------------------------------------------------------------

    def claim(
        self,
        message_id: str,
        states: Iterable[str] = (NEW, CUR),
        *,
        in_hand: bool = False,
        suspects: bool = False,
    ) -> LeasedClaim | None:
        """Take a message for this process; None if another has it, or it is in no such state.

        A damaged one is put aside, `on_damage` is called, and it is None too. Raises SpoolError
        where the database, not the message, is the trouble.

        `in_hand` marks it until its release, for runs that might die of it. Raises RunDiedError if
        one did, unless that is known and `suspects` says that such messages are wanted. A run that
        lost its lease for another reason is taken for one that died.
        """
        found = self.claim_many((message_id,), states, in_hand=in_hand, suspects=suspects)
        claim = found[0] if found else None
        if isinstance(claim, RunDiedError):
            raise claim
        return claim

    def claim_many(
        self,
        ids: Iterable[str],
        states: Iterable[str] = (NEW, CUR),
        *,
        in_hand: bool = False,
        suspects: bool = False,
    ) -> list[LeasedClaim | RunDiedError]:
        """Take those of some messages that nobody has, in one transaction; in their order.

        For one that a run died of there is the error instead. Raises SpoolError.
        """
        ids = list(ids)
        fence = int.from_bytes(os.urandom(8), "big") >> 1
        values = {
            "ids": ids,
            "states": list(states),
            "fence": fence,
            "holder": _holder(),
            "lease": self.address.lease_seconds,
            "in_hand": in_hand,
            "suspects": suspects,
        }
        # Not durable: if a crash of the server undoes a claim, no statement finds its number.
        rows = {row[0]: row for row in self.connections.run("claim a message", _CLAIM, values)}
        claims: list[LeasedClaim | RunDiedError] = []
        for message_id in ids:
            row = rows.pop(message_id, None)
            if row is None:
                continue
            *facts, is_left, was_in_hand, was_suspect, octets, has_progress, now = row
            self.connections.heard(now)
            if is_left:
                is_again = was_in_hand and was_suspect
                claims.append(RunDiedError(is_news=was_in_hand, is_again=is_again))
                continue
            lease = Lease(message_id, fence, is_marked=facts[3], is_in_hand=in_hand)
            claim = self._examine(lease, *facts, octets=octets, has_progress=has_progress)
            if claim is not None:
                claims.append(claim)
        return claims

    def _examine(  # noqa: PLR0913, PLR0917 - a row of _CLAIM
        self,
        lease: Lease,
        message_id: str,
        state: str,
        sidecar: bytes,
        doubt: bool,  # noqa: FBT001 - the same
        due: float,
        expired: bool,  # noqa: FBT001 - the same
        *,
        octets: bytes | None,
        has_progress: bool,
    ) -> LeasedClaim | None:
        """Read a message that was taken, and compare its body with what was accepted."""
        self._leases.add(lease)
        try:
            if expired:
                self._note_takeover(message_id)
            message = Message.from_sidecar(sidecar, message_id)
            if octets is None:
                raise DamagedMessageError(NO_BODY)  # noqa: TRY301 - one way out for all damage
            is_small = len(octets) < CHUNK_OCTETS
            blocks = iter((octets,)) if is_small else self._body_behind(message_id, octets)
            newlines, eight_bit = measure(message, blocks)
            if has_progress:
                message = self._merge_progress(message)
        except DamagedMessageError as exc:
            self._put_aside(lease, state, str(exc))
            return None
        except BaseException:
            self._leases.drop(lease)
            raise
        return LeasedClaim(
            message,
            state,
            lease=lease,
            leases=self._leases,
            read=self._chunks,
            data=octets if is_small else None,
            newlines=newlines,
            eight_bit=eight_bit,
            was_in_doubt=doubt,
            has_progress=has_progress,
            due=due,
        )

    def _note_takeover(self, message_id: str) -> None:
        """Count that a lease ran out: its holder was killed, stopped or cut off."""
        self.totals.add_one(LOST_LEASES)
        self._on_takeover(message_id)

    def _body_behind(self, message_id: str, first: bytes) -> Iterator[bytes]:
        yield first
        yield from self._chunks(message_id, 1)

    def _chunks(self, message_id: str, first: int) -> Iterator[bytes]:
        """Yield the chunks of a body from a number on. Raises SpoolError."""
        while True:
            values = {"id": message_id, "first": first, "most": _CHUNKS_AT_ONCE}
            rows = self.connections.run("read the message", _CHUNKS, values)
            for (octets,) in rows:
                yield octets
            if len(rows) < _CHUNKS_AT_ONCE:
                return
            first += len(rows)

    def _merge_progress(self, message: Message) -> Message:
        return merge_lines(message, self._progress_lines(message.id))

    def _progress_lines(self, message_id: str) -> list[bytes]:
        lines = self.connections.run("read the progress", _PROGRESS, {"id": message_id})
        return [f"[{revision}, {noted}]".encode() for revision, noted in lines]

    def _put_aside(self, lease: Lease, state: str, reason: str) -> None:
        """Move a message that must not be sent to undelivered, its octets untouched."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock()))
        values = {
            "id": lease.id,
            "fence": lease.fence,
            **_result_values(f"{stamp} not sent: {reason}\n" if state != UNDELIVERED else ""),
        }
        self._leases.drop(lease)
        lease.is_over = True
        self.connections.run("put the message aside", _PUT_ASIDE, values, durable=True)
        self._on_damage(Damage(lease.id, reason))

    def renew(self) -> None:
        """Renew the leases of all claims now; a thread does so, too. Raises SpoolError."""
        self._leases.renew()

    def remove(self, claim: AnyClaim) -> None:
        """Remove a message with all that belongs to it.

        Durable at the latest with `flush`; until then a crash of the server may bring it back, with
        its mark of doubt. Raises SpoolError; LostClaimError if another process has it.
        """
        self._take_out(claim, _REMOVE)

    def hand_over(self, claim: AnyClaim) -> None:
        """Remove a message that another store has now. It may come back here, so nothing is noted.

        Durable with `flush`. Raises SpoolError, LostClaimError.
        """
        self._take_out(claim, _HAND_OVER)

    def _take_out(self, claim: AnyClaim, text: str) -> None:
        lease = _ours(claim).lease
        values = {"id": lease.id, "fence": lease.fence, "remembered": DEPARTED_SECONDS}
        self._leases.drop(lease)
        if self.connections.run("remove the message", text, values):
            lease.is_over = True
        elif self.connections.run("remove the message", _FENCE, {"id": lease.id}):
            raise self._leases.lost(lease)
        # Else the answer was lost, and this is the second time that it was removed.
        lease.is_over = True
        self._needs_flush = True

    def record(
        self, claim: AnyClaim, message: Message, state: str, result: str = ""
    ) -> LeasedClaim:
        """Replace what is known of a message, durably, in `state`.

        `result` is appended to what relays said of it. Returns the claim of the message as it is
        now. Raises SpoolError; LostClaimError if another process has it.
        """
        lease = _ours(claim).lease
        self._leases.demand(lease)
        due = _due_of(message)
        values = {
            "id": lease.id,
            "fence": lease.fence,
            "lease": self.address.lease_seconds,
            "state": state,
            "due": due,
            "sidecar": message.to_sidecar(),
            # What an earlier run left in doubt is forgotten only once it is counted.
            "keeps_doubt": _ours(claim).was_in_doubt,
            **_result_values(result),
        }
        if not self.connections.run("record the message", _RECORD, values, durable=True):
            raise self._leases.lost(lease)
        lease.is_marked, lease.is_unsure = _ours(claim).was_in_doubt, False
        return evolve(
            _ours(claim),
            message=message,
            state=state,
            has_progress=False,
            due=due,
        )

    def note_progress(
        self,
        claim: AnyClaim,
        results: Mapping[int, tuple[str, str]],
        *,
        is_synced: bool = True,
    ) -> LeasedClaim:
        """Note outcomes of some recipients of a message that takes several transactions.

        `results` are pairs of state and reply by index. Raises SpoolError.
        """
        import json

        lease = _ours(claim).lease
        self._leases.demand(lease)
        values = {
            "id": lease.id,
            "fence": lease.fence,
            "revision": claim.message.revision,
            # In ASCII, so that no text of a relay is one that a table cannot hold.
            "outcomes": json.dumps([[index, *one] for index, one in results.items()]),
        }
        if not self.connections.run("note progress", _NOTE, values, durable=is_synced):
            raise self._leases.lost(lease)
        return evolve(_ours(claim), has_progress=True)

    def doubts(self, claim: AnyClaim) -> dict[int, int]:
        """Return whose transactions an earlier run left without a reply: how many, by index.

        Empty where that was not noted, as for a message of one transaction. Raises SpoolError.
        """
        return doubts_of_lines(claim.message, self._progress_lines(claim.message.id))

    def flush(self) -> None:
        """Make every removal so far durable. Raises SpoolError."""
        self._leases.rest()
        if self._needs_flush:
            self.connections.flush("make removals durable")
            self._needs_flush = False

    def sync(self, state: str) -> None:
        """Do nothing: what others can see of an acceptance or a record is durable."""

    def gather(self, claim: AnyClaim) -> None:
        """Do nothing: a message is in one state, and its body with it."""

    def put_off(self, message_id: str, when: int) -> None:
        """Let runs pass over a message until `when` (Unix seconds), in cur, by its row alone.

        It is not read. Nothing is done if another process has it. Raises SpoolError.
        """
        values = {"id": message_id, "due": float(when)}
        self.connections.run("put the message off", _PUT_OFF, values)

    def repeat_due_time(self, claim: AnyClaim) -> None:
        """Correct the column `due` where it is not what the sidecar says. Raises SpoolError."""
        message, held = claim.message, _ours(claim)
        due = _due_of(message)
        if due != held.due:
            values = {"id": message.id, "fence": held.lease.fence, "due": due}
            self.connections.run("correct the due time", _CORRECT_DUE, values)

    # --- Reading, without a lock -----------------------------------------------------------------

    def find(self, name: str) -> str:
        """Return the ID that an ID, or the name of a file, names. Raises NoSuchMessageError."""
        stem = os.path.basename(name)
        for suffix in (SIDECAR, BODY, RESULT):
            stem = stem.removesuffix(suffix)
        if not is_id(stem) or not self.where(stem):
            raise self._unknown(name)
        return stem

    def _unknown(self, name: str) -> NoSuchMessageError:
        return NoSuchMessageError(f"{name}: no such message in {self.location}")

    def where(self, message_id: str) -> list[str]:
        """Return the state of a message in a list, which is empty if there is none.

        Raises SpoolError.
        """
        rows = self.connections.run("look for the message", _WHERE, {"id": message_id})
        return [state for (state,) in rows]

    def is_whole(self, message_id: str) -> bool:
        """Say whether a message is there, with a body. Raises SpoolError."""
        return bool(self.connections.run("look for the message", _IS_WHOLE, {"id": message_id}))

    def read(self, message_id: str, hint: str = "") -> tuple[str, Message]:
        """Return state and message as they are at this moment, for people.

        Raises NoSuchMessageError, DamagedMessageError, SpoolError.
        """
        del hint
        state, sidecar = self.read_raw(message_id)
        return state, Message.from_sidecar(sidecar, message_id)

    def read_raw(self, message_id: str) -> tuple[str, bytes]:
        """Return state and sidecar, damaged or not. Raises NoSuchMessageError, SpoolError."""
        rows = self.connections.run("read the message", _READ, {"id": message_id})
        if not rows:
            raise self._unknown(message_id)
        ((state, sidecar),) = rows
        return state, sidecar

    def sidecar(self, message_id: str, state: str) -> bytes | None:
        """Return a sidecar, damaged or not; None if the message is not in that state.

        Raises SpoolError.
        """
        try:
            found, sidecar = self.read_raw(message_id)
        except NoSuchMessageError:
            return None
        return sidecar if found == state else None

    def names(self) -> dict[str, str]:
        """Return the states of all messages by ID, oldest first. Raises SpoolError."""
        return dict(self.walk())

    def walk(self, *, newest_first: bool = False) -> Iterator[tuple[str, str]]:
        """Yield the IDs of all messages and their states, oldest first. Raises SpoolError."""
        if newest_first:
            yield from reversed(self.names().items())
            return
        after = ""
        while rows := self.connections.run(
            "list messages", _NAMES, {"after": after, "most": _NAMES_AT_ONCE}
        ):
            yield from rows
            after = rows[-1][0]

    def figures(self, now: float) -> Figures:
        """Return how much mail there is. Raises SpoolError."""
        figures = Figures(now)
        for state in (NEW, CUR, UNDELIVERED):
            figures.heaps[state] = Heap()
        values = {"day_ago": f"{int(now) - 86400}"}
        rows = self.connections.run("count messages", _FIGURES, values, patient=True)
        for state, messages, held, in_doubt, due, next_due, octets, oldest, fresh in rows:
            if state == TMP:
                figures.writing = messages
                continue
            age = accepted_at(oldest) if oldest is not None else None
            figures.heaps[state] = Heap(messages, int(octets), age, fresh)
            if state == CUR:
                figures.held, figures.in_doubt, figures.due = held, in_doubt, due
                figures.next_attempt = None if next_due is None else int(next_due)
        return figures

    def body(self, message_id: str) -> Iterator[bytes]:
        """Yield the body's octets, damaged or not, for people.

        Raises DamagedMessageError if there is none, SpoolError.
        """
        is_there = False
        for block in self._chunks(message_id, 0):
            is_there = True
            yield block
        if not is_there:
            raise DamagedMessageError(NO_BODY)

    def check_body(self, message: Message) -> None:
        """Compare a body with what was accepted. Raises DamagedMessageError, SpoolError."""
        measure(message, self.body(message.id))

    def read_result(self, message_id: str) -> str:
        """Return what relays have said of a message, "" if nothing was kept. Raises SpoolError."""
        rows = self.connections.run("read the result", _RESULT, {"id": message_id})
        return b"".join(octets for (octets,) in rows).decode(errors="replace")

    def select(
        self,
        states: Iterable[str] = STATES,
        *,
        after: str = "",
        before: str = _LAST,
        most: int = 1000,
        newest_first: bool = False,
    ) -> list[tuple[str, str, bytes]]:
        """Return ID, state and sidecar of some messages, by age, between two IDs.

        Raises SpoolError.
        """
        values = {"states": list(states), "after": after, "before": before, "most": most}
        text = _SELECT_NEWEST if newest_first else _SELECT
        rows = self.connections.run("list messages", text, values)
        return [(message_id, state, sidecar) for message_id, state, sidecar in rows]

    # --- Administration --------------------------------------------------------------------------

    def change(self, claim: AnyClaim, outcome: str, note: str, **fields: object) -> Message:
        """Rewrite a claimed message as an administrator wants it, with a line in its history.

        Raises SpoolError.
        """
        now = int(self.clock())
        revised = claim.message.with_event(
            Event(now, "", outcome, note), revision=claim.message.revision + 1, **fields
        )
        state = CUR if claim.state in (UNDELIVERED, NEW) else claim.state
        self.record(claim, revised, state)
        return revised

    def destroy(self, message_id: str) -> bool:
        """Remove all of a message as an administrator wants it, damaged or not.

        False if another process has it. Durable with `flush`. Raises NoSuchMessageError,
        SpoolError.
        """
        values = {"id": message_id, "remembered": DEPARTED_SECONDS}
        if self.connections.run("remove the message", _DESTROY, values):
            self._needs_flush = True
            return True
        if not self.where(message_id):
            raise self._unknown(message_id)
        return False

    def purge(self, seconds: float) -> int:
        """Delete what has lain in undelivered for so long; return how many went.

        What somebody has is left for the next time. Raises SpoolError.
        """
        oldest = self.clock() - seconds
        values = {
            "before": f"{max(int(oldest), 0)}",
            "oldest": oldest,
            "most": _DELETED_AT_ONCE,
            "remembered": DEPARTED_SECONDS,
        }
        return len(self._delete_all("purge", _PURGE, values))

    # --- Cleaning --------------------------------------------------------------------------------

    def sweep(self, found: Iterable[str]) -> tuple[list[str], list[SpoolError]]:
        """Delete what processes that died have left, keys that expired, and old rows of the ledger.

        What was being written goes after 36 hours, for until then it may be written still. Returns
        the IDs of those, and errors. `found` is of no use here. Raises ConfigurationError if the
        tables have become too new for this program.
        """
        del found
        try:
            self.connections.demand_version()
            values = {"age": LEFTOVER_AGE_SECONDS, "most": _DELETED_AT_ONCE}
            gone = self._delete_all("sweep", _SWEEP, values)
            self._delete_all("sweep idempotency keys", SWEEP_KEYS, {"most": _DELETED_AT_ONCE})
            self._delete_all("sweep the ledger", _SWEEP_LEDGER, {"most": _DELETED_AT_ONCE})
        except SpoolError as exc:
            return [], [exc]
        return gone, []

    def _delete_all(self, doing: str, text: str, values: Mapping[str, object]) -> list[str]:
        """Delete in short transactions, until nothing is left; return what went."""
        gone: list[str] = []
        while rows := self.connections.run(doing, text, values):
            gone += [name for (name,) in rows]
        self._needs_flush = self._needs_flush or bool(gone)
        return gone

    # --- What runs leave for later runs ----------------------------------------------------------

    def routes(self, names: Sequence[str] = ()) -> TableRoutes:
        """Return what is noted of the routes; it does not matter which there are."""
        del names
        return TableRoutes(self.connections)

    def pace(self, limit: RateLimit) -> TablePace:
        """Return what counts a message and says how many seconds to wait first."""
        return TablePace(self.connections, limit)

    def report_limit(self, most: int) -> TableReportLimit:
        """Return the limit of reports; 0 means none."""
        return TableReportLimit(self.connections, most)


def _ours(claim: AnyClaim) -> LeasedClaim:
    """Return a claim as what this store has given out."""
    assert isinstance(claim, LeasedClaim)  # noqa: S101 - nobody else makes claims of this store
    return claim


def _holder() -> str:
    """Return who we are, for people: host and process."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}:{os.getpid()}"
    return str(os.getpid())


def _result_values(text: str) -> dict[str, object]:
    """Return what _AND_RESULT needs to know."""
    return {
        "result": text.encode(errors="replace")[-RESULT_LIMIT_OCTETS:],
        "has_result": bool(text),
        "limit": RESULT_LIMIT_OCTETS,
        "cut": _CUT,
        "newline": b"\n",
    }
