"""Fixtures of the whole suite: the rig of relays. What each can do: tests/rig/README.md."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import pytest

from rig.hostile import HostileRelay
from rig.postfix import Postfix
from rig.recording import RecordingRelay
from rig.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Server = TypeVar("Server")


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
