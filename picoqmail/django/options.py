"""The settings of Django that picoqmail looks at.

PICOQMAIL_HOME       directory of the home; unset: as for every other program
PICOQMAIL_SEND       True or False: start the sender after each acceptance; unset: yes
PICOQMAIL_ON_COMMIT  True, or a database's alias: mail sent within a transaction of it goes on its
                     way when that commits, and never if it does not

An entry of MAILERS (Django 6.1) has the same as OPTIONS: home, send, on_commit. They go before
the settings.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import mail
from django.utils.module_loading import import_string

from picoqmail.errors import ConfigurationError
from picoqmail.library.api import Spool

if TYPE_CHECKING:
    from picoqmail.library.api import HomeLike

ON_COMMIT = "PICOQMAIL_ON_COMMIT"
OPTIONS = ("home", "send", "on_commit")


def option(name: str) -> Any:  # noqa: ANN401 - a setting may be anything
    """A setting, None if it is not there."""
    return getattr(settings, name, None)


def mailers() -> dict[str, dict[str, Any]]:
    """The OPTIONS of each entry of MAILERS whose backend is ours, by alias.

    Where there is no MAILERS, or Django does not know it, and EMAIL_BACKEND is ours: an entry
    `default` without any.
    """
    configured = getattr(settings, "MAILERS", None)
    if configured is None or not hasattr(mail, "mailers"):
        return {"default": {}} if _is_ours(_old_backend()) else {}
    return {
        alias: entry.get("OPTIONS", {})
        for alias, entry in configured.items()
        if _is_ours(entry.get("BACKEND", ""))
    }


def _old_backend() -> str:
    with warnings.catch_warnings():
        # Django 6.1 warns of the setting when it is set; once is enough.
        warnings.simplefilter("ignore")
        return str(getattr(settings, "EMAIL_BACKEND", ""))


def _is_ours(path: str) -> bool:
    from picoqmail.django.backend import EmailBackend

    try:
        backend = import_string(path)
    except ImportError:
        # Django says so when it wants to send.
        return False
    return isinstance(backend, type) and issubclass(backend, EmailBackend)


def open_spool(home: HomeLike | None = None, send: bool | None = None) -> Spool:  # noqa: FBT001 - as Spool has it
    """The spool that the settings name, unless a value is given."""
    return Spool(
        option("PICOQMAIL_HOME") if home is None else home,
        send=option("PICOQMAIL_SEND") if send is None else send,
    )


def spool_of_mailer(alias: str = "") -> Spool:
    """The spool of a mailer of ours; without a name that of `default`, else of the first.

    Without any mailer of ours, the spool that the settings name. Raises ConfigurationError for
    a name that is none.
    """
    known = mailers()
    if alias and alias not in known:
        raise ConfigurationError(
            "MAILERS", f"{alias!r} is no mailer of picoqmail", f"there are: {', '.join(known)}"
        )
    alias = alias or ("default" if "default" in known else min(known, default=""))
    return open_spool(known.get(alias, {}).get("home"))


def commit_database(given: bool | str | None = None) -> str | None:  # noqa: FBT001 - the setting's own type
    """The alias of the database whose commit mail waits for, None if it waits for none."""
    wanted = option(ON_COMMIT) if given is None else given
    if not wanted:
        return None
    return wanted if isinstance(wanted, str) else "default"
