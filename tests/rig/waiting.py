"""Waiting for something that will happen, with a bound: nothing in the rig sleeps and hopes."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Between two looks at a thing that cannot tell us when it changes.
POLL_SECONDS = 0.01


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on now.

    For programs that must be told a number; our own relays listen on port 0 and say what they got.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return as soon as `true()` is true.

    Raises:
        TimeoutError: it was not within `seconds`; the message says `what` did not happen.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(POLL_SECONDS)


def answers(port: int, greeting: bytes = b"220") -> bool:
    """Tell whether a server on this port of 127.0.0.1 greets within a second."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.settimeout(1)
            return client.recv(len(greeting)) == greeting
    except OSError:
        return False


def accepts(port: int) -> bool:
    """Tell whether anything listens on this port of 127.0.0.1 (for TLS, where it waits for us)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def accepts_on(path: str) -> bool:
    """Tell whether anything listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True
