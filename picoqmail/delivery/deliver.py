"""One attempt at some messages: claim each, have its parts sent, judge what relays said, record it.

The rule of this module: it is the only one that knows both the spool and the relays. Elsewhere are
the pure decisions (policy, routing), the routes that are down (outages), what is written about a
message (story), and the reports to its sender (report).

A message becomes one or more parts. Each part is one transaction, for at most 100 recipients of one
route. Replies to the parts are gathered, and judged when the last part is done.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

from picoqmail.delivery import policy, story
from picoqmail.delivery.outages import SESSION, TOO_FAST, Outages
from picoqmail.delivery.report import Reporter
from picoqmail.delivery.routing import Routing, name_of
from picoqmail.errors import (
    DamagedMessageError,
    NoSuchMessageError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.layout import CUR, NEW, UNDELIVERED, accepted_at
from picoqmail.smtp.address import expand_verp, is_verp
from picoqmail.smtp.transaction import RECIPIENTS_LIMIT, Transaction
from picoqmail.spool.claim import RunDiedError
from picoqmail.spool.files import RESULT_LIMIT_OCTETS
from picoqmail.spool.message import DELIVERED, FAILED, PENDING
from picoqmail.spool.progress import IN_DOUBT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Sequence

    from picoqmail.delivery.routing import Relays
    from picoqmail.home.settings import Settings
    from picoqmail.log.logger import Log
    from picoqmail.relay.lane_options import LaneSummary
    from picoqmail.smtp.transaction import Body, RelayFault, Verdict
    from picoqmail.spool.message import Message
    from picoqmail.store.protocol import ClaimedMessage, Store

# A fault in the middle of a part is the relay's. A second one in the same part and run may be due
# to the message, so the message steps aside.
_FAULTS_A_RUN = 2
_MIDDLE = frozenset({"mail", "rcpt", "data", "final-dot", "rset"})
# How long a message waits that this program cannot handle, or that runs die of.
_ASIDE_SECONDS = 3600
# So many parts may wait for the turn of another route; each keeps a descriptor open.
_LATE_PARTS = 100


class Summary:
    """What a run did, in messages."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.delivered = 0
        self.deferred = 0
        self.failed = 0
        self.damaged = 0
        self.bounced = 0
        """Reports of failure that were made."""
        self.left = 0
        """Not touched, because their relay could not be reached."""
        self.errors = 0
        """Messages that could not be read or recorded, for an error of the disk."""

    def __repr__(self) -> str:
        """Show the numbers."""
        return f"Summary({', '.join([f'{name}={count}' for name, count in vars(self).items()])})"

    def __eq__(self, other: object) -> bool:
        """Compare the numbers."""
        return vars(self) == vars(other) if isinstance(other, Summary) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # it changes


class _Work:
    """A claimed message and what is known of it so far."""

    def __init__(self, claim: ClaimedMessage) -> None:
        self.claim = claim
        self.open_parts = 0
        self.parts = 0
        self.replies = policy.Replies(claim.message)
        self.in_doubt = False
        self.doubts: dict[int, int] = {}
        """How many transactions, by index of the recipient, ended without a reply."""
        self.without_reply = 0
        """Parts whose end was sent, and for which no verdict has come yet."""
        self.relay = ""
        self.transcript: deque[str] = deque()
        """The end of what was said: as much as is written."""
        self._transcript_characters = 0
        self.fault = ""
        self.unreached = ""
        """Why the relay that it waited for could not be reached in this run."""
        self.unreached_seconds = 0
        """For how long it was tried in vain (outages.py)."""

    def add_transcript(self, lines: Sequence[str]) -> None:
        """Add what was said in a part; relays that say much to each recipient fill no memory."""
        self.transcript += lines
        self._transcript_characters += sum([len(line) for line in lines])
        while self._transcript_characters > RESULT_LIMIT_OCTETS:
            self._transcript_characters -= len(self.transcript.popleft())


