"""System checks: they report a missing or wrong home before the first mail is lost.

picoqmail.E001  the home or its spool does not exist
picoqmail.E002  a setting of the home is wrong
picoqmail.E003  this user may not write to the spool, and there is no queue program
picoqmail.E004  an entry of MAILERS has an option that does not exist
picoqmail.E005  mail should wait for a database that does not exist
picoqmail.E006  mail should be put into a database that does not exist, or is not PostgreSQL
picoqmail.W001  the home names no relay
picoqmail.W002  a setting of the home looks strange
picoqmail.W003  PICOQMAIL_ON_COMMIT needs a spool that this user may write to
picoqmail.W004  a setting begins with PICOQMAIL_, but does not exist
picoqmail.W005  this process cannot start a sender
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's own name
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from picoqmail.django import options
from picoqmail.django.mailers import databases, mailers
from picoqmail.submission.detached_sender import find
from picoqmail.submission.handover import may_spool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.home.paths import Home

_SETTINGS = frozenset(("PICOQMAIL_HOME", "PICOQMAIL_SEND", options.ON_COMMIT, options.USING))


def check_home(app_configs: Any = None, **_: Any) -> list[CheckMessage]:  # noqa: ANN401 - as Django
    """Check the homes that mail goes to, if a backend is ours."""
    del app_configs
    found: list[CheckMessage] = []
    seen = set()
    ours = mailers()
    for alias, given in ours.items():
        try:
            if hasattr(mail, "mailers") and hasattr(settings, "MAILERS"):
                mail.mailers[alias]
        except (ImproperlyConfigured, TypeError) as exc:
            hint = f"The options are {', '.join(options.OPTIONS)}."
            found.append(Error(str(exc), hint=hint, id="picoqmail.E004"))
            continue
        database = options.commit_database(given.get("on_commit"))
        home = options.open_spool(given.get("home")).home
        found += _database(database)
        if home.root not in seen:
            seen.add(home.root)
            found += _look(home, commits=database is not None)
    if ours:
        found += _misspelt()
        found += _tables()
    return found


def _misspelt() -> Iterator[CheckMessage]:
    for name in sorted(set(dir(settings)) - _SETTINGS):
        if name.startswith("PICOQMAIL_"):
            hint = f"The settings are {', '.join(sorted(_SETTINGS))}."
            yield Warning(f"{name} is not a setting of picoqmail.", hint=hint, id="picoqmail.W004")


def _database(alias: str | None) -> Iterator[CheckMessage]:
    if alias is not None and alias not in settings.DATABASES:
        yield Error(
            f"Mail should wait for the commit of the database {alias!r}, which does not exist.",
            hint=f"Set {options.ON_COMMIT} or on_commit to an alias of DATABASES, or to True.",
            id="picoqmail.E005",
        )


def _tables() -> Iterator[CheckMessage]:
    for alias in sorted(databases()):
        if alias not in settings.DATABASES or connections[alias].vendor != "postgresql":
            yield Error(
                f"Mail should be put into the database {alias!r}, which is no PostgreSQL.",
                hint=f"Set {options.USING} or using to the alias of one in DATABASES.",
                id="picoqmail.E006",
            )


def _look(home: Home, *, commits: bool) -> Iterator[CheckMessage]:
    for path in (home.root, home.spool):
        if not os.path.isdir(path):
            yield Error(
                f"{path} does not exist, so no mail can be accepted.",
                hint="Make it with `picoqmail init`, or correct PICOQMAIL_HOME.",
                id="picoqmail.E001",
            )
            return
    yield from _settings(home)
    if may_spool(home.spool):
        if options.open_spool().send is not False and find(home) is None:
            yield Warning(
                "No sender can be started from this process, so all mail waits for cron.",
                hint="Install picoqmail beside the application, or set PICOQMAIL_SEND = False.",
                id="picoqmail.W005",
            )
        return
    if not os.access(f"{home.bin}/qmail-queue", os.X_OK):
        yield Error(
            f"This user may not write to {home.spool}, and {home.bin} has no qmail-queue.",
            hint="Let the spool's owner run `picoqmail init` again.",
            id="picoqmail.E003",
        )
    elif commits:
        yield Warning(
            f"PICOQMAIL_ON_COMMIT cannot work, because this user may not write to {home.spool}.",
            hint="Give the application its own home, or unset PICOQMAIL_ON_COMMIT.",
            id="picoqmail.W003",
        )


def _settings(home: Home) -> Iterator[CheckMessage]:
    from picoqmail.home.settings import examine

    found = examine(home)
    for error in found.errors:
        yield Error(str(error), hint="See `picoqmail config`.", id="picoqmail.E002")
    for text in found.warnings:
        kind = "picoqmail.W001" if "/relayip: is not there" in text else "picoqmail.W002"
        yield Warning(text, hint="See `picoqmail config`.", id=kind)
