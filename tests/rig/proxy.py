"""A slow line to the relay: a forwarding proxy that delays each direction and serialises nothing.

Bytes that arrive together leave together, `seconds_each_way` later, however much is under way. So a
pipelined burst is delayed once, as on a real line. The kernel acknowledges a client's SYN at once.
So the three trips of the handshake are added to the first bytes of the relay (its greeting), unless
`handshake` is false.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from rig.server import LoopServer

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 262144


class SlowLine(LoopServer):
    """A proxy on a free port of 127.0.0.1 in front of `host:port`; a context manager.

    `trips` counts the round trips of each connection: how often the client wrote after it had read.
    On this line they take their time one after the other, whatever the processors do.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        seconds_each_way: float = 0.025,
        handshake: bool = True,
    ) -> None:
        super().__init__()
        self.connections = 0
        self.trips: list[int] = []
        self._has_heard: set[int] = set()
        self._target = (host, port)
        self._delay = seconds_each_way
        self._before = 3 * seconds_each_way if handshake else 0.0

    async def listen(self) -> asyncio.Server:
        """Listen for clients."""
        return await asyncio.start_server(self._serve, self.host, 0, backlog=1024)

    async def _serve(self, near: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        self.trips.append(0)
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
            await asyncio.gather(
                self._pump(near, relay, lambda: self._note(number, is_client=True)),
                self._pump(far, client, delivered=lambda: self._note(number, is_client=False)),
            )
            # The last bytes are still under way.
            await asyncio.sleep(self._delay)
            await asyncio.sleep(0)
            client.close()
            relay.close()
        except asyncio.CancelledError:
            client.transport.abort()
            relay.transport.abort()

    def _note(self, number: int, *, is_client: bool) -> None:
        """Count a round trip where the client writes after it has been sent something."""
        if is_client and number in self._has_heard:
            self.trips[number] += 1
            self._has_heard.discard(number)
        elif not is_client:
            self._has_heard.add(number)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        came: Callable[[], None] = lambda: None,
        delivered: Callable[[], None] = lambda: None,
    ) -> None:
        """Forward bytes until the end of one direction, then forward that end."""
        under_way: deque[bytes] = deque()

        def deliver() -> None:
            _deliver(target, under_way)
            delivered()

        while True:
            try:
                data = await source.read(PIECE)
            except OSError:
                data = b""
            if data:
                came()
            # One timer for each piece. Each takes the oldest piece, whichever timer fires first, so
            # the order stays.
            under_way.append(data)
            self._loop.call_later(self._delay, deliver)
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
