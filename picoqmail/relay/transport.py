"""A socket that does not block, with TLS on top once it is wanted.

The rule of this module: octets only. It never waits and decides nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from picoqmail.relay.tls import TlsLayer

_RECEIVE_OCTETS = 16384
_TLS_BLOCK_OCTETS = 65536
_NOTHING = memoryview(b"")


class BrokenTransportError(Exception):
    """The socket broke, or TLS on top of it (``in_tls``). The text gives the reason.

    No OSError, so that nobody takes an error of the disk for one of the connection.
    """

    def __init__(self, cause: OSError) -> None:
        # Without TLS nobody has imported ssl, so the error cannot be one of TLS.
        ssl = sys.modules.get("ssl")
        self.in_tls = ssl is not None and isinstance(cause, ssl.SSLError)
        super().__init__(_reason_of_tls(cause) if self.in_tls else reason_of(cause))


def reason_of(exc: OSError) -> str:
    """Return what went wrong, in the system's words, without number and file name."""
    return exc.strerror or str(exc)


def _reason_of_tls(exc: OSError) -> str:
    reason = getattr(exc, "verify_message", "") or getattr(exc, "reason", "")
    # TlsLayer's own errors have one argument, the text.
    return reason or str(exc.args[-1])


class Transport:
    """What a connection sends through and receives from.

    ``unsent`` counts the octets given to `send` that neither the socket nor TLS has taken yet.
    ``is_blocked``: the socket takes no more now. ``at_eof``: the relay sends no more.
    All methods raise BrokenTransportError where the socket or TLS breaks.
    """

    __slots__ = ("_cipher", "_plain", "_socket", "_tls", "at_eof", "is_blocked", "unsent")

    def __init__(self, connected: _socket.socket) -> None:
        self._socket = connected
        self._tls: TlsLayer | None = None
        self._plain = _NOTHING
        self._cipher = _NOTHING
        self.unsent = 0
        self.is_blocked = False
        self.at_eof = False

    def start_tls(self, layer: TlsLayer) -> None:
        """Put TLS on top; go on with `handshake`. Nothing may be unsent."""
        self._tls = layer

    def handshake(self) -> bool:
        """Do what can be done of the handshake now; return whether it is finished."""
        if self._tls is None:
            return True
        try:
            done = self._tls.handshake()
        except OSError as exc:
            raise BrokenTransportError(exc) from exc
        self.flush()
        if not done and self.at_eof:
            raise BrokenTransportError(OSError("the relay hung up in the TLS handshake"))
        return done

    def receive(self) -> bytes:
        """Return what has come; empty if there is nothing, or nothing whole, now."""
        try:
            data = self._socket.recv(_RECEIVE_OCTETS)
            if not data:
                self.at_eof = True
            if self._tls is None:
                return data
            if data:
                self._tls.receive(data)
            else:
                self._tls.receive_eof()
            return self._tls.read() if self._tls.established else b""
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as exc:
            raise BrokenTransportError(exc) from exc

    def send(self, output: list[bytes]) -> bool:
        """Take octets to send, and send what the socket takes; return whether that is all."""
        if output:
            data = output[0] if len(output) == 1 else b"".join(output)
            self.unsent += len(data)
            self._plain = memoryview(b"".join((self._plain, data)) if self._plain else data)
        return self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; return whether nothing is left."""
        self.is_blocked = False
        try:
            if self._tls is None:
                self._plain = self._push(self._plain)
                self.unsent = len(self._plain)
                return not self._plain
            while not self.is_blocked:
                if not self._cipher:
                    self._cipher = memoryview(self._tls.ciphertext())
                if self._cipher:
                    self._cipher = self._push(self._cipher)
                    continue
                if not self._plain or not self._tls.write(self._plain[:_TLS_BLOCK_OCTETS]):
                    break
                self._plain = self._plain[_TLS_BLOCK_OCTETS:]
                self.unsent = len(self._plain)
        except OSError as exc:
            raise BrokenTransportError(exc) from exc
        return not self._cipher and not self._plain

    def describe_tls(self) -> dict[str, str]:
        """Return facts about TLS for an event; none without TLS."""
        return self._tls.describe() if self._tls is not None else {}

    def _push(self, data: memoryview) -> memoryview:
        """Return what the socket did not take."""
        while data:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                self.is_blocked = True
                break
            data = data[sent:]
        return data
