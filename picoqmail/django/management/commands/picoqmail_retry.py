"""`manage.py picoqmail_retry [ID ...]`: make deferred mail due, or deliver it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from picoqmail.django.mailers import spool_of_mailer
from picoqmail.errors import PicoqmailError

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

    from picoqmail.library.api import Spool


class Command(BaseCommand):
    """Retries the given messages, or all deferred mail; `--deliver` waits for the relay."""

    help = "Make deferred mail of the picoqmail spool due now; cron sends it, or --deliver."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the IDs."""
        parser.add_argument(
            "id", nargs="*", help="IDs of messages; none: all but what is held or in doubt"
        )
        parser.add_argument(
            "--deliver", action="store_true", help="deliver now, in this process, and wait for it"
        )
        parser.add_argument(
            "--mailer", default="", help="alias of MAILERS whose home is meant, if not default"
        )

    def handle(self, *args: object, **options: Any) -> None:  # noqa: ANN401 - as Django
        """Retry, and print the outcomes."""
        del args
        try:
            self._retry(
                spool_of_mailer(options["mailer"]), options["id"], deliver=options["deliver"]
            )
        except PicoqmailError as exc:
            raise CommandError(str(exc)) from exc

    def _retry(self, spool: Spool, ids: list[str], *, deliver: bool) -> None:
        named = ids
        ids = ids or [one.id for one in spool.list("new", "cur") if not _waits_for_somebody(one)]
        if deliver:
            for one in named:
                spool.retry(one)
            summary = spool.deliver(ids, forced=True)
            self.stdout.write(
                f"{summary.delivered} delivered, {summary.deferred} deferred, "
                f"{summary.failed} failed, {summary.left} left because no relay could be used"
            )
            return
        for one in ids:
            outcome = spool.retry(one)
            self.stdout.write(f"{one} {outcome.detail}")
        if not ids:
            self.stdout.write("there is no deferred mail")


def _waits_for_somebody(entry: Any) -> bool:  # noqa: ANN401 - a selection.Entry, imported where it is made
    """Say whether a message goes out only if somebody names it."""
    return entry.message is None or entry.message.held or entry.is_suspended
