"""Telling senders: reports of failure and of delay, each made once, none forgotten.

The order for a failure, each step durable before the next:

1. The message is recorded in cur/ with its failed recipients, and `telling` names the report's ID.
2. The report, which names the message in `report_of`, is accepted into the spool like any mail.
3. The message is recorded where it belongs (undelivered/, or cur/ if others wait), its failed
   recipients `told`.

A crash after 1 leaves a message in cur/ that cron finds due: the report is made then, unless it
is in the spool. It cannot have been there and be delivered already, because whoever is about to
send a report first does step 3 for its message (`before_sending`). A disk that is full at 2 leaves
the same, and cron tries again. A warning of delay is recorded before it is made: it may be lost
in a crash, but nobody is warned twice.

What writes reports is imported when one is written: most runs write none, and would take a fifth
longer to start. Where it cannot be (an upgrade is under way, a package is missing) it is as with a
disk that is full: the outcome is recorded, and the telling left to cron.
"""

from __future__ import annotations

import errno
import os
import time

from picoqmail.delivery import report_state
from picoqmail.delivery.report_state import KIND_DELAYED, KIND_FAILED
from picoqmail.errors import DamagedMessageError, NoSuchMessageError, SpoolError
from picoqmail.layout import CUR, REPORTS, STATES
from picoqmail.smtp.address import DOUBLE_BOUNCE
from picoqmail.value import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from picoqmail.delivery.report_limit import ReportLimit
    from picoqmail.delivery.report_state import Addressee
    from picoqmail.home.settings import Settings
    from picoqmail.log.logger import Log
    from picoqmail.spool.claim import Claim
    from picoqmail.spool.incoming import Incoming
    from picoqmail.spool.message import Message
    from picoqmail.spool.store import Store

DIGEST = "digest"
"""What `told` says of a failure that waits for the digest of its hour."""

_TRY_AGAIN_SECONDS = 60
_TOOLS = (
    "contextlib",
    "picoqmail.spool.incoming",
    "picoqmail.home.limits",
    "picoqmail.delivery.report_limit",
    "picoqmail.delivery.report_text",
)


