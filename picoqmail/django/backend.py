"""The backend: messages of django.core.mail become messages of the spool."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction

from picoqmail.django.options import commit_database, open_spool
from picoqmail.errors import AddressError, PicoqmailError
from picoqmail.library.mail import Mail
from picoqmail.library.plain_address import plain_address, qualified

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from django.core.mail import EmailMessage

    from picoqmail.home.paths import Home
    from picoqmail.library.api import HomeLike, Pending, Spool


class EmailBackend(BaseEmailBackend):
    """Puts mail into the spool; returns when it is durable, and never waits for a relay.

    `home`, `send` and `on_commit` go before the settings (options.py). Host, port, user and the
    like, which `get_connection` and `send_mail` hand to every backend, are taken and not used.

    Errors are those of `picoqmail.enqueue`, unless `fail_silently`. All messages are tried before
    the first error is raised.
    """

    def __init__(
        self,
        fail_silently: bool = False,  # noqa: FBT001, FBT002 - Django's own signature
        *,
        home: HomeLike | None = None,
        send: bool | None = None,
        on_commit: bool | str | None = None,
        **_ignored: object,
    ) -> None:
        super().__init__(fail_silently=fail_silently)
        self._home = home
        self._send = send
        self._on_commit = on_commit

    def send_messages(self, email_messages: Iterable[EmailMessage] | None) -> int:
        """Put messages into the spool, or on disk until the commit; returns how many."""
        if not email_messages:
            return 0
        spool = open_spool(self._home, self._send)
        errors: list[Exception] = []
        mails = []
        for message in email_messages:
            try:
                # Nobody to send it to, or recipients that came to nothing: as every backend, skip.
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
        database = commit_database(self._on_commit)
        if database is not None and transaction.get_connection(database).in_atomic_block:
            return _prepare(spool, mails, errors, database)
        outcomes = spool.enqueue_many(mails)
        failed = [one for one in outcomes if isinstance(one, Exception)]
        errors += failed
        return len(outcomes) - len(failed)


def _prepare(spool: Spool, mails: Sequence[Mail], errors: list[Exception], database: str) -> int:
    """Put messages on disk, to be committed with the transaction; rolled back, they go."""
    pendings: list[Pending] = []
    for mail in mails:
        try:
            pending = spool.prepare(mail.message, mail.sender, mail.recipients)
            # A transaction may send more mails than a process may have files open.
            pending.park()
        except PicoqmailError as exc:
            errors.append(exc)
        else:
            pendings.append(pending)
    if pendings:
        # Django forgets the function if the transaction is rolled back; with it go the only
        # references to the messages, which take themselves back then.
        transaction.on_commit(partial(_commit, spool, pendings), using=database)
    return len(pendings)


def _commit(spool: Spool, pendings: list[Pending]) -> None:
    failed = [one for one in spool.commit_many(pendings) if isinstance(one, Exception)]
    if failed:
        raise failed[0]


def _mail(message: EmailMessage, home: Home) -> Mail:
    """The envelope and the octets of one message. Raises EnvelopeError for addresses."""
    sender = _address(str(message.from_email), None, home)
    recipients = [_address(str(one), n, home) for n, one in enumerate(message.recipients())]
    built: Any = message.message()
    return Mail(built, sender, recipients)


def _address(given: str, index: int | None, home: Home) -> str:
    """An address without its name; a domain that is not ASCII in the form that DNS has (IDNA)."""
    if "\n" in given or "\r" in given:
        raise AddressError("it holds a line end", given, index)
    address = qualified(plain_address(given), home)
    box, at, domain = address.rpartition("@")
    if domain.isascii():
        return address
    try:
        return f"{box}{at}{domain.encode('idna').decode()}"
    except UnicodeError:
        return address
