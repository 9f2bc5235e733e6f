"""The home of an administrator's command, its spool there and ours to use."""

from __future__ import annotations

import os

from picoqmail.errors import QUEUE_SPOOL, ConfigurationError, SpoolError
from picoqmail.home.owner import become_owner
from picoqmail.home.paths import Home, locate


def open_home() -> Home:
    """Find the home of this process; the process and its umask are ready for the spool then.

    Root becomes the spool's owner: the sender could not read a file that root left there. Raises
    ConfigurationError, SpoolError.
    """
    home = locate()
    become_owner(home)
    try:
        os.stat(home.spool)
    except FileNotFoundError:
        raise ConfigurationError(
            home.spool,
            "there is no spool",
            "set PICOQMAIL_HOME if the home is elsewhere, or make one: picoqmail init",
        ) from None
    except OSError as exc:
        raise SpoolError("find the spool", home.spool, exc, QUEUE_SPOOL) from exc
    os.umask(0o077)
    return home
