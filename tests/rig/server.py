"""The servers of the rig, each a context manager: an asyncio loop, threads, or another's program.

One class for each way to serve. The relays and proxies say what they do with a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from rig import maildir
from rig.programs import Daemon, discard
from rig.received import Mailbox
from rig.waiting import answers, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from rig.received import Received

START_SECONDS = 60
STOP_SECONDS = 60


class Server(ABC):
    """A server on a port of 127.0.0.1: started on entry, stopped on exit."""

    host = "127.0.0.1"
    port = 0

    @property
    def address(self) -> str:
        """The value for `relayip`: host:port."""
        return f"{self.host}:{self.port}"

    @abstractmethod
    def start(self) -> None:
        """Return when clients can connect."""

    @abstractmethod
    def stop(self) -> None:
        """Return when nothing of it runs any more."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class LoopServer(Server):
    """A server in an asyncio loop of its own, in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._listening = threading.Event()

    @abstractmethod
    async def listen(self) -> asyncio.Server:
        """Listen on a free port of `host`."""

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()
        if not self._listening.wait(START_SECONDS):
            raise TimeoutError(f"{self._thread.name} does not listen after {START_SECONDS} s")

    def stop(self) -> None:
        """Cancel every connection and end the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self.listen())
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class ThreadServer(Server):
    """A server with a thread for each connection; it has its port before it is started.

    `listener` is the socket to listen on, if that is no free port of `host`.
    """

    def __init__(self, listener: socket.socket | None = None) -> None:
        self.connections = 0
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._listener = listener or socket.create_server((self.host, 0), backlog=128)
        if listener is None:
            self.port = self._listener.getsockname()[1]

    @abstractmethod
    def serve(self, connection: socket.socket, number: int) -> None:
        """Serve one connection, from 1, to its end. OSError ends it, too."""

    def start(self) -> None:
        """Accept connections."""
        self.spawn(self._listen)

    def stop(self) -> None:
        """Shut all connections, and wait for their threads."""
        self.stopping.set()
        # Wakes accept(), which close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.lock:
            for connection in self._open:
                _shut(connection)
        for thread in list(self._threads):
            thread.join(STOP_SECONDS)
        for connection in list(self._open):
            self.release(connection)

    def spawn(self, target: Callable[..., None], *args: object) -> None:
        """Run something in a thread that `stop` waits for."""
        thread = threading.Thread(target=target, args=args, name=type(self).__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def hold(self, connection: socket.socket) -> None:
        """Have `stop` shut a socket; one that comes too late for that is shut at once."""
        with self.lock:
            self._open.add(connection)
        if self.stopping.is_set():
            _shut(connection)

    def exchange(self, before: socket.socket, after: socket.socket) -> None:
        """Hold the second socket, which has taken over the first one's connection."""
        with self.lock:
            self._open.discard(before)
        self.hold(after)

    def release(self, connection: socket.socket) -> None:
        """Close a socket that was held."""
        with self.lock:
            self._open.discard(connection)
        connection.close()

    def _listen(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections += 1
                number = self.connections
            self.hold(connection)
            self.spawn(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        # The client left, or we are being stopped: what came is recorded already.
        with contextlib.suppress(OSError):
            self.serve(connection, number)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # That of a TLS connection would take its state away under the thread that reads from it.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Relay(Server):
    """A server that takes mail."""

    @property
    @abstractmethod
    def messages(self) -> list[Received]:
        """The messages so far."""

    @abstractmethod
    def wait_for(self, count: int, seconds: float = 60) -> list[Received]:
        """Return all messages as soon as there are `count`; TimeoutError after `seconds`."""


class MailboxRelay(Relay):
    """A relay of ours, which puts what it takes into a mailbox."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox()

    @property
    def messages(self) -> list[Received]:
        """The messages so far."""
        return self.mailbox.all()

    def wait_for(self, count: int, seconds: float = 60) -> list[Received]:
        """Return all messages as soon as there are `count`; TimeoutError after `seconds`."""
        return self.mailbox.wait_for(count, seconds)


class DaemonRelay(Relay):
    """A mail server of Debian: its program, and a directory for its files.

    `inbox` is the Maildir that it delivers to; `output` is a file for what the program writes, and
    `log` the one to look into, if that is another.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: str,
        *,
        output: str,
        log: str = "",
        inbox: str = "",
        ready: Callable[[], object] | None = None,
    ) -> None:
        self.directory = directory
        self.log = log or output
        self._inbox = inbox
        self._daemon = Daemon(command, ready or (lambda: answers(self.port)), output)

    @property
    def messages(self) -> list[Received]:
        """The delivered messages, one for each recipient, without the fields that it added."""
        return maildir.messages(self._inbox)

    def said(self) -> str:
        """Return what the program wrote so far."""
        return self._daemon.said()

    def wait_for(self, count: int, seconds: float = 60) -> list[Received]:
        """Return all messages as soon as there are `count`; TimeoutError after `seconds`."""
        wait_until(lambda: len(self.messages) >= count, f"{count} deliveries: {self.log}", seconds)
        return self.messages

    def start(self) -> None:
        """Start the program, and wait until it greets."""
        self._daemon.__enter__()

    def stop(self) -> None:
        """End the program, and remove its files."""
        self._daemon.__exit__()
        discard(self.directory)
