"""A lane at work: which of its relays and addresses it uses now, and how many links it has.

The rule of this module: no octets. It decides when a link is opened and what the end of one means
for the lane; every failure leads either onward in the list or to the lane's end, never in a circle.
"""

from __future__ import annotations

import math
from collections import deque

from picoqmail.relay.connection import Link
from picoqmail.relay.lane import LaneSummary
from picoqmail.relay.lookup import literal_addresses
from picoqmail.relay.throttle import Throttle
from picoqmail.smtp.conversation import is_pace
from picoqmail.smtp.transaction import UNTRIED, RelayFault, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.relay.engine import Engine
    from picoqmail.relay.lane import Lane
    from picoqmail.relay.lookup import Address, Endpoint
    from picoqmail.smtp.conversation import Conversation
    from picoqmail.smtp.transaction import Transaction

FUTILE_LINKS_LIMIT = 3
"""Links in a row that end in a fault without having served one message: the lane gives up."""

EAGER_SECONDS = 0.002
"""A relay that leaves us waiting for so long is far enough away to be worth more links."""

PATIENT_SECONDS = 0.25
"""A relay that leaves us waiting for so long is slow: each message is worth a link of its own."""

MESSAGES_WORTH_A_LINK = 4
"""A link costs as many round trips before its first message; with fewer to do it only costs."""

PAUSE_LIMIT_SECONDS = 60.0
"""Longer than this no link waits for its pace: the messages are for the next run."""

PASSWORD_SECONDS = 75.0
"""What a password command may take, on top of the lookup; the command has its own, lower limit."""


class SourceFailedError(Exception):
    """A source raised. Not to be taken for trouble with a relay; its cause ends the run."""


