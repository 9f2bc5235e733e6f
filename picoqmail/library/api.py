"""The library: `enqueue` and its kin, for programs that have mail to send and better things to do.

What may live here: the public functions and classes of `import picoqmail`, which put together
what other modules do. Nothing is kept between two calls but what a `Spool` was told, so all of it
may be used from threads, and from processes that fork.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from picoqmail.errors import ConfigurationError, MessageError
from picoqmail.home import paths as homes
from picoqmail.home.control import Control, number_of
from picoqmail.home.limits import MOST_SECONDS, Limits, read_limits
from picoqmail.layout import TMP
from picoqmail.library.groups import Acceptance, Draft
from picoqmail.library.mail import Mail, Receipt
from picoqmail.library.verbs import Verbs
from picoqmail.spool.keys import DEFAULT_LIFETIME_SECONDS
from picoqmail.spool.syncfs import LEAST_MESSAGES, open_for_sync
from picoqmail.submission.start_sender import start_sender

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from picoqmail.home.paths import Home
    from picoqmail.library.mail import Moment, Outcome
    from picoqmail.message.content import MessageLike
    from picoqmail.spool.syncfs import FileSystemSync

HomeLike: TypeAlias = "Home | str | os.PathLike[str]"

__all__ = ["Mail", "Pending", "Receipt", "Spool", "enqueue", "enqueue_many", "prepare"]

# A group shares its syncs; it is bounded because each of its messages keeps a descriptor open, of
# which a process may have no more than 1024, and because none of them is accepted before the last
# of them is on disk.
GROUP_MESSAGES = 128
GROUP_OCTETS = 8 * 1024 * 1024
# At so many messages in a group a look is taken at how many more there may be.
_LOOK_AT_MESSAGES = 16


class Spool(Verbs):
    """A spool, by the home that it belongs to; cheap to make, nothing is opened or kept open.

    `home` is a directory, or None for the one that the environment names (PICOQMAIL_HOME; see the
    manual). Values given here go before the home's settings of the same name, and who gives `me`
    needs no control files. Sizes in octets, times in seconds; 0 is no limit.

    `send`: start the sender in the background after each acceptance; None is yes, unless the
    environment has PICOQMAIL_SEND=off. The sender is a process of its own and goes by the
    settings of the home, not by those given here.
    """

    def __init__(  # noqa: PLR0913 - one argument a setting
        self,
        home: HomeLike | None = None,
        *,
        me: str | None = None,
        databytes: int | None = None,
        minfree: int | None = None,
        queuelifetime: int | None = None,
        idempotencylifetime: int | None = None,
        send: bool | None = None,
    ) -> None:
        """Raises MessageError where a number is below 0 or no number."""
        self.home = _home(home)
        self.send = send
        self._me = me
        self._given = {
            name: _whole(name, value)
            for name, value in (
                ("databytes", databytes),
                ("minfree", minfree),
                ("queuelifetime", queuelifetime),
            )
            if value is not None
        }
        self._idempotencylifetime = (
            None
            if idempotencylifetime is None
            else _whole("idempotencylifetime", idempotencylifetime)
        )

    def __repr__(self) -> str:
        """Show the home."""
        return f"Spool({self.home.root!r})"

    # --- Accepting ---------------------------------------------------------------------------

    def enqueue(  # noqa: PLR0913 - one argument a wish
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
        """Put many messages into the spool, quicker than one by one: groups share their syncs.

        Each item is a Mail, or a message whose header names the envelope. Returns one result for
        each, in order: its Receipt, or the exception that `enqueue` would have raised. One bad
        message never stops the others. When this returns, all that have a receipt are durable.

        Raises ConfigurationError where nothing can be accepted at all. What the iterable itself
        raises passes through; messages before that may have been accepted.
        """
        acceptance = self._acceptance()
        outcomes: list[Outcome] = []
        group: list[Mail] = []
        most = GROUP_MESSAGES
        for one in mails:
            group.append(one if isinstance(one, Mail) else Mail(one))
            if len(group) == _LOOK_AT_MESSAGES:
                most = _most_together()
            if len(group) >= most:
                outcomes += self._enqueue_group(group, acceptance)
                group = []
        if group:
            outcomes += self._enqueue_group(group, acceptance)
        return outcomes

    def prepare(  # noqa: PLR0913 - as enqueue
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
        return Pending(self, acceptance.prepare(acceptance.order(mail)))

    def commit_many(self, pendings: Iterable[Pending]) -> list[Outcome]:
        """Commit messages that were prepared with this spool, in groups that share an fsync.

        Returns one result for each, in order, as `enqueue_many`: MessageError for one that was
        committed or taken back before, or prepared by another process.
        """
        outcomes: list[Outcome | None] = []
        drafts: dict[int, Draft] = {}
        acceptance = self._acceptance()
        most = GROUP_MESSAGES
        for index, one in enumerate(pendings):
            outcomes.append(None)
            try:
                drafts[index] = one.take()
            except MessageError as exc:
                outcomes[index] = exc
            if len(drafts) == _LOOK_AT_MESSAGES:
                most = _most_together()
            if len(drafts) >= most:
                self._settle(drafts, acceptance, outcomes, prepared=True)
        self._settle(drafts, acceptance, outcomes, prepared=True)
        return [one for one in outcomes if one is not None]

    # --- Inside ------------------------------------------------------------------------------

    def _acceptance(self) -> Acceptance:
        return Acceptance(self.home, self._limits(), self._key_lifetime)

    def _limits(self) -> Limits:
        if self._me is not None:
            return Limits(self._me, **self._given)
        try:
            limits = read_limits(self.home)
        except ConfigurationError:
            if not os.path.isdir(self.home.root):
                raise ConfigurationError(
                    self.home.root, "there is no home", "make one with: picoqmail init"
                ) from None
            raise
        for name, value in self._given.items():
            setattr(limits, name, value)
        return limits

    def _key_lifetime(self) -> int:
        if self._idempotencylifetime is not None:
            return self._idempotencylifetime
        name = "idempotencylifetime"
        value = Control(self.home.control).read(name)
        return number_of(value, DEFAULT_LIFETIME_SECONDS, name, MOST_SECONDS)

    def _starts_sender(self) -> bool:
        if self.send is not None:
            return self.send
        return os.environ.get("PICOQMAIL_SEND") != "off"

    def _accepted(self, drafts: Iterable[Draft]) -> None:
        """Have sent what was accepted, but for what waits for its time anyway."""
        if self._starts_sender() and any("next_attempt" not in one.order.extra for one in drafts):
            start_sender(self.home, time.time())

    def _enqueue_group(self, mails: list[Mail], acceptance: Acceptance) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(mails)
        drafts: dict[int, Draft] = {}
        size = 0
        together = None
        if len(mails) >= LEAST_MESSAGES and acceptance.may_spool:
            # Before the first body: only errors from now on will be told.
            together = open_for_sync(f"{self.home.spool}/{TMP}")
        try:
            for index, mail in enumerate(mails):
                try:
                    order = acceptance.order(mail)
                    if acceptance.may_spool:
                        drafts[index] = acceptance.write(order)
                        size += drafts[index].incoming.size
                    else:
                        outcomes[index] = acceptance.delegate(order, send=self._starts_sender())
                except Exception as exc:  # noqa: BLE001 - the result of this one message
                    outcomes[index] = exc
                if size > GROUP_OCTETS:
                    self._settle(drafts, acceptance, outcomes, together)
                    size = 0
            self._settle(drafts, acceptance, outcomes, together)
        except BaseException:
            for draft in drafts.values():
                draft.incoming.abort()
            raise
        finally:
            if together is not None:
                together.close()
        return [one for one in outcomes if one is not None]

    def _settle(
        self,
        drafts: dict[int, Draft],
        acceptance: Acceptance,
        outcomes: list[Outcome | None],
        together: FileSystemSync | None = None,
        *,
        prepared: bool = False,
    ) -> None:
        """Accept all drafts; one whose key is among them already has to wait for the first."""
        while drafts:
            first: dict[int, Draft] = {}
            keys: set[str] = set()
            for index, draft in drafts.items():
                key = draft.order.key
                if key is None or key not in keys:
                    first[index] = draft
                if key is not None:
                    keys.add(key)
            for index in first:
                del drafts[index]
            for index, outcome in acceptance.accept(first, together, prepared=prepared).items():
                outcomes[index] = outcome
                if isinstance(outcome, Exception) or outcome.repeated:
                    del first[index]
            self._accepted(first.values())


def _most_together() -> int:
    """How many messages a group may have: with half of the descriptors that are free, two each."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return GROUP_MESSAGES
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        # None free to look with, or another system.
        used = limit // 2
    return max(_LOOK_AT_MESSAGES, min(GROUP_MESSAGES, (limit - used) // 4))


class Pending:
    """A message that is on disk and that nothing sends yet: `commit` it, or `abort`.

    As a context manager it is taken back at the end of the block unless it was committed. What
    a process that died left behind is swept after 36 hours.
    """

    def __init__(self, spool: Spool, draft: Draft) -> None:
        self._spool = spool
        self._draft: Draft | None = draft
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
        (outcome,) = self._spool.commit_many([self])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def take(self) -> Draft:
        """Hand the message over, once: for `Spool.commit_many`. Raises MessageError."""
        if self._draft is None:
            raise MessageError(f"{self._id}: was committed or taken back already")
        if self._pid != os.getpid():
            raise MessageError(f"{self._id}: was prepared by another process, {self._pid}")
        draft, self._draft = self._draft, None
        return draft

    def park(self) -> None:
        """Close the message's file until the commit, for who prepares more than he may open.

        It loses its lock by that, so that the sweep takes it after 36 hours, live or not.
        """
        if self._draft is not None:
            self._draft.incoming.park()

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


def enqueue(  # noqa: PLR0913 - one argument a wish
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


def prepare(  # noqa: PLR0913 - as enqueue
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


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MessageError(f"{name} is {value!r}; a whole number of at least 0 is allowed")
    return value
