"""The programs in a home whose mail a database keeps: the way in, out, and while it is away."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

import picoqmail
from picoqmail.errors import ConfigurationError, MessageError
from picoqmail.home.limits import Limits
from picoqmail.home.paths import Home
from picoqmail.layout import CUR, NEW
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.store.directory import DirectoryStore
from picoqmail.store.forwarding import forward
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.postgresql.store import PostgresStore
    from rig.postgresql import PrivatePostgreSQL
    from rig.recording import RecordingRelay
    from trial import Trial

MESSAGE = b"From: a@example.org\nTo: b@example.net\nSubject: trial\n\nbody\n"


@pytest.fixture
def url(postgresql: PrivatePostgreSQL, database: str) -> str:
    """The URL of an empty database with our tables."""
    return postgresql.url(database)


@pytest.fixture
def shared(trial: Trial, url: str, relay: RecordingRelay) -> Trial:
    """A home of that database, whose relay takes everything."""
    trial.environ["PICOQMAIL_SPOOL"] = url
    trial.setting("relayip", f"127.0.0.1:{relay.port}")
    return trial


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    """The store, as this process has it."""
    opened = open_postgresql(url)
    yield opened
    opened.close()


@pytest.fixture
def own(postgresql: PrivatePostgreSQL) -> Iterator[PrivatePostgreSQL]:
    """A server that a test may stop."""
    with type(postgresql)() as server:
        yield server


def sends(home: Trial, count: int = 1) -> None:
    """Hand in so many messages by sendmail."""
    for _ in range(count):
        ran = home.run("sendmail", "-t", message=MESSAGE)
        assert (0, b"") == (ran.returncode, ran.stderr)


def test_sendmail_and_queue_put_mail_into_the_database(shared: Trial, store: PostgresStore) -> None:
    """Nothing is left in the directories."""
    sends(shared)
    read, write = os.pipe()
    os.write(write, b"Fa@example.org\0Tc@example.net\0\0")
    os.close(write)
    ran = subprocess.run(
        [shared.installed.program("queue")],
        stdin=subprocess.DEVNULL,
        stdout=read,
        env=shared.variables(),
        check=False,
    )
    os.close(read)
    assert 0 == ran.returncode
    assert [NEW, NEW] == list(store.names().values())
    assert [] == shared.files()


def test_the_sender_delivers_and_cron_retries(
    shared: Trial, store: PostgresStore, relay: RecordingRelay
) -> None:
    """One run of each; the mail is gone then, and counted."""
    sends(shared, 3)
    assert 0 == shared.run("send").returncode
    assert 3 == len(relay.wait_for(3))
    assert {} == store.names()
    sends(shared)
    ran = shared.run("cron")
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert 4 == len(relay.wait_for(4))
    assert 4 == store.totals.read()["delivered"]


def test_mail_is_sent_at_once(shared: Trial, store: PostgresStore, relay: RecordingRelay) -> None:
    """The program that accepts a message starts a sender, as with a directory."""
    ran = subprocess.run(
        [shared.installed.program("sendmail"), "-t"],
        input=MESSAGE,
        env=shared.sending(),
        check=False,
    )
    assert 0 == ran.returncode
    relay.wait_for(1)
    wait_until(lambda: not store.names(), "the message left the database")


def test_a_worker_delivers_and_ends(
    shared: Trial, store: PostgresStore, relay: RecordingRelay
) -> None:
    """Two beside each other; each message once; SIGTERM ends them with 0."""
    command = [f"{os.path.dirname(shared.installed.program('send'))}/picoqmail", "worker"]
    workers = [subprocess.Popen(command, env=shared.variables()) for _ in range(2)]
    try:
        sends(shared, 5)
        relay.wait_for(5)
        wait_until(lambda: not store.names(), "all messages left the database")
    finally:
        for one in workers:
            one.send_signal(signal.SIGTERM)
        ended = [one.wait(60) for one in workers]
    assert [0, 0] == ended
    assert 5 == len(relay.messages)


def test_the_directory_takes_mail_while_the_database_is_away(
    trial: Trial, own: PrivatePostgreSQL, relay: RecordingRelay
) -> None:
    """Accepted at once, brought over by cron, delivered once."""
    trial.setting("relayip", f"127.0.0.1:{relay.port}")
    database = own.make_database()
    trial.environ["PICOQMAIL_SPOOL"] = own.url(database)
    tool = f"{os.path.dirname(trial.installed.program('send'))}/picoqmail"
    ran = subprocess.run([tool, "migrate"], env=trial.variables(), check=False)
    assert 0 == ran.returncode
    own.stop()
    sends(trial, 2)
    assert 2 == len(trial.ids(NEW))
    assert 0 != trial.run("cron").returncode
    assert 2 == len(trial.ids(NEW))
    own.start()
    assert 0 == trial.run("cron").returncode
    assert 2 == len(relay.wait_for(2))
    assert [] == trial.files()
    assert 2 == len({one.content for one in relay.messages})


def test_without_fallback_the_caller_is_told(trial: Trial) -> None:
    """A temporary refusal, and nothing is kept."""
    trial.setting("fallback", "off")
    trial.environ["PICOQMAIL_SPOOL"] = "postgresql://joe@127.0.0.1:1/none"
    ran = trial.run("sendmail", "-t", message=MESSAGE)
    assert 111 == ran.returncode
    assert b"cannot connect to the database" in ran.stderr
    assert [] == trial.files()


@pytest.mark.parametrize("was_delivered", [False, True])
def test_a_forwarder_that_died_is_done_again(
    trial: Trial,
    store: PostgresStore,
    was_delivered: bool,  # noqa: FBT001 - a case
) -> None:
    """Killed between arrival there and removal here: no second copy."""
    here = DirectoryStore(trial.spool)
    message_id = trial.accepted()
    claim = here.claim(message_id)
    assert claim is not None
    assert store.bring_in(claim.message, claim.state, claim)
    claim.release()
    if was_delivered:
        there = store.claim(message_id)
        assert there is not None
        store.remove(there)
        there.release()
        store.flush()
    trouble: list[str] = []
    home = Home(trial.root, database="postgresql://not/used")
    assert [message_id] == forward(home, store, Limits("me.test"), trouble.append)
    assert [] == trouble
    assert [] == trial.files()
    assert ([] if was_delivered else [message_id]) == list(store.names())


def test_within_a_transaction_of_psycopg(url: str, store: PostgresStore, trial: Trial) -> None:
    """Committed with the caller's rows, or not at all."""
    spool = picoqmail.Spool(Home(trial.root, database=url))
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TEMPORARY TABLE trial_order (number integer)")
        connection.commit()
        connection.execute("INSERT INTO trial_order VALUES (1)")
        receipt = spool.enqueue(MESSAGE, connection=connection)
        assert not receipt.durable
        assert {} == store.names()
        connection.rollback()
        assert {} == store.names()
        kept = spool.enqueue(MESSAGE + b"x" * 700_000, connection=connection)
        connection.commit()
    assert {kept.id: NEW} == store.names()
    claim = store.claim(kept.id)
    assert claim is not None
    claim.release()
    with psycopg.connect(url, autocommit=True) as connection:
        receipt = spool.enqueue(MESSAGE, connection=connection)
    assert {kept.id, receipt.id} == set(store.names())
    assert {kept.id, receipt.id} == set(store.due(10, (NEW, CUR)))


