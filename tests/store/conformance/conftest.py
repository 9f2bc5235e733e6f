"""Each test of this directory runs on every store: a directory, and tables of PostgreSQL."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

import pytest

from picoqmail.home.limits import Limits
from picoqmail.home.paths import Home
from picoqmail.store.opening import open_store
from temporary_home import HOST, MESSAGE, TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from picoqmail.spool.claim import Damage
    from picoqmail.store.protocol import Store

ENGINES = ("directory", "postgresql")


class Opener(Protocol):
    """Open the store once more, as another process has it."""

    def __call__(self, on_damage: Callable[[Damage], None] = ...) -> Store: ...  # noqa: D102 - the class says it


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the store on trial."""
    return str(request.param)


@pytest.fixture
def home(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Home:
    """A home with its store, empty."""
    made = TemporaryHome(str(tmp_path / "home")).make()
    if engine == "directory":
        return made.home
    postgresql = request.getfixturevalue("postgresql")
    database = request.getfixturevalue("database")
    return Home(made.root, database=postgresql.url(database))


@pytest.fixture
def opener(home: Home) -> Opener:
    """Stores of the home, each as a process of its own has it."""

    def opened(on_damage: Callable[[Damage], None] = lambda _: None) -> Store:
        return open_store(home, time.time, on_damage)

    return opened


@pytest.fixture
def store(opener: Opener) -> Store:
    """The store."""
    return opener()


class Accepting(Protocol):
    """Put a message in; return its ID."""

    def __call__(  # noqa: D102 - the class says it
        self, recipients: list[str] = ..., message: bytes = ..., **extra: Any
    ) -> str: ...


@pytest.fixture
def accepted(store: Store) -> Accepting:
    """Put messages into the store."""

    def accept(
        recipients: list[str] = ["b@example.net"],  # noqa: B006 - not changed
        message: bytes = MESSAGE,
        **extra: Any,
    ) -> str:
        uid, pid = os.getuid(), os.getpid()
        with store.incoming(Limits(HOST), program="trial", uid=uid, pid=pid) as incoming:
            incoming.write(message)
            return incoming.commit("a@example.org", recipients, extra or None)

    return accept