class LaneRun:
    """A lane at work: where in its list of relays and addresses it is, and its links."""

    def __init__(self, engine: Engine, lane: Lane) -> None:
        self.engine = engine
        self.lane = lane
        self.finished = False
        self.active_at = engine.now
        self._waiting: deque[Transaction] = deque()
        self._links: set[Link] = set()
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
        self._gave_up = not lane.endpoints
        self._is_going_on = False
        self._is_paced_out = False
        self._is_pausing = False
        self._reached = False
        self._connected = False
        self._pace = False
        self._throttle = Throttle(is_probe=lane.was_throttled)
        self._fault: RelayFault | None = None
        if self._gave_up:
            self._fault = RelayFault("lookup", "there is no relay to send to (setting relayip)")
        self._relay = ""
        self._answered = 0
        self._opened = 0

    # What links ask for.

    def take(self, link: Link) -> Transaction | None:
        """Return the next message for a link."""
        conversation = link.conversation
        conversation.pause = 0.0
        if self.engine.stopping or self._gave_up or self._is_paced_out:
            return None
        if not self._waiting:
            transaction = self._take()
            self._exhausted = transaction is None
            if transaction is None or not (self.lane.pace or self._throttle.is_on):
                return transaction
            self._waiting.append(transaction)
        # Only where there is a message is leave for one asked.
        if self._throttle.is_on and self._is_one_of_several(link):
            return None
        return self._waiting.popleft() if self._may_begin(conversation) else None

    def _is_one_of_several(self, link: Link) -> bool:
        return any(
            other is not link and other.is_ready and not other.is_leaving for other in self._links
        )

    def _may_begin(self, conversation: Conversation) -> bool:
        """Ask the pace for leave to begin a message; if there is none, say how long to wait."""
        # The relay's wish first: who asks the pace has had its leave counted.
        wait = self._throttle.wait(self.engine.now)
        if not wait and self.lane.pace is not None:
            try:
                wait = self.lane.pace()
            except Exception as error:
                raise SourceFailedError from error
        self._is_pausing = wait > 0
        if not self._is_pausing:
            self._throttle.begun(self.engine.now)
            return True
        if wait <= PAUSE_LIMIT_SECONDS:
            conversation.pause = wait
        else:
            self._exhausted = self._is_paced_out = True
        return False

    def done(self, transaction: Transaction, verdict: Verdict, link: Link | None = None) -> None:
        """Hand a verdict to the source."""
        if verdict.fault is None:
            self._answered += 1
            self._futile = 0
        if link is not None and link.generation == self._generation:
            self._see_pace(verdict, link)
        try:
            self.lane.source.done(transaction, verdict)
        except Exception as error:
            raise SourceFailedError from error

    def _see_pace(self, verdict: Verdict, link: Link) -> None:
        """See whether the relay takes messages as fast as they come."""
        outcomes = {result.outcome for result in verdict.results}
        if "delivered" in outcomes:
            self._throttle.served()
        elif "deferred" in outcomes:
            for result in verdict.results:
                if result.reply is not None and is_pace(result.reply):
                    self._slow_down(link, result.text)
                    return

    def _take(self) -> Transaction | None:
        try:
            return self.lane.source.take()
        except Exception as error:
            raise SourceFailedError from error

    def link_connected(self, link: Link) -> None:
        """Note that a relay answers the phone."""
        self._connected = True
        self.engine.on_event("connected", relay=link.relay, address=link.address.text)

    def link_ready(self, link: Link) -> None:
        """Note that a relay has let us in."""
        self._relay = link.relay
        if not self._reached:
            self._reached = True
            self.engine.on_event("relay_up", relay=link.relay, address=link.address.text)

    def link_leaves(self) -> None:
        """Go on without a link that has said QUIT: the answer to that is not worth waiting for."""
        self.go_on()

    def link_ended(self, link: Link, fault: RelayFault | None) -> None:
        """Draw the conclusions from the end of a link, and go on."""
        self._links.discard(link)
        served = link.conversation.served
        if served:
            self._futile = 0
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
                # Who has not been served at all was not too fast, but one too many.
                self._slow_down(link, fault.text if served else "")
            if not served:
                self._after_futile(link, fault)
        self.go_on()

    def _after_futile(self, link: Link, fault: RelayFault) -> None:
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
        if any(
            not other.is_leaving for other in self._links if other.generation == link.generation
        ):
            # It serves others of our links, or has yet to say whether it will; perhaps it only
            # does not want so many.
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
        self._throttle = Throttle(is_probe=self.lane.was_throttled)
        self._connected = False
        self._address += 1
        if self._addresses is None or self._address >= len(self._addresses):
            self._address, self._addresses = 0, None
            self._endpoint += 1

    def _slow_down(self, link: Link, text: str) -> None:
        """Use one link from now on, and if the relay gave us its words also longer pauses."""
        if not self._pace:
            self.engine.on_event("pace", relay=link.relay, address=link.address.text)
        self._pace = True
        self._limit = 1
        if text and link.generation == self._generation:
            self._throttle.asked(text, self.engine.now)
            if self._throttle.told:
                self._exhausted = self._is_paced_out = True

    # Opening links.

    def go_on(self) -> None:
        """Open a link if the lane has none and has work; see whether it is at its end."""
        if self._is_going_on:
            return  # a link that ended at once; the loop below sees to it
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
        return self._asked is not None or any(not link.is_leaving for link in self._links)

    def _peek(self) -> bool:
        """Have a message at hand for a link that is not open yet."""
        if self.engine.stopping or self._is_paced_out:
            return False
        if self._waiting:
            return True
        transaction = self._take()
        if transaction is None:
            self._exhausted = True
            return False
        self._waiting.append(transaction)
        return True

    @property
    def grow_at(self) -> float:
        """When to open more links, if nothing comes from the relay until then."""
        if (
            self.finished
            or self._gave_up
            or self.engine.stopping
            or self._addresses is None
            or not self._left
            or not (self._reached if self.lane.probe else self._connected)
            or len(self._links) >= self._limit
            or self._is_pausing
        ):
            return math.inf
        if self._left >= self._worth_a_link:
            return self.active_at + EAGER_SECONDS
        # A relay that has not even let us in is not slow with messages.
        return self.active_at + PATIENT_SECONDS if self._reached else math.inf

    @property
    def _left(self) -> int:
        """About how many messages wait for a link. Counted, not taken: to take one takes time."""
        return len(self._waiting) + (0 if self._exhausted else self.lane.source.backlog())

    @property
    def _worth_a_link(self) -> int:
        return MESSAGES_WORTH_A_LINK * (len(self._links) + 1)

    def may_grow_at(self, now: float) -> bool:
        """Say whether it is time for more links; quickly no where something came just now."""
        return now >= self.active_at + EAGER_SECONDS and now >= self.grow_at

    def grow(self) -> None:
        """Open more links: at most twice as many each time, and only for enough messages."""
        is_patient = self._reached and self.engine.now >= self.active_at + PATIENT_SECONDS
        self.active_at = self.engine.now
        self._grown *= 2
        for _ in range(min(self._grown, self._limit - len(self._links))):
            if self._addresses is None or self.engine.stopping or self._gave_up:
                return
            if self._left < (1 if is_patient else self._worth_a_link):
                return
            self._open()

    def _open(self) -> None:
        endpoint = self.lane.endpoints[self._endpoint]
        if self._addresses is None:
            literal = literal_addresses(endpoint.relay)
            if literal is None or endpoint.credentials is not None:
                self._ask(endpoint)
                return
            self._addresses = literal
        link = Link(
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
            self.done(transaction, verdict)

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
            throttled=self._throttle.told,
        )
