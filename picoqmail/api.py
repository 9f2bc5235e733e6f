"""The library: `enqueue` and its kin, for programs that have mail to send and better things to do.

What may live here: the public functions and classes of `import picoqmail`, which put together
what other modules do. Nothing is kept between two calls but what a `Spool` was told, so all of it
may be used from threads, and from processes that fork.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import evolve, field, frozen

from picoqmail import durable, envelope, home as homes
from picoqmail.accept import Incoming, publish
from picoqmail.content import Content, MessageLike, is_email_object, open_content
from picoqmail.control import Control, whole_number
from picoqmail.errors import (
    QUEUE_WRITE,
    ConfigurationError,
    EnvelopeError,
    MessageError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.handover import may_spool
from picoqmail.header_envelope import HeaderEnvelope, raw_address
from picoqmail.idempotency import DEFAULT_LIFETIME_SECONDS, DIRECTORY, Record
from picoqmail.launch import start_sender
from picoqmail.layout import TMP
from picoqmail.limits import Limits, read_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Any, Self

    from picoqmail.home import Home

Moment: TypeAlias = "datetime | timedelta | float"
HomeLike: TypeAlias = "Home | str | os.PathLike[str]"

PROGRAM = "python"
# A group shares one fsync of the directory; it is bounded because each of its messages keeps a
# descriptor open, and because none of them is accepted before the last of them is on disk.
GROUP_MESSAGES = 64
GROUP_OCTETS = 8 * 1024 * 1024


@frozen
class Mail:
    """One message and what is to become of it: what `enqueue` takes, as a value.

    See `Spool.enqueue` for each.
    """

    message: MessageLike
    sender: str | None = None
    recipients: Sequence[str] | str | None = None
    idempotency_key: str | None = field(default=None, kw_only=True)
    not_before: Moment | None = field(default=None, kw_only=True)
    expires: Moment | None = field(default=None, kw_only=True)


@frozen
class Receipt:
    """What was accepted: durable from the moment that you have it.

    `id` names the message in the spool, for `picoqmail show ID` and `Spool.get`; None if the mail
    went through the home's queue program, which tells no name. `sender` and `recipients` are the
    envelope, `size` the octets as spooled, `created` and `next_attempt` Unix seconds. `repeated`
    says that its idempotency key was used before: nothing was enqueued, and the other values are
    those of the first time.
    """

    id: str | None
    sender: str
    recipients: tuple[str, ...]
    size: int
    created: int
    next_attempt: int
    repeated: bool = False


@frozen(eq=False)
class _Order:
    """A Mail whose envelope and times were checked: nothing of it has touched the disk."""

    sender: str
    recipients: list[str]
    content: Content
    key: str | None
    extra: dict[str, Any]


@frozen(eq=False)
class _Draft:
    """An order whose body is written."""

    order: _Order
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


Outcome: TypeAlias = "Receipt | Exception"


@frozen(eq=False)
class Spool:
    """A spool, by the home that it belongs to; cheap to make, nothing is opened or kept open.

    `home` is a directory, or None for the one that the environment names (PICOQMAIL_HOME; see the
    manual). Values given here go before the home's settings of the same name; a process that
    gives `me` needs no control files. Sizes in octets, times in seconds, 0 is no limit.

    `send`: start the sender in the background after each acceptance; None is yes, unless the
    environment has PICOQMAIL_SEND=off.
    """

    home: Home = field(default=None, converter=lambda given: _home(given))  # noqa: PLW0108 - defined below
    me: str | None = field(default=None, kw_only=True)
    databytes: int | None = field(default=None, kw_only=True)
    minfree: int | None = field(default=None, kw_only=True)
    queuelifetime: int | None = field(default=None, kw_only=True)
    idempotencylifetime: int | None = field(default=None, kw_only=True)
    send: bool | None = field(default=None, kw_only=True)

    # --- Accepting ---------------------------------------------------------------------------

    def enqueue(
        self,
        message: MessageLike,
        sender: str | None = None,
        recipients: Sequence[str] | str | None = None,
        *,
        idempotency_key: str | None = None,
        not_before: Moment | None = None,
        expires: Moment | None = None,
    ) -> Receipt:
        """Put one message into the spool; returns when it is durable, and never waits for a relay.

        Args:
            message: bytes, str (which becomes UTF-8), an `email.message.EmailMessage` or
                `Message`, a path object, or a stream open for reading in binary mode, which is
                read to its end and never held whole. Octets are kept as they are.
            sender: the envelope sender; "" is the null sender. None takes it from the header
                (Sender, else From).
            recipients: one address or several; an address given twice gets two. None takes them
                from the header (To, Cc, Bcc), and Bcc is left out of what is sent. The Resent-
                fields go before both, as in `smtplib.SMTP.send_message`. Of a message object Bcc
                is always left out.
            idempotency_key: a text of up to 1024 octets. For as long as the setting
                idempotencylifetime says the same key enqueues once, whoever calls; repeating it
                returns the first receipt, `repeated`. The message may differ in Date and
                Message-ID only.
            not_before: when the first attempt is made at the earliest: a datetime with its zone,
                a timedelta from now, or Unix seconds. From then on it is cron that sends it.
            expires: until when it is tried (the same forms), instead of the setting
                queuelifetime.

        Raises:
            EnvelopeError: an address is malformed, or none was found; no file was made.
                AddressError tells which recipient, by its `index`.
            MessageError: the message, a time or the key makes no sense. KeyReusedError: the key
                stands for another message. MessageTooLargeError: over the setting databytes.
                MessageTypeError: it is nothing that could be a message.
            InputError: the stream or file could not be read.
            ConfigurationError: the home is not there, or one of its settings is wrong.
            SpoolError: the disk refused; nothing was accepted, and the same may be tried again.

            All of them are PicoqmailError, whose `permanent` says whether the same can ever work.
        """
        mail = Mail(
            message,
            sender,
            recipients,
            idempotency_key=idempotency_key,
            not_before=not_before,
            expires=expires,
        )
        (outcome,) = self._enqueue_group([mail], self._acceptance())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def enqueue_many(self, mails: Iterable[Mail | MessageLike]) -> list[Outcome]:
        """Put many messages into the spool, quicker than one by one: groups share an fsync.

        Each item is a Mail, or a message whose header names the envelope. Returns one result for
        each, in order: its Receipt, or the exception that `enqueue` would have raised. One bad
        message never stops the others. When this returns, all that have a receipt are durable.

        Raises ConfigurationError where nothing can be accepted at all. What the iterable itself
        raises passes through; messages before that may have been accepted.
        """
        acceptance = self._acceptance()
        outcomes: list[Outcome] = []
        group: list[Mail] = []
        for one in mails:
            group.append(one if isinstance(one, Mail) else Mail(one))
            if len(group) == GROUP_MESSAGES:
                outcomes += self._enqueue_group(group, acceptance)
                group = []
        if group:
            outcomes += self._enqueue_group(group, acceptance)
        return outcomes

    def prepare(
        self,
        message: MessageLike,
        sender: str | None = None,
        recipients: Sequence[str] | str | None = None,
        *,
        idempotency_key: str | None = None,
        not_before: Moment | None = None,
        expires: Moment | None = None,
    ) -> Pending:
        """Put one message on disk, where nothing sends it before its `commit`.

        For callers with a transaction of their own: whatever can fail for want of room or rights
        fails here, and the commit is no more than two renames. Arguments and errors as
        `enqueue`; ConfigurationError also where this process may not write to the spool itself.

            with spool.prepare(message) as pending:
                database.commit()
                receipt = pending.commit()
        """
        mail = Mail(
            message,
            sender,
            recipients,
            idempotency_key=idempotency_key,
            not_before=not_before,
            expires=expires,
        )
        acceptance = self._acceptance()
        acceptance.need_the_spool("a message can be prepared")
        draft = acceptance.write(acceptance.order(mail))
        try:
            acceptance.check_key(draft)
            draft.incoming.prepare(draft.order.sender, draft.order.recipients, draft.order.extra)
        except BaseException:
            draft.incoming.abort()
            raise
        return Pending(self, acceptance, draft)

    # --- Inside ------------------------------------------------------------------------------

    def _acceptance(self) -> _Acceptance:
        return _Acceptance(self.home, self._limits(), self._key_lifetime)

    def _limits(self) -> Limits:
        given = {
            name: value
            for name in ("databytes", "minfree", "queuelifetime")
            if (value := getattr(self, name)) is not None
        }
        if self.me is not None:
            return Limits(self.me, **given)
        try:
            limits = read_limits(self.home)
        except ConfigurationError:
            if not os.path.isdir(self.home.root):
                raise ConfigurationError(
                    self.home.root, "there is no home", "make one with: picoqmail init"
                ) from None
            raise
        for name, value in given.items():
            setattr(limits, name, value)
        return limits

    def _key_lifetime(self) -> int:
        if self.idempotencylifetime is not None:
            return self.idempotencylifetime
        name = "idempotencylifetime"
        return whole_number(Control(self.home.control).read(name), DEFAULT_LIFETIME_SECONDS, name)

    def _starts_sender(self) -> bool:
        if self.send is not None:
            return self.send
        return os.environ.get("PICOQMAIL_SEND") != "off"

    def _accepted(self, drafts: Iterable[_Draft]) -> None:
        """Have sent what was accepted, but for what waits for its time anyway."""
        if self._starts_sender() and any("next_attempt" not in one.order.extra for one in drafts):
            start_sender(self.home, time.time())

    def _enqueue_group(self, mails: list[Mail], acceptance: _Acceptance) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(mails)
        drafts: dict[int, _Draft] = {}
        try:
            for index, mail in enumerate(mails):
                try:
                    order = acceptance.order(mail)
                    if acceptance.may_spool:
                        drafts[index] = acceptance.write(order)
                    else:
                        outcomes[index] = acceptance.delegate(order, send=self._starts_sender())
                except Exception as exc:  # noqa: BLE001 - the result of this one message
                    outcomes[index] = exc
                if sum(one.incoming.size for one in drafts.values()) > GROUP_OCTETS:
                    self._settle(drafts, acceptance, outcomes)
        except BaseException:
            for draft in drafts.values():
                draft.incoming.abort()
            raise
        self._settle(drafts, acceptance, outcomes)
        return [one for one in outcomes if one is not None]

    def _settle(
        self, drafts: dict[int, _Draft], acceptance: _Acceptance, outcomes: list[Outcome | None]
    ) -> None:
        """Accept all drafts; a key that is there twice has to wait for its first time."""
        while drafts:
            seen: set[str] = set()
            first: dict[int, _Draft] = {}
            for index, draft in drafts.items():
                if draft.order.key is None or draft.order.key not in seen:
                    first[index] = draft
                    seen.update([draft.order.key] if draft.order.key is not None else ())
            for index in first:
                del drafts[index]
            accepted = acceptance.accept(first, prepared=False)
            outcomes_now = [accepted[index] for index in first]
            for index, outcome in zip(first, outcomes_now, strict=True):
                outcomes[index] = outcome
            self._accepted(
                draft for index, draft in first.items() if isinstance(accepted[index], Receipt)
            )


@frozen(eq=False)
class _Acceptance:
    """One call's way into one spool: settings read once."""

    home: Home
    limits: Limits
    _key_lifetime: Any
    may_spool: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Look which way mail goes. Raises ConfigurationError if there is none."""
        ours = may_spool(self.home.spool)
        object.__setattr__(self, "may_spool", ours)
        if not ours and not os.access(self._queue_program, os.X_OK):
            if not os.path.isdir(self.home.spool):
                raise ConfigurationError(
                    self.home.spool, "there is no spool", "make a home with: picoqmail init"
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

    def order(self, mail: Mail) -> _Order:
        """Check everything that can be checked before a file exists."""
        now = time.time()
        extra = self._times(mail, now)
        if mail.idempotency_key is not None:
            from picoqmail.idempotency import name_of

            name_of(mail.idempotency_key)
        if extra or mail.idempotency_key is not None:
            self.need_the_spool("not_before, expires and idempotency keys are kept there")
        sender = _checked_sender(mail.sender)
        recipients = _checked_recipients(mail.recipients)
        is_object = is_email_object(mail.message)
        header = HeaderEnvelope.of_object(mail.message) if is_object else None
        content = None
        try:
            if header is None:
                content = open_content(mail.message)
                if sender is None or recipients is None:
                    header = HeaderEnvelope.of_fields(content.fields())
                if recipients is None:
                    content.drop_bcc()
            if header is not None and sender is None:
                sender = _checked_sender(header.sender())
            if header is not None and recipients is None:
                recipients = _checked_recipients(header.recipients())
            if content is None:
                international = not all(one.isascii() for one in (sender or "", *(recipients or ())))
                content = open_content(mail.message, utf8=international)
        except BaseException:
            if content is not None:
                content.close()
            raise
        return _Order(sender or "", recipients or [], content, mail.idempotency_key, extra)

    def _times(self, mail: Mail, now: float) -> dict[str, Any]:
        """The keys of the sidecar that follow from the times asked for."""
        extra: dict[str, Any] = {}
        start = now
        if mail.not_before is not None:
            start = _moment("not_before", mail.not_before, now)
            if start > now:
                # Rounded up: not before is not before.
                extra["next_attempt"] = int(-(-start // 1))
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

    def write(self, order: _Order) -> _Draft:
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
            digest.update(envelope.encode(order.sender, order.recipients))
            fingerprint = digest.hexdigest()
        return _Draft(order, incoming, fingerprint, now_ns // 1_000_000_000)

    def delegate(self, order: _Order, *, send: bool) -> Receipt:
        """Hand a message to the home's queue program. Raises QueueProgramError, InputError."""
        from picoqmail.queue_spawn import SpawnedQueue

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

    def check_key(self, draft: _Draft) -> None:
        """Raise KeyReusedError at once if the key already stands for something else."""
        if draft.order.key is not None:
            record = Record(self.home.spool, draft.order.key)
            try:
                found = record.find(time.time())
                if found is not None:
                    record.check(found, draft.fingerprint)
            finally:
                record.close()

    def accept(self, drafts: dict[int, _Draft], *, prepared: bool) -> dict[int, Outcome]:
        """Make drafts durable and visible, in one group; each key is in it once.

        What fails alone is told alone; if the last step fails, it fails for all. `prepared`: body
        and sidecar are on disk already.
        """
        outcomes: dict[int, Outcome] = {}
        with ExitStack() as held:
            try:
                records = self._lock_keys(drafts, held, outcomes)
                ready = {}
                for index, draft in drafts.items():
                    if index in outcomes:
                        draft.incoming.abort()
                        continue
                    try:
                        if not prepared:
                            order = draft.order
                            draft.incoming.prepare(order.sender, order.recipients, order.extra)
                    except PicoqmailError as exc:
                        outcomes[index] = exc
                    else:
                        ready[index] = draft
                self._promise(ready, records, outcomes)
            except BaseException:
                for draft in drafts.values():
                    draft.incoming.abort()
                raise
            intended = [records[index] for index in ready if index in records]
            try:
                publish(
                    [one.incoming for one in ready.values()], lambda: _forget(intended)
                ) if ready else None
            except SpoolError as exc:
                outcomes.update(dict.fromkeys(ready, exc))
            else:
                outcomes.update((index, one.receipt) for index, one in ready.items())
                for record in intended:
                    _note_arrival(record)
        return outcomes

    def _lock_keys(
        self, drafts: dict[int, _Draft], held: ExitStack, outcomes: dict[int, Outcome]
    ) -> dict[int, Record]:
        """Take the keys in hand, all callers in the same order, so that no two wait for each other.

        What a key already stands for becomes the outcome of its draft.
        """
        keyed = [(one.order.key, index) for index, one in drafts.items() if one.order.key is not None]
        records = {}
        for key, index in sorted(keyed):
            draft = drafts[index]
            try:
                record = Record(self.home.spool, key)
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
        self, ready: dict[int, _Draft], records: dict[int, Record], outcomes: dict[int, Outcome]
    ) -> None:
        """Write down what the keys are going to stand for, before any of it becomes visible."""
        keyed = [index for index in ready if index in records]
        if not keyed:
            return
        lifetime = self._key_lifetime()
        try:
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
                    }
                )
            durable.sync_directory(f"{self.home.spool}/{DIRECTORY}")
        except OSError as exc:
            _forget([records[index] for index in keyed])
            for index in keyed:
                ready.pop(index).incoming.abort()
                path = f"{self.home.spool}/{DIRECTORY}"
                outcomes[index] = SpoolError("keep the idempotency key in", path, exc, QUEUE_WRITE)
        except BaseException:
            _forget([records[index] for index in keyed])
            raise


