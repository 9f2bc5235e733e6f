"""Waiting for an event with a time limit: nothing in the rig sleeps for a fixed time."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# The pause between two checks of something that cannot notify us.
POLL_SECONDS = 0.01


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on now.

    For programs that require a port number; our own relays listen on port 0 and report theirs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Return as soon as `true()` holds.

    Raises:
        TimeoutError: it did not hold within `seconds`; the message names `what` did not happen.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(POLL_SECONDS)


def answers(port: int, greeting: bytes = b"220") -> bool:
    """Say whether a server on this port of 127.0.0.1 greets within a second."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.settimeout(1)
            return client.recv(len(greeting)) == greeting
    except OSError:
        return False


def accepts(port: int) -> bool:
    """Say whether anything listens on this port of 127.0.0.1 (for TLS, where no greeting comes)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def accepts_on(path: str) -> bool:
    """Say whether anything listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True
