"""`manage.py picoqmail_status`: the state of the spool of this project's mail."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from picoqmail.django.mailers import spool_of_mailer
from picoqmail.errors import PicoqmailError

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Command(BaseCommand):
    """Prints counts and ages; `--json` for programs."""

    help = "Show how much mail waits in the picoqmail spool, and since when."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare --json."""
        parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
        parser.add_argument(
            "--mailer", default="", help="alias of MAILERS whose home is meant, if not default"
        )

    def handle(self, *args: object, **options: Any) -> None:  # noqa: ANN401 - as Django
        """Print."""
        del args
        try:
            spool = spool_of_mailer(options["mailer"])
            found = spool.status()
        except PicoqmailError as exc:
            raise CommandError(str(exc)) from exc
        if options["json"]:
            self.stdout.write(json.dumps({"spool": spool.home.spool, **found.document()}))
            return
        self.stdout.write(f"spool {spool.home.spool}")
        for name, heap in found.heaps.items():
            self.stdout.write(f"{name:12} {heap.messages} messages, {heap.octets} bytes")
        self.stdout.write(f"{'held':12} {found.held}")
        self.stdout.write(f"{'in doubt':12} {found.in_doubt}")
        if found.oldest_waiting:
            age = max(int(time.time()) - found.oldest_waiting, 0)
            self.stdout.write(f"the oldest waiting message is {age} seconds old")
        for name, outage in found.outages.items():
            self.stdout.write(self.style.WARNING(f"the relay {name} is down: {outage.reason}"))
