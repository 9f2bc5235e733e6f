"""The settings of Django that picoqmail looks at.

PICOQMAIL_HOME       directory of the home; unset: as for every other program
PICOQMAIL_SEND       True or False: start the sender after each acceptance; unset: yes
PICOQMAIL_ON_COMMIT  True, or a database's alias: mail sent within a transaction of it goes on its
                     way when that commits, and never if it does not

An entry of MAILERS (Django 6.1) has the same as OPTIONS: home, send, on_commit. They go before
the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings

from picoqmail.library.api import Spool

if TYPE_CHECKING:
    from picoqmail.library.api import HomeLike

ON_COMMIT = "PICOQMAIL_ON_COMMIT"
OPTIONS = ("home", "send", "on_commit")


def option(name: str) -> Any:  # noqa: ANN401 - a setting may be anything
    """A setting, None if it is not there."""
    return getattr(settings, name, None)


def open_spool(home: HomeLike | None = None, send: bool | None = None) -> Spool:  # noqa: FBT001 - as Spool has it
    """The spool that the settings name, unless a value is given."""
    return Spool(
        option("PICOQMAIL_HOME") if home is None else home,
        send=option("PICOQMAIL_SEND") if send is None else send,
    )


def commit_database(given: bool | str | None = None) -> str | None:  # noqa: FBT001 - the setting's own type
    """The alias of the database whose commit mail waits for, None if it waits for none."""
    wanted = option(ON_COMMIT) if given is None else given
    if not wanted:
        return None
    return wanted if isinstance(wanted, str) else "default"
