"""The way of mail from the library into the spool, in groups that share their syncs.

`Entrance.enqueue` is the loop over groups; a `Group` makes the steps: check, write, lock the keys,
put on disk, write the keys down, make visible. INTERNALS.md says in which order, and why.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attrs import define, evolve, field, frozen

from picoqmail import durable
from picoqmail.errors import ConfigurationError, MessageError, PicoqmailError, SpoolError
from picoqmail.home.database import database_of
from picoqmail.importing import importing
from picoqmail.layout import IDEMPOTENCY, TMP
from picoqmail.library.mail import Outcomes, Receipt
from picoqmail.library.orders import check
from picoqmail.library.threads import abreast
from picoqmail.library.undoing import OnError
from picoqmail.message.fingerprint import Fingerprint
from picoqmail.spool.incoming import Incoming, publish
from picoqmail.spool.keys import KeyRecord, refuse_reuse
from picoqmail.spool.syncfs import LEAST_MESSAGES, open_for_sync
from picoqmail.submission.handover import program_in_front
from picoqmail.submission.start_sender import start_sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from picoqmail.home.control import Control
    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.library.mail import Mail, Outcome
    from picoqmail.library.orders import Order
    from picoqmail.spool.syncfs import FileSystemSync

PROGRAM = "python"
# A group shares its syncs. It is bounded because each message keeps a descriptor open, and a
# process may have no more than 1024. Besides, none is accepted before the last one is on disk.
GROUP_MESSAGES = 128
GROUP_OCTETS = 8 * 1024 * 1024
# Once a group has this many messages, the free descriptors are counted.
_COUNT_AT_MESSAGES = 16
# For groups whose file system has no sync that can be trusted with all of them.
_THREADS = 8
_LEAST_FOR_THREADS = 8


@frozen(eq=False)
class Draft:
    """An order whose body is written into tmp/. `fingerprint` is for its key, "" without one."""

    order: Order
    incoming: Any
    """What the store of the home calls a message on its way in (store/protocol.py)."""
    fingerprint: str
    created: int

    @property
    def receipt(self) -> Receipt:
        """The receipt that is returned once it is accepted."""
        return Receipt(
            id=self.incoming.id,
            sender=self.order.sender,
            recipients=tuple(self.order.recipients),
            size=self.incoming.size,
            created=self.created,
            next_attempt=self.order.extra.get("next_attempt", self.created),
        )

    def check_key(self, record: KeyRecord, found: dict[str, Any]) -> None:
        """Raise KeyReusedError if its key stands for another message, and that matters."""
        if not self.order.key_decides:
            record.check(found, self.fingerprint)

    def put_on_disk(self, *, synced: bool = True) -> PicoqmailError | None:
        """Put body and sidecar on disk, in tmp/ still; return the error instead of raising it."""
        order = self.order
        try:
            self.incoming.prepare(order.sender, order.recipients, order.extra, synced=synced)
        except PicoqmailError as exc:
            return exc
        return None

    def begin(self) -> PicoqmailError | None:
        """Have the disk begin with body and sidecar; return the error instead of raising it."""
        order = self.order
        try:
            self.incoming.begin(order.sender, order.recipients, order.extra)
        except PicoqmailError as exc:
            return exc
        return None

    def finish(self) -> PicoqmailError | None:
        """Wait until body and sidecar are on disk; return the error instead of raising it."""
        try:
            self.incoming.finish()
        except PicoqmailError as exc:
            return exc
        return None

    def unpark(self) -> PicoqmailError | None:
        """Open a prepared message again; return the error instead of raising it."""
        try:
            self.incoming.unpark()
        except PicoqmailError as exc:
            return exc
        return None


class Prepared(Protocol):
    """A message that `Entrance.prepare` has put on disk."""

    def take(self) -> Draft:
        """Hand it over, once. Raises MessageError."""


@define(eq=False)
class Entrance:
    """The way of one call of the library into one spool; its settings are read once.

    `key_lifetime_seconds` is called if a key is used. `send`: start the sender after acceptances.
    `control` is the home's, which the limits were read from. The caller has refused root (owner.py)
    where that is due.
    """

    home: Home
    limits: Limits
    key_lifetime_seconds: Callable[[], int]
    send: bool
    control: Control
    program: str = field(init=False)
    """The home's queue program, if mail has to go through that, else ""."""
    database: tuple[str, str] = field(init=False)
    """The URL of the database that keeps the mail, and what names it; "" if none does."""

    def __attrs_post_init__(self) -> None:
        """Find out which way mail goes. Raises ConfigurationError if there is none."""
        self.program = program_in_front(self.home, is_safe=True)
        self.database = ("", "") if self.program else database_of(self.home, self.control)

    def need_the_spool(self, what: str) -> None:
        """Raise ConfigurationError where mail goes through the home's queue program."""
        if self.program:
            raise ConfigurationError(
                self.home.spool,
                f"only a process that may write to the spool can {what}",
                "run as the owner of the spool, or enqueue without that",
            )

    def enqueue(self, mails: Iterable[Mail]) -> Outcomes:
        """Accept mails, a group at a time; return an outcome for each, in order."""
        outcomes = Outcomes()
        for some in _in_groups(mails):
            together = None
            if len(some) >= LEAST_MESSAGES and not (self.program or self.database[0]):
                # Before the first body: it reports only errors from now on.
                together = open_for_sync(f"{self.home.spool}/{TMP}")
            with self._kind(self, together) as group:
                for mail in some:
                    group.add(mail)
                outcomes += group.accept()
        return outcomes

    def commit(self, prepared: Iterable[Prepared]) -> Outcomes:
        """Accept prepared messages, a group at a time; return an outcome for each, in order."""
        outcomes = Outcomes()
        for some in _in_groups(prepared):
            with self._kind(self, are_prepared=True) as group:
                for one in some:
                    group.take(one)
                outcomes += group.accept()
        return outcomes

    @property
    def _kind(self) -> type[Group]:
        return DatabaseGroup if self.database[0] else Group

    def prepare(self, mail: Mail) -> Draft:
        """Put a message on disk, to be accepted later; its key is only checked."""
        self.need_the_spool("prepare a message")
        draft = self.write(self.order(mail))
        order = draft.order
        with ExitStack() as undo:
            undo.enter_context(draft.incoming)
            self._check_key(draft)
            draft.incoming.prepare(order.sender, order.recipients, order.extra)
            undo.pop_all()
        return draft

    def order(self, mail: Mail) -> Order:
        """Check everything about a mail that can be checked before a file exists."""
        return check(mail, time.time(), self.limits.queuelifetime, self.limits.host)

    def _check_key(self, draft: Draft) -> None:
        """Raise KeyReusedError at once if the key already stands for something else."""
        if draft.order.key is not None and self.database[0]:
            with importing:
                from picoqmail.store.opening import shared_database

            known = shared_database(*self.database).find_key(draft.order.key)
            if known is not None and not draft.order.key_decides:
                refuse_reuse(draft.order.key, known, draft.fingerprint)
        elif draft.order.key is not None:
            record = KeyRecord(self.home.spool, draft.order.key)
            try:
                found = record.find(time.time())
                if found is not None:
                    draft.check_key(record, found)
            finally:
                record.close()

    def write(self, order: Order) -> Draft:
        """Write the body of a message into tmp/; if that fails, none of it is left."""
        with closing(order.content):
            fingerprint = Fingerprint() if order.key is not None else None
            now_ns = time.time_ns()
            incoming = self._begin(now_ns)
            with OnError(incoming.abort):
                for block in order.content.blocks():
                    incoming.write(block)
                    if fingerprint is not None:
                        fingerprint.update(block)
        said = "" if fingerprint is None else fingerprint.of(order.sender, order.recipients)
        return Draft(order, incoming, said, now_ns // 1_000_000_000)

    def _begin(self, now_ns: int) -> Any:  # noqa: ANN401 - see Draft
        uid, pid = os.getuid(), os.getpid()
        if self.database[0]:
            with importing:
                from picoqmail.store.acceptance import begin_in_database

            return begin_in_database(
                self.home,
                *self.database,
                self.limits,
                program=PROGRAM,
                uid=uid,
                pid=pid,
                any_umask=True,
            )
        return Incoming(
            self.home.spool,
            self.limits,
            program=PROGRAM,
            uid=uid,
            pid=pid,
            now_ns=now_ns,
            any_umask=True,
        )

    def delegate(self, order: Order) -> Receipt:
        """Hand a message to the home's queue program.

        Raises QueueProgramError, InputError, ConfigurationError for what it cannot carry.
        """
        with importing:
            from picoqmail.submission.queue_program import QueueProgram, spawned

        size = 0
        now = int(time.time())
        with closing(order.content):
            if order.needs_the_spool:
                self.need_the_spool("use not_before, expires or an idempotency key")
            start = spawned(self.program, self.home, send=self.send)
            with QueueProgram(self.program, start) as queue:
                for block in order.content.blocks():
                    queue.write(block)
                    size += len(block)
                queue.commit(order.sender.encode(), [one.encode() for one in order.recipients])
        return Receipt("", order.sender, tuple(order.recipients), size, now, now)


Item = TypeVar("Item")


def _in_groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Cut items into lists of as many as may go together."""
    most = GROUP_MESSAGES
    some: list[Item] = []
    for one in items:
        some.append(one)
        if len(some) == _COUNT_AT_MESSAGES:
            most = _most_together()
        if len(some) >= most:
            yield some
            some = []
    if some:
        yield some


def _most_together() -> int:
    """Return how many messages a group may have: two descriptors each, half of the free ones."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return GROUP_MESSAGES
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        # No descriptor is free to count them with, or the system has no /proc.
        used = limit // 2
    return max(_COUNT_AT_MESSAGES, min(GROUP_MESSAGES, (limit - used) // 4))


def repeated_receipt(receipt: Receipt, found: Mapping[str, Any]) -> Receipt:
    """Return the receipt of the message that a key stands for already."""
    return evolve(
        receipt,
        id=found["id"],
        size=found.get("size", 0),
        created=found.get("created", 0),
        next_attempt=found.get("next_attempt", 0),
        repeated=True,
    )


@define(eq=False)
class Group:
    """Messages that are accepted together; the end of its `with` block takes back all others.

    `together` was opened before any of the bodies was written; the group closes it.
    `are_prepared`: body and sidecar of every message are on disk already.
    """

    entrance: Entrance
    together: FileSystemSync | None = None
    are_prepared: bool = False
    _outcomes: list[Outcome | None] = field(factory=list)
    _drafts: dict[int, Draft] = field(factory=dict)
    """What is written and not accepted yet, by index in `_outcomes`."""
    _octets: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for draft in self._drafts.values():
            draft.incoming.abort()
        if self.together is not None:
            self.together.close()

    def add(self, mail: Mail) -> None:
        """Check and write one message; accept what the group has if that is much."""
        index = len(self._outcomes)
        self._outcomes.append(None)
        try:
            order = self.entrance.order(mail)
            if self.entrance.program:
                self._outcomes[index] = self.entrance.delegate(order)
            else:
                self._drafts[index] = draft = self.entrance.write(order)
                self._octets += draft.incoming.size
        except Exception as exc:  # noqa: BLE001 - the outcome of this one message
            self._outcomes[index] = exc
        if self._octets > GROUP_OCTETS:
            self.accept()

    def take(self, prepared: Prepared) -> None:
        """Take one prepared message over."""
        try:
            self._drafts[len(self._outcomes)] = prepared.take()
            self._outcomes.append(None)
        except MessageError as exc:
            self._outcomes.append(exc)

    def accept(self) -> Outcomes:
        """Make all drafts durable and visible; return the outcomes of all messages, in order.

        An error of one message is its outcome alone; if a shared step fails, it is that of all. A
        message with the same key as another one is accepted after that.
        """
        while self._drafts:
            first: dict[str | int, int] = {}
            for index, draft in self._drafts.items():
                # Messages without a key do not wait for each other.
                first.setdefault(index if draft.order.key is None else draft.order.key, index)
            self._accept(list(first.values()))
        self._octets = 0
        return Outcomes(one for one in self._outcomes if one is not None)

    def _accept(self, indexes: list[int]) -> None:
        with ExitStack() as locked:
            records = self._lock_keys(indexes, locked)
            ready = self._left(indexes)
            together = self.together
            if together is not None and together.pays(len(ready)):
                self._put_on_disk_together(ready, together)
            else:
                together = None
                self._put_on_disk(ready)
            self._publish(self._left(ready), records, together)

    def _left(self, indexes: list[int]) -> list[int]:
        """Return which of these have no outcome yet."""
        return [index for index in indexes if index in self._drafts]

    def _end(self, index: int, outcome: Outcome) -> None:
        """Note the outcome of a message; unless it was committed, take it back."""
        self._drafts.pop(index).incoming.abort()
        self._outcomes[index] = outcome

    def _lock_keys(self, indexes: list[int], locked: ExitStack) -> dict[int, KeyRecord]:
        """Lock the keys, all callers in the same order, so that no two wait for each other.

        If a key already stands for a message, that decides the outcome of its draft.
        """
        keyed = [
            (draft.order.key, index)
            for index, draft in ((index, self._drafts[index]) for index in indexes)
            if draft.order.key is not None
        ]
        records = {}
        for key, index in sorted(keyed):
            draft = self._drafts[index]
            try:
                record = KeyRecord(self.entrance.home.spool, key)
                locked.callback(record.close)
                found = record.find(time.time())
                if found is None:
                    records[index] = record
                    continue
                draft.check_key(record, found)
            except PicoqmailError as exc:
                self._end(index, exc)
                continue
            self._end(index, repeated_receipt(draft.receipt, found))
        return records

    def _put_on_disk(self, indexes: list[int]) -> None:
        """Sync body and sidecar of every draft by itself."""
        drafts = [self._drafts[index] for index in indexes]
        if self.are_prepared:
            self._end_with_errors(indexes, [one.unpark() for one in drafts])
        elif len(drafts) == 1:
            self._end_with_errors(indexes, [one.put_on_disk() for one in drafts])
        else:
            # The disk begins with all of them, and each fsync finds its work done or nearly done.
            self._end_with_errors(indexes, [one.begin() for one in drafts])
            self._finish(self._left(indexes))

    def _finish(self, indexes: list[int]) -> None:
        """Wait until these drafts are on disk, whose writing has begun."""
        drafts = [self._drafts[index] for index in indexes]
        if len(drafts) < _LEAST_FOR_THREADS:
            errors = [one.finish() for one in drafts]
        else:
            # Syncs that wait at the same time are done together, and a file system with a journal
            # writes that once for all of them.
            errors = abreast(Draft.finish, drafts, _THREADS)
        self._end_with_errors(indexes, errors)

    def _end_with_errors(self, indexes: list[int], errors: Sequence[PicoqmailError | None]) -> None:
        for index, error in zip(indexes, errors, strict=True):
            if error is not None:
                self._end(index, error)

    def _put_on_disk_together(self, indexes: list[int], together: FileSystemSync) -> None:
        """Sync body, sidecar and names of all drafts at once."""
        for index in indexes:
            error = self._drafts[index].put_on_disk(synced=False)
            if error is not None:
                self._end(index, error)
        try:
            together.sync()
        except OSError as exc:
            # It is unknown which data could not be written.
            path = f"{self.entrance.home.spool}/{TMP}"
            for index in self._left(indexes):
                self._end(index, SpoolError("make the messages durable in", path, exc))

    def _publish(
        self, indexes: list[int], records: dict[int, KeyRecord], together: FileSystemSync | None
    ) -> None:
        """Write down what the keys are going to stand for, then make the messages visible."""
        keyed = [index for index in indexes if index in records]
        with ExitStack() as undo:
            for index in keyed:
                undo.callback(_forget, records[index], self._drafts[index].incoming)
            try:
                self._promise(keyed, records, together)
            except OSError as exc:
                undo.close()
                path = f"{self.entrance.home.spool}/{IDEMPOTENCY}"
                for index in keyed:
                    self._end(index, SpoolError("keep the idempotency key in", path, exc))
            accepted = {index: self._drafts[index] for index in self._left(indexes)}
            try:
                publish([one.incoming for one in accepted.values()])
            except SpoolError as exc:
                undo.close()
                for index in accepted:
                    self._end(index, exc)
                return
        for index, draft in accepted.items():
            self._end(index, draft.receipt)
            if index in records:
                _note_arrival(records[index])
        is_due = any("next_attempt" not in one.order.extra for one in accepted.values())
        if is_due and self.entrance.send:
            start_sender(self.entrance.home, time.time())

    def _promise(
        self, keyed: list[int], records: dict[int, KeyRecord], together: FileSystemSync | None
    ) -> None:
        """Write down what the keys are going to stand for. Raises OSError.

        The names in tmp/ are made durable first; if `together` was used, they are so already.
        """
        if not keyed:
            return
        spool = self.entrance.home.spool
        expires = int(time.time()) + self.entrance.key_lifetime_seconds()
        if together is None:
            durable.sync_directory(f"{spool}/{TMP}")
        for index in keyed:
            draft = self._drafts[index]
            receipt = draft.receipt
            records[index].intend(
                {
                    "id": draft.incoming.id,
                    "fingerprint": draft.fingerprint,
                    "size": receipt.size,
                    "created": receipt.created,
                    "next_attempt": receipt.next_attempt,
                    "expires": expires,
                },
                synced=together is None,
            )
        if together is None:
            durable.sync_directory(f"{spool}/{IDEMPOTENCY}")
        else:
            together.sync()


class DatabaseGroup(Group):
    """Messages that are accepted together into a database, in one transaction.

    A message with an idempotency key needs the database, which alone knows the keys of all hosts:
    the host's directory does not take it while the database is away.
    """

    def _accept(self, indexes: list[int]) -> None:
        plain = [index for index in indexes if self._drafts[index].order.key is None]
        if plain:
            self._publish_all(plain)
        for index in self._left(indexes):
            self._publish_keyed(index)

    def _publish_all(self, indexes: Sequence[int]) -> None:
        drafts = {index: self._drafts[index] for index in indexes}
        try:
            for draft in drafts.values():
                order = draft.order
                if not self.are_prepared:
                    draft.incoming.seal(order.sender, order.recipients, order.extra)
            with importing:
                from picoqmail.store.acceptance import publish_group

            publish_group([draft.incoming for draft in drafts.values()])
        except PicoqmailError as exc:
            for index in indexes:
                self._end(index, exc)
            return
        for index, draft in drafts.items():
            self._end(index, draft.receipt)
        is_due = any("next_attempt" not in one.order.extra for one in drafts.values())
        if is_due and self.entrance.send:
            start_sender(self.entrance.home, time.time())

    def _publish_keyed(self, index: int) -> None:
        draft = self._drafts[index]
        order = draft.order
        try:
            if not self.are_prepared:
                draft.incoming.seal(order.sender, order.recipients, order.extra)
            with importing:
                from picoqmail.store.acceptance import publish_with_key

            found = publish_with_key(
                draft.incoming,
                str(order.key),
                fingerprint=draft.fingerprint,
                lifetime=self.entrance.key_lifetime_seconds(),
                key_decides=order.key_decides,
            )
        except PicoqmailError as exc:
            self._end(index, exc)
            return
        if found is not None:
            self._end(index, repeated_receipt(draft.receipt, found))
            return
        self._end(index, draft.receipt)
        if "next_attempt" not in order.extra and self.entrance.send:
            start_sender(self.entrance.home, time.time())


def _forget(record: KeyRecord, incoming: Incoming) -> None:
    """Take a record back, unless its message was committed."""
    if incoming.committed:
        return
    try:
        record.forget()
    except OSError:
        # The disk that refuses this has refused the message too. What is left says that the
        # message is on its way; its readers check whether it is in the spool.
        return


def _note_arrival(record: KeyRecord) -> None:
    try:
        record.arrived()
    except OSError:
        # The same is found out by looking (keys.py).
        return