class Reporter:
    """Makes the reports of one run; `made` has the IDs of those that are in the spool now."""

    def __init__(
        self, spool: Store, settings: Settings, log: Log, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives Unix seconds."""
        self.spool = spool
        self.settings = settings
        self.log = log
        self.clock = clock
        self.made: list[str] = []
        self._to_log: list[dict[str, Any]] = []

    @property
    def _report_limit(self) -> ReportLimit:
        _load()
        from picoqmail.delivery.report_limit import ReportLimit

        return ReportLimit(self.spool.path, self.settings.bouncelimit)

    # --- Failures ----------------------------------------------------------------------------

    def record(self, claim: Claim, message: Message, state: str, result: str) -> Claim:
        """Record a message in `state`, its sender told of what failed. Raises SpoolError.

        Where the report cannot be made now, the message stays in cur/ for cron.
        """
        indexes = report_state.to_tell(message)
        whom = self._whom(message)
        if not indexes or whom is None:
            return self.spool.record(claim, message, state, result)
        try:
            if not self._report_limit.may_report(whom.address, self.clock()):
                return self._keep(claim, message, state, result, whom)
            incoming = self._write(claim, message, indexes, KIND_FAILED, whom)
        except SpoolError as exc:
            return self._later(claim, message, result, exc)
        with incoming:
            announced = report_state.telling(self._wait(message), incoming.id)
            claim = self.spool.record(claim, announced, CUR, result)
            try:
                incoming.commit(whom.sender, [whom.address], {report_state.REPORT_OF: message.id})
            except SpoolError as exc:
                self._complain(message, exc)
                return claim
        finished = report_state.told(message, indexes, incoming.id)
        claim = self.spool.record(claim, _revised(finished, announced), state)
        self._made(message, incoming.id, whom, indexes, KIND_FAILED)
        return claim

    def _whom(self, message: Message) -> Addressee | None:
        settings = self.settings
        if not settings.bounces or not report_state.wants_report(message, "FAILURE"):
            return None
        return report_state.addressee_of(message, self._double_bounces_to())

    def _double_bounces_to(self) -> str:
        address = self.settings.doublebounceto or ""
        if address and "@" not in address:
            return f"{address}@{self.settings.bouncehost}"
        return address

    def _wait(self, message: Message) -> Message:
        """The message as it lies in cur/ until its report is made: due, for cron to look at."""
        if message.pending:
            return message
        return evolve(message, next_attempt=int(self.clock()) + _TRY_AGAIN_SECONDS)

    def _later(self, claim: Claim, message: Message, result: str, exc: SpoolError) -> Claim:
        """Record the failure, and leave the telling to cron: the report could not be made."""
        self._complain(message, exc)
        return self.spool.record(claim, self._wait(message), CUR, result)

    def _keep(
        self, claim: Claim, message: Message, state: str, result: str, whom: Addressee
    ) -> Claim:
        """Leave a failure to the digest: this sender was told too often within the hour."""
        indexes = report_state.to_tell(message)
        failures: list[dict[str, Any]] = [
            {
                "id": message.id,
                "index": index,
                "sender": whom.sender,
                "recipient": message.recipients[index].address,
                "reply": message.recipients[index].reply or "",
            }
            for index in indexes
        ]
        self._report_limit.keep(whom.address, failures, self.clock())
        return self.spool.record(claim, report_state.told(message, indexes, DIGEST), state, result)

    def before_trying(self, claim: Claim) -> Claim | None:
        """Finish what a crash interrupted, before a message is tried; None if it must wait.

        Raises SpoolError.
        """
        message = claim.message
        if report_state.REPORT_OF in message.unknown and not self._before_sending(message):
            return None
        report = message.unknown.get(report_state.TELLING)
        if report is None:
            return claim
        if self.spool.is_whole(str(report)):
            settled = report_state.told(message, report_state.to_tell(message), str(report))
        else:
            settled = report_state.told(message, (), "")
        self.log.event("recovered", id=message.id, report=str(report))
        return self.spool.record(claim, _revised(settled, message), CUR)

    def _before_sending(self, report: Message) -> bool:
        """See to it that a report's message knows that it was told; False if it cannot now."""
        subject = str(report.unknown[report_state.REPORT_OF])
        if subject.startswith(f"{REPORTS}/"):
            self._report_limit.finish(f"{self.spool.path}/{REPORTS}/{os.path.basename(subject)}")
            return True
        try:
            state, message = self.spool.read(subject)
        except (NoSuchMessageError, DamagedMessageError):
            return True
        if message.unknown.get(report_state.TELLING) != report.id:
            # Its record may have been renamed into place this moment, and be on no disk yet.
            self.spool.sync(state)
            return True
        claim = self.spool.claim(subject, STATES)
        if claim is None:
            return self._is_damaged(message)
        try:
            message = claim.message
            if message.unknown.get(report_state.TELLING) == report.id:
                settled = report_state.told(message, report_state.to_tell(message), report.id)
                self.spool.record(claim, _revised(settled, message), claim.state)
                self.log.event("recovered", id=message.id, report=report.id)
        finally:
            claim.release()
        return True

    def _is_damaged(self, message: Message) -> bool:
        """Say whether a message can never be claimed again: then its report waits for nothing."""
        try:
            self.spool.check_body(message)
        except DamagedMessageError:
            return True
        return False

    # --- Delays ------------------------------------------------------------------------------

    def record_deferral(self, claim: Claim, message: Message, result: str) -> Claim:
        """Record a message that waits on, its sender warned if the time for that has come.

        Recipients that failed meanwhile are told of first. Raises SpoolError.
        """
        claim = self.record(claim, message, CUR, result)
        message = claim.message
        whom = self._whom_to_warn(message)
        if whom is None:
            return claim
        try:
            incoming = self._write(claim, message, message.pending, KIND_DELAYED, whom)
        except SpoolError as exc:
            self._complain(message, exc)
            return claim
        with incoming:
            warned = evolve(message, unknown={**message.unknown, report_state.WARNED: incoming.id})
            claim = self.spool.record(claim, _revised(warned, message), CUR)
            try:
                incoming.commit(whom.sender, [whom.address])
            except SpoolError as exc:
                self._complain(message, exc)
                return claim
        self._made(message, incoming.id, whom, message.pending, KIND_DELAYED)
        return claim

    def _whom_to_warn(self, message: Message) -> Addressee | None:
        after = self.settings.delaywarning
        if (
            not after
            or not self.settings.bounces
            or self.clock() - message.begins < after
            or report_state.WARNED in message.unknown
            or report_state.TELLING in message.unknown
            or message.sender in ("", DOUBLE_BOUNCE)
            or not report_state.wants_report(message, "DELAY")
        ):
            return None
        return report_state.addressee_of(message, "")

    # --- Digests -----------------------------------------------------------------------------

    def make_digests(self) -> None:
        """Tell what was kept while too much was told, an hour at a time. Raises SpoolError."""
        for path in self._report_limit.overdue(self.clock()):
            self._make_digest(path)

    def _make_digest(self, path: str) -> None:
        with self._incoming() as incoming:
            from picoqmail.delivery import report_text

            overdue = self._report_limit.take(path, incoming.id)
            done_already = overdue and overdue.digest and self.spool.is_whole(overdue.digest)
            if overdue is None or not overdue.kept or done_already:
                incoming.abort()
                if overdue is not None:
                    self._report_limit.finish(overdue.path)
                return
            sender = str(overdue.kept[0].get("sender") or "")
            text = report_text.digest(
                incoming.id,
                overdue.address,
                overdue.kept,
                host=self.settings.me,
                author=self._author(),
                now=int(self.clock()),
            )
            incoming.write(text)
            subject = f"{REPORTS}/{os.path.basename(overdue.path)}"
            incoming.commit(sender, [overdue.address], {report_state.REPORT_OF: subject})
        self._report_limit.finish(overdue.path)
        self.made.append(incoming.id)
        self.log.event(
            "bounced", id=incoming.id, kind=DIGEST, to=overdue.address, failures=len(overdue.kept)
        )

    # --- Writing -----------------------------------------------------------------------------

    def _incoming(self) -> Incoming:
        _load()
        from picoqmail.home.limits import Limits
        from picoqmail.spool.incoming import Incoming

        # A report must get through where mail is refused: the limits of acceptance do not hold.
        limits = Limits(self.settings.me, queuelifetime=self.settings.queuelifetime)
        return Incoming(
            self.spool.path,
            limits,
            program="picoqmail-bounce",
            uid=os.getuid(),
            pid=os.getpid(),
            now_ns=int(self.clock() * 1_000_000_000),
        )

    def _author(self) -> str:
        return f"{self.settings.bouncefrom}@{self.settings.bouncehost}"

    def _write(
        self,
        claim: Claim,
        message: Message,
        indexes: tuple[int, ...],
        kind: str,
        whom: Addressee,
    ) -> Incoming:
        """Write a report into tmp/, its lock ours; nobody sees it yet. Raises SpoolError."""
        header = _header_of(claim)
        whole = kind == KIND_FAILED and self._returns_all(message)
        incoming = self._incoming()
        # Late, as all that only reports need.
        from contextlib import ExitStack

        from picoqmail.delivery import report_text

        try:
            with ExitStack() as undo:
                undo.enter_context(incoming)
                report = report_text.Report(
                    id=incoming.id,
                    kind=kind,
                    message=message,
                    indexes=indexes,
                    host=self.settings.me,
                    author=self._author(),
                    to=whom.address,
                    now=int(self.clock()),
                    header=header,
                    whole=whole,
                    eight_bit=claim.eight_bit if whole else not header.isascii(),
                )
                # 128 random bits: no message can hold them by chance or by guessing.
                before, after = report_text.frame(report, f"=_{os.urandom(16).hex()}")
                incoming.write(before)
                for block in claim.blocks() if whole else (header,):
                    incoming.write(block)
                incoming.write(after)
                undo.pop_all()
        except SpoolError:
            raise
        except OSError as exc:
            raise SpoolError("read the message", message.id, exc) from exc
        return incoming

    def _returns_all(self, message: Message) -> bool:
        """Whether the message itself goes back: RET of RFC 3461 4.3, up to bouncemaxbytes."""
        dsn = message.unknown.get("dsn")
        ret = str(dsn.get("ret") or "").upper() if isinstance(dsn, dict) else ""
        return ret != "HDRS" and message.size <= self.settings.bouncemaxbytes

    def _made(
        self,
        message: Message,
        report: str,
        whom: Addressee,
        indexes: tuple[int, ...],
        kind: str,
    ) -> None:
        self.made.append(report)
        recipients = [message.recipients[index].address for index in indexes]
        facts = {"id": message.id, "report": report, "kind": kind, "to": whom.address}
        self._to_log.append({**facts, "recipients": recipients})

    def tell(self) -> None:
        """Log the reports made since the last time: after the failures that they are about."""
        while self._to_log:
            self.log.event("bounced", **self._to_log.pop(0))

    def _complain(self, message: Message, exc: SpoolError) -> None:
        self.log.event(
            "error", level="error", id=message.id, error=f"cannot tell the sender: {exc}"
        )


def _load() -> None:
    """Import what reports are made with. Raises SpoolError where that fails."""
    name = "picoqmail.importing"
    try:
        from picoqmail.importing import importing

        with importing:
            for name in _TOOLS:
                __import__(name)
    except Exception as exc:
        # Missing, cut, of another version, no descriptor left: what a relay has answered must be
        # recorded all the same, or it would be asked again.
        why = OSError(errno.ELIBACC, f"what writes reports cannot be loaded ({exc})")
        raise SpoolError("tell the sender", name, why) from exc


def _revised(message: Message, before: Message) -> Message:
    return evolve(message, revision=before.revision + 1)


def _header_of(claim: Claim) -> bytes:
    """The header of a message as spooled, cut where it is larger than any header should be."""
    data = b""
    for block in claim.blocks():
        data += block
        end = data.find(b"\n\n")
        if end >= 0:
            return data[: min(end + 1, report_state.HEADER_LIMIT_OCTETS)]
        if len(data) > report_state.HEADER_LIMIT_OCTETS:
            break
    return data[: report_state.HEADER_LIMIT_OCTETS]
