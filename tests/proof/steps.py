"""The steps of the state machine: each runs in its own child process, which may die in it.

A step runs the real library. Death is real too: the process ends before a chosen file operation.
Its locks are released, but nothing is cleaned up. An audit hook (sys.addaudithook) counts the
operations, so no part of the package is patched.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from picoqmail.admin.change import Admin
from picoqmail.delivery.deliver import Delivery
from picoqmail.home.limits import Limits
from picoqmail.home.paths import Home
from picoqmail.home.settings import load
from picoqmail.log.logger import open_log
from picoqmail.relay.lane_options import LaneSummary
from picoqmail.smtp.reply import Reply
from picoqmail.smtp.transaction import UNTRIED, RecipientResult, RelayFault, Verdict
from picoqmail.spool import scan
from picoqmail.spool.incoming import Incoming
from picoqmail.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.delivery.deliver import Outbox
    from picoqmail.smtp.transaction import Transaction

DIED = 99
BUG = 98
_EVENTS = frozenset({"open", "os.rename", "os.link", "os.remove", "os.chmod", "os.utime"})

Plan = tuple[str, ...]
"""What the relay does to the recipients of a transaction, in turn: delivered, deferred, failed; or,
as its first word, fault or in_doubt."""


@frozen
class Ledger:
    """The relay's record: lines of a file, each written at once, so that it survives any death."""

    path: str

    def write(self, message_id: str, address: str) -> None:
        """Record a delivery."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{message_id} {address}\n".encode())
        os.close(descriptor)

    def read(self) -> list[tuple[str, str]]:
        """Return all deliveries, in order."""
        try:
            with open(self.path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        return [(one.split(" ")[0], one.split(" ")[1]) for one in lines]


@define
class Child:
    """A running step; `wait` returns its exit code and its output (JSON)."""

    pid: int
    reader: int

    def wait(self) -> tuple[int, Any]:
        """Wait until the step ends."""
        with os.fdopen(self.reader, "rb") as file:
            said = file.read()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == BUG:
            raise AssertionError(said.decode(errors="replace"))
        return code, json.loads(said) if said else None


def start(step: Callable[[], object], die_before: int = 0) -> Child:
    """Run a step in a child process; with `die_before` n it dies before its n-th file operation."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Child(pid, reader)
    code = BUG
    try:
        os.close(reader)
        if die_before:
            _die_before(die_before)
        said = json.dumps(step())
        os.write(writer, said.encode())
        code = 0
    except BaseException:  # noqa: BLE001 - told to the parent, which raises it
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _die_before(operation: int) -> None:
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in _EVENTS:
            return
        path = str(arguments[0]) if arguments else ""
        if event == "open" and "/spool" not in path:
            return
        left -= 1
        if not left:
            os._exit(DIED)

    sys.addaudithook(hook)


@frozen
class Steps:
    """The steps on one home, at one time of its clock."""

    root: str
    now: float

    @property
    def home(self) -> Home:
        """The home."""
        return Home(self.root)

    @property
    def ledger(self) -> Ledger:
        """The relay's books, outside the home."""
        return Ledger(f"{self.root}.ledger")

    def spool(self) -> DirectoryStore:
        """The spool, on this clock."""
        return DirectoryStore(f"{self.root}/spool", clock=lambda: self.now)

    def enqueue(self, recipients: Sequence[str], delay: int) -> str:
        """Accept a message; returns its ID."""
        incoming = Incoming(
            f"{self.root}/spool",
            Limits("proof.test", queuelifetime=100000),
            program="proof",
            uid=os.getuid(),
            pid=os.getpid(),
            now_ns=int(self.now * 1e9),
        )
        incoming.write(b"Subject: proof\n\nThe text.\n")
        extra = {"next_attempt": int(self.now) + delay} if delay else None
        return incoming.commit("from@here.test", list(recipients), extra)

    def attempt(self, plan: Plan, *, forced: bool) -> list[str]:
        """Run over new/ and the due part of cur/, as cron does; return the busy messages."""
        settings = load(self.home)
        log = open_log(settings.log, self.home.spool, program="proof")
        spool = self.spool()
        now = self.now
        sights = {state: scan.look(spool.path, state, now) for state in ("new", "cur")}
        old = scan.leftovers(spool.path, now, sights) + scan.undelivered_leftovers(spool.path, now)
        spool.sweep(old)
        ids = sorted({*sights["new"].due, *sights["cur"].due, *sights["cur"].sidecars})
        delivery = Delivery(
            spool, settings, log, lambda boxes: _converse(boxes, plan, self.ledger), lambda: now
        )
        delivery.deliver(ids, forced=forced)
        return sorted(delivery.busy)

    def change(self, verb: str, message_id: str) -> str:
        """Apply an administrator's verb to a message; return its result."""
        admin = Admin(self.spool(), 100000)
        outcome = getattr(admin, verb)(message_id)
        admin.finish()
        result: str = outcome.result
        return result


def _converse(boxes: Sequence[Outbox], plan: Plan, ledger: Ledger) -> list[LaneSummary]:
    """Act as the relay of these outboxes, as the plan says."""
    summaries = []
    for box in boxes:
        fault: RelayFault | None = None
        count = 0
        while transaction := box.take():
            verdict = _answer(transaction, plan[count % len(plan) :] + plan, ledger)
            count += 1
            box.done(transaction, verdict)
            fault = verdict.fault or fault
            if count > 50:
                break
        summaries.append(
            LaneSummary(
                box.name,
                reached=True,
                gave_up=False,
                fault=fault,
                connections=1,
                too_fast=False,
            )
        )
    return summaries


def _answer(transaction: Transaction, plan: Plan, ledger: Ledger) -> Verdict:
    untried = (UNTRIED,) * len(transaction.recipients)
    said = ("C: .",)
    if plan[0] == "fault":
        broken = RelayFault("mail", "the connection was lost")
        return Verdict(untried, broken, in_doubt=False, transcript=said, relay="relay")
    results = []
    transaction.mark_in_doubt()
    for index, _address in enumerate(transaction.recipients):
        outcome = plan[index % len(plan)]
        results.append(_RESULTS.get(outcome, _RESULTS["delivered"]))
    taken = [
        address
        for address, result in zip(transaction.recipients, results, strict=True)
        if result.outcome == "delivered"
    ]
    message_id = _id_of(transaction)
    for address in taken:
        ledger.write(message_id, address)
    if plan[0] == "in_doubt":
        cut = RelayFault("final-dot", "the connection was lost")
        return Verdict(untried, cut, in_doubt=True, transcript=said, relay="relay")
    return Verdict(tuple(results), None, in_doubt=False, transcript=said, relay="relay")


def _id_of(transaction: Transaction) -> str:
    part: Any = transaction.key
    message_id: str = part.work.claim.message.id
    return message_id


_RESULTS = {
    "delivered": RecipientResult("delivered", Reply(250, "2.0.0", ("ok",)), "250 2.0.0 ok"),
    "deferred": RecipientResult("deferred", Reply(451, "4.3.0", ("later",)), "451 4.3.0 later"),
    "failed": RecipientResult("failed", Reply(550, "5.1.1", ("no",)), "550 5.1.1 no"),
}
