"""One connection: its transport, the conversation on top, and the deadlines of both.

The rule of this module: what is said is the conversation's, how octets move the transport's, what
follows from the end of a link the lane's. A link brings the three together.
"""

from __future__ import annotations

import os
import selectors
import socket

from picoqmail.relay.lookup import open_socket
from picoqmail.relay.tls_plan import TlsPlan, is_tls_error, plan_tls
from picoqmail.relay.transport import Transport
from picoqmail.smtp.conversation import FLUSH, PAUSE, TLS, Conversation, SessionOptions
from picoqmail.smtp.transaction import RelayFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.relay.failover import LaneRun
    from picoqmail.relay.lookup import Address, Endpoint
    from picoqmail.smtp.transaction import Transaction, Verdict

_READABLE, _WRITABLE = selectors.EVENT_READ, selectors.EVENT_WRITE
_CONNECTING, _HANDSHAKE, _OPEN, _CLOSED = range(4)


class LinkSource:
    """What a conversation takes its messages from: its lane, by way of its link."""

    __slots__ = ("_lane", "_link")

    def __init__(self, lane: LaneRun, link: Link) -> None:
        self._lane = lane
        self._link = link

    def take(self) -> Transaction | None:
        """Return the next message for this link."""
        return self._lane.take(self._link)

    def done(self, transaction: Transaction, verdict: Verdict) -> None:
        """Hand a verdict on."""
        self._lane.done(transaction, verdict, self._link)


