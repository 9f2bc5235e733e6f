"""A proxy that delays nothing, and records everything piece by piece."""

from __future__ import annotations

import contextlib
import socket

from rig.server import ThreadServer

PIECE = 262144


class Tap(ThreadServer):
    """Forwards from a free port of 127.0.0.1 to `host:port`; a context manager.

    `said` is what the client sent, and `heard` is what the relay replied. Each is a list of pieces:
    one write of the client is one piece.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.said: list[bytes] = []
        self.heard: list[bytes] = []
        self._target = (host, port)

    def offers(self) -> set[str]:
        """The words after 250 in the relay's replies; the first ones belong to EHLO or LHLO."""
        lines = b"".join(self.heard).decode("utf-8", "replace").split("\r\n")
        return {line[4:].split()[0] for line in lines if line[:3] == "250" and line[4:].strip()}

    def serve(self, connection: socket.socket, number: int) -> None:
        """Forward both directions, each in a thread."""
        del number
        far = socket.create_connection(self._target)
        self.hold(far)
        self.spawn(self._carry, far, connection, self.heard)
        self._carry(connection, far, self.said)

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket, kept: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                kept.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
