"""The settings of Django that picoqmail uses.

PICOQMAIL_HOME       directory of the home; unset: as for every other program
PICOQMAIL_SEND       True or False: start the sender after each acceptance; unset: yes
PICOQMAIL_ON_COMMIT  True, or a database's alias: mail sent within a transaction of that database is
                     accepted when the transaction commits, and never if it does not
PICOQMAIL_USING      a PostgreSQL database's alias: mail is put into picoqmail's tables there, and
                     is committed or rolled back with the transaction that is open

An entry of MAILERS (Django 6.1) has the same as OPTIONS: home, send, on_commit, using. They
override the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings

from picoqmail.library.api import Spool

if TYPE_CHECKING:
    from picoqmail.library.api import HomeLike

ON_COMMIT = "PICOQMAIL_ON_COMMIT"
USING = "PICOQMAIL_USING"
OPTIONS = ("home", "send", "on_commit", "using")


def option(name: str) -> Any:  # noqa: ANN401 - a setting may be anything
    """Return a setting; None if it does not exist."""
    return getattr(settings, name, None)


def open_spool(home: HomeLike | None = None, send: bool | None = None) -> Spool:  # noqa: FBT001 - as Spool has it
    """Return the spool that the arguments or else the settings name."""
    return Spool(
        option("PICOQMAIL_HOME") if home is None else home,
        send=option("PICOQMAIL_SEND") if send is None else send,
    )


def commit_database(given: bool | str | None = None) -> str | None:  # noqa: FBT001 - the setting's own type
    """Return the alias of the database whose commit mail waits for, or None."""
    wanted = option(ON_COMMIT) if given is None else given
    if not wanted:
        return None
    return wanted if isinstance(wanted, str) else "default"
