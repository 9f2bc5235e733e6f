"""Acceptance by programs and the library in a home whose mail a database keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.home.database import falls_back
from picoqmail.store.fallback import FallbackIncoming, can_fall_back
from picoqmail.store.opening import open_database

if TYPE_CHECKING:
    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.store.protocol import IncomingMessage


def begin_in_database(  # noqa: PLR0913 - all that an origin is
    home: Home,
    url: str,
    where: str,
    limits: Limits,
    *,
    program: str,
    uid: int,
    pid: int,
    any_umask: bool = False,
) -> IncomingMessage:
    """Begin a message; where that may be, the host's directory takes it if the database is away.

    Raises SpoolError, ConfigurationError.
    """
    store = open_database(url, where)
    if falls_back(home) and can_fall_back(home.spool):
        return FallbackIncoming(
            home, store, limits, program=program, uid=uid, pid=pid, any_umask=any_umask
        )
    return store.incoming(limits, program=program, uid=uid, pid=pid)
