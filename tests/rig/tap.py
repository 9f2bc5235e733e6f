"""A proxy that delays nothing, and records everything piece by piece."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

PIECE = 262144
JOIN_SECONDS = 60


class Tap:
    """Forwards from a free port of 127.0.0.1 to `host:port`; a context manager.

    `said` is what the client sent, and `heard` is what the relay replied. Each is a list of pieces:
    one write of the client is one piece.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self.said: list[bytes] = []
        self.heard: list[bytes] = []
        self._target = (host, port)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._spawn(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def offers(self) -> set[str]:
        """The words after 250 in the relay's replies; the first ones belong to EHLO or LHLO."""
        lines = b"".join(self.heard).decode("utf-8", "replace").split("\r\n")
        return {line[4:].split()[0] for line in lines if line[:3] == "250" and line[4:].strip()}

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="tap", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += (near, far)
            self._spawn(self._carry, near, far, self.said)
            self._spawn(self._carry, far, near, self.heard)

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket, kept: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                kept.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
