"""One run of a sending program on one home: its settings, log and spool; it obeys signals."""

from __future__ import annotations

import _signal
from functools import partial
from itertools import zip_longest

from picoqmail.delivery import processes
from picoqmail.delivery.deliver import Delivery, Summary
from picoqmail.delivery.lanes import Lanes
from picoqmail.delivery.report import Reporter
from picoqmail.errors import (
    ConfigurationError,
    DamagedMessageError,
    NoSuchMessageError,
    SpoolError,
)
from picoqmail.home import settings as settings_module
from picoqmail.home.limits import Limits
from picoqmail.home.paths import exists
from picoqmail.layout import CUR, DROP, NEW, STATES, UNDELIVERED
from picoqmail.ledger import counters
from picoqmail.log.logger import open_log
from picoqmail.store.directory import DirectoryStore
from picoqmail.store.opening import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from picoqmail.home.control import Control
    from picoqmail.home.paths import Home
    from picoqmail.log.logger import Log
    from picoqmail.spool.claim import Damage

# So much of each user's mail is taken from the drop at once. Then it is sent, and all users have
# their turn again: nobody's thousands of messages keep another's waiting.
COLLECTED_A_USER = 50
# How many messages one process sends to a relay that was down, before others join it.
_PROBE_MESSAGES = 50


