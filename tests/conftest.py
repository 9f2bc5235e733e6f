"""Fixtures of the whole suite: relays (tests/rig/README.md) and a fresh installation."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, TypeVar

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

import installation
from rig.dovecot import DovecotLmtp
from rig.exim import Exim
from rig.hostile import HostileRelay
from rig.opensmtpd import OpenSMTPD
from rig.postfix import Postfix
from rig.postgresql import PrivatePgBouncer, PrivatePostgreSQL
from rig.recording import RecordingRelay
from rig.sink import Sink
from temporary_home import TemporaryHome
from trial import Trial, make_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Server = TypeVar("Server")

# A machine with much else to do draws slowly, which says nothing about the draws.
hypothesis.settings.register_profile(
    "loaded", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loaded")


class _ByFile(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Where tests run side by side (`-n`), those of a file, and all that make users, do not."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "tests/privileges" if file.startswith("tests/privileges/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _ByFile:
    """Say which tests run side by side."""
    return _ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the checkout: a Python started there (`-m picoqmail...`) would import its sources."""
    with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
        yield


@pytest.fixture
def rig() -> Iterator[Callable[[contextlib.AbstractContextManager[Server]], Server]]:
    """Start any relay or proxy of the rig, and stop it after the test: `rig(HostileRelay(...))`."""
    with contextlib.ExitStack() as started:
        yield started.enter_context


@pytest.fixture
def relay() -> Iterator[RecordingRelay]:
    """A relay that accepts everything and records it (aiosmtpd)."""
    with RecordingRelay() as server:
        yield server


@pytest.fixture
def strict_relay() -> Iterator[HostileRelay]:
    """A relay that accepts everything and, at the end, fails the test if a rule was broken."""
    with HostileRelay() as server:
        yield server
    assert [] == server.complaints


@pytest.fixture
def sink() -> Iterator[Sink]:
    """Postfix's smtp-sink, dumping what it gets."""
    with Sink() as server:
        yield server


@pytest.fixture(scope="session")
def postfix() -> Iterator[Postfix]:
    """A private Postfix, one for the session, for it takes seconds: tell your mails by address."""
    with Postfix() as server:
        yield server


@pytest.fixture(scope="session")
def exim() -> Iterator[Exim]:
    """A private Exim, one for the session."""
    with Exim() as server:
        yield server


@pytest.fixture(scope="session")
def opensmtpd() -> Iterator[OpenSMTPD]:
    """A private OpenSMTPD, one for the session."""
    with OpenSMTPD() as server:
        yield server


@pytest.fixture(scope="session")
def dovecot() -> Iterator[DovecotLmtp]:
    """A private LMTP server of Dovecot, one for the session."""
    with DovecotLmtp() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    """A private PostgreSQL, one for the session; it waits for no disk."""
    with PrivatePostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgresql: PrivatePostgreSQL) -> Iterator[PrivatePgBouncer]:
    """PgBouncer in transaction mode in front of that."""
    with PrivatePgBouncer(postgresql) as pooler:
        yield pooler


@pytest.fixture(scope="session")
def migrated(postgresql: PrivatePostgreSQL) -> str:
    """The name of a database with our tables, to be copied."""
    from picoqmail.postgresql.address import read_url
    from picoqmail.postgresql.migration import migrate

    name = postgresql.make_database()
    migrate(read_url(postgresql.url(name)))
    return name


@pytest.fixture
def own_database(postgresql: PrivatePostgreSQL, migrated: str) -> str:
    """The name of a new database with our tables, for a test that changes more than rows."""
    return postgresql.make_database(migrated)


@pytest.fixture
def database(postgresql: PrivatePostgreSQL, migrated: str) -> Iterator[str]:
    """The name of a database with our tables, empty, for a test that changes rows alone."""
    name = postgresql.lend_database(migrated)
    yield name
    postgresql.take_back(name)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the wheel, built once from the checkout's sources."""
    return installation.build_wheel(str(tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="session")
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> installation.Installation:
    """The wheel in an environment of its own, whose path has a space.

    Or the environment that the tests are told to test (mutation/ground.py).
    """
    told = os.environ.get("PICOQMAIL_INSTALLED")
    if told:
        return installation.Installation(f"{told}/bin", f"{told}/bin/python3")
    directory = os.path.join(tmp_path_factory.mktemp("installed"), "an environment")
    environment = installation.make_environment(directory)
    installation.install(request.getfixturevalue("wheel"), environment.python)
    installation.share_dependencies(environment.python)
    return environment


@pytest.fixture
def trial(tmp_path_factory: pytest.TempPathFactory, installed: installation.Installation) -> Trial:
    """A home with an empty spool, whose relay nobody serves yet."""
    return make_trial(str(tmp_path_factory.mktemp("trial") / "home"), installed)


@pytest.fixture
def mailer(tmp_path: Path, installed: installation.Installation) -> Trial:
    """Return a home and the programs, as user joe starts them."""
    return make_trial(str(tmp_path / "home"), installed, environ={"USER": "joe"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TemporaryHome:
    """Return a home that the environment names; nothing is sent from it."""
    made = TemporaryHome(str(tmp_path / "home")).make()
    monkeypatch.setenv("PICOQMAIL_HOME", made.root)
    monkeypatch.setenv("PICOQMAIL_SEND", "off")
    return made


@pytest.fixture
def picoqmail(
    installed: installation.Installation,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `picoqmail WORDS` on a trial's home: `picoqmail(trial, "status")`."""

    def run(trial: Trial, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [os.path.join(installed.bin, "picoqmail"), *words],
            env={**trial.variables(), **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
