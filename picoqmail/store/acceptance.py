"""Acceptance by programs and the library in a home whose mail a database keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.home.database import falls_back
from picoqmail.postgresql.incoming import publish
from picoqmail.postgresql.keys import publish_keyed
from picoqmail.store.fallback import FallbackIncoming, can_fall_back, publish_either
from picoqmail.store.opening import shared_database

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.postgresql.incoming import TableIncoming


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
) -> FallbackIncoming | TableIncoming:
    """Begin a message; where that may be, the host's directory takes it if the database is away.

    Raises SpoolError, ConfigurationError.
    """
    store = shared_database(url, where)
    if falls_back(home) and can_fall_back(home.spool):
        return FallbackIncoming(
            home, store, limits, program=program, uid=uid, pid=pid, any_umask=any_umask
        )
    return store.incoming(limits, program=program, uid=uid, pid=pid)


def publish_with_key(
    incoming: FallbackIncoming | TableIncoming,
    key: str,
    *,
    fingerprint: str,
    lifetime: float,
    key_decides: bool,
) -> dict[str, Any] | None:
    """Accept a sealed message unless its key stands for one; return the record of that then.

    Only the database knows the keys of all hosts, so the directory does not take the message while
    the database is away. Raises KeyReusedError, MessageError, SpoolError.
    """
    table = incoming.in_database() if isinstance(incoming, FallbackIncoming) else incoming
    found = publish_keyed(
        table, key, fingerprint=fingerprint, lifetime=lifetime, key_decides=key_decides
    )
    if isinstance(incoming, FallbackIncoming) and found is None:
        incoming.note_commit()
    return found


def publish_group(group: Sequence[FallbackIncoming | TableIncoming]) -> None:
    """Make sealed messages of one home durable and visible, all or none.

    They are of one kind: begin_in_database decides that by the home. Raises SpoolError; then each
    of them has to be taken back.
    """
    either = [one for one in group if isinstance(one, FallbackIncoming)]
    if either:
        publish_either(either)
    else:
        publish([one for one in group if not isinstance(one, FallbackIncoming)])
