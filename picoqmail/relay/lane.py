"""A lane at work: when it opens connections, and what the end of one means for it.

The rule of this module: no octets. Every failure leads either onward in the list of relays or to
the end of the lane.
"""

from __future__ import annotations

import math
from collections import deque

from picoqmail.relay.connection import Connection
from picoqmail.relay.failover import Failover
from picoqmail.relay.lane_options import LaneSummary
from picoqmail.relay.lookup import interleaved, literal_addresses
from picoqmail.relay.loop import Activity
from picoqmail.relay.throttle import Throttle
from picoqmail.smtp.lessons import ADDRESS, SERVED, Lessons
from picoqmail.smtp.meaning import says_all_too_fast
from picoqmail.smtp.transaction import UNTRIED, RelayFault, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.relay.lane_options import LaneOptions
    from picoqmail.relay.lookup import Endpoint, Found
    from picoqmail.relay.loop import Loop
    from picoqmail.smtp.transaction import Transaction

FUTILE_CONNECTIONS_LIMIT = 3
"""Connections in a row that end in a fault without serving one message: the lane gives up."""

CROWDED_MESSAGES_LIMIT = 5
"""Messages in a row, all of whose recipients are refused because of our pace: it is too fast."""

EAGER_SECONDS = 0.002
"""A relay that leaves us waiting for so long is far enough away to be worth more connections."""

PATIENT_SECONDS = 0.25
"""A relay that leaves us waiting for so long is slow: each message is worth its own connection."""

STALLED_SECONDS = 1.0
"""A relay that leaves us waiting for so long must not make messages wait that come meanwhile."""

MESSAGES_WORTH_A_CONNECTION = 4
"""A connection costs as many round trips before its first message, so fewer do not pay for it."""

PAUSE_LIMIT_SECONDS = 60.0
"""No connection waits longer than this; the messages are left for the next run."""

PASSWORD_SECONDS = 75.0
"""What a password command may take, on top of the lookup; the command has its own, lower limit."""