def _forget(records: Iterable[Record]) -> None:
    """Take promises back that will not be kept."""
    for record in records:
        try:
            record.forget()
        except OSError:
            # The disk that refuses this has refused the message too. What stays says that the
            # message is on its way, and whoever finds that looks whether it is in the spool.
            continue


def _note_arrival(record: Record) -> None:
    try:
        record.arrived()
    except OSError:
        # The same is found out by looking (idempotency.py).
        return


class Pending:
    """A message that is on disk and that nothing sends yet: `commit` it, or `abort`.

    As a context manager it is taken back at the end of the block unless it was committed. What
    a process that died left behind is swept after 36 hours.
    """

    def __init__(self, spool: Spool, acceptance: _Acceptance, draft: _Draft) -> None:
        self._spool = spool
        self._acceptance = acceptance
        self._draft: _Draft | None = draft
        self._pid = os.getpid()
        self._id = draft.incoming.id

    @property
    def id(self) -> str:
        """The ID that the message will have in the spool."""
        return self._id

    def commit(self) -> Receipt:
        """Make the message visible; it is durable and on its way when this returns.

        Raises SpoolError (nothing was accepted), KeyReusedError (its idempotency key was used
        since), MessageError if it was committed or taken back before.
        """
        if self._draft is None:
            raise MessageError(f"{self._id}: was committed or taken back already")
        if self._pid != os.getpid():
            raise MessageError(f"{self._id}: was prepared by another process, {self._pid}")
        draft, self._draft = self._draft, None
        outcome = self._acceptance.accept({0: draft}, prepared=True)[0]
        if isinstance(outcome, Exception):
            raise outcome
        self._spool._accepted([draft])  # noqa: SLF001 - two halves of one thing
        return outcome

    def abort(self) -> None:
        """Take the message back; nothing if it was committed. Raises nothing."""
        draft, self._draft = self._draft, None
        if draft is not None and self._pid == os.getpid():
            draft.incoming.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        self.abort()
        return False

    def __del__(self) -> None:
        # Whoever lost it will never commit it: a transaction that was rolled back, as a rule.
        if getattr(self, "_draft", None) is not None:
            self.abort()


