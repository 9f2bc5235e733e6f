"""Mail that goes from one store to another: all of it, once, whatever is killed meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from picoqmail.home.limits import Limits
from picoqmail.layout import CUR, NEW, UNDELIVERED
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.store.directory import DirectoryStore
from picoqmail.store.moving import move
from picoqmail.value import evolve
from temporary_home import HOST, TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from picoqmail.store.protocol import Store

WAYS = ["directory directory", "directory postgresql", "postgresql directory"]


@pytest.fixture(params=WAYS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Store]:
    """Two stores, the second one empty."""

    def opened(engine: str, name: str) -> Store:
        if engine == "directory":
            return DirectoryStore(TemporaryHome(str(tmp_path / name)).make().spool)
        server = request.getfixturevalue("postgresql")
        return open_postgresql(server.url(request.getfixturevalue("database")))

    source, target = request.param.split()
    return opened(source, "source"), opened(target, "target")


def accept(store: Store, number: int) -> str:
    """Put a message in."""
    uid, pid = os.getuid(), os.getpid()
    with store.incoming(Limits(HOST), program="trial", uid=uid, pid=pid) as incoming:
        incoming.write(b"Subject: %d\n\n" % number + b"x" * 300_000)
        return incoming.commit("a@example.org", ["b@example.net", "c@example.net"])


def filled(store: Store) -> dict[str, str]:
    """Messages of each state; return the states by ID."""
    ids = [accept(store, number) for number in range(6)]
    for message_id, state in zip(ids[2:4], (CUR, UNDELIVERED), strict=True):
        claim = store.claim(message_id)
        assert claim is not None
        store.record(claim, claim.message, state, f"what was said of {message_id}\n").release()
    claim = store.claim(ids[4])
    assert claim is not None
    store.record(claim, evolve(claim.message, held=True), CUR).release()
    claim = store.claim(ids[5])
    assert claim is not None
    claim = store.note_progress(claim, {0: ("delivered", "250 ok")})
    claim.mark_in_doubt()
    claim.release()
    return store.names()


def contents(store: Store) -> dict[str, tuple[str, bytes, str]]:
    """What a store has: state, body and result of each message."""
    return {
        one: (state, b"".join(store.body(one)), store.read_result(one))
        for one, state in store.names().items()
    }


def test_all_of_it_goes(stores: tuple[Store, Store]) -> None:
    """Every state, body and result; held stays held, progress and doubt are known there."""
    source, target = stores
    filled(source)
    before = contents(source)
    moved = move(source, target)
    assert ([], {}) == (moved.busy, moved.refused)
    assert sorted(before) == sorted(moved.gone)
    assert {} == source.names()
    assert before == contents(target)
    *_, held, last = sorted(before)
    assert target.read(held)[1].held
    claim = target.claim(last)
    assert claim is not None
    assert claim.was_in_doubt
    assert ["delivered", "pending"] == [one.state for one in claim.message.recipients]
    claim.release()


def test_a_message_in_use_stays(stores: tuple[Store, Store]) -> None:
    """It is named; the next move takes it."""
    source, target = stores
    message_id = accept(source, 1)
    claim = source.claim(message_id)
    assert claim is not None
    other = DirectoryStore(source.path) if isinstance(source, DirectoryStore) else source
    moved = move(other, target)
    assert ([message_id], []) == (moved.busy, moved.gone)
    claim.release()
    assert [message_id] == move(other, target).gone


@pytest.mark.parametrize("delivered", [False, True])
def test_a_move_that_died_is_made_again(stores: tuple[Store, Store], delivered: bool) -> None:  # noqa: FBT001 - a case
    """Killed between arrival there and removal here; perhaps it was delivered there meanwhile."""
    source, target = stores
    message_id = accept(source, 1)
    claim = source.claim(message_id)
    assert claim is not None
    assert target.bring_in(claim.message, claim.state, claim)
    claim.release()
    if delivered:
        there = target.claim(message_id)
        assert there is not None
        target.remove(there)
        there.release()
        target.flush()
    assert [message_id] == move(source, target).gone
    assert {} == source.names()
    assert ({} if delivered else {message_id: NEW}) == target.names()


def test_it_stops_when_asked(stores: tuple[Store, Store]) -> None:
    """After the message in hand; the rest is where it was."""
    source, target = stores
    for number in range(4):
        accept(source, number)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    stopped: Callable[[], bool] = stop
    assert 2 == len(move(source, target, stopped).gone)
    assert (2, 2) == (len(source.names()), len(target.names()))
