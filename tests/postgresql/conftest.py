"""Stores in databases of their own, and messages for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest

from picoqmail.home.limits import Limits
from picoqmail.postgresql.opening import open_postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from picoqmail.postgresql.store import PostgresStore
    from picoqmail.spool.claim import Damage
    from rig.postgresql import PrivatePostgreSQL

HOST = "me.test"


class Accept(Protocol):
    """Put a message in; return its ID."""

    def __call__(  # noqa: D102 - the class says it
        self, body: bytes = ..., recipients: list[str] = ..., **extra: Any
    ) -> str: ...


@pytest.fixture
def url(postgresql: PrivatePostgreSQL, database: str) -> str:
    """The URL of an empty database with our tables."""
    return postgresql.url(database)


@pytest.fixture
def damages() -> list[Damage]:
    """What the store told of damage."""
    return []


@pytest.fixture
def store(url: str, damages: list[Damage]) -> Iterator[PostgresStore]:
    """A store, as one process has it."""
    opened = open_postgresql(url, on_damage=damages.append)
    yield opened
    opened.close()


@pytest.fixture
def other(url: str) -> Iterator[PostgresStore]:
    """The same store, as another process has it."""
    opened = open_postgresql(url)
    yield opened
    opened.close()


@pytest.fixture
def accept(store: PostgresStore) -> Accept:
    """Put messages into the store."""

    def accept(
        body: bytes = b"Subject: trial\n\nbody\n",
        recipients: list[str] = ["b@example.net"],  # noqa: B006 - not changed
        **extra: Any,
    ) -> str:
        with store.incoming(
            Limits(HOST), program="trial", uid=os.getuid(), pid=os.getpid()
        ) as incoming:
            incoming.write(body)
            return incoming.commit("a@example.org", recipients, extra)

    return accept
