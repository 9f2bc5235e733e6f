"""Delivery: claim, converse, record.

The only orchestrator, and the only module that knows both the spool and the relays.

A message becomes one or more parts, each one transaction of at most 100 recipients for one route.
What relays said of the parts is gathered, and judged (policy.py) when the last part is done.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

from picoqmail.delivery import policy
from picoqmail.delivery.report import Reporter
from picoqmail.delivery.report_state import VERP_END
from picoqmail.delivery.routing import Routing, name_of
from picoqmail.errors import DamagedMessageError, NoSuchMessageError, SpoolError
from picoqmail.layout import CUR, NEW, TRANSACTION_RECIPIENTS, UNDELIVERED, accepted_at
from picoqmail.relay import breaker
from picoqmail.smtp.transaction import RecipientResult, Transaction
from picoqmail.spool.message import DELIVERED, FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from picoqmail.delivery.routing import Relays
    from picoqmail.home.settings import Settings
    from picoqmail.log.logger import Log
    from picoqmail.relay.breaker import Outage
    from picoqmail.relay.lane_options import LaneSummary
    from picoqmail.smtp.transaction import RelayFault, Verdict
    from picoqmail.spool.claim import Claim
    from picoqmail.spool.message import Message
    from picoqmail.spool.store import Store

# A fault in the middle of a part is the relay's; the second for the same part in one run may be
# the message's doing, so it steps aside.
_FAULTS_A_RUN = 2
# Parts that may wait for another route's turn: each keeps a descriptor open.
_LATE_PARTS = 100
_MIDDLE = frozenset({"mail", "rcpt", "data", "final-dot", "rset"})
# The stage of an outage that is none: the relay wants us to pause.
_TOO_FAST = "pace"


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
        """Messages that the disk would not let us read or record."""

    def __repr__(self) -> str:
        """Show the numbers."""
        return f"Summary({', '.join([f'{name}={count}' for name, count in vars(self).items()])})"

    def __eq__(self, other: object) -> bool:
        """Compare the numbers."""
        return vars(self) == vars(other) if isinstance(other, Summary) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # it changes


class _Work:
    """A claimed message and what is known of it so far."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.open_parts = 0
        self.parts = 0
        self.results: dict[int, RecipientResult] = {}
        self.in_doubt = False
        self.unanswered = 0
        self.relay = ""
        self.transcript: list[str] = []
        self.fault = ""
        self.unreached = ""
        """Why the relay, which it waited for with a claim, could not be reached in this run."""


class _Part:
    """One transaction's share of a message: the indexes of its recipients."""

    def __init__(self, work: _Work, sender: str, indexes: tuple[int, ...]) -> None:
        self.work = work
        self.sender = sender
        self.indexes = indexes
        self.faults = 0


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
        """Whether its relays were down when last looked at: one connection until one serves."""
        self.was_throttled = False
        """Whether that was because we had been too fast for them."""
        self.ids: deque[str] = deque()
        self.ready: deque[_Part] = deque()
        self.again: deque[_Part] = deque()

    def backlog(self) -> int:
        """About how many parts wait: a message that was not opened yet may be several, or none."""
        return len(self.ready) + len(self.ids) + len(self.again)