def enqueue(
    message: MessageLike,
    sender: str | None = None,
    recipients: Sequence[str] | str | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    not_before: Moment | None = None,
    expires: Moment | None = None,
) -> Receipt:
    """Put one message into the spool of this host; see `Spool.enqueue` for arguments and errors.

    `home` and `send` are those of `Spool`.
    """
    return Spool(home, send=send).enqueue(
        message,
        sender,
        recipients,
        idempotency_key=idempotency_key,
        not_before=not_before,
        expires=expires,
    )


def enqueue_many(
    mails: Iterable[Mail | MessageLike],
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
) -> list[Outcome]:
    """Put many messages into the spool of this host; see `Spool.enqueue_many`."""
    return Spool(home, send=send).enqueue_many(mails)


def prepare(
    message: MessageLike,
    sender: str | None = None,
    recipients: Sequence[str] | str | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    not_before: Moment | None = None,
    expires: Moment | None = None,
) -> Pending:
    """Put one message on disk, to be committed or taken back; see `Spool.prepare`."""
    return Spool(home, send=send).prepare(
        message,
        sender,
        recipients,
        idempotency_key=idempotency_key,
        not_before=not_before,
        expires=expires,
    )


def _home(given: HomeLike | None) -> Home:
    if given is None:
        return homes.locate(os.environ)
    if isinstance(given, homes.Home):
        return given
    return homes.Home(os.path.abspath(os.fspath(given)))


def _checked_sender(given: str | None) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise EnvelopeError(f"the sender {given!a:.100} is no text but {type(given).__name__}")
    return envelope.check_sender(raw_address(given))


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
    return envelope.check_recipients([raw_address(one) for one in several])


def _moment(name: str, given: Moment, now: float) -> float:
    """A moment in Unix seconds. Raises MessageError."""
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise MessageError(
                f"{name} is {given!r}, which has no zone; give it one, such as datetime.timezone.utc"
            )
        return given.timestamp()
    if isinstance(given, timedelta):
        return now + given.total_seconds()
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given < 1 << 40:
        return float(given)
    raise MessageError(
        f"{name} is {given!r}; give a datetime with its zone, a timedelta, or Unix seconds"
    )