class Link:
    """One connection of a lane to one address of one relay."""

    def __init__(
        self,
        lane: LaneRun,
        endpoint: Endpoint,
        address: Address,
        generation: int,
        *,
        in_clear: bool,
    ) -> None:
        self.lane = lane
        self.engine = lane.engine
        self.endpoint = endpoint
        self.relay = str(endpoint.relay)
        self.address = address
        self.generation = generation
        self.deadline = self.engine.now + lane.lane.timeout_connect
        has_login = endpoint.credentials is not None
        self._plan = plan_tls(endpoint.relay, endpoint.tls, has_login=has_login)
        if in_clear:
            self._plan = TlsPlan(implicit=False, starttls="never", verify="nothing")
        self.conversation = Conversation(
            self._options(),
            LinkSource(lane, self),
            self.relay,
            secure=self._plan.implicit,
        )
        self._socket: socket.socket | None = None
        self._transport: Transport | None = None
        self._state = _CONNECTING
        self._mask = 0
        self._turn = -1
        self._epoch = -1
        self._total_deadline = 0.0
        self._announced = False
        self.is_leaving = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come of this link."""
        return self._state == _CLOSED

    @property
    def is_ready(self) -> bool:
        """Whether the relay has let this link in."""
        return self.conversation.ready

    @property
    def in_message(self) -> bool:
        """Whether the link got as far as offering a message."""
        return self.conversation.epoch > 0

    @property
    def may_go_in_clear(self) -> bool:
        """Whether a failed TLS may be followed by an attempt without (setting tls = may)."""
        return self._plan.starttls == "may" and self.endpoint.credentials is None

    def connect(self) -> None:
        """Set out. A failure ends the link at once."""
        self.engine.add(self)
        try:
            self._socket = open_socket(self.address, self.lane.lane.source_ip)
        except OSError as error:
            self._end(RelayFault("connect", f"cannot connect to {self._where}: {_why(error)}"))
            return
        self.engine.watch(self.deadline)
        self._select(_WRITABLE)

    def on_ready(self, mask: int) -> None:
        """Go on: the socket can be read or written."""
        if self._state == _CLOSED or self._socket is None:
            return
        self.lane.active_at = self.engine.now
        try:
            if self._transport is None:
                self._connected(self._socket)
                return
            if mask & _READABLE:
                self._receive(self._transport)
            if self._state == _HANDSHAKE:
                self._shake_hands(self._transport)
            if self._state == _OPEN:
                self._advance(self._transport)
        except OSError as error:
            if is_tls_error(error):
                self._tls_failed(error)
            else:
                self._lost(error)

    def on_deadline(self) -> None:
        """Go on: something took too long, or a pause is over."""
        conversation = self.conversation
        if self._state == _CONNECTING:
            self._end(RelayFault("connect", f"no connection to {self._where} in time"))
        elif self._state == _HANDSHAKE:
            self._fail(RelayFault("tls", "the relay did not finish the TLS handshake in time"))
        elif conversation.want == PAUSE:
            conversation.wake()
            self.on_ready(0)
        else:
            conversation.timed_out()
            self.on_ready(0)

    def on_stop(self) -> None:
        """End a pause: nothing new will be begun."""
        if self._state == _OPEN and self.conversation.want == PAUSE:
            self.on_deadline()

    def discard(self) -> None:
        """Close the socket and nothing else: the run is over."""
        self._state = _CLOSED
        if self._socket is None:
            return
        if self._mask:
            self.engine.selector.unregister(self._socket)
            self._mask = 0
        self._socket.close()
        self._socket = None

    @property
    def _where(self) -> str:
        if self.relay.endswith(self.address.text):
            return self.relay
        return f"{self.relay} ({self.address.text})"

    def _options(self) -> SessionOptions:
        lane, relay = self.lane.lane, self.endpoint.relay
        return SessionOptions(
            helo=lane.helo,
            is_lmtp=relay.is_lmtp,
            starttls=self._plan.starttls,
            credentials=self.endpoint.credentials,
            cleartext_auth=(
                lane.cleartext_auth
                or relay.scheme == "lmtp+unix"
                or (self.endpoint.tls.mode == "off" and relay.scheme in ("smtp", "lmtp"))
            ),
            messages=lane.messages,
            timeout=lane.timeout_remote,
            use_pipelining=lane.use_pipelining,
            use_chunking=lane.use_chunking,
        )

    def _connected(self, connected: socket.socket) -> None:
        status = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            text = f"cannot connect to {self._where}: {os.strerror(status)}"
            self._end(RelayFault("connect", text))
            return
        self._transport = Transport(connected)
        self._state = _OPEN
        self.lane.link_connected(self)
        self.conversation.start()
        if self._plan.implicit:
            self._start_tls(self._transport)
        self.on_ready(0)

    def _receive(self, transport: Transport) -> None:
        data = transport.receive()
        if data:
            self.conversation.receive(data)
        if transport.at_eof and self._state == _OPEN:
            self.conversation.receive_eof()

    def _advance(self, transport: Transport) -> None:
        """Send what there is to send, until there is something to wait for."""
        conversation = self.conversation
        while True:
            output, conversation.output = conversation.output, []
            drained = transport.send(output)
            conversation.sent = conversation.queued - transport.unsent
            if conversation.closed:
                self._end(conversation.fault)
                return
            if drained and conversation.want == FLUSH:
                # The contract: nothing unasked may have come before more is sent.
                self._receive(transport)
                conversation.flushed()
            elif drained and conversation.want == TLS:
                self._start_tls(transport)
                return
            else:
                self._wait(transport)
                return

    def _wait(self, transport: Transport) -> None:
        conversation = self.conversation
        if conversation.ready and not self._announced:
            self._announced = True
            self.lane.link_ready(self)
        if conversation.turn != self._turn:
            self._turn = conversation.turn
            self._set_deadline()
            if conversation.stage == "quit" and not transport.unsent:
                self.is_leaving = True
                self.lane.link_leaves()
                if self._state == _CLOSED:
                    return
        self._select(_READABLE | _WRITABLE if transport.is_blocked else _READABLE)

    def _set_deadline(self) -> None:
        conversation, now = self.conversation, self.engine.now
        if conversation.epoch != self._epoch:
            self._epoch = conversation.epoch
            self._total_deadline = now + conversation.total_limit
        if conversation.want == PAUSE:
            self.deadline = now + conversation.limit
        else:
            self.deadline = now + min(conversation.limit, self.lane.lane.timeout_remote)
            if conversation.in_transaction or not conversation.ready:
                self.deadline = min(self.deadline, self._total_deadline)
        self.engine.watch(self.deadline)

    def _start_tls(self, transport: Transport) -> None:
        self._state = _HANDSHAKE
        self.deadline = self.engine.now + self.lane.lane.timeout_connect
        self.engine.watch(self.deadline)
        policy = self.endpoint.tls
        try:
            context = self.engine.context(policy, self._plan)
            from picoqmail.relay.tls import TlsLayer

            layer = TlsLayer(context, self._plan, policy, self.endpoint.relay.host)
        except (OSError, ValueError) as error:
            text = f"TLS cannot be set up, see tlsca and tlscert: {error}"
            self._fail(RelayFault("tls", text, temporary=False))
            return
        transport.start_tls(layer)
        self._shake_hands(transport)

    def _shake_hands(self, transport: Transport) -> None:
        done = transport.handshake()
        if not done:
            if transport.at_eof:
                raise ConnectionResetError("the relay hung up in the TLS handshake")
            self._select(_READABLE | _WRITABLE if transport.is_blocked else _READABLE)
            return
        self._state = _OPEN
        facts = transport.describe_tls()
        self.engine.on_event("tls", relay=self.relay, address=self.address.text, **facts)
        if not self._plan.implicit:
            self.conversation.tls_established()
        # What came along with the end of the handshake lies in TLS, and no event will tell of it.
        data = transport.receive()
        if data:
            self.conversation.receive(data)
        self._advance(transport)

    def _tls_failed(self, error: OSError) -> None:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "")
        reason = reason or str(error.args[-1])  # our own, of one argument
        if self._state == _HANDSHAKE:
            self._fail(RelayFault("tls", f"no TLS with {self._where}: {reason}"))
        else:
            stage = self.conversation.stage
            self._fail(RelayFault(stage, f"TLS with {self._where} broke: {reason}"))

    def _lost(self, error: OSError) -> None:
        """End the link: the socket broke. What the relay said before that still counts."""
        if self._transport is not None and self._state == _OPEN:
            try:
                data = self._transport.receive()
            except OSError:
                data = b""
            if data:
                self.conversation.receive(data)
        stage = "tls" if self._state == _HANDSHAKE else self.conversation.stage
        self._fail(RelayFault(stage, f"the connection to {self._where} broke: {_why(error)}"))

    def _fail(self, fault: RelayFault) -> None:
        if self._state == _CLOSED:
            return
        self.conversation.fail(fault)
        self._end(self.conversation.fault or fault)

    def _end(self, fault: RelayFault | None) -> None:
        if self._state == _CLOSED:
            return
        self.discard()
        self.engine.remove(self)
        self.lane.link_ended(self, fault)

    def _select(self, mask: int) -> None:
        if mask == self._mask or self._socket is None:
            return
        if self._mask:
            self.engine.selector.modify(self._socket, mask, self)
        else:
            self.engine.selector.register(self._socket, mask, self)
        self._mask = mask


def _why(error: OSError) -> str:
    return error.strerror or str(error)