class Delivery:
    """One run over a spool."""

    def __init__(  # noqa: PLR0913, PLR0917 - all that a run has to do with
        self,
        spool: Store,
        settings: Settings,
        log: Log,
        converse: Callable[[Sequence[Outbox]], Sequence[LaneSummary]],
        clock: Callable[[], float] = time.time,
        stop: Callable[[], bool] = bool,  # bool() is False: nobody stops it
    ) -> None:
        """`converse` drives the outboxes' connections until they have nothing left.

        It says of each how it was served (engine.py). `clock` gives Unix seconds; once `stop` says
        so nothing new is begun.
        """
        self.spool = spool
        self.settings = settings
        self.log = log
        self.converse = converse
        self.clock = clock
        self.stop = stop
        self.summary = Summary()
        self.reporter = Reporter(spool, settings, log, clock)
        """Tells senders; its `made` are reports that are in the spool since this run."""
        self.busy: set[str] = set()
        """Messages that another process has."""
        self.unserved: list[str] = []
        """Messages that were left as they are, because their relay could not be reached."""
        self._routing = Routing.of(settings.relayip, settings.smtproutes, settings.senderroutes)
        self._outboxes: dict[Relays, Outbox] = {}
        self._forced = False
        self._closed: set[str] = set()
        """Names of routes that are down, so far as this run knows."""
        self._answers = 0
        """Parts that a relay answered for, in this round."""
        self._withheld = False
        """Whether messages were left for the next round, because many wait for other routes."""

    # --- The run -----------------------------------------------------------------------------

    def run(self, ids: Iterable[str], *, forced: bool = False) -> Summary:
        """Try to deliver the messages of these IDs, in this order.

        `forced`: due or not, breaker or not. Raises SpoolError where the end of the run could
        not be made durable; what a single message does never stops the others.
        """
        self._forced = forced
        outages = breaker.read(self.spool.path)
        now = self.clock()
        if not forced:
            self._closed = {name for name, one in outages.items() if breaker.is_open(one, now)}
        self._assign(ids)
        for outbox in self._outboxes.values():
            if not outbox.relays:
                self._no_relay(outbox)
        try:
            while self._serve_round(outages):
                outages = breaker.read(self.spool.path)
        finally:
            self._let_go(self._outboxes.values())
            for outbox in self._outboxes.values():
                if outbox.relays:
                    self.unserved += outbox.ids
            self.summary.left += len(self.unserved)
            self.spool.flush()
        return self.summary

    def _serve_round(self, outages: dict[str, Outage]) -> bool:
        """Serve every route that has mail and is not down; True if that left more to do.

        A message with recipients of several routes is opened by the first of them, and puts parts
        before others, which may have been served to their end already: they are for the next round.
        """
        self._answers, self._withheld = 0, False
        outboxes = [
            one
            for one in self._outboxes.values()
            if one.relays and one.name not in self._closed and (one.ids or one.ready or one.again)
        ]
        if not outboxes:
            return False
        self._announce_probes(outboxes, outages)
        served = self.converse(outboxes)
        self._close_books(outboxes, served)
        # Their claims are not kept open for relays that will not be asked any more.
        self._let_go(one for one in self._outboxes.values() if one.name in self._closed)
        open_ = [one for one in self._outboxes.values() if one.name not in self._closed]
        more = self._withheld or any(one.ready for one in open_)
        # Without an answer in this round another one would be no better.
        return more and self._answers > 0 and not self.stop()

    def _may_open(self, outbox: Outbox) -> bool:
        """Say whether a route may open one more message: not while many wait for the others."""
        if len(self._outboxes) == 1:
            return True
        others = sum(len(one.ready) for one in self._outboxes.values() if one is not outbox)
        self._withheld = self._withheld or others >= _LATE_PARTS
        return others < _LATE_PARTS

    def _assign(self, ids: Iterable[str]) -> None:
        """Give each message to an outbox; only with several routes is it read for that."""
        default = self._outbox(self._routing.default)
        if self._routing.is_single:
            default.ids.extend(ids)
            return
        for message_id in ids:
            try:
                _, message = self.spool.read(message_id)
                first = message.recipients[message.pending[0]] if message.pending else None
                way = self._routing.relays_for(message.sender, first.address) if first else None
            except (DamagedMessageError, NoSuchMessageError, SpoolError):
                way = None  # The claim finds the same, and says so.
            self._outbox(way or self._routing.default).ids.append(message_id)

    def _outbox(self, relays: Relays) -> Outbox:
        outbox = self._outboxes.get(relays)
        if outbox is None:
            outbox = self._outboxes[relays] = Outbox(
                relays, name_of(relays), self._next, self._part_done
            )
        return outbox

    def _no_relay(self, outbox: Outbox) -> None:
        """Leave mail where it is that no route is for."""
        if outbox.ids:
            self.summary.left += len(outbox.ids)
            why = "relayip names no relay, and no route is for these messages"
            self.log.event("error", level="error", error=why, messages=len(outbox.ids))

    def _announce_probes(self, outboxes: Iterable[Outbox], outages: dict[str, Outage]) -> None:
        """Keep other runs away from a relay that was down while this one looks."""
        looking = []
        for outbox in outboxes:
            if outbox.name in outages:
                outbox.is_probe = True
                outbox.was_throttled = outages[outbox.name].stage == _TOO_FAST
                looking.append(outbox.name)
        if looking and not self._forced:
            now = int(self.clock())
            for name in looking:
                outages[name] = breaker.probing(outages[name], now=now)
            self._write_breaker(outages)

    def _write_breaker(self, outages: dict[str, Outage]) -> None:
        try:
            breaker.write(self.spool.path, outages, [name_of(way) for way in self._routing.all()])
        except SpoolError as exc:
            # The worst that follows is that the next run looks at the relay again.
            self.log.event("error", level="error", error=str(exc))

    def _close_books(self, outboxes: Sequence[Outbox], served: Sequence[LaneSummary]) -> None:
        """Tell and remember which relays are down and which are up again."""
        outages = breaker.read(self.spool.path)
        before = dict(outages)
        now = int(self.clock())
        for outbox, how in zip(outboxes, served, strict=True):
            known = outages.get(outbox.name)
            is_down, stage, reason = _why_down(how)
            if is_down:
                self._closed.add(outbox.name)
            if known is not None and how.reached and not is_down:
                del outages[outbox.name]
                self.log.event("relay_up", relay=outbox.name, down_seconds=now - known.since)
            elif is_down and reason:
                # What another process has noted since this one began is the same failure.
                if known is None or outbox.is_probe:
                    outage = breaker.failed(known, now=now, stage=stage, reason=reason)
                    outages[outbox.name] = outage
                    self.log.event(
                        "relay_down",
                        level="warning",
                        relay=outbox.name,
                        stage=stage,
                        reason=reason,
                        failures=outage.failures,
                        look_again=outage.until,
                    )
                self._expire_left(outbox, reason)
        if outages != before:
            self._write_breaker(outages)

    def _expire_left(self, outbox: Outbox, reason: str) -> None:
        """Fail what has grown too old in front of a relay that cannot be reached."""
        for part in (*outbox.ready, *outbox.again):
            part.work.unreached = reason
        oldest = self.clock() - self.settings.queuelifetime
        for message_id in list(outbox.ids):
            if accepted_at(message_id) > oldest:
                continue
            claim = self._claim(message_id)
            if claim is None:
                continue
            try:
                if self.clock() >= claim.message.expires and not claim.message.held:
                    judgement = policy.expire(claim.message, now=int(self.clock()), because=reason)
                    self._record(claim, judgement, "", ())
                    outbox.ids.remove(message_id)
            except SpoolError as exc:
                self._trouble(message_id, exc)
            finally:
                claim.release()

    def _let_go(self, outboxes: Iterable[Outbox]) -> None:
        """Give up the parts that wait there.

        What is known of their messages is recorded, and those that wait for no other route are
        released.
        """
        for outbox in list(outboxes):
            parts = [*outbox.ready, *outbox.again]
            outbox.ready.clear()
            outbox.again.clear()
            for part in parts:
                part.work.open_parts -= 1
                if not part.work.open_parts:
                    self._finish(part.work)

    # --- What the outboxes ask ------------------------------------------------------------------

    def _next(self, outbox: Outbox) -> Transaction | None:
        """The next transaction for a route: handed back parts, then due ones, then failed ones."""
        if self.stop():
            return None
        while True:
            if outbox.ready:
                return self._transaction(outbox, outbox.ready.popleft())
            if outbox.ids and self._may_open(outbox):
                self._open(outbox.ids.popleft())
                continue
            if outbox.again:
                return self._transaction(outbox, outbox.again.popleft())
            return None

    def _transaction(self, outbox: Outbox, part: _Part) -> Transaction:
        work = part.work
        message = work.claim.message
        if self.log.is_on("debug"):
            self.log.event(
                "attempt",
                level="debug",
                id=message.id,
                relay=outbox.name,
                sender=part.sender,
                recipients=[message.recipients[i].address for i in part.indexes],
            )
        dsn = message.unknown.get("dsn")
        return Transaction(
            sender=part.sender,
            recipients=tuple([message.recipients[i].address for i in part.indexes]),
            body=work.claim,
            dsn=dsn if isinstance(dsn, dict) else None,
            key=part,
            mark_in_doubt=lambda: self._mark(work),
        )

    def _mark(self, work: _Work) -> None:
        work.unanswered += 1
        if work.unanswered == 1:
            work.claim.mark_in_doubt()

    def _claim(self, message_id: str) -> Claim | None:
        damaged = self.summary.damaged
        try:
            claim = self.spool.claim(message_id)
        except SpoolError as exc:
            self._trouble(message_id, exc)
            return None
        # What was put aside is told already, and nobody has it.
        if claim is None and self.summary.damaged == damaged:
            self.busy.add(message_id)
        return claim

    def _open(self, message_id: str) -> None:
        """Claim a message and lay its parts out before the outboxes that they go by."""
        claimed = self._claim(message_id)
        if claimed is None:
            return
        try:
            claim = self._ready_to_try(claimed)
        except SpoolError as exc:
            self._trouble(message_id, exc)
            claimed.release()
            return
        if claim is None:
            return
        work = _Work(claim)
        for relays, sender, indexes in self._divide(claim.message):
            for start in range(0, len(indexes), TRANSACTION_RECIPIENTS):
                part = _Part(work, sender, indexes[start : start + TRANSACTION_RECIPIENTS])
                self._outbox(relays).ready.append(part)
                work.parts += 1
        work.open_parts = work.parts
        if not work.parts:
            # Every outcome was noted by a sender that died before it recorded them.
            self._finish(work)

    def _ready_to_try(self, claim: Claim) -> Claim | None:
        """The claim if its message may be tried now; None, and released, if not."""
        ready = self.reporter.before_trying(claim)
        if ready is None:
            self.busy.add(claim.message.id)
            claim.release()
            return None
        claim = ready
        message = claim.message
        now = self.clock()
        if claim.was_in_doubt:
            message = policy.found_in_doubt(
                message, now=int(now), schedule=self.settings.retryschedule
            )
            claim = self.spool.record(claim, message, CUR)
            self.log.event("in_doubt", level="warning", id=message.id, sender=message.sender)
        if message.held or not (self._forced or claim.state == NEW or policy.is_due(message, now)):
            if claim.state == CUR:
                self.spool.repeat_due_time(claim)
            claim.release()
            self.summary.left += 1
            return None
        return claim

    def _divide(self, message: Message) -> list[tuple[Relays, str, tuple[int, ...]]]:
        """Group the pending recipients by route and sender; a VERP sender is one a recipient."""
        sender = message.sender
        pending = message.pending
        verp = sender.endswith(VERP_END) and sender != "#@[]"
        if self._routing.is_single and not verp:
            return [(self._routing.default, sender, pending)] if pending else []
        groups: dict[tuple[Relays, str], list[int]] = {}
        for index in pending:
            address = message.recipients[index].address
            relays = self._routing.relays_for(sender, address)
            groups.setdefault((relays, expand_verp(sender, address)), []).append(index)
        return [(relays, who, tuple(indexes)) for (relays, who), indexes in groups.items()]

    # --- What the outboxes tell -----------------------------------------------------------------

    def _part_done(self, outbox: Outbox, transaction: Transaction, verdict: Verdict) -> None:
        """Take the verdict on one part; record the message when it was the last."""
        part = transaction.key
        assert isinstance(part, _Part)  # noqa: S101 - we made it
        work = part.work
        fault = verdict.fault
        answered = any(result.outcome != "untried" for result in verdict.results)
        if verdict.transcript:
            work.transcript += verdict.transcript
            work.relay = verdict.relay
        if verdict.in_doubt:
            work.in_doubt = True
        elif work.unanswered:
            work.unanswered -= 1
        self._answers += answered or verdict.in_doubt
        if fault is not None and not answered and not verdict.in_doubt:
            self._hand_back(outbox, part, fault, touched=bool(verdict.transcript))
            return
        for index, result in zip(part.indexes, verdict.results, strict=True):
            if result.outcome != "untried":
                work.results[index] = result
        work.open_parts -= 1
        try:
            if work.parts > 1:
                self._note_progress(part, work)
        except SpoolError as exc:
            self._trouble(work.claim.message.id, exc)
        if not work.open_parts:
            self._finish(work)

    def _hand_back(self, outbox: Outbox, part: _Part, fault: RelayFault, *, touched: bool) -> None:
        """Put a part back that no relay answered for."""
        if not touched or fault.stage not in _MIDDLE:
            outbox.ready.append(part)
            return
        part.faults += 1
        part.work.fault = fault.text
        if part.faults < _FAULTS_A_RUN:
            outbox.again.append(part)
            return
        part.work.open_parts -= 1
        if not part.work.open_parts:
            self._finish(part.work)

    def _note_progress(self, part: _Part, work: _Work) -> None:
        noted = {
            index: (work.results[index].outcome, work.results[index].text)
            for index in part.indexes
            if index in work.results and work.results[index].outcome in (DELIVERED, FAILED)
        }
        if noted:
            work.claim = self.spool.note_progress(work.claim, noted)
        if not work.unanswered and not work.in_doubt:
            work.claim.clear_doubt()

    def _finish(self, work: _Work) -> None:
        """Record a message whose parts are all done, or will not be done in this run."""
        message_id = work.claim.message.id
        try:
            self._judge_and_record(work)
        except (SpoolError, OSError) as exc:
            self._trouble(message_id, exc)
        finally:
            work.claim.release()

    def _judge_and_record(self, work: _Work) -> None:
        claim, now = work.claim, int(self.clock())
        if not claim.message.pending and not claim.has_progress:
            # Judged before; what was left to do is to tell its sender.
            self._record(claim, policy.judged_before(claim.message), "", ())
        elif work.results or work.in_doubt or not claim.message.pending:
            judgement = policy.judge(
                claim.message,
                work.results,
                now=now,
                relay=work.relay,
                in_doubt=work.in_doubt,
                schedule=self.settings.retryschedule,
            )
            if work.in_doubt:
                self.log.event("in_doubt", level="warning", id=claim.message.id, relay=work.relay)
            self._record(claim, judgement, work.relay, work.transcript)
        elif work.fault:
            self._tell_queued(claim)
            message = policy.postpone(claim.message, now=now, relay=work.relay, reply=work.fault)
            text = self._result_text(now, work.relay, work.transcript, message)
            self.spool.record(claim, message, CUR, text)
            self.summary.deferred += 1
            self.log.event(
                "deferred",
                level="warning",
                id=message.id,
                relay=work.relay,
                reason=work.fault,
                next_attempt=message.next_attempt,
            )
        elif work.unreached and now >= claim.message.expires:
            judgement = policy.expire(claim.message, now=now, because=work.unreached)
            self._record(claim, judgement, "", ())
        else:
            self.unserved.append(claim.message.id)

    def _record(
        self, claim: Claim, judgement: policy.Judgement, relay: str, transcript: Sequence[str]
    ) -> None:
        message = judgement.message
        self._tell_queued(claim)
        if judgement.step == "remove":
            self.spool.remove(claim)
            self.summary.delivered += 1
        else:
            state = UNDELIVERED if judgement.step == "fail" else CUR
            now = int(self.clock())
            text = self._result_text(now, relay, transcript, message)
            if judgement.step == "fail":
                self.reporter.record(claim, message, state, text)
            else:
                self.reporter.record_deferral(claim, message, text)
            if judgement.step == "fail":
                self.summary.failed += 1
            else:
                self.summary.deferred += 1
        self._tell(judgement, relay)
        self.reporter.tell()

    def _tell_queued(self, claim: Claim) -> None:
        """Tell of a message when first something comes of it: the queue program logs nothing."""
        message = claim.message
        if message.attempts or message.history or not self.log.is_on("info"):
            return
        self.log.event(
            "queued",
            id=message.id,
            sender=message.sender,
            recipients=len(message.recipients),
            size=message.size,
            uid=message.origin.get("uid"),
            origin=message.origin.get("program"),
            waited_seconds=int(self.clock() - message.created),
        )

    def _tell(self, judgement: policy.Judgement, relay: str) -> None:
        message, log = judgement.message, self.log
        if judgement.delivered_now and log.is_on("info"):
            doubts = any(entry.get("outcome") == "in_doubt" for entry in message.history)
            more: dict[str, Any] = {"maybe_duplicate": True} if doubts else {}
            log.event(
                "delivered",
                id=message.id,
                relay=relay,
                sender=message.sender,
                recipients=[message.recipients[i].address for i in judgement.delivered_now],
                reply=message.recipients[judgement.delivered_now[0]].reply,
                **more,
            )
        for index in judgement.failed_now:
            one = message.recipients[index]
            log.event(
                "failed",
                level="error",
                id=message.id,
                relay=relay,
                sender=message.sender,
                recipient=one.address,
                reply=one.reply,
                **({"expired": True} if judgement.expired else {}),
            )
        if judgement.step == "defer":
            log.event(
                "deferred",
                level="warning",
                id=message.id,
                relay=relay,
                sender=message.sender,
                recipients=[message.recipients[i].address for i in message.pending],
                reply=message.history[-1].get("reply", ""),
                attempts=message.attempts,
                next_attempt=message.next_attempt,
            )

    @staticmethod
    def _result_text(now: int, relay: str, transcript: Sequence[str], message: Message) -> str:
        """One attempt's part of ID.result: when, with whom, the dialogue, and what came of it."""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
        lines = [f"--- {when}, attempt {message.attempts}, relay {relay or 'none reached'}"]
        lines += transcript
        last = message.history[-1]
        lines.append(f"=== {last.get('outcome')}: {last.get('reply')}")
        lines += [f"    {one.address}: {one.state}: {one.reply}" for one in message.recipients]
        return "\n".join(lines) + "\n\n"

    def _trouble(self, message_id: str, exc: Exception) -> None:
        """A message that the disk would not let us handle: told, and the others go on."""
        self.summary.errors += 1
        self.log.event("error", level="error", id=message_id, error=str(exc))


def _why_down(how: LaneSummary) -> tuple[bool, str, str]:
    """Whether nobody shall look at these relays for a while; stage and reason, if known."""
    if how.throttled:
        return True, _TOO_FAST, how.throttled
    is_down = how.gave_up or (how.fault is not None and not how.reached)
    return is_down, how.fault.stage if how.fault else "", how.fault.text if how.fault else ""


def expand_verp(sender: str, recipient: str) -> str:
    """The sender of a VERP message for one recipient (qmail-inject(8), QMAILINJECT r).

    `pre-@host-@[]` becomes `pre-user=domain@host`; any other sender stays.
    """
    if not sender.endswith(VERP_END) or sender == "#@[]":
        return sender
    local, at, host = sender.removesuffix(VERP_END).rpartition("@")
    if not at:
        return sender
    user, _, domain = recipient.rpartition("@")
    return f"{local}{user}={domain}@{host}"


__all__ = ["Delivery", "Outbox", "Summary", "expand_verp"]
