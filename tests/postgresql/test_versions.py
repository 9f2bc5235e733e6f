"""Versions N and N+1 of the schema together: programs of the version before go on."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from proof.planted import Plant, plant
from proof.world import Programs
from rig.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from picoqmail.postgresql.store import PostgresStore
    from postgresql.conftest import Accept
    from rig.recording import RecordingRelay
    from temporary_home import TemporaryHome

_NEXT = """
-- What a migration may do: add a column with a default, an index, a table.
ALTER TABLE picoqmail.message ADD COLUMN priority integer NOT NULL DEFAULT 0;
CREATE INDEX message_priority ON picoqmail.message (priority);
CREATE TABLE picoqmail.later (id text PRIMARY KEY REFERENCES picoqmail.message ON DELETE CASCADE);
"""
_AFTER = "DROP INDEX picoqmail.message_priority;\n"
_GOOD = "OLDEST_PROGRAM = {1: 1}"


def version_of(directory: Path, oldest: str, *migrations: str) -> Programs:
    """Return a copy of the package that has more migrations; `oldest` is its OLDEST_PROGRAM."""
    bug = Plant("a later version", _GOOD, f"OLDEST_PROGRAM = {oldest}", "", "")
    programs = plant(bug, str(directory), compiled=False)
    for number, text in enumerate(migrations, 2):
        path = directory / "picoqmail" / "postgresql" / "schema" / f"{number:04}_trial.sql"
        path.write_text(text)
    return programs


@pytest.fixture
def next_version(tmp_path: Path) -> Programs:
    """The version N+1."""
    return version_of(tmp_path / "next", "{1: 1, 2: 1}", _NEXT)


def run(
    programs: Programs, home: TemporaryHome, url: str, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run `picoqmail WORDS` of a version, or its cron."""
    name, words = ("cron", ()) if words == ("cron",) else ("", words)
    return subprocess.run(
        [*programs.command(name, through=True), *words],
        env=home.variables(PICOQMAIL_SPOOL=url),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def url(postgresql: object, own_database: str) -> str:
    """The URL of a database that a test may migrate further."""
    return str(postgresql.url(own_database))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_worker_of_the_version_before_goes_on(
    url: str,
    home: TemporaryHome,
    relay: RecordingRelay,
    store: PostgresStore,
    accept: Accept,
    next_version: Programs,
) -> None:
    """It delivers before, during and after the migration, and then beside a newer worker."""
    home.setting("relayip", relay.address)
    command = [*Programs().command("", through=True), "worker"]
    with subprocess.Popen(command, env=home.variables(PICOQMAIL_SPOOL=url)) as worker:
        accept()
        relay.wait_for(1)
        # In hand while the table is changed.
        message_id = accept(next_attempt=int(store.clock()) + 3600)
        claim = store.claim(message_id)
        assert claim is not None
        ran = run(next_version, home, url, "migrate")
        assert (0, "") == (ran.returncode, ran.stderr)
        claim.mark_in_doubt()
        store.remove(store.record(claim, claim.message, "cur"))
        claim.release()
        accept()
        relay.wait_for(2)
        wait_until(lambda: not store.names(), "the older worker has removed it")
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
    assert 0 == worker.returncode
    accept()
    ran = run(next_version, home, url, "cron")
    assert (0, "") == (ran.returncode, ran.stderr)
    assert 3 == len(relay.messages)


@pytest.mark.slow
def test_a_version_that_does_not_fit_says_so(
    url: str, home: TemporaryHome, next_version: Programs, tmp_path: Path
) -> None:
    """Newer programs before the migration, and older ones after one that leaves them behind."""
    home.setting("relayip", "127.0.0.1:1")
    ran = run(next_version, home, url, "cron")
    assert 78 == ran.returncode
    assert 1 == ran.stderr.count("\n")
    assert "its tables have version 1, and this picoqmail needs 2" in ran.stderr
    assert "run: picoqmail migrate" in ran.stderr
    last = version_of(tmp_path / "last", "{1: 1, 2: 1, 3: 2}", _NEXT, _AFTER)
    assert 0 == run(last, home, url, "migrate").returncode
    assert 0 == run(next_version, home, url, "cron").returncode
    for words in (("cron",), ("worker",), ("status",)):
        ran = run(Programs(), home, url, *words)
        assert 78 == ran.returncode
        assert 1 == ran.stderr.count("\n")
        assert "its tables have version 3, which is too new for this picoqmail" in ran.stderr
