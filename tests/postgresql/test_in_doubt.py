"""Copies that may have arrived, where a database keeps the mail: bounded, marked, never lost."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from postgresql.test_store import expire_leases
from proof.world import Programs
from rig import faults
from rig.hostile import HostileRelay
from rig.waiting import wait_until

if TYPE_CHECKING:
    from picoqmail.postgresql.store import PostgresStore
    from postgresql.conftest import Accept
    from rig.faults import Line
    from rig.postgresql import PrivatePostgreSQL
    from temporary_home import TemporaryHome

LIMIT = 2


def start(home: TemporaryHome, url: str, name: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a program of this home."""
    return subprocess.Popen(
        [*Programs().command(name), *words],
        env=home.variables(PICOQMAIL_SPOOL=url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def prepare(home: TemporaryHome, relay: HostileRelay) -> None:
    """Settings of a home that tries again soon, and counts what may have arrived."""
    home.setting("relayip", relay.address)
    home.setting("retryschedule", "1")
    home.setting("doubtlimit", str(LIMIT))
    home.setting("log", f"{home.root}/log")
    # Reports would be mail of their own.
    home.setting("bounces", "off")


def assert_suspended(home: TemporaryHome, store: PostgresStore, message_id: str) -> None:
    """It waits for an administrator, counted and named as in doubt."""
    assert 1 == store.figures(store.clock()).in_doubt
    assert [] == store.due(10)
    with open(f"{home.root}/log", encoding="utf-8") as log:
        events = log.read()
    assert "suspended" in events
    assert message_id in events


@pytest.mark.slow
def test_a_relay_that_drops_after_the_end(
    home: TemporaryHome, url: str, store: PostgresStore, accept: Accept
) -> None:
    """As many copies as doubtlimit allows, then it waits; `retry` sends it once more."""
    with HostileRelay({".": [faults.drop()] * LIMIT}) as relay:
        prepare(home, relay)
        message_id = accept()
        for copies in range(1, LIMIT + 1):
            wait_until(lambda: store.due(1), "the next attempt is due")
            start(home, url, "cron").wait(60)
            assert copies == len(relay.messages)
        start(home, url, "cron").wait(60)
        assert LIMIT == len(relay.messages)
        assert_suspended(home, store, message_id)
        assert 0 == start(home, url, "", "retry", message_id, "--later").wait(60)
        start(home, url, "cron").wait(60)
        assert LIMIT + 1 == len(relay.messages)
    assert {} == store.names()


@pytest.mark.slow
def test_senders_that_die_after_the_end(
    home: TemporaryHome,
    postgresql: PrivatePostgreSQL,
    database: str,
    url: str,
    store: PostgresStore,
    accept: Accept,
) -> None:
    """Each death leaves the mark, and the next sender counts it: the copies are bounded, too."""
    ended = threading.Semaphore(0)

    def hang(line: Line, _ordinary: bytes) -> bool:
        ended.release()
        line.await_end()
        return False

    with HostileRelay({".": [hang] * LIMIT}) as relay:
        prepare(home, relay)
        message_id = accept()
        for copies in range(1, LIMIT + 1):
            # By its ID, for it may have to wait for a while after runs that died of it.
            sender = start(home, url, "send", message_id)
            assert ended.acquire(timeout=60)
            sender.kill()
            sender.wait()
            expire_leases(postgresql, database)
            assert copies == len(relay.wait_for(copies))
        sender = start(home, url, "cron")
        sender.wait(60)
        assert LIMIT == len(relay.messages)
        assert_suspended(home, store, message_id)
    assert [message_id] == list(store.names())
