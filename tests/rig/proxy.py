"""A slow line to the relay: a forwarding proxy that delays each direction and serialises nothing.

Bytes that arrive together leave together, `seconds_each_way` later, however much is under way. So a
pipelined burst is delayed once, as on a real line. The kernel acknowledges a client's SYN at once.
So the three trips of the handshake are added to the first bytes of the relay (its greeting), unless
`handshake` is false.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

START_SECONDS = 60
PIECE = 262144


class SlowLine:
    """A proxy on a free port of 127.0.0.1 in front of `host:port`; a context manager."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        seconds_each_way: float = 0.025,
        handshake: bool = True,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0
        self._target = (host, port)
        self._delay = seconds_each_way
        self._before = 3 * seconds_each_way if handshake else 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="slow-line", daemon=True)
        self._listening = threading.Event()

    @property
    def address(self) -> str:
        """The value for `relayip`: host:port."""
        return f"{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(START_SECONDS):
            raise TimeoutError(f"the proxy does not listen after {START_SECONDS} s")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, self.host, 0, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, near: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await asyncio.sleep(self._before)
            far, relay = await asyncio.open_connection(*self._target)
        except OSError:
            client.close()
            return
        except asyncio.CancelledError:
            client.transport.abort()
            return
        try:
            await asyncio.gather(self._pump(near, relay), self._pump(far, client))
            # The last bytes are still under way.
            await asyncio.sleep(self._delay)
            await asyncio.sleep(0)
            client.close()
            relay.close()
        except asyncio.CancelledError:
            client.transport.abort()
            relay.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Forward bytes until the end of one direction, then forward that end."""
        under_way: deque[bytes] = deque()
        while True:
            try:
                data = await source.read(PIECE)
            except OSError:
                data = b""
            # One timer for each piece. Each takes the oldest piece, whichever timer fires first, so
            # the order stays.
            under_way.append(data)
            self._loop.call_later(self._delay, _deliver, target, under_way)
            if not data:
                return


def _deliver(target: asyncio.StreamWriter, under_way: deque[bytes]) -> None:
    data = under_way.popleft()
    if target.is_closing():
        return
    if data:
        target.write(data)
    elif target.can_write_eof():
        # A client that has sent QUIT need not wait for the reply, and may be gone.
        with contextlib.suppress(OSError):
            target.write_eof()
