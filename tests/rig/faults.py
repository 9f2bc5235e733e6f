"""The faults of a hostile relay: a small function for each.

A fault is called with its connection and the ordinary reply, and sends whatever it wants. It
returns False if the connection is over.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    Fault = Callable[["Line", bytes], bool]

# More than any client should read, in pieces of one write.
FLOOD_BYTES = 10_000_000
PIECE = 65536


class Line(Protocol):
    """The actions of a fault on a connection."""

    stopping: threading.Event

    def send(self, data: bytes) -> None:
        """Write all the data."""

    def reset(self) -> None:
        """End with a TCP reset instead of an orderly close."""

    def await_end(self) -> None:
        """Read and discard until the client closes or the relay is stopped."""

    def drop_input(self) -> bytes:
        """Return what was received and not read yet, and forget it."""

    def next_line(self) -> bytes:
        """Read the next line of the client; it is recorded as a command."""


def reply(*lines: str) -> Fault:
    """Reply with these lines ("451 4.3.0 later"), each with CRLF."""
    data = "".join(line + "\r\n" for line in lines).encode()
    return raw(data)


def raw(data: bytes) -> Fault:
    """Reply with exactly these bytes, and go on."""

    def act(line: Line, _ordinary: bytes) -> bool:
        line.send(data)
        return True

    return act


def final(text: str) -> Fault:
    """Reply with this line and close, as with 421."""
    return closing(text.encode() + b"\r\n")


def closing(data: bytes) -> Fault:
    """Send exactly these bytes, which may be a part of a reply, and close."""

    def act(line: Line, _ordinary: bytes) -> bool:
        line.send(data)
        return False

    return act


def drop() -> Fault:
    """Close without a reply."""
    return closing(b"")


def reset(before: bytes = b"") -> Fault:
    """Send `before`, then a TCP reset."""

    def act(line: Line, _ordinary: bytes) -> bool:
        if before:
            line.send(before)
        line.reset()
        return False

    return act


def answer_then_reset() -> Fault:
    """Send the ordinary reply (such as 354), then a TCP reset."""

    def act(line: Line, ordinary: bytes) -> bool:
        return reset(ordinary)(line, ordinary)

    return act


def answer_then_drop() -> Fault:
    """Send the ordinary reply, then close."""

    def act(line: Line, ordinary: bytes) -> bool:
        return closing(ordinary)(line, ordinary)

    return act


def stall() -> Fault:
    """Send nothing until the client gives up."""

    def act(line: Line, _ordinary: bytes) -> bool:
        line.await_end()
        return False

    return act


def delayed(seconds: float) -> Fault:
    """Send the ordinary reply after this time (or when the relay is stopped)."""

    def act(line: Line, ordinary: bytes) -> bool:
        line.stopping.wait(seconds)
        line.send(ordinary)
        return True

    return act


def drip(seconds_each: float = 0.0) -> Fault:
    """Send the ordinary reply byte by byte, each in its own packet."""

    def act(line: Line, ordinary: bytes) -> bool:
        for i in range(len(ordinary)):
            line.send(ordinary[i : i + 1])
            if seconds_each:
                line.stopping.wait(seconds_each)
        return True

    return act


def flood(start: bytes = b"250 ", total: int = FLOOD_BYTES) -> Fault:
    """Send `total` bytes that contain no line end, then wait for the client to leave."""

    def act(line: Line, _ordinary: bytes) -> bool:
        line.send(start)
        for _ in range(total // PIECE):
            line.send(b"x" * PIECE)
        line.await_end()
        return False

    return act


def endless(line_of_reply: bytes = b"250-and another\r\n") -> Fault:
    """Send continuation lines until the client leaves."""

    def act(line: Line, _ordinary: bytes) -> bool:
        while not line.stopping.is_set():
            line.send(line_of_reply * 100)
        return False

    return act


def unasked(extra: bytes = b"250 2.0.0 Nobody asked\r\n") -> Fault:
    """Send the ordinary reply, and in the same packet one that belongs to no command."""

    def act(line: Line, ordinary: bytes) -> bool:
        line.send(ordinary + extra)
        return True

    return act


def challenging(*challenges: str, end: str = "") -> Fault:
    """Send these as 334 in turn, each answered by a line; then `end`, or the ordinary reply."""

    def act(line: Line, ordinary: bytes) -> bool:
        for challenge in challenges:
            line.send(f"334 {challenge}\r\n".encode())
            line.next_line()
        line.send(f"{end}\r\n".encode() if end else ordinary)
        return True

    return act


def refusing_what_follows(reply_to_each: bytes = b"503 pipelined after end of DATA\r\n") -> Fault:
    """Reply as usual; for each line that was sent behind, this reply (b"": not a word)."""

    def act(line: Line, ordinary: bytes) -> bool:
        line.send(ordinary + reply_to_each * line.drop_input().count(b"\r\n"))
        return True

    return act


def after(ordinary_times: int, fault: Fault) -> Fault:
    """Reply this many times as usual, over all connections; from then on show the fault."""
    count = 0
    lock = threading.Lock()

    def act(line: Line, ordinary: bytes) -> bool:
        nonlocal count
        with lock:
            count += 1
            yet = count > ordinary_times
        if yet:
            return fault(line, ordinary)
        line.send(ordinary)
        return True

    return act
