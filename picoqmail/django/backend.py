"""The backend: messages of django.core.mail become messages of the spool."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction

from picoqmail.django.options import OPTIONS, USING, commit_database, open_spool, option
from picoqmail.errors import AddressError, PicoqmailError
from picoqmail.library.mail import Mail
from picoqmail.library.plain_address import plain_address, qualified
from picoqmail.message.addresses import write_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from django.core.mail import EmailMessage
    from django.db.backends.base.base import BaseDatabaseWrapper

    from picoqmail.home.paths import Home
    from picoqmail.library.api import HomeLike, Pending, Spool

# Arguments that Django passes to every backend, and that only SMTP needs.
_OF_SMTP = frozenset(
    (
        "host",
        "port",
        "username",
        "password",
        "use_tls",
        "use_ssl",
        "timeout",
        "ssl_keyfile",
        "ssl_certfile",
    )
)
_logger = logging.getLogger("picoqmail.django")


class EmailBackend(BaseEmailBackend):
    """Puts mail into the spool; returns when it is durable, and never waits for a relay.

    `home`, `send`, `on_commit` and `using` override the settings (options.py). They are the OPTIONS
    of an entry of MAILERS (Django 6.1), and arguments of `get_connection`. Django passes host,
    port, user and similar arguments to every backend; they are accepted and ignored. Any other name
    is an error: ImproperlyConfigured in MAILERS, TypeError elsewhere.

    Errors are those of `picoqmail.enqueue`, unless `fail_silently`. All messages are tried before
    the first error is raised.
    """

    def __init__(  # noqa: PLR0913 - an argument a setting
        self,
        fail_silently: bool = False,  # noqa: FBT001, FBT002 - Django's own signature
        *,
        home: HomeLike | None = None,
        send: bool | None = None,
        on_commit: bool | str | None = None,
        using: str | None = None,
        alias: str | None = None,
        **more: Any,  # noqa: ANN401 - what Django hands to every backend
    ) -> None:
        if alias is None:
            _refuse_unknown(more.keys() - _OF_SMTP)
            super().__init__()
        elif hasattr(mail, "mailers"):
            # Django knows which arguments it added itself, and raises for the others.
            super().__init__(alias=alias, **more)
        else:
            raise ImproperlyConfigured(f"alias={alias!r}: MAILERS needs Django 6.1")
        self.alias = alias
        self.fail_silently = fail_silently
        self._home = home
        self._send = send
        self._on_commit = on_commit
        self._using = using

    def send_messages(self, email_messages: Iterable[EmailMessage] | None) -> int:
        """Put messages into the spool, or on disk until the commit; return their number."""
        if not email_messages:
            return 0
        spool = open_spool(self._home, self._send)
        errors: list[Exception] = []
        mails = []
        for message in email_messages:
            try:
                # Like every backend, skip a message without recipients.
                if message.recipients():
                    mails.append(_mail(message, spool.home))
            except Exception as exc:  # noqa: BLE001 - one bad message never stops the others
                errors.append(exc)
        count = 0
        try:
            count = self._accept(spool, mails, errors)
        except PicoqmailError as exc:
            errors.append(exc)
        if errors and not self.fail_silently:
            if len(errors) > 1:
                errors[0].add_note(f"and {len(errors) - 1} more messages could not be accepted")
            raise errors[0]
        return count

    def _accept(self, spool: Spool, mails: Sequence[Mail], errors: list[Exception]) -> int:
        if not mails:
            return 0
        using = option(USING) if self._using is None else self._using
        if using:
            return _put_into_tables(spool, mails, errors, using)
        database = commit_database(self._on_commit)
        if database is not None:
            connection = transaction.get_connection(database)
            if connection.in_atomic_block or not connection.get_autocommit():
                return _prepare(spool, mails, errors, connection)
        outcomes = spool.enqueue_many(mails)
        failed = [one for one in outcomes if isinstance(one, Exception)]
        errors += failed
        return len(outcomes) - len(failed)


def _refuse_unknown(names: Iterable[str]) -> None:
    unknown = ", ".join(sorted(names))
    if unknown:
        raise TypeError(
            f"picoqmail's EmailBackend has no option {unknown}; there are {', '.join(OPTIONS)}"
        )


# --- Transactions -----------------------------------------------------------------------------


def _put_into_tables(
    spool: Spool, mails: Sequence[Mail], errors: list[Exception], using: str
) -> int:
    """Put messages into the tables of a database, in the transaction that is open there."""
    count = 0
    for one in mails:
        try:
            spool.enqueue(one.message, one.sender, one.recipients, connection=using)
            count += 1
        except PicoqmailError as exc:
            errors.append(exc)
    return count


class _Waiting:
    """Messages on disk that wait for a commit."""

    def __init__(self, spool: Spool, pendings: list[Pending]) -> None:
        self._spool = spool
        self._pendings = pendings

    def commit(self) -> None:
        """Accept them; failures are only logged, because the transaction is committed.

        Raises nothing, so that later mail and callbacks of the application still run.
        """
        pendings, self._pendings = self._pendings, []
        outcomes: Sequence[object]
        try:
            outcomes = self._spool.commit_many(pendings)
        except Exception as exc:  # noqa: BLE001 - whatever the error, later callbacks run
            outcomes = [exc] * len(pendings)
        for pending, outcome in zip(pendings, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _logger.error(
                    "mail %s was lost at the commit: %s", pending.id, outcome, exc_info=outcome
                )


def _prepare(
    spool: Spool, mails: Sequence[Mail], errors: list[Exception], connection: BaseDatabaseWrapper
) -> int:
    """Put messages on disk; they are committed or removed with the transaction."""
    pendings: list[Pending] = []
    for one in mails:
        try:
            pending = spool.prepare(one.message, one.sender, one.recipients)
            # A transaction may send more mails than the process may have open files.
            pending.park()
        except PicoqmailError as exc:
            errors.append(exc)
        else:
            pendings.append(pending)
    if pendings:
        # On a rollback Django drops the function, and with it the only references to the messages.
        # The messages are then removed.
        _on_commit(connection, _Waiting(spool, pendings).commit)
    return len(pendings)


def _on_commit(connection: BaseDatabaseWrapper, call: Callable[[], None]) -> None:
    """Do what `transaction.on_commit` does, also if the application commits by hand."""
    by_hand = not connection.in_atomic_block or not connection.commit_on_exit
    if not by_hand:
        connection.on_commit(call)
        return
    _watch_manual_commits(connection)
    # Django accepts functions only within a block, and raises outside of one.
    in_block, connection.in_atomic_block = connection.in_atomic_block, True
    try:
        connection.on_commit(call)
    finally:
        connection.in_atomic_block = in_block


def _watch_manual_commits(connection: BaseDatabaseWrapper) -> None:
    """Commit mail with each `transaction.commit()` of a connection without autocommit.

    Django runs such callbacks only when autocommit is switched on again, which may never happen. It
    has no hook for a commit, so the connection's own methods are wrapped, once.
    """
    if getattr(connection, "_picoqmail_watched", False):
        return
    commit, set_autocommit = connection.commit, connection.set_autocommit

    def commit_mail_too() -> None:
        commit()
        _commit_waiting(connection)

    def set_autocommit_and_commit_mail(
        autocommit: bool,  # noqa: FBT001 - Django's own signature
        *arguments: Any,  # noqa: ANN401 - the same
        **more: Any,  # noqa: ANN401 - the same
    ) -> None:
        set_autocommit(autocommit, *arguments, **more)
        if autocommit and not connection.in_atomic_block:
            # Switching autocommit on ends the open transaction, where possible with a commit.
            _commit_waiting(connection)

    connection.commit = commit_mail_too  # type: ignore[method-assign] # a hook that Django lacks
    connection.set_autocommit = set_autocommit_and_commit_mail  # type: ignore[method-assign]
    connection._picoqmail_watched = True  # type: ignore[attr-defined] # noqa: SLF001 - our mark


def _commit_waiting(connection: BaseDatabaseWrapper) -> None:
    """Commit our mail of a connection; leave the application's callbacks to Django."""
    waiting: list[Any] = []
    others: list[Any] = []
    for entry in connection.run_on_commit:
        is_ours = isinstance(getattr(entry[1], "__self__", None), _Waiting)
        (waiting if is_ours else others).append(entry)
    connection.run_on_commit = others
    for entry in waiting:
        entry[1]()


# --- Messages ---------------------------------------------------------------------------------


def _mail(message: EmailMessage, home: Home) -> Mail:
    """Return envelope and octets of one message. Raises EnvelopeError for a bad address."""
    sender = _address(str(message.from_email), None, home)
    recipients = [_address(str(one), n, home) for n, one in enumerate(message.recipients())]
    built: Any = message.message()
    return Mail(built, sender, recipients)


def _address(given: str, index: int | None, home: Home) -> str:
    """An address without its name; a domain that is not ASCII in the form that DNS has (IDNA)."""
    if "\n" in given or "\r" in given:
        raise AddressError("it holds a line end", given, index)
    address = qualified(plain_address(given, index), home)
    box, at, domain = address.rpartition("@")
    if not domain.isascii():
        with suppress(UnicodeError):
            address = f"{box}{at}{domain.encode('idna').decode()}"
    return write_one(address)
