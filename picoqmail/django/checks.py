"""System checks: a home that is missing or wrong is told before the first mail is lost.

picoqmail.E001  the home or its spool is not there
picoqmail.E002  a setting of the home is wrong
picoqmail.E003  this user may not write to the spool, and there is no queue program
picoqmail.W001  the home names no relay
picoqmail.W002  a setting of the home looks strange
picoqmail.W003  PICOQMAIL_ON_COMMIT needs a spool that this user may write to
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's own name

from picoqmail.django.options import commit_database, open_spool
from picoqmail.submission.handover import may_spool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.home.paths import Home

BACKEND = "picoqmail.django.EmailBackend"


def check_home(app_configs: Any = None, **_: Any) -> list[CheckMessage]:  # noqa: ANN401 - as Django
    """Look at the home that mail goes to, if the backend is ours."""
    del app_configs
    backend = getattr(settings, "EMAIL_BACKEND", "")
    if backend not in (BACKEND, "picoqmail.django.backend.EmailBackend"):
        return []
    return list(_look(open_spool().home))


def _look(home: Home) -> Iterator[CheckMessage]:
    for path in (home.root, home.spool):
        if not os.path.isdir(path):
            yield Error(
                f"{path} is not there, so no mail can be accepted.",
                hint="Make it with `picoqmail init`, or correct PICOQMAIL_HOME.",
                id="picoqmail.E001",
            )
            return
    yield from _settings(home)
    if may_spool(home.spool):
        return
    if not os.access(f"{home.bin}/qmail-queue", os.X_OK):
        yield Error(
            f"This user may not write to {home.spool}, and {home.bin} has no qmail-queue.",
            hint="Let the spool's owner run `picoqmail init` again.",
            id="picoqmail.E003",
        )
    elif commit_database() is not None:
        yield Warning(
            f"PICOQMAIL_ON_COMMIT cannot work, for this user may not write to {home.spool}.",
            hint="Give the application a home of its own, or unset PICOQMAIL_ON_COMMIT.",
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
