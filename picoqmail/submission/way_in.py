"""Where a program puts a message: into the spool directory, or into the database. Hot.

Most homes have no database. Then nothing but the directory's own code is imported.
"""

from __future__ import annotations

from picoqmail.home.database import database_of
from picoqmail.layout import DROP_FILE_MODE
from picoqmail.spool.incoming import Incoming

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.control import Control
    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.store.protocol import IncomingMessage


def begin(  # noqa: PLR0913 - all that an origin is
    home: Home,
    limits: Limits,
    *,
    program: str,
    uid: int,
    pid: int,
    drop: str = "",
    control: Control | None = None,
) -> IncomingMessage:
    """Begin a message of a home; the end of its `with` block takes it back unless committed.

    `drop` is the part of the drop that this process may write to, "" if that is the spool;
    `control` are the settings, if they were read before. Raises SpoolError, ConfigurationError.
    """
    if drop:
        # The owner of the spool takes it from there, into the database if there is one.
        return Incoming(drop, limits, program=program, uid=uid, pid=pid, mode=DROP_FILE_MODE)
    url, where = database_of(home, control)
    if url:
        from picoqmail.store.acceptance import begin_in_database

        return begin_in_database(home, url, where, limits, program=program, uid=uid, pid=pid)
    return Incoming(home.spool, limits, program=program, uid=uid, pid=pid)