def test_a_commit_waits_for_the_disk_this_time(url: str, trial: Trial) -> None:
    """Even where the caller's sessions do not, and only for this transaction."""
    spool = picoqmail.Spool(Home(trial.root, database=url))
    with psycopg.connect(url) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.commit()
        spool.enqueue(MESSAGE, connection=connection)
        assert ("on",) == connection.execute("SHOW synchronous_commit").fetchone()
        connection.commit()
        assert ("off",) == connection.execute("SHOW synchronous_commit").fetchone()


def test_within_a_transaction_of_sqlalchemy(url: str, store: PostgresStore, trial: Trial) -> None:
    """A Connection, and a Session of the ORM."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    spool = picoqmail.Spool(Home(trial.root, database=url))
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        spool.enqueue(MESSAGE, connection=connection)
        connection.rollback()
        assert {} == store.names()
        one = spool.enqueue(MESSAGE, connection=connection)
        connection.commit()
    with orm.Session(engine) as session:
        two = spool.enqueue(MESSAGE, connection=session)
        assert {one.id} == set(store.names())
        session.commit()
    engine.dispose()
    assert {one.id, two.id} == set(store.names())


def test_what_cannot_be_a_connection(url: str, trial: Trial) -> None:
    """A clear error, and nothing is accepted."""
    spool = picoqmail.Spool(Home(trial.root, database=url))
    with pytest.raises(MessageError, match="give a psycopg Connection"):
        spool.enqueue(MESSAGE, connection=object())
    with psycopg.connect(url) as connection, pytest.raises(MessageError, match="idempotency key"):
        spool.enqueue(MESSAGE, connection=connection, idempotency_key="a")


def test_a_database_without_tables(postgresql: PrivatePostgreSQL, trial: Trial) -> None:
    """One line says what to run."""
    bare = postgresql.url(postgresql.make_database())
    spool = picoqmail.Spool(Home(trial.root, database=bare))
    with (
        psycopg.connect(bare) as connection,
        pytest.raises(ConfigurationError, match="picoqmail migrate"),
    ):
        spool.enqueue(MESSAGE, connection=connection)
    trial.environ["PICOQMAIL_SPOOL"] = bare
    ran = trial.run("cron")
    assert 78 == ran.returncode
    assert b"picoqmail migrate" in ran.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mysql://a/b", "is no URL of a PostgreSQL database"),
        ("postgresql://joe:secret@db/mail", "holds a password, and others may read it"),
    ],
)
def test_a_setting_that_cannot_be_used(trial: Trial, text: str, said: str) -> None:
    """78 or a temporary refusal, one line, and no password in it."""
    trial.setting("spool", text)
    os.chmod(f"{trial.root}/control/spool", 0o644)
    for program, code in (("cron", 78), ("sendmail", 111)):
        ran = trial.run(program, *(["b@example.net"] if program == "sendmail" else []))
        assert code == ran.returncode
        assert said in ran.stderr.decode()
        assert b"secret" not in ran.stderr
    assert [] == trial.files()


def test_check_and_status_of_a_database(shared: Trial) -> None:
    """What would lose mail is critical: this server's fsync is off."""
    tool = f"{os.path.dirname(shared.installed.program('send'))}/picoqmail"
    ran = subprocess.run(
        [tool, "check", "--no-relay"],
        env=shared.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 2 == ran.returncode
    assert "fsync is off" in ran.stdout
    assert "fallback: 0 messages" in ran.stdout
    ran = subprocess.run(
        [tool, "status"], env=shared.variables(), capture_output=True, text=True, check=False
    )
    assert (0, "") == (ran.returncode, ran.stderr)
    assert "postgresql://" in ran.stdout
