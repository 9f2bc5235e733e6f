"""Reports to senders, of failure and of delay: each is made once, and none is forgotten.

The order for a failure, each step durable before the next:

1. The message is recorded in cur/ with its failed recipients, and `telling` names the report's ID.
2. The report, which names the message in `report_of`, is accepted into the spool like any mail.
3. The message is recorded where it belongs (undelivered/, or cur/ if other recipients wait), and
   `told` of each failed recipient names the report.

A crash after 1 leaves a message in cur/ that cron finds due. Cron then makes the report, unless it
is in the spool. A report that is not there cannot have been sent, because a program that is about
to send a report first does step 3 for its message (`_before_sending`). A disk that is full at 2
leaves the same as a crash, and cron tries again. A warning of delay is recorded before it is made:
a crash may lose it, but nobody is warned twice.

What writes reports (report_writer.py) is imported when one is written. Most runs write none, and
would take a fifth longer to start. If it cannot be imported (an upgrade is under way, a package is
missing) the same is done as for a full disk: the failure is recorded, and cron makes the report.
"""

from __future__ import annotations

import errno
import time

from picoqmail.delivery import report_state
from picoqmail.delivery.report_state import KIND_DELAYED, KIND_FAILED, KIND_IN_DOUBT
from picoqmail.delivery.story import RECIPIENTS_LOGGED
from picoqmail.errors import DamagedMessageError, NoSuchMessageError, SpoolError
from picoqmail.layout import CUR, DOUBLE_BOUNCE, REPORTS, STATES, is_id
from picoqmail.value import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from picoqmail.delivery.report_state import Addressee
    from picoqmail.delivery.report_writer import ReportWriter
    from picoqmail.home.settings import Settings
    from picoqmail.log.logger import Log
    from picoqmail.spool.message import Indexes, Message
    from picoqmail.store.protocol import ClaimedMessage, Store

DIGEST = "digest"
"""What `told` says of a failure that waits for the digest of its hour."""

_TRY_AGAIN_SECONDS = 60


