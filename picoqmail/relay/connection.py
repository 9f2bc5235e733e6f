"""One connection to a relay: its socket, the SMTP session on top, and the deadlines of both.

The rule of this module: the conversation decides what is said, the transport moves the octets, and
the lane decides what follows from the end of a connection. A connection joins the first two and
calls back the third.
"""

from __future__ import annotations

from functools import partial

from picoqmail.relay.loop import READABLE, WRITABLE
from picoqmail.relay.race import Race
from picoqmail.relay.tls_plan import IN_CLEAR, plan_tls
from picoqmail.relay.transport import BrokenTransportError, Transport
from picoqmail.smtp.conversation import FLUSH, PAUSE, TLS, Conversation, SessionOptions
from picoqmail.smtp.transaction import RelayFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from picoqmail.relay.lane_options import LaneOptions
    from picoqmail.relay.lookup import Address, Endpoint
    from picoqmail.relay.loop import Activity, Loop
    from picoqmail.relay.tls_plan import TlsPlan
    from picoqmail.smtp.lessons import Lessons
    from picoqmail.smtp.transaction import Transaction, Verdict

BEHIND_PATIENCE_SECONDS = 10.0
"""So long an envelope waits behind a message for whose end the relay does not reply."""

_CONNECTING, _HANDSHAKE, _OPEN, _CLOSED = range(4)


