"""Mail of another store comes in once, whenever its bringer is killed, and may go back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import SpoolError
from picoqmail.home.limits import Limits
from picoqmail.layout import CUR, NEW, STATES, UNDELIVERED
from picoqmail.postgresql.store import DEPARTED_SECONDS
from picoqmail.spool.incoming import Incoming
from picoqmail.store.directory import DirectoryStore
from picoqmail.store.moving import move
from picoqmail.value import evolve

if TYPE_CHECKING:
    from picoqmail.postgresql.store import PostgresStore
    from rig.postgresql import PrivatePostgreSQL
    from temporary_home import TemporaryHome


@pytest.fixture
def directory(home: TemporaryHome) -> DirectoryStore:
    """A spool directory."""
    return DirectoryStore(home.spool)


def accepted(directory: DirectoryStore, body: bytes = b"Subject: x\n\nbody\n") -> str:
    """Accept a message into the directory."""
    incoming = Incoming(directory.path, Limits("me.test"), program="t", uid=7, pid=os.getpid())
    with incoming:
        incoming.write(body)
        return incoming.commit("a@example.org", ["b@example.net", "c@example.net"])


def bodies(store: PostgresStore | DirectoryStore) -> dict[str, bytes]:
    """All bodies by ID."""
    return {one: b"".join(store.body(one)) for one in store.names()}


def test_all_of_a_message_is_moved(directory: DirectoryStore, store: PostgresStore) -> None:
    """State, sidecar, body, what relays said, the mark of doubt; there and back again."""
    small = accepted(directory)
    large = accepted(directory, os.urandom(3_000_000))
    failed = accepted(directory)
    claim = directory.claim(failed)
    assert claim is not None
    message = claim.message
    revised = evolve(message, attempts=3, held=True, unknown={"unheard_of": [1]}, revision=4)
    directory.record(claim, revised, UNDELIVERED, "550 no\n").release()
    claim = directory.claim(small)
    assert claim is not None
    claim.mark_in_doubt()
    claim.release()
    before = bodies(directory)
    for _ in range(2):
        moved = move(directory, store)
        assert ([small, large, failed], [], {}) == (moved.gone, moved.busy, moved.refused)
        assert {} == directory.names()
        assert {small: NEW, large: NEW, failed: UNDELIVERED} == store.names()
        assert before == bodies(store)
        assert (UNDELIVERED, revised) == store.read(failed)
        assert "550 no\n" == store.read_result(failed)
        found = store.claim(small)
        assert found is not None
        assert found.was_in_doubt
        found.release()
        moved = move(store, directory)
        assert [small, large, failed] == moved.gone
        assert {} == store.names()
        assert before == bodies(directory)
        assert "550 no\n" == directory.read_result(failed)


def test_what_was_delivered_meanwhile_does_not_come_again(
    directory: DirectoryStore, store: PostgresStore
) -> None:
    """The bringer dies between the commit and the removal; a worker delivers; he comes again."""
    message_id = accepted(directory)
    claim = directory.claim(message_id)
    assert claim is not None
    assert store.bring_in(claim.message, claim.state, claim, "")
    claim.release()
    theirs = store.claim(message_id)
    assert theirs is not None
    store.remove(theirs)
    assert [message_id] == move(directory, store).gone
    assert ({}, {}) == (directory.names(), store.names())


def test_the_ledger_forgets_after_a_while(
    postgresql: PrivatePostgreSQL, database: str, directory: DirectoryStore, store: PostgresStore
) -> None:
    """What came in, later than what only left."""
    direct = store.incoming(Limits("me.test"), program="t", uid=0, pid=1)
    direct.write(b"x")
    direct.commit("a@example.org", ["b@example.net"])
    brought = accepted(directory)
    move(directory, store)
    for one in store.names():
        claim = store.claim(one)
        assert claim is not None
        store.remove(claim)

    def known() -> set[str]:
        rows = postgresql.execute("SELECT id FROM picoqmail.ledger", database)
        return {one for (one,) in rows}

    store.sweep(())
    assert {direct.id, brought} == known()
    postgresql.execute("UPDATE picoqmail.ledger SET forgotten_at = forgotten_at - 172801", database)
    assert 172801 > DEPARTED_SECONDS
    store.sweep(())
    assert {brought} == known()


def test_a_draft_of_a_caller_who_went_elsewhere_is_in_nobodys_way(
    directory: DirectoryStore, store: PostgresStore
) -> None:
    """The database was away when the rest was to be written: the directory took the message."""
    message_id = accepted(directory)
    half = store.incoming(Limits("me.test"), program="t", uid=7, pid=1, message_id=message_id)
    half.write(b"x" * 3_000_000)
    assert half.is_stored
    assert [message_id] == move(directory, store).gone
    body = b"".join(store.body(message_id))
    assert body.endswith(b"\nSubject: x\n\nbody\n")
    # Should that caller live, he finds that it is too late.
    half.seal("a@example.org", ["b@example.net"])
    half.abort()
    assert {message_id: NEW} == store.names()


def test_a_body_that_cannot_be_read_leaves_nothing(
    directory: DirectoryStore, store: PostgresStore
) -> None:
    """Neither a message nor an entry of the ledger: it can be brought in later."""
    message_id = accepted(directory)
    claim = directory.claim(message_id)
    assert claim is not None

    class Broken:
        was_in_doubt = False

        def blocks(self):  # type: ignore[no-untyped-def] # noqa: ANN202 - as a claim's
            yield b"x" * 300_000
            raise SpoolError("read", "here", 5)

    with pytest.raises(SpoolError, match="cannot read"):
        store.bring_in(claim.message, CUR, Broken())
    assert {} == store.names()
    assert store.bring_in(claim.message, CUR, claim)
    assert [CUR] == store.where(message_id)
    assert STATES
