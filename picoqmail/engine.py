"""Many conversations at once: one process, one loop, no thread a connection.

The rule of this module: it moves octets and watches the clock. What is said to a relay is the
conversation's, what becomes of a message the source's. Nothing is logged here; whoever wants to
know what happens passes a function for events.

A *lane* is a list of relays in order, and a source of messages for them. A *link* is one
connection of a lane. A lane opens its first link when it has a message, and more of them only
while the whole process has nothing to do but wait and messages are waiting too.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import time
from collections import deque
from typing import TYPE_CHECKING

from attrs import field, frozen

from picoqmail.relay import Address, Endpoint, Lookups, literal_addresses, open_socket
from picoqmail.relay_tls import TlsLayer, TlsPlan, TlsPolicy, make_context, plan_tls
from picoqmail.smtp.conversation import FLUSH, PAUSE, TLS, Conversation, SessionOptions
from picoqmail.smtp.transaction import UNTRIED, RelayFault, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.smtp.transaction import Source, Transaction

FUTILE_LINKS_LIMIT = 3
"""Links in a row that end in a fault without having served one message: the lane gives up."""

GROW_SECONDS = 0.002
"""The process has been idle that long while messages wait: time for more links."""

SERVED_BEFORE_SECOND = 25
"""A lane that has served so many may have a second link though the process is not idle."""

PAUSE_LIMIT_SECONDS = 60.0
"""Longer than this no link waits for its pace: the messages are for the next run."""

PASSWORD_SECONDS = 75.0
"""What a password command may take, on top of the lookup; the command has its own, lower limit."""

_RECEIVE_OCTETS = 16384
_TLS_SEND_OCTETS = 65536
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_CONNECTING, _HANDSHAKE, _OPEN, _CLOSED = range(4)


@frozen
class Lane:
    """Messages of one source, for the first of some relays that takes them.

    ``concurrency`` is the most links at once, ``messages`` the most messages on one link.
    ``timeout_connect`` (lookup, connect, TLS) and ``timeout_remote`` (each step, each transaction)
    are seconds. ``pace`` returns the seconds to wait before the next message may begin, 0 for none.
    ``probe`` allows one link only until a relay has greeted and let us in.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    source: Source
    helo: str
    concurrency: int = 20
    messages: int = 500
    timeout_connect: float = 60.0
    timeout_remote: float = 1200.0
    source_ip: str = ""
    cleartext_auth: bool = False
    pace: Callable[[], float] | None = None
    probe: bool = False
    use_pipelining: bool = True
    use_chunking: bool = True


@frozen
class LaneSummary:
    """How a lane ended.

    ``reached``: some relay let us in. ``fault``: the last fault of a relay, or None. ``gave_up``:
    the lane stopped because no relay was left. ``pace``: a relay asked us to be slower.
    """

    name: str
    reached: bool
    gave_up: bool
    fault: RelayFault | None
    relay: str
    answered: int
    links: int
    pace: bool


@frozen
class RunSummary:
    """How a run ended, lane by lane in the order given."""

    lanes: tuple[LaneSummary, ...] = field(factory=tuple)


def _ignore(_name: str, **_facts: object) -> None:
    """Take an event that nobody wants."""