class Connection:
    """One connection to one relay: to the first of some addresses that answers.

    ``address`` is the first of them until then.

    The conversation asks ``take(connection)`` for messages and hands the verdicts to
    ``done(connection, transaction, verdict)``. ``on_progress(connection)`` is called when the
    socket is connected, when the relay has let us in (``is_ready``), and when we have said QUIT
    (``is_leaving``); ``on_end(connection, fault)`` once, at the end.
    """

    def __init__(  # noqa: PLR0913 - what it needs of the loop and the lane, and the ways back
        self,
        loop: Loop,
        options: LaneOptions,
        endpoint: Endpoint,
        addresses: tuple[Address, ...],
        activity: Activity,
        *,
        in_clear: bool,
        lessons: Lessons,
        take: Callable[[Connection], Transaction | None],
        done: Callable[[Connection, Transaction, Verdict], None],
        on_progress: Callable[[Connection], None],
        on_end: Callable[[Connection, RelayFault | None], None],
    ) -> None:
        self.relay = str(endpoint.relay)
        self.address = addresses[0]
        self.deadline = loop.now + options.timeout_connect
        self.was_connected = False
        self.is_leaving = False
        guards_login = endpoint.credentials is not None and not options.cleartext_auth
        self._plan = (
            IN_CLEAR
            if in_clear
            else plan_tls(endpoint.relay, endpoint.tls, guards_login=guards_login)
        )
        self.conversation = Conversation(
            _session_options(options, endpoint, self._plan),
            partial(take, self),
            partial(done, self),
            self.relay,
            secure=self._plan.implicit,
            lessons=lessons,
        )
        self._loop = loop
        self._options = options
        self._endpoint = endpoint
        self._activity = activity
        self._on_progress = on_progress
        self._on_end = on_end
        self._race: Race | None = Race(
            loop,
            addresses,
            options.source_ip,
            options.timeout_connect,
            on_connected=self._connected,
            on_failed=self._not_connected,
        )
        self._socket: _socket.socket | None = None
        self._transport: Transport | None = None
        self._state = _CONNECTING
        self._mask = 0
        self._turn = -1
        self._epoch = -1
        self._total_deadline = 0.0
        self._was_ready = False
        self._is_patient = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come of this connection."""
        return self._state == _CLOSED

    @property
    def is_ready(self) -> bool:
        """Whether the relay has let us in."""
        return self.conversation.ready

    @property
    def has_login(self) -> bool:
        """Whether we log in over this connection."""
        return self._endpoint.credentials is not None

    @property
    def in_message(self) -> bool:
        """Whether a message was offered over this connection."""
        return self.conversation.epoch > 0

    @property
    def may_go_in_clear(self) -> bool:
        """Whether a failed TLS may be followed by an attempt without (setting tls = may)."""
        return self._plan.starttls == "may"

    def connect(self) -> None:
        """Start to connect. If that fails at once, the connection ends at once."""
        self._loop.watched.add(self)
        if self._race is not None:
            self._race.start()
            self._follow_race()

    def on_ready(self, events: int) -> None:
        """Go on: the socket can be read or written."""
        if self._state == _CLOSED or self._transport is None:
            return
        self._activity.at = self._loop.now
        try:
            # Whatever is not room to write can be read: octets, their end, an error.
            if events & ~WRITABLE:
                self._receive(self._transport)
            if self._state == _HANDSHAKE:
                self._shake_hands(self._transport)
            if self._state == _OPEN:
                self._advance(self._transport)
        except BrokenTransportError as exc:
            self._broke(exc)

    def on_deadline(self) -> None:
        """Go on: something took too long, or a pause is over."""
        conversation = self.conversation
        if self._race is not None:
            self._race.on_deadline()
            self._follow_race()
        elif self._state == _HANDSHAKE:
            self._fail(RelayFault("tls", "the relay did not finish the TLS handshake in time"))
        elif conversation.want == PAUSE:
            conversation.wake()
            self.on_ready(0)
        elif self._is_patient and conversation.is_holding:
            conversation.let_go()
            self._set_deadline()
        else:
            conversation.timed_out()
            self.on_ready(0)

    def on_stop(self) -> None:
        """End a pause: nothing new will be begun."""
        if self._state == _OPEN and self.conversation.want == PAUSE:
            self.on_deadline()

    def on_login(self) -> None:
        """Go on, if this connection waited for the end of another one's login."""
        if self._state == _OPEN and self.conversation.is_waiting_for_login:
            self.on_deadline()

    def discard(self) -> None:
        """Close the socket and do nothing else."""
        self._state = _CLOSED
        if self._race is not None:
            self._race.discard()
            self._race = None
        if self._socket is None:
            return
        if self._mask:
            self._loop.sockets.forget(self._socket)
            self._mask = 0
        self._socket.close()
        self._socket = None

    @property
    def _where(self) -> str:
        return self._with(self.address)

    def _with(self, address: Address) -> str:
        if self.relay.endswith(address.text):
            return self.relay
        return f"{self.relay} ({address.text})"

    def _follow_race(self) -> None:
        if self._race is not None:
            self.deadline = self._race.deadline

    def _not_connected(self, failures: list[tuple[Address, str]]) -> None:
        reasons = "; ".join(f"{self._with(address)}: {reason}" for address, reason in failures)
        self._end(RelayFault("connect", f"cannot connect to {reasons}"))

    def _connected(self, connected: _socket.socket, address: Address) -> None:
        self._race = None
        self._activity.at = self._loop.now
        self._socket = connected
        self.address = address
        self.was_connected = True
        self._transport = Transport(connected)
        self._state = _OPEN
        self._loop.on_event("connected", relay=self.relay, address=self.address.text)
        self._on_progress(self)
        if self.is_closed:
            return
        self.conversation.start()
        try:
            if self._plan.implicit:
                self._start_tls(self._transport)
        except BrokenTransportError as exc:
            self._broke(exc)
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
                # Before more is sent, see whether the relay has said something unasked.
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
        if conversation.ready and not self._was_ready:
            self._was_ready = True
            self._on_progress(self)
        if conversation.turn != self._turn:
            self._turn = conversation.turn
            self._set_deadline()
            if conversation.stage == "quit" and not transport.unsent:
                self.is_leaving = True
                self._on_progress(self)
                if self._state == _CLOSED:
                    return
        self._select(READABLE | WRITABLE if transport.is_blocked else READABLE)

    def _set_deadline(self) -> None:
        conversation, now = self.conversation, self._loop.now
        if conversation.epoch != self._epoch:
            self._epoch = conversation.epoch
            self._total_deadline = now + conversation.total_limit
        if conversation.want == PAUSE:
            self.deadline = now + conversation.limit
        else:
            self.deadline = now + min(conversation.limit, self._options.timeout_remote)
            if conversation.in_transaction or not conversation.ready:
                self.deadline = min(self.deadline, self._total_deadline)
        self._is_patient = conversation.is_holding and self.deadline > now + BEHIND_PATIENCE_SECONDS
        if self._is_patient:
            self.deadline = now + BEHIND_PATIENCE_SECONDS
        self._loop.watch(self.deadline)

    def _start_tls(self, transport: Transport) -> None:
        self._state = _HANDSHAKE
        self.deadline = self._loop.now + self._options.timeout_connect
        self._loop.watch(self.deadline)
        policy = self._endpoint.tls
        try:
            context = self._loop.tls_context(policy, self._plan)
            from picoqmail.relay.tls import TlsLayer

            layer = TlsLayer(context, self._plan, policy, self._endpoint.relay.host)
        except (OSError, ValueError) as exc:
            text = f"TLS cannot be set up, see tlsca and tlscert: {exc}"
            self._fail(RelayFault("tls", text))
            return
        transport.start_tls(layer)
        self._shake_hands(transport)

    def _shake_hands(self, transport: Transport) -> None:
        if not transport.handshake():
            self._select(READABLE | WRITABLE if transport.is_blocked else READABLE)
            return
        self._state = _OPEN
        facts = transport.describe_tls()
        self._loop.on_event("tls", relay=self.relay, address=self.address.text, **facts)
        if not self._plan.implicit:
            self.conversation.tls_established()
        # TLS may hold data already that came with the end of the handshake; the loop would not
        # report it.
        data = transport.receive()
        if data:
            self.conversation.receive(data)
        self._advance(transport)

    def _broke(self, broken: BrokenTransportError) -> None:
        """End the connection. What the relay had said before still counts."""
        if broken.in_tls:
            if self._state == _HANDSHAKE:
                self._fail(RelayFault("tls", f"no TLS with {self._where}: {broken}"))
            else:
                stage = self.conversation.stage
                self._fail(RelayFault(stage, f"TLS with {self._where} broke: {broken}"))
            return
        if self._transport is not None and self._state == _OPEN:
            try:
                data = self._transport.receive()
            except BrokenTransportError:
                data = b""
            if data:
                self.conversation.receive(data)
        stage = "tls" if self._state == _HANDSHAKE else self.conversation.stage
        self._fail(RelayFault(stage, f"the connection to {self._where} broke: {broken}"))

    def _fail(self, fault: RelayFault) -> None:
        if self._state == _CLOSED:
            return
        self.conversation.fail(fault)
        self._end(self.conversation.fault or fault)

    def _end(self, fault: RelayFault | None) -> None:
        if self._state == _CLOSED:
            return
        self.discard()
        self._loop.watched.discard(self)
        self._on_end(self, fault)

    def _select(self, mask: int) -> None:
        if mask == self._mask or self._socket is None:
            return
        self._loop.sockets.watch(self._socket, mask, self)
        self._mask = mask


def _session_options(options: LaneOptions, endpoint: Endpoint, plan: TlsPlan) -> SessionOptions:
    relay = endpoint.relay
    return SessionOptions(
        helo=options.helo,
        is_lmtp=relay.is_lmtp,
        starttls=plan.starttls,
        credentials=endpoint.credentials,
        # What goes through a Unix socket never leaves the kernel, so nobody can read it on the way.
        cleartext_auth=options.cleartext_auth or relay.scheme == "lmtp+unix",
        messages=options.messages,
        timeout=options.timeout_remote,
        use_pipelining=options.use_pipelining,
        use_chunking=options.use_chunking,
        mechanisms=options.mechanisms,
    )
