"""Acceptance into the tables: durable before anybody is told yes, and nothing left after a no."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from picoqmail.errors import MessageTooLargeError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.layout import CUR, NEW
from picoqmail.postgresql.connections import Link
from picoqmail.postgresql.faults import UncertainAcceptanceError
from picoqmail.postgresql.incoming import SPILL_OCTETS, publish
from picoqmail.postgresql.opening import open_postgresql

if TYPE_CHECKING:
    from typing import Any

    from picoqmail.postgresql.incoming import TableIncoming
    from picoqmail.postgresql.store import PostgresStore
    from postgresql.conftest import Accept
    from rig.postgresql import PrivatePostgreSQL

ENVELOPE: tuple[str, list[str]] = ("a@example.org", ["b@example.net"])


def begun(
    store: PostgresStore, body: bytes = b"Subject: x\n\nbody\n", **more: int
) -> TableIncoming:
    """A message whose body is written."""
    incoming = store.incoming(Limits("me.test", **more), program="t", uid=7, pid=os.getpid())
    incoming.write(body)
    return incoming


def rows(server: PrivatePostgreSQL, database: str) -> tuple[int, int]:
    """How many rows of messages and of chunks there are."""
    return (
        server.execute("SELECT count(*) FROM picoqmail.message", database)[0][0],
        server.execute("SELECT count(*) FROM picoqmail.chunk", database)[0][0],
    )


def test_what_was_accepted_is_there(store: PostgresStore, accept: Accept) -> None:
    """Byte for byte behind our Received: line, with the origin; a time in the future is cron's."""
    message_id = accept(b"Subject: \xff\0\r\n\nx", recipients=["ü@example.net", "b@x.org"])
    state, message = store.read(message_id)
    assert NEW == state
    assert ["ü@example.net", "b@x.org"] == [one.address for one in message.recipients]
    assert (os.getuid(), "trial") == (message.origin["uid"], message.origin["program"])
    received, _, rest = b"".join(store.body(message_id)).partition(b"\n")
    assert received.startswith(b"Received: by me.test (picoqmail ")
    assert message_id.encode() in received
    assert b"Subject: \xff\0\r\n\nx" == rest
    later = accept(next_attempt=int(store.clock()) + 60)
    assert [CUR] == store.where(later)