class Reporter:
    """Makes the reports of one run; `made` has the IDs of those that it has put into the spool."""

    def __init__(
        self, spool: Store, settings: Settings, log: Log, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives Unix seconds."""
        self.spool = spool
        self.settings = settings
        self.log = log
        self.clock = clock
        self.made: list[str] = []
        self._to_log: list[tuple[dict[str, str], Message, Indexes]] = []
        self._loaded: ReportWriter | None = None

    @property
    def _writer(self) -> ReportWriter:
        """What writes reports. Raises SpoolError if it cannot be imported."""
        if self._loaded is None:
            try:
                from picoqmail.importing import importing

                with importing:
                    from picoqmail.delivery.report_writer import ReportWriter
            except Exception as exc:
                # A module is missing, cut or of another version, or no descriptor is left. What a
                # relay has replied must be recorded all the same, or the message would go again.
                why = OSError(errno.ELIBACC, f"what writes reports cannot be loaded ({exc})")
                where = getattr(exc, "name", None) or "picoqmail.delivery.report_writer"
                raise SpoolError("write a report", where, why) from exc
            self._loaded = ReportWriter(self.spool, self.settings, self.clock)
        return self._loaded

    # --- Failures ------------------------------------------------------------------------------

    def record(
        self, claim: ClaimedMessage, message: Message, state: str, result: str
    ) -> ClaimedMessage:
        """Record a message in `state`, and report to its sender what failed. Raises SpoolError.

        If the report cannot be made now, the message stays in cur/ for cron.
        """
        indexes = report_state.unreported(message)
        to = self._addressee(message)
        if not indexes or to is None:
            return self.spool.record(claim, message, state, result)
        try:
            if not self._writer.limit.may_report(to.address, self.clock()):
                return self._keep(claim, message, state, result, to)
            incoming = self._writer.write(claim, message, indexes, KIND_FAILED, to.address)
        except SpoolError as exc:
            return self._leave_to_cron(claim, message, result, exc)
        with incoming:
            announced = report_state.announced(self._due_in_cur(message), incoming.id)
            claim = self.spool.record(claim, announced, CUR, result)
            try:
                incoming.commit(to.sender, [to.address], {report_state.REPORT_OF: message.id})
            except SpoolError as exc:
                self._complain(message, exc)
                return claim
        finished = report_state.reported(message, indexes, incoming.id)
        claim = self.spool.record(claim, _revised(finished, announced), state)
        self._note_made(message, incoming.id, to, indexes, KIND_FAILED)
        return claim

    def _addressee(self, message: Message) -> Addressee | None:
        if not self.settings.bounces or not report_state.wants_report(message, "FAILURE"):
            return None
        return report_state.addressee_of(message, self._double_bounces_to())

    def _double_bounces_to(self) -> str:
        address = self.settings.doublebounceto or ""
        if address and "@" not in address:
            return f"{address}@{self.settings.bouncehost}"
        return address

    def _due_in_cur(self, message: Message) -> Message:
        """Return the message as it lies in cur/ until its report is made: cron finds it due."""
        if message.pending:
            return message
        return evolve(message, next_attempt=int(self.clock()) + _TRY_AGAIN_SECONDS)

    def _leave_to_cron(
        self, claim: ClaimedMessage, message: Message, result: str, exc: SpoolError
    ) -> ClaimedMessage:
        """Record the failure; cron makes the report, which could not be made now."""
        self._complain(message, exc)
        return self.spool.record(claim, self._due_in_cur(message), CUR, result)

    def _keep(
        self, claim: ClaimedMessage, message: Message, state: str, result: str, to: Addressee
    ) -> ClaimedMessage:
        """Leave a failure to the digest: this sender got too many reports within the hour."""
        indexes = report_state.unreported(message)
        failures = (
            {
                "id": message.id,
                "index": index,
                "sender": to.sender,
                "recipient": message.recipients[index].address,
                "reply": message.recipients[index].reply or "",
            }
            for index in indexes
        )
        self._writer.limit.keep(to.address, failures, self.clock())
        reported = report_state.reported(message, indexes, DIGEST)
        return self.spool.record(claim, reported, state, result)

    def before_trying(self, claim: ClaimedMessage) -> ClaimedMessage | None:
        """Finish what a crash interrupted, before a message is tried; None if it must wait.

        Raises SpoolError.
        """
        message = claim.message
        if report_state.REPORT_OF in message.unknown and not self._before_sending(message):
            return None
        report = message.unknown.get(report_state.TELLING)
        if report is None:
            return claim
        if is_id(str(report)) and self.spool.is_whole(str(report)):
            indexes = report_state.unreported(message)
            settled = report_state.reported(message, indexes, str(report))
        else:
            settled = report_state.reported(message, (), "")
        self.log.event("recovered", id=message.id, report=str(report))
        return self.spool.record(claim, _revised(settled, message), CUR)

    def _before_sending(self, report: Message) -> bool:
        """Record in a report's message that it was reported; False if that cannot be done now."""
        subject = str(report.unknown[report_state.REPORT_OF])
        if subject.startswith(f"{REPORTS}/"):
            name = subject.rpartition("/")[2]
            if name.strip("."):
                self._writer.limit.finish(name)
            return True
        if not is_id(subject):
            return True
        try:
            state, message = self.spool.read(subject)
        except (NoSuchMessageError, DamagedMessageError):
            return True
        if message.unknown.get(report_state.TELLING) != report.id:
            # Its sidecar may have been renamed into place just now, and be on no disk yet.
            self.spool.sync(state)
            return True
        claim = self.spool.claim(subject, STATES)
        if claim is None:
            return self._is_damaged(message)
        try:
            message = claim.message
            if message.unknown.get(report_state.TELLING) == report.id:
                indexes = report_state.unreported(message)
                settled = report_state.reported(message, indexes, report.id)
                self.spool.record(claim, _revised(settled, message), claim.state)
                self.log.event("recovered", id=message.id, report=report.id)
        finally:
            claim.release()
        return True

    def _is_damaged(self, message: Message) -> bool:
        """Say whether a message can never be claimed again. Then its report need not wait."""
        try:
            self.spool.check_body(message)
        except DamagedMessageError:
            return True
        return False

    # --- Delays --------------------------------------------------------------------------------

    def record_deferral(
        self, claim: ClaimedMessage, message: Message, result: str
    ) -> ClaimedMessage:
        """Record a message that waits on, and warn its sender if there is reason to.

        Recipients that failed meanwhile are reported first. Raises SpoolError.
        """
        claim = self.record(claim, message, CUR, result)
        doubtful = report_state.untold_doubts(claim.message)
        if doubtful:
            claim = self._warn(claim, doubtful, KIND_IN_DOUBT)
        if self._is_delayed(claim.message):
            waiting = report_state.not_suspended(claim.message)
            if waiting:
                claim = self._warn(claim, waiting, KIND_DELAYED)
        return claim

    def _warn(self, claim: ClaimedMessage, indexes: Indexes, kind: str) -> ClaimedMessage:
        """Report to the sender what is no failure yet, if they want that. Raises SpoolError."""
        message = claim.message
        to = self._addressee_of_warning(message)
        if to is None:
            return claim
        try:
            # A relay that loses all its replies makes a doubt of every mail.
            if kind == KIND_IN_DOUBT and not self._writer.limit.may_report(
                to.address, self.clock()
            ):
                return claim
            incoming = self._writer.write(claim, message, indexes, kind, to.address)
        except SpoolError as exc:
            self._complain(message, exc)
            return claim
        with incoming:
            if kind == KIND_IN_DOUBT:
                warned = report_state.doubt_told(message, indexes, incoming.id)
            else:
                unknown = {**message.unknown, report_state.WARNED: incoming.id}
                warned = evolve(message, unknown=unknown)
            claim = self.spool.record(claim, _revised(warned, message), CUR)
            try:
                incoming.commit(to.sender, [to.address])
            except SpoolError as exc:
                self._complain(message, exc)
                return claim
        self._note_made(message, incoming.id, to, indexes, kind)
        return claim

    def _is_delayed(self, message: Message) -> bool:
        after = self.settings.delaywarning
        return (
            bool(after)
            and self.clock() - message.begins >= (after or 0)
            and report_state.WARNED not in message.unknown
        )

    def _addressee_of_warning(self, message: Message) -> Addressee | None:
        if (
            not self.settings.bounces
            or report_state.TELLING in message.unknown
            or message.sender in ("", DOUBLE_BOUNCE)
            or not report_state.wants_report(message, "DELAY")
        ):
            return None
        return report_state.addressee_of(message, "")

    # --- Digests -------------------------------------------------------------------------------

    def make_digests(self) -> None:
        """Report what was kept because there were too many reports; a digest for each hour.

        Raises SpoolError.
        """
        for name in self._writer.limit.overdue(self.clock()):
            try:
                self._make_digest(name)
            except SpoolError:
                raise
            except Exception as exc:  # noqa: BLE001 - one bad file stops neither reports nor mail
                error = f"{REPORTS}/{name}: no digest can be made of it: {exc!r}; it stays there"
                self.log.event("error", level="error", error=error)

    def _make_digest(self, name: str) -> None:
        limit = self._writer.limit
        with self._writer.new() as incoming:
            overdue = limit.take(name, incoming.id)
            was_made = overdue and overdue.digest and self.spool.is_whole(overdue.digest)
            kept = self._to_be_told(overdue.kept) if overdue and not was_made else ()
            if overdue is None or not kept:
                incoming.abort()
                if overdue is not None and kept is not None:
                    limit.finish(overdue.name)
                return
            sender = str(kept[0].get("sender") or "")
            self._writer.write_digest(incoming, overdue.address, kept)
            subject = f"{REPORTS}/{overdue.name}"
            incoming.commit(sender, [overdue.address], {report_state.REPORT_OF: subject})
        limit.finish(overdue.name)
        self.made.append(incoming.id)
        self.log.event(
            "bounced", id=incoming.id, kind=DIGEST, to=overdue.address, failures=len(kept)
        )

    def _to_be_told(self, kept: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]] | None:
        """Return the failures that the digest has to report; None if that cannot be known now.

        A failure is kept before its message says so. If a program died in between, or the disk did
        not let it go on, the failure is reported when the message is tried again, and not by this
        digest. Raises SpoolError.
        """
        told: dict[str, Message | None] = {}
        for message_id in dict.fromkeys([str(one.get("id")) for one in kept]):
            # Nothing but the digest will report a message that is gone, or an ID that is none.
            told[message_id] = None
            if not is_id(message_id):
                continue
            try:
                _, message = self.spool.read(message_id)
            except (NoSuchMessageError, DamagedMessageError):
                continue
            indexes = [one.get("index") for one in kept if one.get("id") == message_id]
            if not all(_is_in_digest(message, index) for index in indexes):
                # It may be at this step now. Under its lock that can be known.
                claim = self.spool.claim(message_id, STATES)
                if claim is None and not self._is_damaged(message):
                    return None
                if claim is not None:
                    message = claim.message
                    claim.release()
            told[message_id] = message
        return [
            one
            for one in kept
            if (found := told[str(one.get("id"))]) is None or _is_in_digest(found, one.get("index"))
        ]

    # --- The log -------------------------------------------------------------------------------

    def _note_made(
        self, message: Message, report: str, to: Addressee, indexes: Indexes, kind: str
    ) -> None:
        self.made.append(report)
        facts = {"id": message.id, "report": report, "kind": kind, "to": to.address}
        self._to_log.append((facts, message, indexes))

    def log_made(self) -> None:
        """Log the reports made since the last call. In the log they follow the failures."""
        while self._to_log:
            facts, message, indexes = self._to_log.pop(0)
            for start in range(0, len(indexes), RECIPIENTS_LOGGED):
                some = indexes[start : start + RECIPIENTS_LOGGED]
                recipients = [message.recipients[index].address for index in some]
                self.log.event("bounced", **facts, recipients=recipients)

    def _complain(self, message: Message, exc: SpoolError) -> None:
        error = f"cannot report to the sender: {exc}"
        self.log.event("error", level="error", id=message.id, error=error)


def _is_in_digest(message: Message, index: object) -> bool:
    """Say whether a message leaves the report on this recipient to the digest."""
    if type(index) is not int or not 0 <= index < len(message.recipients):
        return True
    return message.recipients[index].unknown.get(report_state.TOLD) == DIGEST


def _revised(message: Message, before: Message) -> Message:
    return evolve(message, revision=before.revision + 1)