class Engine:
    """Drives lanes until none of them has anything left to do.

    ``on_event(name, **facts)`` is told ``connected``, ``tls``, ``relay_up``, ``relay_down``,
    ``pace``; it must not raise. An exception out of a source ends the run, with all sockets closed.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        on_event: Callable[..., None] = _ignore,
    ) -> None:
        self.on_event = on_event
        self.now = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.lookups = Lookups()
        self._lanes = [_LaneRun(self, lane) for lane in lanes]
        self._links: set[_Link] = set()
        self._contexts: dict[tuple[TlsPolicy, TlsPlan], ssl.SSLContext] = {}
        self._check_at = 0.0
        self._stopping = False

    def run(self) -> RunSummary:
        """Serve all lanes to their end and return how each ended. Blocks; bounded in time."""
        self.selector.register(self.lookups.reader, _READ, None)
        try:
            for lane in self._lanes:
                lane.go_on()
            while any(not lane.finished for lane in self._lanes):
                self._turn()
        finally:
            for link in list(self._links):
                link.discard()
            self.lookups.close()
            self.selector.close()
        return RunSummary(tuple(lane.summary() for lane in self._lanes))

    def stop(self) -> None:
        """Take no more messages; what is under way is finished. May be called by a signal handler."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def context(self, policy: TlsPolicy, plan: TlsPlan) -> ssl.SSLContext:
        """Return the TLS context for a plan, made once: reading a CA store takes its time."""
        key = (policy, plan)
        if key not in self._contexts:
            self._contexts[key] = make_context(policy, plan)
        return self._contexts[key]

    def add(self, link: _Link) -> None:
        """Watch a link."""
        self._links.add(link)

    def remove(self, link: _Link) -> None:
        """Forget a link."""
        self._links.discard(link)

    def watch(self, deadline: float) -> None:
        """Make sure that the clock is looked at when this deadline comes."""
        self._check_at = min(self._check_at, deadline)

    def _turn(self) -> None:
        growing = [lane for lane in self._lanes if lane.may_grow]
        timeout = max(0.0, self._check_at - self.now)
        if growing:
            timeout = min(timeout, GROW_SECONDS)
        events = self.selector.select(timeout)
        self.now = time.monotonic()
        for key, mask in events:
            if key.data is None:
                self._take_lookups()
            else:
                key.data.on_ready(mask)
        if not events:
            for lane in growing:
                lane.grow()
        if self.now >= self._check_at:
            self._check_deadlines()

    def _take_lookups(self) -> None:
        for key, answer in self.lookups.answers():
            for lane in self._lanes:
                lane.take_lookup(key, answer)

    def _check_deadlines(self) -> None:
        self._check_at = self.now + 3600.0
        for link in list(self._links):
            if link.deadline <= self.now:
                link.on_deadline()
            if not link.is_closed:
                self.watch(link.deadline)
        for lane in self._lanes:
            lane.check_lookup()


