"""The library: `enqueue` and its kin, for programs that have mail to send and better things to do.

What may live here: the public functions and classes of `import picoqmail`, which put together what
other modules do. Between two calls only the arguments of a `Spool` are kept, so all of it may be
used from threads, and from processes that fork.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeAlias

from picoqmail.errors import ConfigurationError, MessageError, MessageTypeError
from picoqmail.home import paths as homes
from picoqmail.home.control import Control, number_of
from picoqmail.home.limits import MOST_SECONDS, Limits, read_limits
from picoqmail.home.owner import refuse_root
from picoqmail.importing import importing
from picoqmail.layout import DEFAULT_KEY_LIFETIME_SECONDS
from picoqmail.library.groups import PROGRAM, Entrance
from picoqmail.library.mail import Mail, Moment, Outcome, Outcomes, Receipt
from picoqmail.library.orders import check
from picoqmail.library.verbs import Verbs
from picoqmail.message.content import MessageLike, is_email_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from picoqmail.home.paths import Home
    from picoqmail.library.groups import Draft
    from picoqmail.library.mail import AddressLike, OnReuse, Recipients
    from picoqmail.library.transaction import Insertion

HomeLike: TypeAlias = "Home | str | os.PathLike[str]"

__all__ = [
    "Mail",
    "MessageLike",
    "Moment",
    "Outcome",
    "Outcomes",
    "Pending",
    "Receipt",
    "Spool",
    "enqueue",
    "enqueue_many",
    "prepare",
]


class Spool(Verbs):
    """A spool, by the home that it belongs to; cheap to make, nothing is opened or kept open.

    `home` is a directory, or None for the one that the environment names at the time of each call
    (PICOQMAIL_HOME; see the manual). Values given here go before the home's settings of the same
    name; with `me` no control files are needed. Sizes are in octets, times in seconds; 0 means no
    limit.

    `send`: start the sender in the background after each acceptance; None means yes, unless the
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
        """Raises MessageError if a number is below 0 or not a number."""
        self._home = None if home is None else _home(home)
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
        return "Spool()" if self._home is None else f"Spool({self._home.root!r})"

    @property
    def home(self) -> Home:
        """The home of the spool; that of the environment is looked up each time.

        Raises ConfigurationError where the environment names none, and the user has none.
        """
        return homes.locate(os.environ) if self._home is None else self._home

    # --- Accepting ---------------------------------------------------------------------------

    def enqueue(  # noqa: PLR0913 - one argument a wish
        self,
        message: MessageLike,
        sender: AddressLike | None = None,
        recipients: Recipients | None = None,
        *,
        idempotency_key: str | None = None,
        on_reuse: OnReuse = "raise",
        not_before: Moment | None = None,
        expires: Moment | None = None,
        add_missing: bool = False,
        connection: object = None,
    ) -> Receipt:
        """Put one message into the spool; returns when it is durable, and never waits for a relay.

        All errors are PicoqmailError, whose `permanent` says whether the same can ever work.

        Args:
            message: bytes, str (which becomes UTF-8), an `email.message.EmailMessage` or
                `Message`, a path object, or a stream open for reading in binary mode, which is
                read to its end and never held whole. Octets are kept as they are.
            sender: the envelope sender; "" is the null sender. None takes it from the header
                (Sender, else From).
            recipients: one address or any iterable of them; an address given twice gets two. An
                address is text, an `email.headerregistry.Address`, or a pair (name, address). None
                takes them from the header (To, Cc, Bcc), and Bcc is left out of what is sent. The
                Resent- fields go before both, as in `smtplib.SMTP.send_message`. Of a message
                object Bcc is always left out.
            idempotency_key: a text of up to 1024 octets. For as long as the setting
                idempotencylifetime says, the same key enqueues once, for all callers; repeating it
                returns the first receipt, `repeated`. The message must say the same again: same
                envelope, same content. What is made anew may differ: Date, Message-ID, boundaries,
                Content-IDs, signatures, encodings.
            on_reuse: what a used key means if it comes with another message or envelope: "raise"
                KeyReusedError, or "return" the first receipt, for the key alone decides.
            not_before: when the first attempt is made at the earliest: a datetime with its zone,
                a timedelta from now, or Unix seconds. From then on it is cron that sends it.
            expires: until when it is tried (the same forms), instead of the setting
                queuelifetime.
            add_missing: add Date and Message-ID if the header has none.
            connection: put the message into the tables in your own transaction: a psycopg
                Connection, a Connection or Session of SQLAlchemy, or the alias of a Django
                database. It is durable, and on its way, when you commit; a rollback undoes it.

        Raises:
            EnvelopeError: an address is malformed, or none was found, or a header field was not
                understood whole; no file was made. AddressError names the recipient by its
                `index`.
            MessageError: the message, a time or the key makes no sense. KeyReusedError: the key
                stands for another message. MessageTooLargeError: over the setting databytes.
                MessageTypeError: it is nothing that could be a message.
            InputError: the stream or file could not be read.
            ConfigurationError: the home is not there, or one of its settings is wrong.
            SpoolError: the disk refused; nothing was accepted, and the same may be tried again.
        """
        mail = Mail(
            message,
            sender,
            recipients,
            idempotency_key=idempotency_key,
            on_reuse=on_reuse,
            not_before=not_before,
            expires=expires,
            add_missing=add_missing,
        )
        if connection is not None:
            insertion = self._insertion(mail)
            with importing:
                from picoqmail.library.transaction import enqueue_within
            return enqueue_within(connection, insertion)
        (outcome,) = self._entrance().enqueue([mail])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def enqueue_many(self, mails: Iterable[Mail | MessageLike]) -> Outcomes:
        """Put many messages into the spool, quicker than one by one: groups share their syncs.

        Each item is a Mail, or a message whose header names the envelope. Returns one result for
        each, in order: its Receipt, or the exception that `enqueue` would have raised. One bad
        message never stops the others. When this returns, all that have a receipt are durable.

        Raises ConfigurationError where nothing can be accepted at all, MessageTypeError for one
        message instead of several. What the iterable itself raises passes through; messages before
        that may have been accepted.
        """
        _refuse_one(mails)
        several = (one if isinstance(one, Mail) else Mail(one) for one in mails)
        return self._entrance().enqueue(several)

    def prepare(  # noqa: PLR0913 - as enqueue
        self,
        message: MessageLike,
        sender: AddressLike | None = None,
        recipients: Recipients | None = None,
        *,
        idempotency_key: str | None = None,
        on_reuse: OnReuse = "raise",
        not_before: Moment | None = None,
        expires: Moment | None = None,
        add_missing: bool = False,
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
            on_reuse=on_reuse,
            not_before=not_before,
            expires=expires,
            add_missing=add_missing,
        )
        return Pending(self, self._entrance().prepare(mail))

    def commit_many(self, pendings: Iterable[Pending]) -> Outcomes:
        """Commit messages that were prepared with this spool, in groups that share an fsync.

        Returns one result for each, in order, as `enqueue_many`: MessageError for one that was
        committed or taken back before, or prepared by another process.
        """
        return self._entrance().commit(pendings)

    def _insertion(self, mail: Mail) -> Insertion:
        """Return the statements that put a message into the tables, for `enqueue(connection=)`.

        Nothing is done yet. Raises what `enqueue` raises for the message and the settings.
        """
        with importing:
            from picoqmail.library.transaction import insertion_of

        home = self.home
        limits = self._limits(home, Control(home.control))
        order = check(mail, time.time(), limits.queuelifetime, limits.host)
        return insertion_of(home, limits, order, PROGRAM)

    # --- Inside ------------------------------------------------------------------------------

    def _entrance(self) -> Entrance:
        home = self.home
        control = Control(home.control, is_checked=refuse_root(home))
        limits = self._limits(home, control)
        return Entrance(home, limits, self._key_lifetime, self._starts_sender(), control)

    def _limits(self, home: Home, control: Control) -> Limits:
        if self._me is not None:
            return Limits(self._me, **self._given)
        try:
            limits = read_limits(home, control)
        except ConfigurationError:
            if not os.path.isdir(home.root):
                raise ConfigurationError(
                    home.root, "there is no home", "make one with: picoqmail init"
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
        return number_of(value, DEFAULT_KEY_LIFETIME_SECONDS, name, MOST_SECONDS)

    def _starts_sender(self) -> bool:
        if self.send is not None:
            return self.send
        return os.environ.get("PICOQMAIL_SEND") != "off"


class Pending:
    """A message that is on disk and that nothing sends yet: `commit` it, or `abort`.

    As a context manager it is taken back at the end of the block unless it was committed. If the
    process dies before that, the message is swept after 36 hours.
    """

    def __init__(self, spool: Spool, draft: Draft) -> None:
        self._spool = spool
        self._draft: Draft | None = draft
        self._pid = os.getpid()
        self._id: str = draft.incoming.id

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
        """Close the message's file until the commit, to prepare more messages than may be open.

        This releases its lock, so the sweep takes the message after 36 hours in any case. Raises
        SpoolError.
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

    def __exit__(self, *_: object) -> None:
        self.abort()

    def __del__(self) -> None:
        # Nobody can commit it any more: as a rule, a transaction was rolled back.
        if getattr(self, "_draft", None) is not None:
            self.abort()


def enqueue(  # noqa: PLR0913 - one argument a wish
    message: MessageLike,
    sender: AddressLike | None = None,
    recipients: Recipients | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    on_reuse: OnReuse = "raise",
    not_before: Moment | None = None,
    expires: Moment | None = None,
    add_missing: bool = False,
    connection: object = None,
) -> Receipt:
    """Put one message into the spool of this host; returns when it is durable.

    It never waits for a relay: a sender in the background, and cron after it, bring it there. All
    errors are PicoqmailError, whose `permanent` says whether the same can ever work.

    Args:
        message: bytes, str (which becomes UTF-8), an `email.message.EmailMessage` or
            `Message`, a path object, or a stream open for reading in binary mode, which is
            read to its end and never held whole. Octets are kept as they are.
        sender: the envelope sender; "" is the null sender. None takes it from the header
            (Sender, else From).
        recipients: one address or any iterable of them; an address given twice gets two. An
            address is text, an `email.headerregistry.Address`, or a pair (name, address). None
            takes them from the header (To, Cc, Bcc), and Bcc is left out of what is sent. The
            Resent- fields go before both, as in `smtplib.SMTP.send_message`. Of a message
            object Bcc is always left out.
        idempotency_key: a text of up to 1024 octets. For as long as the setting
            idempotencylifetime says, the same key enqueues once, for all callers; repeating it
            returns the first receipt, `repeated`. The message must say the same again: same
            envelope, same content. What is made anew may differ: Date, Message-ID, boundaries,
            Content-IDs, signatures, encodings.
        on_reuse: what a used key means if it comes with another message or envelope: "raise"
            KeyReusedError, or "return" the first receipt, for the key alone decides.
        not_before: when the first attempt is made at the earliest: a datetime with its zone,
            a timedelta from now, or Unix seconds. From then on it is cron that sends it.
        expires: until when it is tried (the same forms), instead of the setting
            queuelifetime.
        add_missing: add Date and Message-ID if the header has none.
        connection: put the message into the tables in your own transaction: a psycopg
            Connection, a Connection or Session of SQLAlchemy, or the alias of a Django
            database. It is durable, and on its way, when you commit; a rollback undoes it.
        home: the home whose spool it is, a directory; None is that of the environment.
        send: start the sender in the background; None means yes, unless the environment has
            PICOQMAIL_SEND=off.

    Returns:
        The receipt of the message, which is on disk now and survives a power cut; with
        `connection` it is `durable` only when you commit.

    Raises:
        EnvelopeError: an address is malformed, or none was found, or a header field was not
            understood whole; no file was made. AddressError names the recipient by its
            `index`.
        MessageError: the message, a time or the key makes no sense. KeyReusedError: the key
            stands for another message. MessageTooLargeError: over the setting databytes.
            MessageTypeError: it is nothing that could be a message.
        InputError: the stream or file could not be read.
        ConfigurationError: the home is not there, or one of its settings is wrong.
        SpoolError: the disk refused; nothing was accepted, and the same may be tried again.
    """
    return Spool(home, send=send).enqueue(
        message,
        sender,
        recipients,
        idempotency_key=idempotency_key,
        on_reuse=on_reuse,
        not_before=not_before,
        expires=expires,
        add_missing=add_missing,
        connection=connection,
    )


def enqueue_many(
    mails: Iterable[Mail | MessageLike],
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
) -> Outcomes:
    """Put many messages into the spool of this host, quicker than one by one.

    Args:
        mails: an iterable of Mail, or of messages whose header names the envelope.
        home: the home whose spool it is, a directory; None is that of the environment.
        send: start the sender in the background; None means yes, unless the environment has
            PICOQMAIL_SEND=off.

    Returns:
        One result for each, in order: its Receipt, or the exception that `enqueue` would have
        raised. One bad message never stops the others. When this returns, all that have a
        receipt are durable.

    Raises:
        MessageTypeError: `mails` is one message, or no iterable.
        ConfigurationError: nothing can be accepted at all.

        What the iterable itself raises passes through; messages before that may have been
        accepted.
    """
    return Spool(home, send=send).enqueue_many(mails)


def prepare(  # noqa: PLR0913 - as enqueue
    message: MessageLike,
    sender: AddressLike | None = None,
    recipients: Recipients | None = None,
    *,
    home: HomeLike | None = None,
    send: bool | None = None,
    idempotency_key: str | None = None,
    on_reuse: OnReuse = "raise",
    not_before: Moment | None = None,
    expires: Moment | None = None,
    add_missing: bool = False,
) -> Pending:
    """Put one message on disk, where nothing sends it before its `commit`.

    For callers with a transaction of their own; see `Spool.prepare`. Arguments and errors are those
    of `enqueue`.
    """
    return Spool(home, send=send).prepare(
        message,
        sender,
        recipients,
        idempotency_key=idempotency_key,
        on_reuse=on_reuse,
        not_before=not_before,
        expires=expires,
        add_missing=add_missing,
    )


def _refuse_one(mails: object) -> None:
    """Raise MessageTypeError for what is one message and not several."""
    is_one = isinstance(mails, (str, bytes, bytearray, memoryview, os.PathLike, Mail))
    if is_one or is_email_object(mails) or hasattr(mails, "read"):
        raise MessageTypeError(
            f"enqueue_many takes several messages, not one {type(mails).__name__}; put it into a "
            "list, or call enqueue"
        )
    if not hasattr(mails, "__iter__"):
        raise MessageTypeError(
            f"enqueue_many takes an iterable of messages, not {type(mails).__name__}"
        )


def _home(given: HomeLike) -> Home:
    if isinstance(given, homes.Home):
        return given
    return homes.Home(os.path.abspath(os.fspath(given)))


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MessageError(f"{name} is {value!r}; a whole number of at least 0 is allowed")
    return value