class _Part:
    """One transaction's share of a message: the indexes of its recipients."""

    __slots__ = ("faults", "has_ended", "indexes", "is_noted", "sender", "work")

    def __init__(self, work: _Work, sender: str, indexes: Sequence[int]) -> None:
        self.work = work
        self.sender = sender
        self.indexes = indexes
        self.faults = 0
        self.has_ended = False
        """Whether the end of its data was sent, and no verdict has come since."""
        self.is_noted = False
        """Whether the progress says that the end of its data was sent."""


class Outbox:
    """The mail for one route; the source that its lane takes from (relay/lane_options.py).

    `take()` returns the next transaction or None, `done(transaction, verdict)` records how one
    ended.
    """

    def __init__(
        self,
        relays: Relays,
        name: str,
        take: Callable[[Outbox], Transaction | None],
        done: Callable[[Outbox, Transaction, Verdict], None],
    ) -> None:
        """Empty; `name` is what the breaker and the log call the route."""
        self.take = partial(take, self)
        self.done = partial(done, self)
        self.relays = relays
        self.name = name
        self.is_probe = False
        """Whether its relays were down when last tried: one connection until one serves us."""
        self.was_throttled = False
        """Whether that was because we had been too fast for them."""
        self.ids: deque[str] = deque()
        self.suspects: deque[str] = deque()
        """Messages that a run died of, perhaps. They are tried one by one, after all others."""
        self.ready: deque[_Part] = deque()
        self.again: deque[_Part] = deque()
        self.undivided = 0
        """How many parts there will be when those of VERP senders have been divided."""

    def backlog(self) -> int:
        """About how many parts wait. A message not opened yet may be several parts, or none."""
        known = len(self.ready) + len(self.again) + self.undivided
        return known + len(self.ids) + len(self.suspects)