def test_the_time_is_the_servers(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour ahead makes no message that is due in an hour."""
    real = os.times()  # something to hold on to: the clock below is wrong from the first call on
    del real
    import time

    wrong = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: wrong)
    monkeypatch.setattr(time, "time_ns", lambda: int(wrong * 1e9))
    message_id = begun(store).commit(*ENVELOPE)
    assert [message_id] == store.due(10)
    assert store.read(message_id)[1].created < wrong - 3000


def test_a_refused_message_leaves_nothing(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore
) -> None:
    """Whatever its size, and whenever it ends."""
    with begun(store):
        pass
    with begun(store, b"x" * (SPILL_OCTETS + 1)):
        assert (1, 8) == rows(postgresql, database)
    with pytest.raises(MessageTooLargeError), begun(store, databytes=300) as incoming:
        incoming.write(b"x" * 300)
    with begun(store) as prepared:
        prepared.prepare(*ENVELOPE)
        assert (1, 1) == rows(postgresql, database)
    assert (0, 0) == rows(postgresql, database)


@pytest.mark.parametrize("octets", [10, SPILL_OCTETS + 1000])
def test_a_prepared_message_is_no_message(store: PostgresStore, octets: int) -> None:
    """It is neither found nor due nor removed by hand, until it is committed."""
    incoming = begun(store, b"x" * octets)
    incoming.prepare(*ENVELOPE)
    incoming.park()
    assert ([], [], {}) == (store.where(incoming.id), store.due(10), store.names())
    assert 1 == store.figures(store.clock()).writing
    assert store.claim(incoming.id, (NEW, CUR, "tmp")) is None or octets < 0
    incoming.unpark()
    publish([incoming])
    incoming.abort()
    assert [incoming.id] == store.due(10)
    claim = store.claim(incoming.id)
    assert claim is not None
    assert b"x" * octets == b"".join(claim.blocks()).partition(b"\n")[2]


def test_an_unfinished_message_is_swept_after_a_while(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """36 hours, as in the directory; then its program has died."""
    incoming = begun(store, b"x" * (SPILL_OCTETS + 1))
    whole = accept()
    assert ([], []) == store.sweep(())
    postgresql.execute("UPDATE picoqmail.message SET entered = entered - 129700", database)
    assert ([incoming.id], []) == store.sweep(())
    assert [whole] == store.due(10)
    with pytest.raises(SpoolError, match="swept"):
        incoming.commit(*ENVELOPE)


@pytest.mark.parametrize("count", [2, 40])
def test_a_group_is_accepted_or_refused_as_one(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, count: int
) -> None:
    """By statements or by COPY; small messages and one that is in the tables already."""
    group = [begun(store, b"x" * n) for n in (*range(count - 1), SPILL_OCTETS + 5)]
    for one in group:
        one.prepare(*ENVELOPE, synced=False)
    last = group[-1]
    postgresql.execute("DELETE FROM picoqmail.message", database)
    with pytest.raises(SpoolError):
        publish(group)
    assert (0, 0) == rows(postgresql, database)
    assert not any(one.committed for one in group)
    publish(group[:-1])
    last.abort()
    assert [one.id for one in group[:-1]] == store.due(100)


def test_only_a_synchronous_commit_says_yes(
    postgresql: PrivatePostgreSQL, own_database: str
) -> None:
    """Whatever the server's, the role's or the database's setting is."""
    postgresql.execute(f"ALTER DATABASE {own_database} SET synchronous_commit = off", own_database)
    postgresql.execute(
        "CREATE FUNCTION picoqmail.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO picoqmail.noted VALUES (current_setting('synchronous_commit'));"
        " RETURN NULL; END $$",
        own_database,
    )
    postgresql.execute("CREATE TABLE picoqmail.noted (setting text)", own_database)
    postgresql.execute(
        "CREATE TRIGGER note AFTER INSERT OR UPDATE OF doubt, state ON picoqmail.message"
        " FOR EACH STATEMENT EXECUTE FUNCTION picoqmail.note()",
        own_database,
    )
    store = open_postgresql(postgresql.url(own_database))
    message_id = begun(store).commit(*ENVELOPE)
    claim = store.claim(message_id)
    assert claim is not None
    claim.mark_in_doubt()
    store.record(claim, claim.message, CUR).release()
    group = [begun(store) for _ in range(5)]
    for one in group:
        one.prepare(*ENVELOPE, synced=False)
    publish(group)
    store.close()
    said = postgresql.execute("SELECT setting FROM picoqmail.noted", own_database)
    # Acceptance, mark, record, release, and a group.
    assert ["on", "on", "on", "off", "on"] == [setting for (setting,) in said]


# --- The answer to COMMIT is lost -----------------------------------------------------------------


class Cut:
    """Cuts the connection around one COMMIT of any store of this process.

    `before`: the server never gets it. Else it gets it, and `then` is done before the client finds
    out that the connection is dead.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, before: bool, then: Any = None) -> None:
        real = psycopg.ClientCursor.execute
        self.cuts = 1

        def execute(cursor: Any, query: Any, *more: Any, **options: Any) -> Any:
            if query != "COMMIT" or not self.cuts or not isinstance(cursor.connection, Link):
                return real(cursor, query, *more, **options)
            self.cuts -= 1
            if not before:
                real(cursor, query, *more, **options)
                if then is not None:
                    then()
            cursor.connection.pgconn.finish()
            raise psycopg.OperationalError("the line was cut")

        monkeypatch.setattr(psycopg.ClientCursor, "execute", execute)


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("count", [1, 6])
def test_a_lost_answer_is_asked_for(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, side: str, count: int
) -> None:
    """The message is there exactly once, whether the server had it or not."""
    group = [begun(store) for _ in range(count)]
    for one in group:
        one.prepare(*ENVELOPE, synced=False)
    cut = Cut(monkeypatch, before=side == "before")
    publish(group)
    assert 0 == cut.cuts
    assert [one.id for one in group] == store.due(100)


def test_what_was_delivered_meanwhile_is_not_put_in_again(
    store: PostgresStore, other: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger has what has left, so this is a yes, and nothing is sent a second time."""

    def deliver() -> None:
        (message_id,) = other.due(10)
        claim = other.claim(message_id)
        assert claim is not None
        other.remove(claim)

    cut = Cut(monkeypatch, before=False, then=deliver)
    assert begun(store).commit(*ENVELOPE)
    assert 0 == cut.cuts
    assert {} == store.names()


def test_nobody_can_say_what_became_of_it(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    other: PostgresStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database stays away: that is said. Brought in later under its ID, it comes once."""
    monkeypatch.setattr("picoqmail.postgresql.incoming._ASK_SECONDS", 0.5)

    def go_away() -> None:
        postgresql.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")

    Cut(monkeypatch, before=False, then=go_away)
    incoming = begun(store)
    with pytest.raises(UncertainAcceptanceError, match="it may have been"):
        incoming.commit(*ENVELOPE)
    postgresql.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    claim = other.claim(incoming.id)
    assert claim is not None
    assert not store.bring_in(claim.message, NEW, claim)
    other.remove(claim)
    assert not store.bring_in(claim.message, NEW, claim)
    assert {} == store.names()


def test_a_restart_of_the_server_is_survived(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """Connections that were kept are dead then; nobody notices."""
    first = accept()
    postgresql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()",
        database,
    )
    second = accept()
    assert [first, second] == store.due(10)


def test_threads_share_a_store(store: PostgresStore) -> None:
    """Each statement has a connection of its own."""
    ids: list[str] = []

    def run() -> None:
        ids.extend(begun(store).commit(*ENVELOPE) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 40 == len(set(ids))
    assert sorted(ids) == store.due(100)


def test_a_fork_has_connections_of_its_own(store: PostgresStore, accept: Accept) -> None:
    """And leaves its parent's alone, also when it ends; its parent's claims are not its own."""
    claim = store.claim(accept())
    assert claim is not None
    child = os.fork()
    if not child:
        status = 1
        try:
            accept()
            store.close()
            status = 0
        finally:
            os._exit(status)
    assert (child, 0) == os.waitpid(child, 0)
    assert 1 == len(store.due(10))
    claim.mark_in_doubt()
    store.renew()
    assert not claim.lease.is_lost
