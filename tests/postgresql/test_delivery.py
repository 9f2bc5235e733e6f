"""Delivery from the tables: a claim that was lost sends no end of data."""

from __future__ import annotations

import socket
import subprocess
import threading
from typing import TYPE_CHECKING

from picoqmail import Spool
from picoqmail.delivery.run import Run
from picoqmail.home.paths import Home, locate
from picoqmail.layout import CUR, NEW
from proof.world import Programs
from rig import faults
from rig.hostile import HostileRelay
from rig.statement_line import StatementLine

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from picoqmail.postgresql.store import PostgresStore
    from postgresql.conftest import Accept
    from rig.postgresql import PrivatePostgreSQL
    from rig.recording import RecordingRelay
    from temporary_home import TemporaryHome


def test_the_times_are_those_of_the_server(
    home: TemporaryHome, url: str, store: PostgresStore, accept: Accept
) -> None:
    """A host whose clock is an hour ahead plans the next attempt by the server's clock."""
    message_id = accept()
    home.setting("retryschedule", "60")
    with HostileRelay({"RCPT": faults.reply("451 4.3.0 later")}) as relay:
        home.setting("relayip", relay.address)
        ran = subprocess.run(
            Programs().command("send", late_seconds=3600),
            env=home.variables(PICOQMAIL_SPOOL=url),
            check=False,
        )
    assert 75 == ran.returncode
    _, message = store.read(message_id)
    assert 0 < message.next_attempt - store.clock() <= 60


def test_the_library_delivers_all_that_is_due(
    home: TemporaryHome, url: str, relay: RecordingRelay, store: PostgresStore, accept: Accept
) -> None:
    """`Spool.deliver` without IDs: what is in the tables, not in the host's directory."""
    home.setting("relayip", relay.address)
    accept()
    later = accept(next_attempt=int(store.clock()) + 3600)
    summary = Spool(Home(home.root, database=url)).deliver()
    assert 1 == summary.delivered
    assert [later] == list(store.names())


def test_a_few_dozen_are_shared_among_processes(
    postgresql: PrivatePostgreSQL,
    home: TemporaryHome,
    url: str,
    relay: RecordingRelay,
    store: PostgresStore,
    accept: Accept,
) -> None:
    """Sooner than with a directory, for each message waits for the server's disk."""
    home.setting("relayip", relay.address)
    for _ in range(60):
        accept()
    with StatementLine(f"{postgresql.directory}/.s.PGSQL.5432") as line:
        ran = subprocess.run(
            Programs().command("send"),
            env=home.variables(PICOQMAIL_SPOOL=line.url(url)),
            check=False,
        )
    assert 0 == ran.returncode
    assert 60 == len(relay.messages)
    assert {} == store.names()
    assert 2 <= len(line.pids)


class RelayThatWaits:
    """A relay that calls `before` when it is asked for DATA; `data` is what came after its 354."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.data = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, client.makefile("rb") as lines:
            client.sendall(b"220 relay.rig\r\n")
            for line in lines:
                verb = line[:4].upper().strip()
                if verb == b"DATA":
                    self._before()
                    client.sendall(b"354 go on\r\n")
                    self.data = lines.read()
                    return
                client.sendall(b"221 bye\r\n" if verb == b"QUIT" else b"250 relay.rig\r\n")

    def close(self) -> None:
        """Wait for the end of the connection."""
        self._thread.join()
        self._listener.close()


def run_of(home: TemporaryHome, url: str, monkeypatch: pytest.MonkeyPatch, relay: str) -> Run:
    """What a sender does, in this process; its log goes to the file `log`."""
    monkeypatch.setenv("PICOQMAIL_SPOOL", url)
    home.setting("relayip", relay)
    home.setting("log", f"{home.root}/log")
    return Run(locate(), "trial", signals=False)


def logged(home: TemporaryHome) -> str:
    """What the log says."""
    with open(f"{home.root}/log", encoding="utf-8") as file:
        return file.read()


def test_mail_is_delivered(
    home: TemporaryHome,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    relay: RecordingRelay,
    store: PostgresStore,
    accept: Accept,
) -> None:
    """And gone from the tables; a second run finds nothing."""
    ids = [accept(f"Subject: {n}\n\nbody\n".encode()) for n in range(5)]
    run = run_of(home, url, monkeypatch, relay.address)
    run.deliver(run.spool.due(10, (NEW, CUR)))
    assert 5 == len(relay.messages)
    assert {} == store.names()
    assert all(one in logged(home) for one in ids)


def test_a_claim_that_is_lost_before_the_end_of_the_data(
    postgresql: PrivatePostgreSQL,
    database: str,
    home: TemporaryHome,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    store: PostgresStore,
    other: PostgresStore,
    accept: Accept,
) -> None:
    """The connection ends without it, the message is left to whoever has it, and that is logged."""
    message_id = accept(b"Subject: x\n\nbody\n")
    taken = []

    def take_over() -> None:
        postgresql.execute(
            "UPDATE picoqmail.message SET leased_until = now() - interval '1s'", database
        )
        taken.append(other.claim(message_id))

    relay = RelayThatWaits(take_over)
    run = run_of(home, url, monkeypatch, relay.address)
    run.deliver([message_id])
    relay.close()
    assert [True] == [one is not None for one in taken]
    assert b"\r\n.\r\n" not in relay.data
    assert [NEW] == store.where(message_id)
    assert store.claim(message_id) is None
    said = logged(home)
    assert message_id in said
    assert "its lease ran out, and another process has taken it" in said
    theirs = taken[0]
    assert theirs is not None
    assert not theirs.was_in_doubt
    assert 0 == theirs.message.attempts
