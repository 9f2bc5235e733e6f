"""A line to PostgreSQL that knows where statements begin and end: it strikes at one, or goes dead.

It is a Unix socket in a directory of its own, so it knows the pid of each client. It reads the
protocol (PostgreSQL's manual, chapter "Frontend/Backend Protocol") as far as the types of messages.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import tempfile
import threading
from typing import TYPE_CHECKING

from attrs import define, frozen

from rig.server import ThreadServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECE = 65536
TO_SERVER, TO_CLIENT = "to server", "to client"

_CREDENTIALS = struct.Struct("3i")
# Types of messages. What a client sends before Sync or Flush belongs to the same statement.
_QUERY, _SYNC, _FLUSH, _COPY_DONE, _PARSE = b"Q", b"S", b"H", b"c", b"P"
_STATEMENTS = (_QUERY, _SYNC, _COPY_DONE)
_ENDS_A_WRITE = (*_STATEMENTS, _FLUSH, b"d", b"f", b"X", b"")
_READY, _COPY_IN = b"Z", b"G"
_SETTINGS = re.compile(r"^\s*(?:BEGIN;\s*)?(?:SET LOCAL [^;]*;\s*)*;?\s*")


@frozen
class Strike:
    """What befalls a client at one statement: `act` gets its pid, then its connection ends.

    `choose` gets the number of a statement (from 1, over all connections) and its text. It is
    struck before the server has it; with `answered` after the server has run it, and before the
    client hears of that.
    """

    choose: Callable[[int, str], bool]
    act: Callable[[int], None]
    answered: bool = False


@define
class _Wire:
    """One connection. `lost` are the directions in which something was lost: it is dead there."""

    client: socket.socket
    server: socket.socket
    pid: int
    lost: set[str]
    is_withheld: bool = False


class StatementLine(ThreadServer):
    """Forwards from `directory` (a `host` of libpq) to a server's socket; a context manager.

    `statements` are the texts of all so far, without their settings; `pids` the clients.
    """

    def __init__(self, target: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="line-", dir="/tmp")
        os.chmod(self.directory, 0o711)
        path = f"{self.directory}/.s.PGSQL.5432"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.listen(128)
        super().__init__(listener)
        self.statements: list[str] = []
        self.pids: set[int] = set()
        self.strike: Strike | None = None
        self.was_struck = threading.Event()
        self._silent: frozenset[str] = frozenset()
        self._target = target

    def stop(self) -> None:
        """End all connections."""
        super().stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, url: str) -> str:
        """Return a URL of the server as one that goes by way of this line."""
        return re.sub(r"([?&]host=)[^&]*", lambda found: found[1] + self.directory, url)

    def silence(self, *directions: str) -> None:
        """Lose, from now on, all that is said in these directions, both if none is named."""
        self._silent = frozenset(directions or (TO_SERVER, TO_CLIENT))

    def restore(self) -> None:
        """Lose nothing any more. A connection that has lost something stays dead, as on a network.

        Neither side is told.
        """
        self._silent = frozenset()

    def serve(self, connection: socket.socket, number: int) -> None:
        """Forward both directions, each in a thread."""
        del number
        far = socket.socket(socket.AF_UNIX)
        self.hold(far)
        try:
            far.connect(self._target)
        except OSError:
            connection.shutdown(socket.SHUT_RDWR)
            raise
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        wire = _Wire(connection, far, _CREDENTIALS.unpack(raw)[0], set())
        with self.lock:
            self.pids.add(wire.pid)
        self.spawn(self._answers, wire)
        self._requests(wire)

    def _requests(self, wire: _Wire) -> None:
        text, pending = "", bytearray()
        try:
            for kind, message in _messages(wire.client, has_startup=True):
                pending += message
                if kind in (_QUERY, _PARSE):
                    text = message[5:].decode(errors="replace")
                if kind not in _ENDS_A_WRITE:
                    continue
                data = bytes(pending)
                pending.clear()
                if kind in _STATEMENTS and not self._goes_on(wire, text):
                    return
                self._forward(wire, TO_SERVER, data)
        except OSError:
            pass
        finally:
            self._hang_up(wire, TO_SERVER)

    def _goes_on(self, wire: _Wire, text: str) -> bool:
        """Count a statement; return whether it goes to the server."""
        text = _SETTINGS.sub("", text.rstrip("\0"), count=1)
        with self.lock:
            self.statements.append(text)
            number, strike = len(self.statements), self.strike
        if strike is None or self.was_struck.is_set() or not strike.choose(number, text):
            return True
        self.was_struck.set()
        if strike.answered:
            wire.is_withheld = True
            return True
        self._act(wire, strike)
        return False

    def _answers(self, wire: _Wire) -> None:
        try:
            for kind, message in _messages(wire.server):
                strike = self.strike
                if wire.is_withheld and strike is not None:
                    if kind in (_READY, _COPY_IN):
                        self._act(wire, strike)
                        return
                    continue
                self._forward(wire, TO_CLIENT, message)
        except OSError:
            pass
        finally:
            self._hang_up(wire, TO_CLIENT)

    def _act(self, wire: _Wire, strike: Strike) -> None:
        strike.act(wire.pid)
        _shut(wire.client)
        _shut(wire.server)

    def _forward(self, wire: _Wire, direction: str, data: bytes) -> None:
        if direction in self._silent:
            wire.lost.add(direction)
        if direction not in wire.lost:
            (wire.server if direction == TO_SERVER else wire.client).sendall(data)

    def _hang_up(self, wire: _Wire, direction: str) -> None:
        """Pass an end on, unless that is lost, too."""
        if direction in self._silent:
            wire.lost.add(direction)
        if direction not in wire.lost:
            _shut(wire.server if direction == TO_SERVER else wire.client)


def _messages(source: socket.socket, *, has_startup: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and octets of each message; the first one of a client has no type."""
    octets = bytearray()
    head = 0 if has_startup else 1
    while data := source.recv(PIECE):
        octets += data
        while len(octets) >= head + 4:
            size = head + int(struct.unpack_from("!I", octets, head)[0])
            if len(octets) < size:
                break
            yield bytes(octets[:head]), bytes(octets[:size])
            del octets[:size]
            head = 1


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The other side was first.
        return