class _LaneRun:
    """A lane at work: where in its list of relays and addresses it is, and its links."""

    def __init__(self, engine: Engine, lane: Lane) -> None:
        self.engine = engine
        self.lane = lane
        self.finished = False
        self._waiting: deque[Transaction] = deque()
        self._links: set[_Link] = set()
        self._limit = max(1, lane.concurrency)
        self._endpoint = 0
        self._address = 0
        self._addresses: tuple[Address, ...] | None = None
        self._asked: object | None = None
        self._asked_until = 0.0
        self._generation = 0
        self._in_clear: set[int] = set()
        self._futile = 0
        self._grown = 1
        self._exhausted = False
        self._gave_up = False
        self._reached = False
        self._connected = False
        self._pace = False
        self._fault: RelayFault | None = None
        self._relay = ""
        self._answered = 0
        self._opened = 0

    # What links ask for.

    def take(self, link: _Link) -> Transaction | None:
        """Return the next message for a link."""
        conversation = link.conversation
        if conversation is not None:
            conversation.pause = 0.0
        if self.engine.stopping or self._gave_up:
            return None
        if self.lane.pace is not None and conversation is not None:
            wait = self.lane.pace()
            if wait > 0:
                if wait <= PAUSE_LIMIT_SECONDS:
                    conversation.pause = wait
                else:
                    self._exhausted = True
                return None
        if self._waiting:
            return self._waiting.popleft()
        transaction = self.lane.source.take()
        self._exhausted = transaction is None
        return transaction

    def done(self, transaction: Transaction, verdict: Verdict) -> None:
        """Hand a verdict to the source."""
        self._answered += 1
        self.lane.source.done(transaction, verdict)

    def link_connected(self, link: _Link) -> None:
        """Note that a relay answers the phone."""
        self._connected = True
        self.engine.on_event("connected", relay=link.relay, address=link.address.text)

    def link_ready(self, link: _Link) -> None:
        """Note that a relay has let us in."""
        self._relay = link.relay
        if not self._reached:
            self._reached = True
            self.engine.on_event("relay_up", relay=link.relay, address=link.address.text)

    def link_ended(self, link: _Link, fault: RelayFault | None) -> None:
        """Draw the conclusions from the end of a link, and go on."""
        self._links.discard(link)
        conversation = link.conversation
        served = conversation.served if conversation is not None else 0
        if served:
            self._futile = 0
        if conversation is not None and conversation.pace_seen:
            self._slow_down(link)
        if fault is not None:
            self._fault, self._relay = fault, link.relay
            self.engine.on_event(
                "relay_down",
                relay=link.relay,
                address=link.address.text,
                stage=fault.stage,
                text=fault.text,
            )
            if fault.pace:
                self._slow_down(link)
            if not served:
                self._after_futile(link, fault)
        self.go_on()

    def _after_futile(self, link: _Link, fault: RelayFault) -> None:
        if fault.stage == "tls" and link.may_go_in_clear:
            self._in_clear.add(self._endpoint)
            return
        if link.generation != self._generation:
            return  # another link was there first: the lane has turned away already
        if link.in_message:
            self._futile += 1
            last = self._is_last_address
            if self._futile >= FUTILE_LINKS_LIMIT:
                self._give_up_if(last=last)
            elif not last:
                self._turn_away()
            return
        if any(other.is_ready for other in self._links):
            # It serves others of our links; it only does not want so many.
            self._limit = max(1, len(self._links))
            return
        if self._is_last_address:
            self._give_up_if(last=True)
        else:
            self._turn_away()

    def _give_up_if(self, *, last: bool) -> None:
        if last:
            self._gave_up = True
        else:
            self._futile = 0
            self._turn_away()

    @property
    def _is_last_address(self) -> bool:
        last_address = self._addresses is None or self._address + 1 >= len(self._addresses)
        return last_address and self._endpoint + 1 >= len(self.lane.endpoints)

    def _turn_away(self) -> None:
        """Use the next address, or the next relay, from now on."""
        self._generation += 1
        self._connected = False
        self._address += 1
        if self._addresses is None or self._address >= len(self._addresses):
            self._address, self._addresses = 0, None
            self._endpoint += 1

    def _slow_down(self, link: _Link) -> None:
        if not self._pace:
            self.engine.on_event("pace", relay=link.relay, address=link.address.text)
        self._pace = True
        self._limit = 1

    # Opening links.

    def go_on(self) -> None:
        """Open a link if the lane has none and has work; see whether it is at its end."""
        if self.finished or self._links or self._asked is not None:
            return
        while not self._links and self._asked is None:
            if self._gave_up or not self._peek():
                self._finish()
                return
            self._open()

    def _peek(self) -> bool:
        """Have a message at hand for a link that is not open yet."""
        if self._waiting:
            return not self.engine.stopping
        if self.engine.stopping:
            return False
        if self._exhausted and self.lane.pace is not None and self.lane.pace() > 0:
            return False
        transaction = self.lane.source.take()
        if transaction is None:
            self._exhausted = True
            return False
        self._waiting.append(transaction)
        return True

    @property
    def may_grow(self) -> bool:
        """Whether another link would find work, as far as is known."""
        if (
            self.finished
            or self._gave_up
            or self._exhausted
            or not (self._reached if self.lane.probe else self._connected)
            or len(self._links) >= self._limit
        ):
            return False
        return self.lane.pace is None

    def grow(self) -> None:
        """Open more links, twice as many each time, one for each message that waits."""
        self._grown *= 2
        for _ in range(min(self._grown, self._limit - len(self._links))):
            if self._addresses is None or self.engine.stopping or self._gave_up:
                return
            transaction = self.lane.source.take()
            if transaction is None:
                self._exhausted = True
                return
            self._waiting.append(transaction)
            self._open()

    def _open(self) -> None:
        endpoint = self.lane.endpoints[self._endpoint]
        if self._addresses is None:
            literal = literal_addresses(endpoint.relay)
            if literal is None or endpoint.credentials is not None:
                self._ask(endpoint)
                return
            self._addresses = literal
        link = _Link(
            self,
            endpoint,
            self._addresses[self._address],
            self._generation,
            in_clear=self._endpoint in self._in_clear,
        )
        self._opened += 1
        self._links.add(link)
        link.connect()

    def _ask(self, endpoint: Endpoint) -> None:
        self._asked = object()
        limit = self.lane.timeout_connect
        if endpoint.credentials is not None:
            limit += PASSWORD_SECONDS
        self._asked_until = self.engine.now + limit
        self.engine.watch(self._asked_until)
        self.engine.lookups.ask(self._asked, endpoint)

    def take_lookup(self, key: object, answer: tuple[Address, ...] | OSError) -> None:
        """Take the answer to a lookup, if it is ours."""
        if key is not self._asked:
            return
        self._asked = None
        if isinstance(answer, OSError):
            self._lookup_failed(str(answer.strerror or answer))
        elif not answer:
            self._lookup_failed("it has no address")
        else:
            self._addresses = answer
        self.go_on()

    def check_lookup(self) -> None:
        """See whether a lookup takes too long."""
        if self._asked is None:
            return
        if self.engine.now < self._asked_until:
            self.engine.watch(self._asked_until)
            return
        self._asked = None
        self._lookup_failed("the lookup took too long")
        self.go_on()

    def _lookup_failed(self, why: str) -> None:
        relay = str(self.lane.endpoints[self._endpoint].relay)
        text = f"cannot look up {relay}: {why}"
        self._fault, self._relay = RelayFault("lookup", text), relay
        self.engine.on_event("relay_down", relay=relay, address="", stage="lookup", text=text)
        if self._is_last_address:
            self._gave_up = True
        else:
            self._turn_away()

    def _finish(self) -> None:
        """Give back what was taken and never offered to a relay."""
        self.finished = True
        fault = self._fault if self._gave_up else None
        while self._waiting:
            transaction = self._waiting.popleft()
            untried = (UNTRIED,) * len(transaction.recipients)
            verdict = Verdict(untried, fault, in_doubt=False, transcript=(), relay=self._relay)
            self.lane.source.done(transaction, verdict)

    def summary(self) -> LaneSummary:
        """Return how the lane ended."""
        return LaneSummary(
            name=self.lane.name,
            reached=self._reached,
            gave_up=self._gave_up,
            fault=self._fault,
            relay=self._relay,
            answered=self._answered,
            links=self._opened,
            pace=self._pace,
        )


