"""Mail of the library on its way into the spool: checked, written, promised, made visible.

Between `api`, which callers see, and `accept`, which does the same for octets alone. Several
messages go the last steps together and share their syncs; idempotency keys are written down before.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from picoqmail import durable
from picoqmail.errors import (
    ConfigurationError,
    EnvelopeError,
    MessageError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.importing import importing
from picoqmail.layout import IDEMPOTENCY, NEW, TMP
from picoqmail.library.mail import Receipt
from picoqmail.library.threads import abreast
from picoqmail.message import envelope
from picoqmail.message.addresses import read_one
from picoqmail.message.content import Content, is_email_object, open_content
from picoqmail.message.header_envelope import HeaderEnvelope
from picoqmail.spool.incoming import Incoming, publish
from picoqmail.spool.keys import KeyRecord, name_of
from picoqmail.spool.sidecar import NOT_BEFORE
from picoqmail.submission.handover import may_spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.library.mail import Mail, Outcome
    from picoqmail.spool.syncfs import FileSystemSync

PROGRAM = "python"
# For groups whose file system has no sync to be trusted with all of them.
_THREADS = 8
_LEAST_FOR_THREADS = 8


@frozen(eq=False)
class Order:
    """A Mail whose envelope and times were checked: nothing of it has touched the disk."""

    sender: str
    recipients: list[str]
    content: Content
    key: str | None
    extra: dict[str, Any]


@frozen(eq=False)
class Draft:
    """An order whose body is written."""

    order: Order
    incoming: Incoming
    fingerprint: str
    created: int

    @property
    def receipt(self) -> Receipt:
        """What is told of it once it is accepted."""
        return Receipt(
            id=self.incoming.id,
            sender=self.order.sender,
            recipients=tuple(self.order.recipients),
            size=self.incoming.size,
            created=self.created,
            next_attempt=self.order.extra.get("next_attempt", self.created),
        )


@frozen(eq=False)
class Acceptance:
    """One call's way into one spool: settings read once."""

    home: Home
    limits: Limits
    _key_lifetime: Callable[[], int]
    may_spool: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Look which way mail goes. Raises ConfigurationError if there is none."""
        ours = may_spool(self.home.spool)
        object.__setattr__(self, "may_spool", ours)
        if not ours and not os.access(self._queue_program, os.X_OK):
            for path in (self.home.spool, *(f"{self.home.spool}/{one}" for one in (NEW, TMP))):
                if not os.path.isdir(path):
                    raise ConfigurationError(
                        path, "is not there, or no directory", "make it with: picoqmail init"
                    )
            raise ConfigurationError(
                self.home.spool,
                "you may not write to this spool, and its home has no bin/qmail-queue",
                "ask for picoqmail init to be run again by the spool's owner",
            )

    @property
    def _queue_program(self) -> str:
        return f"{self.home.bin}/qmail-queue"

    def need_the_spool(self, what: str) -> None:
        """Raise ConfigurationError where mail goes through the home's queue program."""
        if not self.may_spool:
            raise ConfigurationError(
                self.home.spool,
                f"only who may write to the spool has a say here: {what}",
                "run as its owner, or enqueue without that",
            )

    def order(self, mail: Mail) -> Order:
        """Check everything that can be checked before a file exists."""
        now = time.time()
        extra = self._times(mail, now)
        if mail.idempotency_key is not None:
            name_of(mail.idempotency_key)
        if extra or mail.idempotency_key is not None:
            self.need_the_spool("not_before, expires and idempotency keys are kept there")
        sender = _checked_sender(mail.sender)
        recipients = _checked_recipients(mail.recipients)
        message = mail.message
        header = HeaderEnvelope.of_object(message) if is_email_object(message) else None
        content = None
        try:
            if header is None:
                content = open_content(mail.message)
                if sender is None or recipients is None:
                    header = HeaderEnvelope.of_fields(content.fields())
                if recipients is None:
                    content.drop_bcc()
            if header is not None and sender is None:
                sender = envelope.check_sender(header.sender())
            if header is not None and recipients is None:
                recipients = envelope.check_recipients(header.recipients())
            if content is None:
                international = not all(
                    one.isascii() for one in (sender or "", *(recipients or ()))
                )
                content = open_content(mail.message, utf8=international)
        except BaseException:
            if content is not None:
                content.close()
            raise
        return Order(sender or "", recipients or [], content, mail.idempotency_key, extra)

    def _times(self, mail: Mail, now: float) -> dict[str, Any]:
        """The keys of the sidecar that follow from the times asked for."""
        extra: dict[str, Any] = {}
        start = now
        if mail.not_before is not None:
            start = _moment("not_before", mail.not_before, now)
            if start > now:
                # Rounded up: not before is not before.
                extra["next_attempt"] = extra[NOT_BEFORE] = int(-(-start // 1))
                extra["expires"] = extra["next_attempt"] + self.limits.queuelifetime
        if mail.expires is not None:
            end = _moment("expires", mail.expires, now)
            if end <= max(start, now):
                raise MessageError(
                    "expires is not after "
                    + ("not_before" if start > now else "now")
                    + ": the message would never be tried"
                )
            extra["expires"] = int(end)
        return extra

    def write(self, order: Order) -> Draft:
        """Write the body into tmp/; nothing is left of it if that fails."""
        incoming: Incoming | None = None
        try:
            digest = order.content.fingerprint() if order.key is not None else None
            now_ns = time.time_ns()
            incoming = Incoming(
                self.home.spool,
                self.limits,
                program=PROGRAM,
                uid=os.getuid(),
                pid=os.getpid(),
                now_ns=now_ns,
                any_umask=True,
            )
            for block in order.content.blocks(digest):
                incoming.write(block)
        except BaseException:
            if incoming is not None:
                incoming.abort()
            raise
        finally:
            order.content.close()
        fingerprint = ""
        if digest is not None:
            digest.update(envelope.encode_envelope(order.sender, order.recipients))
            fingerprint = digest.hexdigest()
        return Draft(order, incoming, fingerprint, now_ns // 1_000_000_000)

    def delegate(self, order: Order, *, send: bool) -> Receipt:
        """Hand a message to the home's queue program. Raises QueueProgramError, InputError."""
        with importing:
            from picoqmail.submission.queue_spawn import SpawnedQueue

        size = 0
        now = int(time.time())
        queue = SpawnedQueue(
            self._queue_program, self.home, order.sender, order.recipients, send=send
        )
        try:
            for block in order.content.blocks():
                queue.write(block)
                size += len(block)
        except BaseException:
            queue.abort()
            raise
        finally:
            order.content.close()
        queue.commit()
        return Receipt(None, order.sender, tuple(order.recipients), size, now, now)

    def prepare(self, order: Order) -> Draft:
        """Put a message on disk, to be accepted later; a key is only looked at."""
        draft = self.write(order)
        try:
            self._check_key(draft)
            draft.incoming.prepare(order.sender, order.recipients, order.extra)
        except BaseException:
            draft.incoming.abort()
            raise
        return draft

    def _check_key(self, draft: Draft) -> None:
        """Raise KeyReusedError at once if the key already stands for something else."""
        if draft.order.key is not None:
            record = KeyRecord(self.home.spool, draft.order.key)
            try:
                found = record.find(time.time())
                if found is not None:
                    record.check(found, draft.fingerprint)
            finally:
                record.close()

    def accept(
        self,
        drafts: dict[int, Draft],
        together: FileSystemSync | None = None,
        *,
        prepared: bool = False,
    ) -> dict[int, Outcome]:
        """Make drafts durable and visible, in one group; each key is in it once.

        What fails alone is told alone; if a shared step fails, it fails for all. `together` was
        opened before any of the bodies; `prepared`: body and sidecar are on disk already.
        """
        outcomes: dict[int, Outcome] = {}
        with ExitStack() as held:
            try:
                records = self._lock_keys(drafts, held, outcomes)
                ready = {}
                for index, draft in drafts.items():
                    if index in outcomes:
                        draft.incoming.abort()
                    else:
                        ready[index] = draft
                if together is not None and not together.pays(len(ready)):
                    together = None
                if together is not None:
                    self._put_on_disk_together(ready, outcomes, together)
                else:
                    self._put_on_disk(ready, outcomes, prepared=prepared)
                self._promise(ready, records, outcomes, together)
            except BaseException:
                for draft in drafts.values():
                    draft.incoming.abort()
                raise
            promised = [records[index] for index in ready if index in records]
            try:
                publish([one.incoming for one in ready.values()], lambda: _forget(promised))
            except SpoolError as exc:
                outcomes.update(dict.fromkeys(ready, exc))
            else:
                outcomes.update((index, one.receipt) for index, one in ready.items())
                for record in promised:
                    _note_arrival(record)
        return outcomes

    @staticmethod
    def _put_on_disk(
        ready: dict[int, Draft], outcomes: dict[int, Outcome], *, prepared: bool
    ) -> None:
        """Sync body and sidecar of every draft by itself; what fails moves to `outcomes`."""
        drafts = list(ready.values())
        if prepared:
            results = [_unpark(one) for one in drafts]
        elif len(drafts) < _LEAST_FOR_THREADS:
            results = [_prepare(one) for one in drafts]
        else:
            # The disk has a queue of its own: syncs that wait at the same time are done together,
            # and a file system with a journal writes that once for all of them.
            results = abreast(_prepare, drafts, _THREADS)
        for index, error in zip(list(ready), results, strict=True):
            if error is not None:
                outcomes[index] = error
                del ready[index]

    def _put_on_disk_together(
        self, ready: dict[int, Draft], outcomes: dict[int, Outcome], together: FileSystemSync
    ) -> None:
        """Body, sidecar and names of all drafts at once; what fails moves to `outcomes`."""
        for index, draft in list(ready.items()):
            error = _prepare(draft, synced=False)
            if error is not None:
                outcomes[index] = error
                del ready[index]
        try:
            together.sync()
        except OSError as exc:
            # Whose data it was that could not be written nobody can tell.
            refused = SpoolError("make the messages durable in", f"{self.home.spool}/{TMP}", exc)
            for index in list(ready):
                ready.pop(index).incoming.abort()
                outcomes[index] = refused

    def _lock_keys(
        self, drafts: dict[int, Draft], held: ExitStack, outcomes: dict[int, Outcome]
    ) -> dict[int, KeyRecord]:
        """Take the keys in hand, all callers in the same order, so that no two wait for each other.

        What a key already stands for becomes the outcome of its draft.
        """
        keyed = [
            (one.order.key, index) for index, one in drafts.items() if one.order.key is not None
        ]
        records = {}
        for key, index in sorted(keyed):
            draft = drafts[index]
            try:
                record = KeyRecord(self.home.spool, key)
                held.callback(record.close)
                found = record.find(time.time())
                if found is None:
                    records[index] = record
                    continue
                record.check(found, draft.fingerprint)
                outcomes[index] = evolve(
                    draft.receipt,
                    id=found["id"],
                    size=found.get("size", 0),
                    created=found.get("created", 0),
                    next_attempt=found.get("next_attempt", 0),
                    repeated=True,
                )
            except PicoqmailError as exc:
                outcomes[index] = exc
        return records

    def _promise(
        self,
        ready: dict[int, Draft],
        records: dict[int, KeyRecord],
        outcomes: dict[int, Outcome],
        together: FileSystemSync | None,
    ) -> None:
        """Write down what the keys are going to stand for, before any of it becomes visible.

        The names in tmp/ are durable first: if `together` was used, they are so already.
        """
        keyed = [index for index in ready if index in records]
        if not keyed:
            return
        lifetime = self._key_lifetime()
        try:
            if together is None:
                durable.sync_directory(f"{self.home.spool}/{TMP}")
            for index in keyed:
                draft = ready[index]
                receipt = draft.receipt
                records[index].intend(
                    {
                        "id": draft.incoming.id,
                        "fingerprint": draft.fingerprint,
                        "size": receipt.size,
                        "created": receipt.created,
                        "next_attempt": receipt.next_attempt,
                        "expires": int(time.time()) + lifetime,
                    },
                    synced=together is None,
                )
            if together is None:
                durable.sync_directory(f"{self.home.spool}/{IDEMPOTENCY}")
            else:
                together.sync()
        except OSError as exc:
            _forget([records[index] for index in keyed])
            for index in keyed:
                ready.pop(index).incoming.abort()
                path = f"{self.home.spool}/{IDEMPOTENCY}"
                outcomes[index] = SpoolError("keep the idempotency key in", path, exc)
        except BaseException:
            _forget([records[index] for index in keyed])
            raise


def _prepare(draft: Draft, *, synced: bool = True) -> PicoqmailError | None:
    """Put a draft on disk; its error is its outcome."""
    order = draft.order
    try:
        draft.incoming.prepare(order.sender, order.recipients, order.extra, synced=synced)
    except PicoqmailError as exc:
        return exc
    return None


def _unpark(draft: Draft) -> PicoqmailError | None:
    try:
        draft.incoming.unpark()
    except PicoqmailError as exc:
        return exc
    return None


def _forget(records: Iterable[KeyRecord]) -> None:
    """Take promises back that will not be kept."""
    for record in records:
        try:
            record.forget()
        except OSError:
            # The disk that refuses this has refused the message too. What stays says that the
            # message is on its way, and whoever finds that looks whether it is in the spool.
            continue


def _note_arrival(record: KeyRecord) -> None:
    try:
        record.arrived()
    except OSError:
        # The same is found out by looking (idempotency.py).
        return


def _checked_sender(given: str | None) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise EnvelopeError(f"the sender {given!a:.100} is no text but {type(given).__name__}")
    return envelope.check_sender(read_one(given))


def _checked_recipients(given: Sequence[str] | str | None) -> list[str] | None:
    if given is None:
        return None
    several = [given] if isinstance(given, str) else list(given)
    if not several:
        raise EnvelopeError("there is no recipient: the list is empty")
    for index, one in enumerate(several):
        if not isinstance(one, str):
            raise EnvelopeError(
                f"recipient {index + 1}, {one!a:.100}, is no text but {type(one).__name__}"
            )
    return envelope.check_recipients([read_one(one, index) for index, one in enumerate(several)])


def _moment(name: str, given: object, now: float) -> float:
    """A moment in Unix seconds. Raises MessageError."""
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise MessageError(
                f"{name} is {given!r}, which has no zone; give it one, such as datetime.UTC"
            )
        return given.timestamp()
    if isinstance(given, timedelta):
        return now + given.total_seconds()
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given < 1 << 40:
        return float(given)
    raise MessageError(
        f"{name} is {given!r}; give a datetime with its zone, a timedelta, or Unix seconds"
    )
