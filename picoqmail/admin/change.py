"""What an administrator does to messages: retry, hold, release, requeue, delete.

What may live here: verbs on one message each, under that message's lock, so that they are safe
beside running senders; for the command line and for Python. A message that is being sent is left
alone and reported as busy. selection.py chooses the messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from picoqmail.admin.remedies import why_not_sent
from picoqmail.admin.selection import entry_of
from picoqmail.delivery.policy import OVERDUE_SINCE, resumed, without_doubts
from picoqmail.delivery.report_state import not_reported
from picoqmail.errors import NoSuchMessageError
from picoqmail.home.control import Control, own_host_name
from picoqmail.layout import CUR, NEW, STATES, UNDELIVERED
from picoqmail.spool.message import DELIVERED, FAILED, PENDING
from picoqmail.spool.sidecar import NOT_BEFORE
from picoqmail.store.opening import open_store
from picoqmail.value import evolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.home.paths import Home
    from picoqmail.spool.claim import Damage
    from picoqmail.store.protocol import ClaimedMessage, Store

DONE = "done"
UNCHANGED = "unchanged"
REFUSED = "refused"
BUSY = "busy"
GONE = "gone"
DEFERRED = "deferred"


@frozen
class VerbResult:
    """What became of one verb on one message.

    `result` is one of these. `done`. `unchanged`: it was so already. `refused`: that cannot be done
    to it. `busy`: another process has it now. `gone`: there is no such message, or not any more.
    `detail` is a sentence for people. `state` is where the message is now, "" if nowhere.
    """

    id: str
    result: str
    detail: str
    state: str = ""


@define(eq=False)
class Admin:
    """The verbs on one spool. Every one of them raises SpoolError where the disk fails.

    Changes of a sidecar are durable when the verb returns, removals after `finish`.
    `queue_lifetime_seconds` is what a requeued message gets once more.
    """

    spool: Store
    queue_lifetime_seconds: int
    _damages: dict[str, str] = field(factory=dict)

    @classmethod
    def of(cls, home: Home, queue_lifetime_seconds: int) -> Admin:
        """Return the verbs on the spool of a home."""
        damages: dict[str, str] = {}

        def note(damage: Damage) -> None:
            damages[damage.id] = damage.reason

        return cls(open_store(home, on_damage=note), queue_lifetime_seconds, damages)

    def retry(self, message_id: str) -> VerbResult:
        """Make a message due now; one that may have arrived goes out once more."""
        return self._with(message_id, self._retry)

    def _retry(self, claim: ClaimedMessage) -> VerbResult:
        message = claim.message
        if message.held:
            return VerbResult(message.id, REFUSED, "is held; release it first", claim.state)
        if claim.state == UNDELIVERED:
            return VerbResult(message.id, REFUSED, "has failed for good; requeue it", claim.state)
        now = int(self.spool.clock())
        if message.suspended:
            note = "sent once more by an administrator, although it may have arrived"
            self.spool.change(claim, "resumed", note, recipients=resumed(message), next_attempt=now)
            return VerbResult(message.id, DONE, "is due now, and may arrive once more", CUR)
        if claim.state == NEW or message.next_attempt <= now:
            return VerbResult(message.id, UNCHANGED, "is due already", claim.state)
        due = evolve(message, next_attempt=now, revision=message.revision + 1)
        self.spool.record(claim, due, CUR)
        return VerbResult(message.id, DONE, "is due now", CUR)

    def hold(self, message_id: str) -> VerbResult:
        """Keep a message from being sent until it is released."""
        return self._with(message_id, self._hold)

    def _hold(self, claim: ClaimedMessage) -> VerbResult:
        message = claim.message
        if claim.state == UNDELIVERED:
            detail = "has failed for good: nothing sends it"
            return VerbResult(message.id, REFUSED, detail, claim.state)
        if message.held:
            return VerbResult(message.id, UNCHANGED, "is held already", claim.state)
        self.spool.change(claim, "held", "held by an administrator", held=True)
        return VerbResult(message.id, DONE, "is held", CUR)

    def release(self, message_id: str) -> VerbResult:
        """Let a held message go; it is due now."""
        return self._with(message_id, self._release)

    def _release(self, claim: ClaimedMessage) -> VerbResult:
        message = claim.message
        if not message.held:
            return VerbResult(message.id, UNCHANGED, "is not held", claim.state)
        now = int(self.spool.clock())
        if claim.state == UNDELIVERED:
            return VerbResult(message.id, REFUSED, "has failed for good; requeue it", claim.state)
        note = "released by an administrator"
        self.spool.change(
            claim,
            "released",
            note,
            held=False,
            next_attempt=now,
            recipients=resumed(message),
        )
        return VerbResult(message.id, DONE, "is released and due now", CUR)

    def requeue(self, message_id: str, *, all_recipients: bool = False) -> VerbResult:
        """Give a message of undelivered/ a new life.

        It is due now, its attempts are counted anew, and it has the whole queue lifetime again.
        For the recipients that failed; with `all_recipients` also for those that have it
        already: they get it twice.
        """
        return self._with(
            message_id, lambda claim: self._requeue(claim, all_recipients=all_recipients)
        )

    def _requeue(self, claim: ClaimedMessage, *, all_recipients: bool) -> VerbResult:
        message = claim.message
        if claim.state != UNDELIVERED:
            return VerbResult(message.id, REFUSED, "has not failed; retry it", claim.state)
        again = (FAILED, DELIVERED) if all_recipients else (FAILED,)
        recipients = tuple(
            not_reported(without_doubts(evolve(one, state=PENDING))) if one.state in again else one
            for one in message.recipients
        )
        count = sum(one.state == PENDING for one in recipients)
        if not count:
            detail = "has no recipient that failed; --all-recipients sends it to all once more"
            return VerbResult(message.id, REFUSED, detail, claim.state)
        now = int(self.spool.clock())
        noun = "recipient" if count == 1 else "recipients"
        unknown = {key: one for key, one in message.unknown.items() if key != OVERDUE_SINCE}
        self.spool.change(
            claim,
            "requeued",
            f"requeued by an administrator for {count} {noun}",
            recipients=recipients,
            held=False,
            attempts=0,
            next_attempt=now,
            expires=now + self.queue_lifetime_seconds,
            unknown={**unknown, NOT_BEFORE: now},
        )
        return VerbResult(message.id, DONE, f"is due now for {count} {noun}", CUR)

    def delete(self, message_id: str) -> VerbResult:
        """Remove a message, whatever its state, also a damaged one. No report is sent."""
        try:
            if self.spool.destroy(message_id):
                return VerbResult(message_id, DONE, "is deleted")
        except NoSuchMessageError:
            return VerbResult(message_id, GONE, "is no longer in the spool")
        return self._busy(message_id)

    def finish(self) -> None:
        """Make removals durable: the end of a series of verbs."""
        self.spool.flush()

    def _with(self, message_id: str, verb: Callable[[ClaimedMessage], VerbResult]) -> VerbResult:
        claim = self.spool.claim(message_id, STATES)
        if claim is None:
            return self._unclaimed(message_id)
        try:
            return verb(claim)
        finally:
            claim.release()

    def _unclaimed(self, message_id: str) -> VerbResult:
        states = self.spool.where(message_id)
        reason = self._damages.pop(message_id, "")
        if reason:
            detail = f"is damaged: {reason}; see it with show, or delete it"
            return VerbResult(message_id, REFUSED, detail, states[0] if states else "")
        if not states:
            return VerbResult(message_id, GONE, "is no longer in the spool")
        return self._busy(message_id)

    def _busy(self, message_id: str) -> VerbResult:
        states = self.spool.where(message_id)
        if not states:
            return VerbResult(message_id, GONE, "is no longer in the spool")
        detail = "is being sent, or another process has it; try again in a moment"
        return VerbResult(message_id, BUSY, detail, states[0])


def send_now(home: Home, admin: Admin, results: list[VerbResult]) -> list[VerbResult]:
    """Try to send messages that a verb made due, past an open breaker; return the new results.

    Raises ConfigurationError, SpoolError.
    """
    from picoqmail.delivery.run import Run

    own_host_name(Control(home.control))
    due = [one.id for one in results if one.result in (DONE, UNCHANGED)]
    if not due:
        return results
    busy = Run(home, "picoqmail").deliver(due, forced=True)
    return [_after_sending(admin.spool, one, busy) if one.id in due else one for one in results]


def _after_sending(store: Store, before: VerbResult, busy: set[str]) -> VerbResult:
    """Return what became of a message that was tried."""
    message_id = before.id
    states = store.where(message_id)
    if not states:
        return VerbResult(message_id, DONE, "is delivered")
    if message_id in busy:
        return VerbResult(message_id, BUSY, "is being sent by another process", states[0])
    entry = entry_of(store, message_id)
    message = entry.message
    if message is None:
        return VerbResult(message_id, REFUSED, f"is damaged: {entry.damage}", entry.state)
    reply = str(message.history[-1].get("reply", "")) if message.history else ""
    if entry.state == UNDELIVERED:
        return VerbResult(message_id, REFUSED, f"failed for good: {reply}", entry.state)
    if message.history and message.attempts:
        return VerbResult(message_id, DEFERRED, f"deferred: {reply}", entry.state)
    return VerbResult(message_id, DEFERRED, why_not_sent(store.routes().read()), entry.state)