class _LinkSource:
    """What a conversation takes its messages from: its lane, by way of its link."""

    __slots__ = ("_lane", "_link", "done")

    def __init__(self, lane: _LaneRun, link: _Link) -> None:
        self._lane = lane
        self._link = link
        self.done = lane.done

    def take(self) -> Transaction | None:
        return self._lane.take(self._link)


class _Link:
    """One connection: a socket, perhaps TLS, and the conversation on top."""

    def __init__(
        self,
        lane: _LaneRun,
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
        self.conversation: Conversation | None = None
        self.deadline = self.engine.now + lane.lane.timeout_connect
        has_login = endpoint.credentials is not None
        self._plan = plan_tls(endpoint.relay, endpoint.tls, has_login=has_login)
        if in_clear:
            self._plan = TlsPlan(implicit=False, starttls="never", verify="nothing")
        self._socket: socket.socket | None = None
        self._tls: TlsLayer | None = None
        self._state = _CONNECTING
        self._mask = 0
        self._pending = memoryview(b"")  # what the socket did not take yet
        self._plain: deque[bytes] = deque()  # what TLS did not take yet
        self._turn = -1
        self._epoch = -1
        self._total_deadline = 0.0
        self._announced = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come of this link."""
        return self._state == _CLOSED

    @property
    def is_ready(self) -> bool:
        """Whether the relay has let this link in."""
        return self.conversation is not None and self.conversation.ready

    @property
    def in_message(self) -> bool:
        """Whether the link got as far as offering a message."""
        return self.conversation is not None and self.conversation.epoch > 0

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
        self._select(_WRITE)

    def on_ready(self, mask: int) -> None:
        """Go on: the socket can be read or written."""
        if self._state == _CLOSED:
            return
        if self._state == _CONNECTING:
            self._connected()
            return
        if mask & _READ:
            self._read()
        if mask & _WRITE and self._state != _CLOSED:
            self._advance()

    def on_deadline(self) -> None:
        """Go on: something took too long, or a pause is over."""
        conversation = self.conversation
        if self._state == _CONNECTING:
            self._end(RelayFault("connect", f"no connection to {self._where} in time"))
        elif self._state == _HANDSHAKE:
            self._fail(RelayFault("tls", "the relay did not finish the TLS handshake in time"))
        elif conversation is not None:
            if conversation.want == PAUSE:
                conversation.wake()
            else:
                conversation.timed_out()
            self._advance()

    def discard(self) -> None:
        """Close the socket and nothing else: the run is over."""
        self._close()

    @property
    def _where(self) -> str:
        return f"{self.relay} ({self.address.text})"

    def _connected(self) -> None:
        connecting = self._open_socket
        status = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            error = OSError(status, os.strerror(status))
            self._end(RelayFault("connect", f"cannot connect to {self._where}: {_why(error)}"))
            return
        self._state = _OPEN
        self.lane.link_connected(self)
        lane, relay = self.lane.lane, self.endpoint.relay
        self.conversation = Conversation(
            SessionOptions(
                helo=lane.helo,
                is_lmtp=relay.is_lmtp,
                starttls=self._plan.starttls,
                credentials=self.endpoint.credentials,
                cleartext_auth=lane.cleartext_auth or relay.scheme == "lmtp+unix",
                messages=lane.messages,
                timeout=lane.timeout_remote,
                use_pipelining=lane.use_pipelining,
                use_chunking=lane.use_chunking,
            ),
            _LinkSource(self.lane, self),
            self.relay,
            secure=self._plan.implicit,
        )
        self.conversation.start()
        if self._plan.implicit:
            self._start_tls()
        else:
            self._advance()

    @property
    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise ValueError("the link is closed")
        return self._socket

    @property
    def _talk(self) -> Conversation:
        if self.conversation is None:
            raise ValueError("the link is not connected")
        return self.conversation

    # Reading.

    def _read(self) -> None:
        conversation = self._talk
        try:
            data = self._open_socket.recv(_RECEIVE_OCTETS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if self._tls is not None:
            self._read_tls(data)
            return
        if data:
            conversation.receive(data)
        else:
            conversation.receive_eof()
        self._advance()

    def _read_tls(self, data: bytes) -> None:
        layer = self._tls
        if layer is None:
            return
        if data:
            layer.receive(data)
        else:
            layer.receive_eof()
        try:
            if self._state == _HANDSHAKE:
                self._shake_hands(layer)
                if self._state != _OPEN:
                    return
            plain = layer.read()
        except ssl.SSLError as error:
            self._tls_failed(error)
            return
        conversation = self._talk
        if plain:
            conversation.receive(plain)
        if not data:
            conversation.receive_eof()
        self._advance()

    # TLS.

    def _start_tls(self) -> None:
        self._state = _HANDSHAKE
        self.deadline = self.engine.now + self.lane.lane.timeout_connect
        self.engine.watch(self.deadline)
        try:
            context = self.engine.context(self.endpoint.tls, self._plan)
            host = self.endpoint.relay.host
            self._tls = TlsLayer(context, self._plan, self.endpoint.tls, host)
            self._shake_hands(self._tls)
        except ssl.SSLError as error:
            self._tls_failed(error)
        except (OSError, ValueError) as error:
            self._fail(RelayFault("tls", f"TLS cannot be set up: {error}", temporary=False))

    def _shake_hands(self, layer: TlsLayer) -> None:
        done = layer.handshake()
        if not self._send_ciphertext(layer):
            return
        if not done:
            return
        self._state = _OPEN
        self.engine.on_event(
            "tls",
            relay=self.relay,
            address=self.address.text,
            **layer.describe(),
        )
        if not self._plan.implicit:
            self._talk.tls_established()
        self._advance()

    def _tls_failed(self, error: ssl.SSLError) -> None:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        if self._state == _HANDSHAKE:
            text = f"no TLS with {self._where}: {reason}"
        else:
            text = f"TLS with {self._where} broke: {reason}"
        stage = "tls" if self._state == _HANDSHAKE else self._talk.stage
        # The alert that tells the relay why is worth one attempt.
        if self._tls is not None:
            self._send_ciphertext(self._tls)
        self._fail(RelayFault(stage, text))

    def _send_ciphertext(self, layer: TlsLayer) -> bool:
        """Send what TLS has to say; return whether the socket took all of it."""
        if not self._pending:
            self._pending = memoryview(layer.ciphertext())
        return self._send_pending()

    # Writing.

    def _advance(self) -> None:
        """Send what there is to send, then wait for what the conversation wants."""
        conversation = self._talk
        if self._state == _CLOSED:
            return
        if self._state == _HANDSHAKE:
            if self._tls is not None:
                self._send_ciphertext(self._tls)
            return
        while True:
            if not self._send(conversation):
                break
            if conversation.closed:
                self._end(conversation.fault)
                return
            if conversation.want == FLUSH:
                # The contract: nothing unasked may have come before the final dot is sent.
                if not self._look_for_more(conversation):
                    return
                conversation.flushed()
            elif conversation.want == TLS:
                self._start_tls()
                return
            else:
                break
        if self._state == _CLOSED:
            return
        if conversation.closed:
            self._end(conversation.fault)
            return
        if conversation.ready and not self._announced:
            self._announced = True
            self.lane.link_ready(self)
        self._set_deadline(conversation)
        self._select(_READ | _WRITE if self._pending or self._plain else _READ)

    def _look_for_more(self, conversation: Conversation) -> bool:
        """Receive what may have come meanwhile; return whether the link is still open."""
        try:
            data = self._open_socket.recv(_RECEIVE_OCTETS)
            if self._tls is not None:
                self._tls.receive(data)
                data = self._tls.read()
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            self._lost(error)
            return False
        if data:
            conversation.receive(data)
        elif self._tls is None:
            conversation.receive_eof()
        return True

    def _send(self, conversation: Conversation) -> bool:
        """Send the output; return whether the transport took all of it."""
        if self._tls is not None:
            return self._send_tls(conversation, self._tls)
        while self._pending or conversation.output:
            if not self._pending:
                output = conversation.output
                self._pending = memoryview(output[0] if len(output) == 1 else b"".join(output))
                conversation.output = []
            before = len(self._pending)
            done = self._send_pending()
            conversation.sent += before - len(self._pending)
            if not done:
                return False
        return True

    def _send_tls(self, conversation: Conversation, layer: TlsLayer) -> bool:
        if conversation.output:
            self._plain.append(b"".join(conversation.output))
            conversation.output = []
        while True:
            if not self._send_ciphertext(layer):
                return False
            if not self._plain:
                return True
            block = self._plain.popleft()
            if len(block) > _TLS_SEND_OCTETS:
                self._plain.appendleft(block[_TLS_SEND_OCTETS:])
                block = block[:_TLS_SEND_OCTETS]
            try:
                layer.write(block)
            except ssl.SSLError as error:
                self._tls_failed(error)
                return False
            conversation.sent += len(block)

    def _send_pending(self) -> bool:
        while self._pending:
            try:
                sent = self._open_socket.send(self._pending)
            except (BlockingIOError, InterruptedError):
                self._select(_READ | _WRITE)
                return False
            except OSError as error:
                self._lost(error)
                return False
            self._pending = self._pending[sent:]
        return True

    # Clock, selector, end.

    def _set_deadline(self, conversation: Conversation) -> None:
        if conversation.turn == self._turn:
            return
        self._turn = conversation.turn
        now = self.engine.now
        if conversation.epoch != self._epoch:
            self._epoch = conversation.epoch
            self._total_deadline = now + conversation.total_limit
        if conversation.want == PAUSE:
            self.deadline = now + conversation.limit
        else:
            limit = min(conversation.limit, self.lane.lane.timeout_remote)
            self.deadline = now + limit
            if conversation.in_transaction or not conversation.ready:
                self.deadline = min(self.deadline, self._total_deadline)
        self.engine.watch(self.deadline)

    def _select(self, mask: int) -> None:
        if mask == self._mask or self._socket is None:
            return
        if self._mask:
            self.engine.selector.modify(self._socket, mask, self)
        else:
            self.engine.selector.register(self._socket, mask, self)
        self._mask = mask

    def _lost(self, error: OSError) -> None:
        """End the link: the socket broke. What was received before counts."""
        stage = self.conversation.stage if self.conversation is not None else "connect"
        self._fail(RelayFault(stage, f"the connection to {self._where} broke: {_why(error)}"))

    def _fail(self, fault: RelayFault) -> None:
        if self._state == _CLOSED:
            return
        if self.conversation is not None:
            self.conversation.fail(fault)
            fault = self.conversation.fault or fault
        self._end(fault)

    def _end(self, fault: RelayFault | None) -> None:
        if self._state == _CLOSED:
            return
        self._close()
        self.engine.remove(self)
        self.lane.link_ended(self, fault)

    def _close(self) -> None:
        self._state = _CLOSED
        if self._socket is None:
            return
        if self._mask:
            self.engine.selector.unregister(self._socket)
            self._mask = 0
        self._socket.close()
        self._socket = None


def _why(error: OSError) -> str:
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return str(error)
