"""Connecting to the first address that answers (RFC 8305)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from picoqmail.relay.lookup import Address, interleaved
from picoqmail.relay.loop import Loop
from picoqmail.relay.race import STAGGER_SECONDS, Race
from rig.hostile import HostileRelay
from rig.waiting import free_port, wait_until

if TYPE_CHECKING:
    import _socket
    import pathlib
    from collections.abc import Callable, Iterator
    from typing import Any

    from trial import Trial

TIMEOUT = 20.0


@contextmanager
def swallowing(host: str, port: int = 0) -> Iterator[Address]:
    """An address that answers nothing: its queue of connections is full (listen(2))."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=0)
    target = listener.getsockname()
    clients = []

    def is_full() -> bool:
        client = socket.socket(family)
        clients.append(client)
        client.settimeout(0.2)
        try:
            client.connect(target)
        except TimeoutError:
            return True
        return False

    try:
        wait_until(is_full, "the queue is full")
        yield Address(family, target, f"{host}:{target[1]}")
    finally:
        for client in clients:
            client.close()
        listener.close()


def listening(relay: HostileRelay) -> Address:
    """The address of a relay of the rig."""
    return Address(socket.AF_INET, (relay.host, relay.port), relay.address)


@pytest.fixture
def closed_port() -> int:
    """A port at which nothing listens."""
    return free_port()


def dead(port: int) -> Address:
    """An address at which nothing listens."""
    return Address(socket.AF_INET, ("127.0.0.1", port), f"127.0.0.1:{port}")


class Runner:
    """A race that is run to its end."""

    def __init__(self, *addresses: Address, timeout: float = TIMEOUT) -> None:
        self.winner: Address | None = None
        self.failures: list[tuple[Address, str]] | None = None
        loop = Loop(lambda *_args, **_facts: None)
        race = Race(
            loop,
            addresses,
            "",
            timeout,
            on_connected=self._connected,
            on_failed=self._failed,
        )
        began = time.monotonic()
        race.start()
        while not self._is_over():
            for concerned, events in loop.sockets.wait(max(0.0, race.deadline - loop.now)):
                concerned.on_ready(events)
            loop.now = time.monotonic()
            if not self._is_over() and loop.now >= race.deadline:
                race.on_deadline()
        self.seconds = time.monotonic() - began
        self.left_open = len(loop.sockets)
        race.discard()
        loop.close()

    def _is_over(self) -> bool:
        return self.winner is not None or self.failures is not None

    def _connected(self, connected: _socket.socket, address: Address) -> None:
        self.winner = address
        connected.close()

    def _failed(self, failures: list[tuple[Address, str]]) -> None:
        self.failures = failures


def test_the_first_that_answers(rig: Callable[..., Any]) -> None:
    """An address that swallows packets costs a quarter of a second, and no more."""
    good = listening(rig(HostileRelay()))
    with swallowing("127.0.0.1") as first, swallowing("127.0.0.1") as second:
        race = Runner(first, second, good)
    assert good == race.winner
    assert 2 * STAGGER_SECONDS <= race.seconds < TIMEOUT / 2
    assert 0 == race.left_open


def test_one_that_refuses_costs_nothing(rig: Callable[..., Any], closed_port: int) -> None:
    """The next is tried at once, and is no race if the first one answers."""
    good = listening(rig(HostileRelay()))
    assert good == Runner(dead(closed_port), good).winner
    other = rig(HostileRelay())
    assert good == Runner(good, listening(other)).winner
    assert 0 == other.connections


def test_nobody_answers(closed_port: int) -> None:
    """All of them are named, each with its reason, within the one time limit."""
    with swallowing("127.0.0.1") as mute:
        race = Runner(dead(closed_port), mute, timeout=1.0)
    assert race.failures is not None
    assert {dead(closed_port), mute} == {address for address, _ in race.failures}
    assert ["Connection refused", "no connection in time"] == [why for _, why in race.failures]
    assert 1.0 <= race.seconds < TIMEOUT


def test_the_families_take_turns() -> None:
    """RFC 8305 4; and the one that served comes first."""
    six = [Address(socket.AF_INET6, (f"::{n}", 25), f"[::{n}]:25") for n in range(1, 4)]
    four = [Address(socket.AF_INET, (f"192.0.2.{n}", 25), f"192.0.2.{n}:25") for n in range(1, 3)]
    turns = (six[0], four[0], six[1], four[1], six[2])
    assert turns == interleaved((*six, *four))
    assert (four[1], six[0], four[0], six[1], six[2]) == interleaved((*six, *four), four[1].text)
    assert turns == interleaved((*six, *four), "198.51.100.1:25")


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="wants root, for hosts of its own")


@ROOT
def test_the_address_is_remembered(
    trial: Trial, rig: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """No later run waits for the address that swallows packets, and nobody is charged for it."""
    relay = rig(HostileRelay())
    hosts = tmp_path / "hosts"
    # RFC 6724 puts ::1 before all others.
    hosts.write_text("::1 two.test\n127.0.0.1 two.test\n", encoding="ascii")
    trial.setting("relayip", f"two.test:{relay.port}")
    send = trial.installed.program("send")
    script = f"mount --bind {hosts} /etc/hosts && exec '{send}'"

    def send_one() -> float:
        """Send one message; return the seconds that this took."""
        trial.accepted()
        began = time.monotonic()
        command = ["unshare", "--mount", "sh", "-c", script]
        ran = subprocess.run(command, env=trial.variables(), check=False, timeout=TIMEOUT)
        assert 0 == ran.returncode
        return time.monotonic() - began

    with swallowing("::1", relay.port):
        assert STAGGER_SECONDS <= send_one() < TIMEOUT
        with open(f"{trial.spool}/relay-notes", encoding="utf-8") as file:
            assert relay.address in file.read()
    # Now the first address would answer. The run begins with the one that served.
    with socket.create_server(("::1", relay.port), family=socket.AF_INET6) as listener:
        listener.settimeout(0)
        send_one()
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert [relay.address] * 2 == [event["address"] for event in trial.events("connected")]
    assert 2 == len(relay.messages)
    assert [] == trial.events("connection_lost") + trial.events("relay_down")
