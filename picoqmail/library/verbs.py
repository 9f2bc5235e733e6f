"""What the library can do with mail that is in the spool: the verbs of the command line.

Thin: each is a call of what the command line calls too (`selection`, `admin`, `status`, `run`),
imported when it is used, for a program that only enqueues needs none of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from picoqmail.errors import NoSuchMessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from picoqmail.admin.change import Admin, VerbResult
    from picoqmail.admin.selection import Entry
    from picoqmail.admin.status import Status
    from picoqmail.delivery.deliver import Summary
    from picoqmail.home.paths import Home
    from picoqmail.store.protocol import Store

    Listener = Callable[[str, dict[str, object]], None]


class Verbs:
    """The verbs of one home's spool. All of them raise SpoolError where the disk fails.

    Only the owner of the spool can use them; another user gets SpoolError, too. Root gets
    ConfigurationError in a spool that is not root's own.
    """

    @property
    def home(self) -> Home:
        """The home of the spool."""
        raise NotImplementedError

    def list(  # noqa: PLR0913 - one argument a condition
        self,
        *states: str,
        sender: str = "",
        recipient: str = "",
        error: str = "",
        older_than: int | None = None,
        younger_than: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Entry]:
        """Yield the messages that meet all conditions, oldest first, each read on request.

        `states` are of new, cur, undelivered, held, in_doubt, damaged; none is all of them.
        `sender` and `recipient` are an address, `@domain`, or a pattern with `*` and `?`; `error`
        is a part of what a relay said; ages are in seconds. What goes meanwhile is left out.
        """
        from picoqmail.admin.selection import KINDS, Filter, select

        for one in states:
            if one not in KINDS:
                raise ValueError(f"{one!r} is not a state; there are {', '.join(KINDS)}")
        wanted = Filter(states, sender, recipient, error, older_than, younger_than)
        return select(self._store(), wanted, newest_first=newest_first)

    def get(self, message_id: str) -> Entry:
        """Return one message as it is at this moment. Raises NoSuchMessageError."""
        from picoqmail.admin.selection import entry_of

        spool = self._store()
        return entry_of(spool, spool.find(message_id))

    def explain(self, message_id: str) -> str:
        """Return where a message is, why, and what will become of it, in sentences, a line each.

        Raises NoSuchMessageError.
        """
        from picoqmail.admin.explain import explain_message

        spool = self._store()
        return explain_message(spool, spool.find(message_id), spool.clock())[1]

    def body(self, message_id: str) -> Iterator[bytes]:
        """Return the octets of a message as spooled, in blocks, our Received line first.

        Raises NoSuchMessageError; DamagedMessageError where they are missing.
        """
        spool = self._store()
        return spool.body(spool.find(message_id))

    def result(self, message_id: str) -> str:
        """Return what relays said of a message so far. Raises NoSuchMessageError."""
        spool = self._store()
        return spool.read_result(spool.find(message_id))

    def status(self) -> Status:
        """Return counts, ages, outages and active programs."""
        from picoqmail.admin.status import gather
        from picoqmail.store.opening import open_store

        home = self._own_home()
        return gather(home, open_store(home))

    def retry(self, message_id: str) -> VerbResult:
        """Make a deferred message due now; one that may have arrived goes out once more.

        Raises NoSuchMessageError, as do the following.
        """
        return self._told(message_id, lambda admin: admin.retry)

    def hold(self, message_id: str) -> VerbResult:
        """Keep a message from being sent until it is released."""
        return self._told(message_id, lambda admin: admin.hold)

    def release(self, message_id: str) -> VerbResult:
        """Let a held message go."""
        return self._told(message_id, lambda admin: admin.release)

    def requeue(self, message_id: str) -> VerbResult:
        """Give a message that failed for good a new life, for the recipients that failed."""
        return self._told(message_id, lambda admin: admin.requeue)

    def delete(self, message_id: str) -> VerbResult:
        """Remove a message, whatever its state; no report is sent."""
        return self._told(message_id, lambda admin: admin.delete)

    def deliver(
        self,
        ids: Iterable[str] | None = None,
        *,
        forced: bool = False,
        on_event: Listener | None = None,
    ) -> Summary:
        """Deliver within this process, which waits for the relay: for tests and for workers.

        Without `ids`, all that is due. `forced` tries messages that are not due, and past an open
        breaker. `on_event` is called with each event's name and facts instead of the log; what
        it raises passes through after the messages under way were recorded. Safe beside every
        other sender. Raises ConfigurationError.
        """
        from picoqmail.delivery.run import Run
        from picoqmail.layout import CUR, NEW

        events = None
        if on_event is not None:
            from picoqmail.log.listening import Listening

            events = Listening(on_event)
        run = Run(self._own_home(), "python", signals=False, events=events)
        if ids is None:
            ids = run.spool.due(sys.maxsize, (NEW, CUR))
        run.deliver([run.spool.find(one) for one in ids], forced=forced)
        if events is not None:
            events.raise_what_came()
        return run.summary

    def _store(self) -> Store:
        from picoqmail.store.opening import open_store

        return open_store(self._own_home())

    def _own_home(self) -> Home:
        """Return the home. Raises ConfigurationError if root would work in another user's spool."""
        from picoqmail.home.owner import refuse_root_in_spool

        home = self.home
        refuse_root_in_spool(home)
        return home

    def _told(
        self, message_id: str, verb: Callable[[Admin], Callable[[str], VerbResult]]
    ) -> VerbResult:
        from picoqmail.admin.change import GONE, Admin
        from picoqmail.home.limits import read_limits

        home = self._own_home()
        admin = Admin.of(home, read_limits(home).queuelifetime)
        outcome = verb(admin)(admin.spool.find(message_id))
        admin.finish()
        if outcome.result == GONE:
            raise NoSuchMessageError(f"{message_id}: no such message in {self.home.spool}")
        return outcome