class Run:
    """What a sending program does in its life; the library makes one for each call.

    `summary` counts what became of the messages.
    """

    def __init__(
        self,
        home: Home,
        program: str,
        *,
        signals: bool = True,
        events: Log | None = None,
        control: Control | None = None,
    ) -> None:
        """Load what is needed. Raises ConfigurationError if a setting is wrong.

        With `signals`, SIGTERM and SIGINT end the run soon: messages under way are finished and
        recorded. In the process of an application there are no `signals`, and `events` may be the
        log to write to. `program` is named in the log. `control` as for read_limits.
        """
        self.home = home
        self.signals = signals
        self.summary = Summary()
        self.settings = settings_module.load(home, control)
        self._workers: list[processes.Worker] = []
        self.look: Callable[[], list[str]] | None = None
        """Returns the IDs of messages that have come since, if this run has to send them, too."""
        self._logs_in = False
        self._users: dict[str, object] = {}
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
        self.spool = open_store(
            home, on_damage=self._on_damage, on_copy=self._on_copy, control=control
        )
        self._lanes = Lanes(self.settings, self.log, self.spool)
        for number in (_signal.SIGTERM, _signal.SIGINT) if signals else ():
            _signal.signal(number, lambda *_: self._stop())

    def _stop(self) -> None:
        self._lanes.stop()
        for worker in self._workers:
            worker.stop()

    def _demand_password(self) -> None:
        """Refuse to run if a relay is given a user, but there is no password."""
        settings = self.settings
        routes = [settings.relayip]
        routes += [route.relays for route in (*settings.smtproutes, *settings.senderroutes)]
        for relay in (one for relays in routes for one in relays):
            self._logs_in = self._logs_in or bool(relay.user)
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
        """Try to deliver these messages, and the reports on those that fail.

        Returns the messages that another process has. Raises SpoolError.
        """
        ids = list(ids)
        busy: set[str] = set()
        is_unsure = self._logs_in or self._outages()
        if self._count_processes(len(ids)) > 1 and is_unsure:
            # One process finds out whether the relay is back, or whether it knows our password:
            # several would try a wrong one several times.
            busy |= self._deliver_share(ids[:_PROBE_MESSAGES], forced=forced)
            ids = ids[_PROBE_MESSAGES:]
            if self._outages():
                return busy | self._deliver_share(ids, forced=forced)
        return busy | self._deliver_shares(ids, self._count_processes(len(ids)), forced=forced)

    def _outages(self) -> bool:
        return bool(self.spool.routes().read())

    def _count_processes(self, messages: int) -> int:
        """How many processes to use: one in an application's process, or with a rate limit."""
        if not self.signals or self.settings.ratelimit is not None:
            return 1
        worth = (
            processes.MESSAGES_WORTH_A_PROCESS
            if isinstance(self.spool, DirectoryStore)
            else processes.MESSAGES_OF_A_DATABASE_WORTH_A_PROCESS
        )
        return processes.useful_processes(messages, self.settings.concurrencyremote, worth)

    def _deliver_shares(self, ids: list[str], count: int, *, forced: bool) -> set[str]:
        """Divide the messages among processes, by age, and add up what became of them."""
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
                    # No more processes can be started; this one does it, only later.
                    own += share
            if self.stopped:
                # The signal may have come before the last of them was there.
                self._stop()
            busy |= self._deliver_share(own, unserved, forced=forced)
            busy |= self._deliver_meanwhile()
        finally:
            for worker in self._workers:
                busy |= self._add_up(worker, unserved)
            self._workers.clear()
            self._lanes.shares = 1
        if count > 1 and unserved and not self.stopped and not self._outages():
            # The relay serves one process and turns another away: it wants fewer connections.
            self.summary.left -= len(unserved)
            busy |= self._deliver_share(sorted(unserved), forced=forced)
        return busy

    def _deliver_meanwhile(self) -> set[str]:
        """Deliver what comes while the other processes are still at work."""
        busy: set[str] = set()
        while self.look is not None and not self.stopped and not processes.await_all(self._workers):
            if ids := self.look():
                busy |= self._deliver_share(ids, forced=False)
        return busy

    def _work(self, ids: list[str], forced: bool, is_orphan: Callable[[], bool]) -> object:  # noqa: FBT001
        """Deliver a share in a process of its own; return what became of it."""
        self._workers.clear()
        self.look = None
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

    def _add_up(self, worker: processes.Worker, unserved: list[str]) -> set[str]:
        """Add to the summary what a worker did; return the messages that it found busy."""
        try:
            done = worker.wait()
        except (OSError, ValueError) as exc:
            # Its messages are as any crash leaves them: whole, and for the next run.
            self.summary.errors += 1
            self.log.event("error", level="error", error=str(exc))
            return set()
        for name, count in done["summary"].items():
            setattr(self.summary, name, getattr(self.summary, name) + count)
        unserved += done["unserved"]
        return set(done["busy"])

    def _deliver_share(
        self, ids: Iterable[str], unserved: list[str] | None = None, *, forced: bool
    ) -> set[str]:
        """Deliver messages, and add to `unserved` those whose relay could not be reached."""
        delivery = self._deliver(ids, self.summary, forced=forced)
        if unserved is not None:
            unserved += delivery.unserved
        self._deliver_reports(delivery.reporter.made, forced=forced)
        return delivery.busy

    def collect(self) -> int:
        """Take a share of each user's mail from the drop into new/; return how many messages.

        What prevents that is logged: it is no reason to leave the mail alone that is in the spool.
        """
        limits = Limits(
            self.settings.me,
            databytes=self.settings.databytes,
            queuelifetime=self.settings.queuelifetime,
        )
        try:
            if not isinstance(self.spool, DirectoryStore):
                from picoqmail.store.forwarding import forward

                return len(forward(self.home, self.spool, limits, self._on_trouble))
            return len(self.spool.collect(limits, COLLECTED_A_USER, self._on_trouble))
        except OSError as exc:
            self._on_trouble(str(exc))
            return 0

    def take_turns(self, ids: Iterable[str]) -> list[str]:
        """Put messages into the order in which they go out: all users have their turns.

        Within the mail of each user the order stays. Nothing is changed in a home of one user.
        """
        if not exists(f"{self.home.spool}/{DROP}"):
            return list(ids)
        by_user: dict[object, list[str]] = {}
        for one in ids:
            by_user.setdefault(self._user_of(one), []).append(one)
        return [one for turn in zip_longest(*by_user.values()) for one in turn if one is not None]

    def _user_of(self, message_id: str) -> object:
        if message_id not in self._users:
            try:
                uid = self.spool.read(message_id)[1].origin.get("uid")
            except (DamagedMessageError, NoSuchMessageError, SpoolError):
                uid = None  # Whoever claims it reports what is wrong.
            self._users[message_id] = uid if type(uid) is int else None
        return self._users[message_id]

    def _on_trouble(self, trouble: str) -> None:
        self.summary.errors += 1
        self.log.event("error", level="error", error=trouble)

    def sweep_drop(self, paths: Iterable[str]) -> None:
        """Unlink leftovers in the drop."""
        from picoqmail.spool.collect import sweep

        for path in sweep(paths):
            self.log.event("swept", path=path)

    def make_digests(self) -> None:
        """Make and send digests of failures that were kept because there were too many reports.

        Raises SpoolError.
        """
        reporter = Reporter(self.spool, self.settings, self.log, self.spool.clock)
        try:
            reporter.make_digests()
        finally:
            self._deliver_reports(reporter.made, forced=False)

    def purge(self) -> None:
        """Delete what has lain in undelivered/ for longer than keepundelivered allows.

        Raises SpoolError.
        """
        days = self.settings.keepundelivered
        purged = self.spool.purge(days * 86400) if days else 0
        if purged:
            self.log.event("purged", messages=purged)

    def _deliver(self, ids: Iterable[str], summary: Summary, *, forced: bool) -> Delivery:
        delivery = Delivery(
            self.spool,
            self.settings,
            self.log,
            self._lanes.serve,
            # That of the store: hosts that share one may have clocks that differ.
            clock=self.spool.clock,
            stop=self._lanes.is_stopped,
        )
        delivery.summary = summary
        if self.look is not None:
            delivery.look = self.look
            delivery.take_turns = self.take_turns
            self._lanes.look = delivery.look_for_more
            self._lanes.is_shared = exists(f"{self.home.spool}/{DROP}")
        before = _counts(summary)
        try:
            delivery.deliver(ids, forced=forced)
        finally:
            self._lanes.look = None
            summary.bounced += len(delivery.reporter.made)
            self._count(before, _counts(summary))
        return delivery

    def _deliver_reports(self, made: list[str], *, forced: bool) -> None:
        """Send the reports that were made, because they came into new/ after it was read.

        What becomes of them does not count in the summary. This ends: the report on a report goes
        to doublebounceto at most, and there is none on that.
        """
        while made and not self.stopped:
            made = self._deliver(made, Summary(), forced=forced).reporter.made

    def _count(self, before: dict[str, int], after: dict[str, int]) -> None:
        counts = {name: after[name] - before[name] for name in after}
        try:
            self.spool.totals.add(counts, int(self.spool.clock()))
        except OSError as exc:
            # The mail goes on; only the figures lack something.
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
        """Unlink leftovers. What cannot be unlinked is logged, and keeps no mail back."""
        gone, trouble = self.spool.sweep(paths)
        for path in gone:
            self.log.event("swept", path=path)
        for exc in trouble:
            self.log.event("error", level="error", error=str(exc))

    def find(self, names: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the messages that these IDs or paths name.

        Also returns the names of those that cannot be sent, each with the reason.
        """
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
