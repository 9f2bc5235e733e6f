"""A line that can go silent: nothing comes through any more, and nobody hangs up."""

from __future__ import annotations

import contextlib
import socket
import threading

from rig.server import ThreadServer

PIECE = 65536


class SilentLine(ThreadServer):
    """Forwards from a free port of 127.0.0.1 to a socket in the file system; a context manager.

    As long as `is_silent` is set, what either side says is lost, and neither notices.
    """

    def __init__(self, target: str) -> None:
        super().__init__()
        self.is_silent = threading.Event()
        self._target = target

    def serve(self, connection: socket.socket, number: int) -> None:
        """Forward both directions, each in a thread."""
        del number
        far = socket.socket(socket.AF_UNIX)
        self.hold(far)
        far.connect(self._target)
        self.spawn(self._carry, far, connection)
        self._carry(connection, far)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if not self.is_silent.is_set():
                    target.sendall(data)
            if not self.is_silent.is_set():
                target.shutdown(socket.SHUT_WR)
