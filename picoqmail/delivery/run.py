"""One run of delivery on one home: settings, log and spool put together, signals obeyed."""

from __future__ import annotations

import signal
import time
from functools import partial

from picoqmail.delivery import processes
from picoqmail.delivery.deliver import Delivery, Summary
from picoqmail.delivery.lanes import Lanes
from picoqmail.delivery.report import Reporter
from picoqmail.errors import ConfigurationError, NoSuchMessageError, SpoolError
from picoqmail.home import settings as settings_module
from picoqmail.layout import CUR, NEW, STATES, UNDELIVERED
from picoqmail.log.logger import open_log
from picoqmail.relay import breaker
from picoqmail.spool import counters, retention
from picoqmail.spool.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from picoqmail.home.paths import Home
    from picoqmail.log.logger import Log
    from picoqmail.spool.claim import Damage

# How many messages the first process takes to a relay that was down, before others join it.
_PROBE_MESSAGES = 50


class Run:
    """Made once a program."""

    def __init__(
        self, home: Home, program: str, *, signals: bool = True, events: Log | None = None
    ) -> None:
        """Load what is needed. Raises ConfigurationError where a setting is wrong.

        SIGTERM and SIGINT end it soon: messages under way are finished and recorded. Within
        somebody else's process it takes no `signals`, and may be given the `events` log to write
        to. `program` is named in the log.
        """
        self.home = home
        self.signals = signals
        self.summary = Summary()
        self.settings = settings_module.load(home)
        self._workers: list[processes.Worker] = []
        if not (self.settings.relayip or self.settings.smtproutes or self.settings.senderroutes):
            raise ConfigurationError(
                f"{self.home.control}/relayip",
                "names no relay to send to",
                "write host:port there, or run: picoqmail init --relay RELAY",
            )
        self._demand_password()
        self.log = events or open_log(
            self.settings.log,
            home.spool,
            program=program,
            privacy=self.settings.logprivacy,
        )
        self.spool = Store(home.spool, on_damage=self._on_damage, on_copy=self._on_copy)
        self._lanes = Lanes(self.settings, self.log, home.spool)
        for number in (signal.SIGTERM, signal.SIGINT) if signals else ():
            signal.signal(number, lambda *_: self._stop())

    def _stop(self) -> None:
        self._lanes.stop()
        for worker in self._workers:
            worker.stop()

    def _demand_password(self) -> None:
        """Send nothing without the login that a relay was given a user for."""
        settings = self.settings
        ways = [settings.relayip]
        ways += [route.relays for route in (*settings.smtproutes, *settings.senderroutes)]
        for relay in (one for way in ways for one in way):
            if relay.user and settings.relaypass is None:
                raise ConfigurationError(
                    f"{self.home.control}/relaypass",
                    f"is not there, and {relay} is to be logged in to as {relay.user}",
                    "write the password there, mode 0600, or take the user away from the relay",
                )

    @property
    def stopped(self) -> bool:
        """Whether a signal asked this run to end."""
        return self._lanes.is_stopped()

    def _on_damage(self, damage: Damage) -> None:
        self.summary.damaged += 1
        self.log.event("damaged", level="error", id=damage.id, reason=damage.reason)

    def _on_copy(self, path: str) -> None:
        self.log.event("swept", path=path)

    def deliver(self, ids: Iterable[str], *, forced: bool = False) -> set[str]:
        """Try to deliver these, and the reports of those that fail.

        Returns those that another process has. Raises SpoolError.
        """
        ids = list(ids)
        busy: set[str] = set()
        if self._count_processes(len(ids)) > 1 and breaker.read(self.spool.path):
            # One process finds out whether the relay is back.
            busy |= self._deliver_share(ids[:_PROBE_MESSAGES], forced=forced)
            ids = ids[_PROBE_MESSAGES:]
            if breaker.read(self.spool.path):
                return busy | self._deliver_share(ids, forced=forced)
        return busy | self._deliver_shares(ids, self._count_processes(len(ids)), forced=forced)

    def _count_processes(self, messages: int) -> int:
        """How many processes shall deliver: one in somebody else's, or at a limited rate."""
        if not self.signals or self.settings.ratelimit is not None:
            return 1
        return processes.useful_processes(messages, self.settings.concurrencyremote)

    def _deliver_shares(self, ids: list[str], count: int, *, forced: bool) -> set[str]:
        """Deal the messages out, by age, and hear what became of them."""
        own = ids[::count]
        self._lanes.shares = count
        busy: set[str] = set()
        unserved: list[str] = []
        try:
            for number in range(1, count):
                share = ids[number::count]
                try:
                    self._workers.append(processes.start_worker(partial(self._work, share, forced)))
                except OSError:
                    # No process to be had: it is done here, only later.
                    own += share
            if self.stopped:
                # Perhaps before the last of them could be told.
                self._stop()
            busy |= self._deliver_share(own, unserved, forced=forced)
        finally:
            for worker in self._workers:
                busy |= self._hear(worker, unserved)
            self._workers.clear()
            self._lanes.shares = 1
        if count > 1 and unserved and not self.stopped and not breaker.read(self.spool.path):
            # The relay serves one of us and turns another away: it wants fewer connections.
            self.summary.left -= len(unserved)
            busy |= self._deliver_share(sorted(unserved), forced=forced)
        return busy

    def _work(self, ids: list[str], forced: bool, is_orphan: Callable[[], bool]) -> object:  # noqa: FBT001
        """Deliver a share in a process of its own."""
        self._workers.clear()
        self.summary = Summary()
        self._lanes.is_orphan = is_orphan
        busy: set[str] = set()
        unserved: list[str] = []
        try:
            busy = self._deliver_share(ids, unserved, forced=forced)
        except SpoolError as exc:
            self.summary.errors += 1
            self.log.event("error", level="error", error=str(exc))
        return {"summary": vars(self.summary), "busy": sorted(busy), "unserved": unserved}

    def _hear(self, worker: processes.Worker, unserved: list[str]) -> set[str]:
        """Add what another process did to what this one did; returns what was busy there."""
        try:
            told = worker.wait()
        except (OSError, ValueError) as exc:
            # Its messages are as any crash leaves them: whole, and for the next run.
            self.summary.errors += 1
            self.log.event("error", level="error", error=str(exc))
            return set()
        for name, count in told["summary"].items():
            setattr(self.summary, name, getattr(self.summary, name) + count)
        unserved += told["unserved"]
        return set(told["busy"])

    def _deliver_share(
        self, ids: Iterable[str], unserved: list[str] | None = None, *, forced: bool
    ) -> set[str]:
        """Deliver them, and add to `unserved` those whose relay was not to be reached."""
        delivery = self._deliver(ids, self.summary, forced=forced)
        if unserved is not None:
            unserved += delivery.unserved
        self._deliver_reports(delivery.reporter.made, forced=forced)
        return delivery.busy

    def make_digests(self) -> None:
        """Tell, in one mail each, what was kept while too much was told. Raises SpoolError."""
        reporter = Reporter(self.spool, self.settings, self.log)
        try:
            reporter.make_digests()
        finally:
            self._deliver_reports(reporter.made, forced=False)

    def purge(self) -> None:
        """Delete what has lain in undelivered/ for longer than keepundelivered has it.

        Raises SpoolError.
        """
        days = self.settings.keepundelivered
        purged = retention.purge(self.spool, days * 86400) if days else 0
        if purged:
            self.log.event("purged", messages=purged)

    def _deliver(self, ids: Iterable[str], summary: Summary, *, forced: bool) -> Delivery:
        delivery = Delivery(
            self.spool, self.settings, self.log, self._lanes, stop=self._lanes.is_stopped
        )
        delivery.summary = summary
        before = _counts(summary)
        try:
            delivery.run(ids, forced=forced)
        finally:
            summary.bounced += len(delivery.reporter.made)
            self._count(before, _counts(summary))
        return delivery

    def _deliver_reports(self, made: list[str], *, forced: bool) -> None:
        """Send the reports that a run made: they came after its look at new/.

        What becomes of them is no outcome of the run. It ends: a report that fails is told to
        doublebounceto at most, and that to nobody.
        """
        while made and not self.stopped:
            made = self._deliver(made, Summary(), forced=forced).reporter.made

    def _count(self, before: dict[str, int], after: dict[str, int]) -> None:
        counts = {name: after[name] - before[name] for name in after}
        try:
            counters.add(self.home.spool, counts, int(time.time()))
        except OSError as exc:
            # Mail goes on; only who watches it sees less.
            self.log.event("error", level="warning", error=f"cannot count in the spool: {exc}")

    def settle(self, ids: Iterable[str]) -> None:
        """Finish moves to undelivered/ that power loss cut short. Raises SpoolError."""
        for one in ids:
            if claim := self.spool.claim(one, STATES):
                try:
                    self.spool.gather(claim)
                finally:
                    claim.release()
        self.spool.flush()

    def sweep(self, paths: Iterable[str]) -> None:
        """Unlink leftovers; what would not go is told, and keeps no mail back."""
        gone, trouble = self.spool.sweep(paths)
        for path in gone:
            self.log.event("swept", path=path)
        for exc in trouble:
            self.log.event("error", level="error", error=str(exc))

    def find(self, names: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """The IDs that IDs or paths name, and of those that cannot be sent the name and why."""
        found, refused = [], []
        for name in names:
            try:
                message_id = self.spool.find(name)
            except NoSuchMessageError as exc:
                refused.append((name, str(exc)))
                continue
            states = self.spool.where(message_id)
            if NEW not in states and CUR not in states and UNDELIVERED in states:
                refused.append(
                    (name, f"{message_id} has failed for good; use: picoqmail requeue {message_id}")
                )
            else:
                found.append(message_id)
        return list(dict.fromkeys(found)), refused


def _counts(summary: Summary) -> dict[str, int]:
    return {name: getattr(summary, name) for name in counters.NAMES}