class Delivery:
    """An attempt at each of some messages."""

    def __init__(  # noqa: PLR0913, PLR0917 - all that it has to do with
        self,
        spool: Store,
        settings: Settings,
        log: Log,
        serve: Callable[[Sequence[Outbox]], Sequence[LaneSummary]],
        clock: Callable[[], float] = time.time,
        stop: Callable[[], bool] = bool,  # bool() is False: nobody stops it
    ) -> None:
        """`serve` sends the mail of the outboxes until they have nothing left.

        It returns how the lane of each ended, in their order. `clock` gives Unix seconds. Once
        `stop` returns True nothing new is begun.
        """
        self.spool = spool
        self.settings = settings
        self.log = log
        self.serve = serve
        self.clock = clock
        self.stop = stop
        self.summary = Summary()
        self.reporter = Reporter(spool, settings, log, clock)
        self.busy: set[str] = set()
        """Messages that another process has."""
        self.unserved: list[str] = []
        """Messages that were left as they are, because their relay could not be reached."""
        self.look: Callable[[], Sequence[str]] | None = None
        """Returns the IDs of messages that have come since; for runs that have to send them."""
        self.take_turns: Callable[[Iterable[str]], list[str]] = list
        """Puts messages into the order in which they go out."""
        self._routing = Routing.of(settings.relayip, settings.smtproutes, settings.senderroutes)
        self._outboxes: dict[Relays, Outbox] = {}
        self._default = self._outbox(self._routing.default)
        self._forced = False
        self._logs_info = log.is_on("info")
        self._logs_debug = log.is_on("debug")
        self._limit = policy.DoubtLimit(settings.doubtlimit, settings.doubtpause)
        self._replied = 0
        """Parts that a relay replied to in this round."""
        self._suspect = ""
        """The message in hand that a run died of, perhaps; one at a time, to know of which."""

    # --- Rounds ------------------------------------------------------------------------------

    def deliver(self, ids: Iterable[str], *, forced: bool = False) -> Summary:
        """Try to deliver the messages of these IDs, in this order. To be called once.

        `forced`: due or not, breaker or not. Raises SpoolError if removals could not be made
        durable in the end. Trouble with a single message never stops the others.
        """
        self._forced = forced
        routes = [name_of(relays) for relays in self._routing.all()]
        outages = Outages(self.spool.routes(routes), self.log, self.clock, forced=forced)
        self._assign(ids)
        if self.look is not None:
            for relays in self._routing.all():
                self._outbox(relays)
        if self._default.ids and not self._default.relays:
            self._leave_without_relay(self._default)
        try:
            while self._serve_round(outages):
                pass
        finally:
            self._let_go(self._outboxes.values())
            for outbox in self._outboxes.values():
                if outbox.relays:
                    self.unserved += [*outbox.ids, *outbox.suspects]
            self.summary.left += len(self.unserved)
            self.spool.flush()
        return self.summary

    def _serve_round(self, outages: Outages) -> bool:
        """Serve every route that has mail and is not down; True if that left more to do.

        A message with recipients of several routes is opened by the first of them, which lays parts
        before the others. Some of these may have been served to their end by then. Their parts are
        for the next round.
        """
        self._replied = 0
        outboxes = [
            one
            for one in self._outboxes.values()
            if one.relays and one.name not in outages.closed and one.backlog()
        ]
        if not outboxes:
            return False
        if self.look is not None:
            # Mail may come for the other routes, too, while one of these is slow.
            outboxes += [
                one
                for one in self._outboxes.values()
                if one.relays and not one.backlog() and not outages.knows(one.name)
            ]
        probed = outages.probe([one.name for one in outboxes])
        outboxes = [one for one in outboxes if one.name not in outages.closed]
        for outbox in outboxes:
            if outbox.name in probed:
                outbox.is_probe = True
                outbox.was_throttled = probed[outbox.name].stage == TOO_FAST
                if probed[outbox.name].stage == SESSION:
                    # It refused the session when it was offered the first messages. If that was
                    # their doing after all, others come first this time.
                    outbox.ids.rotate(-probed[outbox.name].failures)
        down = outages.note(self.serve(outboxes))
        for outbox in outboxes:
            if outbox.name in down:
                self._expire_left(outbox, down[outbox.name], outages.tried_seconds(outbox.name))
        # No claims are kept open for relays that will not be tried any more.
        self._let_go(one for one in self._outboxes.values() if one.name in outages.closed)
        more = any(
            one.ready or one.ids or one.suspects
            for one in self._outboxes.values()
            if one.relays and one.name not in outages.closed
        )
        # If no relay replied in this round, none will in another.
        return more and self._replied > 0 and not self.stop()

    def look_for_more(self) -> bool:
        """Give the outboxes the messages that have come; return whether there are any."""
        try:
            ids = self.look() if self.look is not None else ()
        except SpoolError as exc:
            self.log.event("error", level="error", error=str(exc))
            return False
        self._assign(ids)
        for outbox in self._outboxes.values() if ids else ():
            outbox.ids = deque(self.take_turns(outbox.ids))
        return bool(ids)

    def _may_open(self, outbox: Outbox) -> bool:
        """Say whether a route may open one more message: not while many wait for the others."""
        others = sum(len(one.ready) for one in self._outboxes.values() if one is not outbox)
        return others < _LATE_PARTS

    def _assign(self, ids: Iterable[str]) -> None:
        """Give each message to an outbox; it is read for that only if there are several routes."""
        if self._routing.is_single:
            self._default.ids.extend(ids)
            return
        for message_id in ids:
            outbox = self._default
            try:
                _, message = self.spool.read(message_id)
                waiting = policy.sendable(message, self.clock()) or message.pending
                if waiting:
                    first = message.recipients[waiting[0]]
                    relays = self._routing.relays_for(message.sender, first.address)
                    outbox = self._outbox(relays or self._routing.default)
            except (DamagedMessageError, NoSuchMessageError, SpoolError):
                pass  # The claim finds the same, and reports it.
            outbox.ids.append(message_id)

    def _outbox(self, relays: Relays) -> Outbox:
        outbox = self._outboxes.get(relays)
        if outbox is None:
            outbox = Outbox(relays, name_of(relays), self._take, self._part_done)
            self._outboxes[relays] = outbox
        return outbox

    def _leave_without_relay(self, outbox: Outbox) -> None:
        """Leave mail where it is that there is no route for."""
        self.summary.left += len(outbox.ids)
        why = "relayip names no relay, and no route is for these messages"
        self.log.event("error", level="error", error=why, messages=len(outbox.ids))

    def _expire_left(self, outbox: Outbox, reason: str, tried_seconds: int) -> None:
        """Fail what has grown too old while its relay could not be reached."""
        for part in (*outbox.ready, *outbox.again):
            part.work.unreached = reason
            part.work.unreached_seconds = tried_seconds
        oldest = self.clock() - self.settings.queuelifetime
        for message_id in list(outbox.ids):
            if accepted_at(message_id) > oldest:
                continue
            claim = self._claim(outbox, message_id)
            if claim is None:
                continue
            fault: Exception | None = None
            try:
                claim = self._count_doubt(claim)
                if self._is_over(claim.message, tried_seconds) and not claim.message.held:
                    judgement = policy.expire(claim.message, now=int(self.clock()), because=reason)
                    self._record(claim, judgement, "", ())
                    outbox.ids.remove(message_id)
            except SpoolError as exc:
                self._report_trouble(message_id, exc)
            except Exception as exc:  # noqa: BLE001 - no message stops the others
                fault = exc
            finally:
                claim.release()
            if fault is not None:
                self._step_aside(message_id, fault)

    def _is_over(self, message: Message, unreached_seconds: int) -> bool:
        schedule = self.settings.retryschedule
        now = self.clock()
        return policy.is_over(message, now, schedule, unreached_seconds=unreached_seconds)

    def _let_go(self, outboxes: Iterable[Outbox]) -> None:
        """Give up the parts that wait there.

        What is known of their messages is recorded, and those that wait for no other route are
        released.
        """
        for outbox in list(outboxes):
            parts = [*outbox.ready, *outbox.again]
            outbox.ready.clear()
            outbox.again.clear()
            outbox.undivided = 0
            for part in parts:
                part.work.open_parts -= 1
                if not part.work.open_parts:
                    self._finish(part.work)

    # --- Messages on their way out -------------------------------------------------------------

    def _take(self, outbox: Outbox) -> Transaction | None:
        """Return the next transaction for a route, None if it has nothing now.

        First come parts that are ready, then messages not opened yet, then what failed before, and
        at last what a run may have died of.
        """
        if self.stop():
            return None
        while True:
            if outbox.ready:
                part = outbox.ready.popleft()
                if outbox.undivided:
                    part = self._divide_verp(outbox, part)
                return self._transaction(outbox, part)
            if outbox.ids and (len(self._outboxes) == 1 or self._may_open(outbox)):
                self._open(outbox, outbox.ids.popleft())
                continue
            if outbox.again:
                return self._transaction(outbox, outbox.again.popleft())
            if outbox.suspects and not self._suspect:
                self._suspect = outbox.suspects.popleft()
                if not self._open(outbox, self._suspect):
                    self._suspect = ""
                continue
            return None

    @staticmethod
    def _divide_verp(outbox: Outbox, part: _Part) -> _Part:
        """Return the first transaction of a part with a VERP sender, and leave the rest there.

        That of very many recipients is divided no sooner: each transaction needs some memory.
        """
        work, sender = part.work, part.sender
        recipients = work.claim.message.recipients
        if isinstance(recipients, tuple) or not is_verp(sender):
            return part
        outbox.undivided = max(outbox.undivided - 1, 0)
        if len(part.indexes) > 1:
            outbox.ready.appendleft(_Part(work, sender, part.indexes[1:]))
            work.parts += 1
            work.open_parts += 1
        first = recipients[part.indexes[0]]
        return _Part(work, expand_verp(sender, first.address), part.indexes[:1])

    def _transaction(self, outbox: Outbox, part: _Part) -> Transaction:
        work = part.work
        message = work.claim.message
        recipients = tuple([message.recipients[i].address for i in part.indexes])
        if self._logs_debug:
            story.log_attempt(self.log, message, outbox.name, part.sender, recipients)
        dsn = message.unknown.get("dsn")
        return Transaction(
            sender=part.sender,
            recipients=recipients,
            body=work.claim,
            dsn=dsn if isinstance(dsn, dict) else None,
            key=part,
            mark_in_doubt=partial(self._mark_in_doubt, part),
            in_seven_bits=partial(_in_seven_bits, work.claim),
        )

    def _mark_in_doubt(self, part: _Part) -> None:
        work = part.work
        part.has_ended = True
        work.without_reply += 1
        try:
            if work.parts > 1:
                # The mark is the message's. This says whose it is, should this run die.
                noted = dict.fromkeys(part.indexes, (IN_DOUBT, ""))
                work.claim = self.spool.note_progress(work.claim, noted, is_synced=False)
                part.is_noted = True
            if work.without_reply == 1:
                work.claim.mark_in_doubt()
        except (OSError, PicoqmailError) as exc:
            # The end of the data is not sent, and the message is left as it is.
            self._report_trouble(work.claim.message.id, exc)
            raise

    def _claim(self, outbox: Outbox, message_id: str) -> ClaimedMessage | None:
        damaged = self.summary.damaged
        is_suspect = message_id == self._suspect
        try:
            claim = self.spool.claim(message_id, in_hand=True, suspects=is_suspect)
        except RunDiedError as exc:
            self._put_back(outbox, message_id, exc)
            return None
        except SpoolError as exc:
            self._report_trouble(message_id, exc)
            return None
        except Exception as exc:  # noqa: BLE001 - no message stops the others
            self._step_aside(message_id, exc)
            return None
        # A message that was put aside as damaged was logged already, and no process has it.
        if claim is None and self.summary.damaged == damaged:
            self.busy.add(message_id)
        return claim

    def _put_back(self, outbox: Outbox, message_id: str, exc: RunDiedError) -> None:
        """Try a message after all others, or let it wait a while: a run died while it had it."""
        later = int(self.clock()) + _ASIDE_SECONDS if exc.is_again and not self._forced else None
        if exc.is_news:
            level = "warning" if later is None else "error"
            self.log.event("run_died", level=level, id=message_id, next_attempt=later)
        if message_id in outbox.ids:
            outbox.ids.remove(message_id)
        if later is None:
            outbox.suspects.append(message_id)
        else:
            self.summary.errors += 1
            self._put_off(message_id, later)

    def _open(self, outbox: Outbox, message_id: str) -> bool:
        """Claim a message and put its parts into the outboxes of their routes; False if none."""
        claimed = self._claim(outbox, message_id)
        if claimed is None:
            return False
        try:
            ready = self._ready_to_try(claimed)
            if ready is None:
                return False
            claim, sendable = ready
            work = _Work(claim)
            parts = [
                (outbox, _Part(work, sender, indexes[start : start + RECIPIENTS_LIMIT]))
                for outbox, sender, indexes in self._divide(claim.message, sendable)
                for start in range(0, len(indexes), RECIPIENTS_LIMIT)
            ]
        except SpoolError as exc:
            self._report_trouble(message_id, exc)
            claimed.release()
            return False
        except Exception as exc:  # noqa: BLE001 - no message stops the others
            claimed.release()
            self._step_aside(message_id, exc)
            return False
        for route, part in parts:
            route.ready.append(part)
        if not isinstance(claim.message.recipients, tuple) and is_verp(claim.message.sender):
            for route, part in parts:
                route.undivided += len(part.indexes)
        work.open_parts = work.parts = len(parts)
        if not work.parts:
            # A run that died had noted all outcomes, but had not recorded the message.
            self._finish(work)
        return bool(work.parts)

    def _ready_to_try(self, claim: ClaimedMessage) -> tuple[ClaimedMessage, Sequence[int]] | None:
        """Return the claim, and the indexes of the recipients that may be sent to now.

        If the message must not be tried now, release it and return None.
        """
        ready = self.reporter.before_trying(claim)
        if ready is None:
            self.busy.add(claim.message.id)
            claim.release()
            return None
        claim = self._count_doubt(ready)
        message = claim.message
        now = self.clock()
        if message.held or not (self._forced or claim.state == NEW or policy.is_due(message, now)):
            if claim.state == CUR:
                self.spool.repeat_due_time(claim)
            claim.release()
            self.summary.left += 1
            return None
        sendable = policy.sendable(message, now)
        if not sendable and message.pending:
            self._wait_on(claim, int(now))
            return None
        return claim, sendable

    def _count_doubt(self, claim: ClaimedMessage) -> ClaimedMessage:
        """Record that an earlier run ended between the end of the data and the reply."""
        if not claim.was_in_doubt:
            return claim
        before = claim.message
        message = policy.found_in_doubt(
            before,
            now=int(self.clock()),
            schedule=self.settings.retryschedule,
            doubts=self.spool.doubts(claim),
            limit=self._limit,
        )
        claim = self.reporter.record_deferral(claim.doubt_counted(), message, "")
        self.log.event("in_doubt", level="warning", id=message.id, sender=message.sender)
        story.log_suspended(self.log, before, message, "")
        self.reporter.log_made()
        return claim

    def _wait_on(self, claim: ClaimedMessage, now: int) -> None:
        """Release a message that is not sent again by itself; if it has become too old, fail it."""
        judgement = policy.wait_on(claim.message, now, self.settings.retryschedule)
        if judgement is not None:
            self._record(claim, judgement, "", ())
        else:
            if claim.state == CUR:
                self.spool.repeat_due_time(claim)
            self.summary.left += 1
        claim.release()

    def _divide(
        self, message: Message, sendable: Sequence[int]
    ) -> list[tuple[Outbox, str, Sequence[int]]]:
        """Group these recipients by route and sender; a VERP sender is one a recipient."""
        sender, recipients = message.sender, message.recipients
        if self._routing.is_single and not is_verp(sender):
            if sendable and len(sendable) == len(recipients):
                # Nobody has replied yet. A range takes no memory, however many there are.
                sendable = range(len(sendable))
            return [(self._default, sender, sendable)] if sendable else []
        groups: dict[tuple[Relays, str], list[int] | array[int]] = {}
        few = isinstance(recipients, tuple)
        for index in sendable:
            address = recipients[index].address
            relays = self._routing.relays_for(sender, address)
            # Of very many, see _divide_verp.
            who = expand_verp(sender, address) if few else sender
            group = (relays, who)
            if group not in groups:
                groups[group] = [] if isinstance(recipients, tuple) else recipients.indexes()
            groups[group].append(index)
        return [(self._outbox(relays), who, some) for (relays, who), some in groups.items()]

    # --- Verdicts on their way back ------------------------------------------------------------

    def _part_done(self, outbox: Outbox, transaction: Transaction, verdict: Verdict) -> None:
        """Take the verdict on one part; record the message if it was the last."""
        part = transaction.key
        assert isinstance(part, _Part)  # noqa: S101 - we made it
        work = part.work
        replied = work.replies.add(part.indexes, verdict.results)
        if verdict.transcript:
            work.add_transcript(verdict.transcript)
            work.relay = verdict.relay
        if verdict.in_doubt:
            self._note_doubt(part, verdict)
        elif part.has_ended:
            # A part that never came to its end leaves the mark to the others.
            work.without_reply -= 1
        part.has_ended = False
        self._replied += replied or verdict.in_doubt
        fault = verdict.fault
        if (
            fault is not None
            and not replied
            and (not verdict.in_doubt or (fault.again and self._may_go_again(work)))
        ):
            self._hand_back(outbox, part, fault, touched=bool(verdict.transcript))
            return
        if verdict.withheld and fault is None:
            rest = tuple([part.indexes[i] for i in verdict.withheld])
            outbox.ready.appendleft(_Part(work, part.sender, rest))
            work.parts += 1
            work.open_parts += 1
        work.open_parts -= 1
        try:
            if work.parts > 1:
                self._note_progress(part, verdict)
        except SpoolError as exc:
            self._report_trouble(work.claim.message.id, exc)
        if not work.open_parts:
            self._finish(work)

    def _note_doubt(self, part: _Part, verdict: Verdict) -> None:
        """Count whom the relay may have taken this part for."""
        work = part.work
        work.in_doubt = True
        for position, index in enumerate(part.indexes):
            is_open = verdict.results[position].outcome == "untried"
            if is_open and position not in verdict.withheld:
                work.doubts[index] = work.doubts.get(index, 0) + 1

    def _may_go_again(self, work: _Work) -> bool:
        """Say whether a part in doubt may go out once more in this run; if so, it is counted."""
        recipients = work.claim.message.recipients
        most = max([recipients[i].doubts + times for i, times in work.doubts.items()], default=0)
        if self._limit.copies and most >= self._limit.copies:
            return False
        if work.parts > 1 or not work.doubts:
            return True  # The progress counts it.
        now = int(self.clock())
        message = policy.goes_again(work.claim.message, work.doubts, self._limit, now)
        try:
            work.claim = self.spool.record(work.claim, message, CUR)
        except SpoolError as exc:
            self._report_trouble(message.id, exc)
            return False
        work.replies = policy.Replies(message)
        # The mark is gone, and comes back with the next end of data.
        work.doubts.clear()
        work.without_reply = 0
        return True

    def _hand_back(self, outbox: Outbox, part: _Part, fault: RelayFault, *, touched: bool) -> None:
        """Put a part back that no relay replied to."""
        work = part.work
        try:
            if part.is_noted and part.indexes[0] not in work.doubts:
                self._take_back(part, part.indexes)
            if not work.without_reply and not work.in_doubt:
                # Data may have gone along with an envelope that was refused.
                work.claim.clear_doubt()
        except OSError as exc:
            self._report_trouble(work.claim.message.id, exc)
        if fault.again:
            # What was in the way is known now, and avoided.
            outbox.ready.appendleft(part)
            return
        if not touched or fault.stage not in _MIDDLE:
            outbox.ready.append(part)
            return
        if fault.is_session:
            # The relay serves nobody, or at most others, so those come first.
            outbox.again.append(part)
            return
        part.faults += 1
        work.fault = fault.text
        if part.faults < _FAULTS_A_RUN:
            outbox.again.append(part)
            return
        work.open_parts -= 1
        if not work.open_parts:
            self._finish(work)

    def _note_progress(self, part: _Part, verdict: Verdict) -> None:
        work = part.work
        noted = {
            index: (result.outcome, result.text)
            for index, result in zip(part.indexes, verdict.results, strict=True)
            if result.outcome in (DELIVERED, FAILED)
        }
        if noted:
            work.claim = self.spool.note_progress(work.claim, noted)
        if part.is_noted:
            rest = [i for i in part.indexes if i not in noted and i not in work.doubts]
            self._take_back(part, rest)
        if not work.without_reply and not work.in_doubt:
            work.claim.clear_doubt()

    def _take_back(self, part: _Part, indexes: Iterable[int]) -> None:
        """Note that recipients still wait, and are in no doubt."""
        noted = dict.fromkeys(indexes, (PENDING, ""))
        part.is_noted = False
        if noted:
            work = part.work
            work.claim = self.spool.note_progress(work.claim, noted, is_synced=False)

    def _finish(self, work: _Work) -> None:
        """Record a message whose parts are all done, or will not be done in this run."""
        message_id = work.claim.message.id
        fault: Exception | None = None
        try:
            self._judge_and_record(work)
        except (SpoolError, OSError) as exc:
            self._report_trouble(message_id, exc)
        except Exception as exc:  # noqa: BLE001 - no message stops the others
            fault = exc
        finally:
            work.claim.release()
        if message_id == self._suspect:
            self._suspect = ""
        if fault is not None:
            self._step_aside(message_id, fault)

    def _judge_and_record(self, work: _Work) -> None:
        claim, now = work.claim, int(self.clock())
        if not work.parts and not claim.has_progress:
            # It was judged before; only the report to its sender was left to do.
            self._record(claim, policy.judged_before(claim.message), "", ())
        elif work.replies.has_any or work.in_doubt or not work.parts:
            judgement = work.replies.judge(
                now=now,
                relay=work.relay,
                doubts=work.doubts,
                limit=self._limit,
                schedule=self.settings.retryschedule,
            )
            if work.in_doubt:
                self.log.event("in_doubt", level="warning", id=claim.message.id, relay=work.relay)
            self._record(claim, judgement, work.relay, work.transcript, in_doubt=work.in_doubt)
        elif work.fault:
            self._log_queued(claim)
            message = policy.postpone(claim.message, now=now, relay=work.relay, reply=work.fault)
            text = story.result_text(message, work.relay, work.transcript, now)
            self.spool.record(claim, message, CUR, text)
            self.summary.deferred += 1
            story.log_postponed(self.log, message, work.relay, work.fault)
        elif work.unreached and self._is_over(claim.message, work.unreached_seconds):
            judgement = policy.expire(claim.message, now=now, because=work.unreached)
            self._record(claim, judgement, "", ())
        else:
            self.unserved.append(claim.message.id)

    def _record(
        self,
        claim: ClaimedMessage,
        judgement: policy.Judgement,
        relay: str,
        transcript: Iterable[str],
        *,
        in_doubt: bool = False,
    ) -> None:
        message = judgement.message
        self._log_queued(claim)
        if judgement.step == "remove":
            self.spool.remove(claim)
            self.summary.delivered += 1
            if self._logs_info:
                story.log_judgement(self.log, judgement, relay, in_doubt=in_doubt)
            return
        text = story.result_text(message, relay, transcript, int(self.clock()))
        if judgement.step == "fail":
            self.reporter.record(claim, message, UNDELIVERED, text)
            self.summary.failed += 1
        else:
            self.reporter.record_deferral(claim, message, text)
            self.summary.deferred += 1
        story.log_judgement(self.log, judgement, relay)
        story.log_suspended(self.log, claim.message, message, relay)
        self.reporter.log_made()

    def _log_queued(self, claim: ClaimedMessage) -> None:
        if self._logs_info:
            story.log_queued(self.log, claim.message, self.clock())

    def _report_trouble(self, message_id: str, exc: Exception) -> None:
        """Log that the disk did not let us handle a message; the others go on."""
        self.summary.errors += 1
        self.log.event("error", level="error", id=message_id, error=str(exc))

    def _step_aside(self, message_id: str, fault: Exception) -> None:
        """Log that a message cannot be handled, for a fault of ours, and let it wait a while."""
        self.summary.errors += 1
        later = int(self.clock()) + _ASIDE_SECONDS
        self.log.event(
            "error",
            level="error",
            id=message_id,
            error=f"this message cannot be handled, please report it: {fault!r}",
            next_attempt=later,
        )
        self._put_off(message_id, later)

    def _put_off(self, message_id: str, later: int) -> None:
        try:
            self.spool.put_off(message_id, later)
        except SpoolError as exc:
            self._report_trouble(message_id, exc)


def _in_seven_bits(claim: ClaimedMessage) -> Body:
    """Return a message for a relay without 8BITMIME. Raises ValueError if it has no such form."""
    from picoqmail.importing import importing

    with importing:
        from picoqmail.delivery.conversion import SevenBitBody

    return SevenBitBody(claim)