class Lane:
    """Serves the messages of one source.

    ``finished``: nothing is left to do. ``activity`` says when the relay last gave us something to
    do; the engine moves it on by the time that we needed ourselves.
    """

    def __init__(self, options: LaneOptions, loop: Loop) -> None:
        self.finished = False
        self.activity = Activity(loop.now)
        self._options = options
        self._source = options.source
        self._loop = loop
        self._failover = Failover(options.endpoints)
        self._throttle = Throttle(is_probe=options.was_throttled)
        self._waiting: deque[Transaction] = deque()
        self._connections: set[Connection] = set()
        self._limit = max(1, options.concurrency)
        self._asked: object | None = None
        self._asked_until = 0.0
        self._futile = 0
        self._crowded = 0
        self._first_address = ""
        self._grown = 1
        self._exhausted = False
        self._gave_up = not options.endpoints
        self._is_going_on = False
        self._is_pausing = False
        self._may_take = True
        self._reached = False
        self._connected = False
        self._too_fast = False
        self._fault: RelayFault | None = None
        if self._gave_up:
            self._fault = RelayFault("lookup", "there is no relay to send to (setting relayip)")
        self._relay = ""
        self._opened = 0

    # --- Messages ------------------------------------------------------------------------------

    def _take(self, connection: Connection) -> Transaction | None:
        """Return the next message for a connection, None if there is none or if it must wait."""
        conversation = connection.conversation
        conversation.pause = 0.0
        if self._loop.stopping or self._gave_up or not self._may_take:
            return None
        if not self._waiting:
            transaction = self._source.take()
            self._exhausted = transaction is None
            if transaction is None or not (self._throttle.is_on or self._options.rate_limit):
                return transaction
            self._waiting.append(transaction)
        # The rate limit counts what it allows, so ask it only when there is a message to send.
        if self._throttle.is_on and self._has_another(connection):
            return None
        wait = self._seconds_to_wait()
        if not wait:
            return self._waiting.popleft()
        if wait <= PAUSE_LIMIT_SECONDS:
            conversation.pause = wait
        else:
            self._stop_taking()
        return None

    def _has_another(self, connection: Connection) -> bool:
        """Say whether the relay serves another connection of this lane, too."""
        return any(
            other is not connection and other.is_ready and not other.is_leaving
            for other in self._connections
        )

    def _seconds_to_wait(self) -> float:
        """Return 0.0 if a message may begin, and count it; else the seconds to wait."""
        # The relay's wish first: the rate limit counts a message as soon as it is asked.
        wait = self._throttle.wait(self._loop.now)
        if not wait and self._options.rate_limit is not None:
            wait = self._options.rate_limit()
        self._is_pausing = wait > 0
        if not self._is_pausing:
            self._throttle.begun(self._loop.now)
        return wait

    def _stop_taking(self) -> None:
        """Leave all other messages to the next run."""
        self._may_take = False
        self._exhausted = True

    def _done(self, connection: Connection, transaction: Transaction, verdict: Verdict) -> None:
        """Hand a verdict to the source."""
        if verdict.fault is None:
            self._futile = 0
        if connection.address is self._failover.address:
            self._adapt_pace(connection, verdict)
        self._source.done(transaction, verdict)

    def _adapt_pace(self, connection: Connection, verdict: Verdict) -> None:
        """See whether the relay takes messages as fast as they come."""
        results = verdict.results
        too_fast = verdict.too_fast
        if "delivered" in [result.outcome for result in results]:
            self._throttle.speed_up()
            is_crowded = False
        else:
            # A reply to RCPT is one recipient's. Only if nobody gets through, it is about all.
            is_crowded = bool(results) and all(
                result.reply is not None and says_all_too_fast(result.reply) for result in results
            )
        if is_crowded:
            self._crowded += 1
            if self._crowded >= (1 if self._options.was_throttled else CROWDED_MESSAGES_LIMIT):
                too_fast = too_fast or results[0].text
        elif verdict.fault is None:
            self._crowded = 0
        if too_fast:
            self._slow_down(connection, too_fast)

    def _slow_down(self, connection: Connection, text: str) -> None:
        """Use one connection from now on; with a text of the relay's also make pauses."""
        if not self._too_fast:
            self._loop.on_event("pace", relay=connection.relay, address=connection.address.text)
        self._too_fast = True
        self._limit = 1
        if text and connection.address is self._failover.address:
            self._throttle.slow_down(text, self._loop.now)
            if self._throttle.reason:
                self._stop_taking()

    # --- What becomes of connections -----------------------------------------------------------

    def _progressed(self, connection: Connection) -> None:
        if connection.is_leaving:
            # The reply to QUIT is not worth waiting for.
            self.go_on()
        elif connection.is_ready:
            self._relay = connection.relay
            self._remember_address(connection)
            if not self._reached:
                self._reached = True
                relay, address = connection.relay, connection.address.text
                self._loop.on_event("relay_greeted", relay=relay, address=address)
            if connection.has_login:
                self._loop.login_ended()
        else:
            self._connected = True
            self._failover.settle(connection.address)

    def _remember_address(self, connection: Connection) -> None:
        """Note which address served, if the next run would not begin with it by itself."""
        served = connection.address
        lessons = self._lessons(connection.relay)
        if served is self._failover.address and (
            served.text != self._first_address or lessons.knows(ADDRESS)
        ):
            lessons.learn(ADDRESS, served.text)

    def _lessons(self, relay: str) -> Lessons:
        return self._options.lessons.setdefault(relay, Lessons())

    def _ended(self, connection: Connection, fault: RelayFault | None) -> None:
        """Decide what the end of a connection means, and go on."""
        self._connections.discard(connection)
        served = connection.conversation.served
        if served:
            self._futile = 0
        if fault is not None:
            self._note_fault(fault, connection.relay, connection.address.text)
            if fault.too_fast:
                # Without having served a message the relay has too many connections of us, but
                # does not mean the pace of the messages.
                self._slow_down(connection, fault.text if served else "")
            if not served and not fault.again:
                self._after_futile(connection, fault)
        if connection.has_login and not connection.is_ready:
            self._loop.login_ended()
        self.go_on()

    def _note_fault(self, fault: RelayFault, relay: str, address: str) -> None:
        self._fault, self._relay = fault, relay
        self._loop.on_event(
            "connection_lost", relay=relay, address=address, stage=fault.stage, text=fault.text
        )

    def _after_futile(self, connection: Connection, fault: RelayFault) -> None:
        if connection.address is not self._failover.address:
            return  # another connection failed first, and the lane has moved on already
        if fault.stage == "tls" and connection.may_go_in_clear:
            self._failover.in_clear = True
            return
        if connection.in_message:
            # It may be the fault of that message, so others are tried here.
            self._futile += 1
            is_hopeless = fault.is_session and self._options.probe
            if (
                self._futile >= FUTILE_CONNECTIONS_LIMIT
                or is_hopeless
                or not self._failover.is_last
            ):
                # What is wrong with our session is so at each address of the relay.
                self._give_up_or_move_on(whole_relay=fault.is_session)
            return
        if any(
            other.address is connection.address and not other.is_leaving
            for other in self._connections
        ):
            # The relay serves another connection of ours, or has yet to say whether it will.
            # Perhaps it only does not want so many.
            self._limit = max(1, len(self._connections))
            return
        # All addresses were tried for the connection that none came of. A login that one of them
        # has refused is not tried at the others, because the relay may count.
        whole_relay = not connection.was_connected or fault.stage == "auth"
        self._give_up_or_move_on(whole_relay=whole_relay)

    def _give_up_or_move_on(self, *, whole_relay: bool = False) -> None:
        if self._failover.is_last or (whole_relay and self._failover.is_last_relay):
            self._gave_up = True
            return
        if whole_relay:
            self._failover.next_relay()
        else:
            self._failover.move_on()
        self._connected = False
        self._throttle = Throttle(is_probe=self._options.was_throttled)

    # --- Opening connections -------------------------------------------------------------------

    def go_on(self) -> None:
        """Open a connection if the lane has none and has work; end the lane if it has none."""
        if self._is_going_on:
            return  # a connection ended as soon as it was opened; the loop below goes on
        self._is_going_on = True
        try:
            while not (self.finished or self._is_busy):
                if self._gave_up or not self._peek():
                    self._finish()
                else:
                    self._open()
        finally:
            self._is_going_on = False

    @property
    def _is_busy(self) -> bool:
        return self._asked is not None or any(not one.is_leaving for one in self._connections)

    def _peek(self) -> bool:
        """Have a message at hand for a connection that is not open yet."""
        if self._loop.stopping or not self._may_take:
            return False
        if not self._waiting:
            transaction = self._source.take()
            self._exhausted = transaction is None
            if transaction is not None:
                self._waiting.append(transaction)
        return bool(self._waiting)

    @property
    def grow_at(self) -> float:
        """When to open more connections, if nothing comes from the relay until then."""
        if (
            self.finished
            or self._gave_up
            or self._loop.stopping
            or self._failover.address is None
            or not (left := self._left)
            or not (self._reached if self._options.probe else self._may_trust)
            or len(self._connections) >= self._limit
            or self._is_pausing
        ):
            return math.inf
        if left >= self._worth_a_connection:
            return self.activity.at + EAGER_SECONDS
        # Before it has let us in, nobody can say that a relay is slow with messages.
        return self.activity.at + PATIENT_SECONDS if self._reached else math.inf

    @property
    def _may_trust(self) -> bool:
        """Whether the relay is likely to answer several connections.

        It has answered one in this run, or it has served us within a week and has one address. So
        their handshakes are made at the same time, also that of TLS; only a login waits for the
        first one's.
        """
        failover = self._failover
        return self._connected or (
            len(failover.candidates) == 1
            and self._lessons(str(failover.endpoint.relay)).knows(SERVED)
        )

    @property
    def _left(self) -> int:
        """About how many messages wait for a connection. Counted, for taking one takes time."""
        return len(self._waiting) + (0 if self._exhausted else self._source.backlog())

    @property
    def _worth_a_connection(self) -> int:
        return MESSAGES_WORTH_A_CONNECTION * (len(self._connections) + 1)

    @property
    def stalled_at(self) -> float:
        """From when on the lane has nothing to do but to wait for its relay."""
        if self.finished or not self._connections or self._left:
            return math.inf
        return self.activity.at + STALLED_SECONDS

    def resume(self) -> None:
        """Go on, also after the end, because the source may have something new."""
        if self._gave_up or not self._may_take or not self._source.backlog():
            return
        self._exhausted = False
        self.finished = False
        self.go_on()

    def may_grow_at(self, now: float) -> bool:
        """Say whether it is time for more connections. Quick where something came just now."""
        return now >= self.activity.at + EAGER_SECONDS and now >= self.grow_at

    def grow(self) -> None:
        """Open more connections: at most twice as many each time, and only for enough messages."""
        is_patient = self._reached and self._loop.now >= self.activity.at + PATIENT_SECONDS
        self.activity.at = self._loop.now
        self._grown *= 2
        for _ in range(min(self._grown, self._limit - len(self._connections))):
            if self._failover.address is None or self._loop.stopping or self._gave_up:
                return
            if self._left < (1 if is_patient else self._worth_a_connection):
                return
            self._open()

    def _open(self) -> None:
        failover = self._failover
        endpoint = failover.endpoint
        if failover.address is None:
            literal = literal_addresses(endpoint.relay)
            # The password is fetched along with the lookup, because it may take its time, too.
            if literal is None or endpoint.credentials is not None:
                self._look_up(endpoint)
                return
            self._first_address = literal[0].text
            failover.found(literal)
        assert failover.address is not None  # noqa: S101 - found just now
        connection = Connection(
            self._loop,
            self._options,
            endpoint,
            failover.candidates,
            self.activity,
            in_clear=failover.in_clear,
            lessons=self._lessons(str(endpoint.relay)),
            take=self._take,
            done=self._done,
            on_progress=self._progressed,
            on_end=self._ended,
        )
        self._opened += 1
        self._connections.add(connection)
        connection.connect()

    def _look_up(self, endpoint: Endpoint) -> None:
        asked = self._asked = object()
        limit = self._options.timeout_connect
        if endpoint.credentials is not None:
            limit += PASSWORD_SECONDS
        self._asked_until = self._loop.now + limit
        self._loop.watch(self._asked_until)
        self._loop.lookups.ask(endpoint, lambda found: self._looked_up(asked, found))

    def _looked_up(self, asked: object, found: Found) -> None:
        """Take what a lookup found, unless it came too late."""
        if asked is not self._asked:
            return
        self._asked = None
        if isinstance(found, OSError):
            self._lookup_failed(str(found.strerror or found))
        elif not found:
            self._lookup_failed("it has no address")
        else:
            relay = str(self._failover.endpoint.relay)
            self._first_address = interleaved(found)[0].text
            known = self._lessons(relay).facts.get(ADDRESS, "")
            self._failover.found(interleaved(found, known))
        self.go_on()

    def check_lookup(self) -> None:
        """See whether a lookup takes too long."""
        if self._asked is None:
            return
        if self._loop.now < self._asked_until:
            self._loop.watch(self._asked_until)
            return
        self._asked = None
        self._lookup_failed("the lookup took too long")
        self.go_on()

    def _lookup_failed(self, why: str) -> None:
        relay = str(self._failover.endpoint.relay)
        self._note_fault(RelayFault("lookup", f"cannot look up {relay}: {why}"), relay, "")
        self._give_up_or_move_on()

    # --- The end -------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Give back what was taken and never offered to a relay."""
        self.finished = True
        fault = self._fault if self._gave_up else None
        while self._waiting:
            transaction = self._waiting.popleft()
            untried = (UNTRIED,) * len(transaction.recipients)
            verdict = Verdict(untried, fault, in_doubt=False, transcript=(), relay=self._relay)
            self._source.done(transaction, verdict)

    def summary(self) -> LaneSummary:
        """Return how the lane ended."""
        return LaneSummary(
            name=self._options.name,
            reached=self._reached,
            gave_up=self._gave_up,
            fault=self._fault,
            connections=self._opened,
            too_fast=self._too_fast,
            throttled=self._throttle.reason,
        )
