"""The store of a home: the one place where the engine is chosen."""

from __future__ import annotations

import time

from picoqmail.home.database import database_of
from picoqmail.store.directory import DirectoryStore, nothing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.home.control import Control
    from picoqmail.home.paths import Home
    from picoqmail.postgresql.store import PostgresStore
    from picoqmail.spool.claim import Damage
    from picoqmail.store.protocol import Store


def open_store(
    home: Home,
    clock: Callable[[], float] = time.time,
    on_damage: Callable[[Damage], None] = nothing,
    on_copy: Callable[[str], None] = nothing,
    control: Control | None = None,
) -> Store:
    """Return the store of a home. Nothing is opened before it is used.

    `clock` gives Unix seconds, for an engine that has no clock of its own. `on_damage` is called
    for each message that is put aside, `on_copy` with what was removed because it was a damaged
    copy of a whole body. `control` as for read_limits. Raises ConfigurationError.
    """
    url, where = database_of(home, control)
    if not url:
        return DirectoryStore(home.spool, clock, on_damage, on_copy)
    return open_database(url, where, on_damage)


_shared: dict[str, PostgresStore] = {}


def shared_database(url: str, where: str) -> PostgresStore:
    """Return the store of a database as all callers in this process share it.

    A connection takes longer to make than a mail to accept. Safe in threads and over fork: the
    store keeps its connections apart. Raises ConfigurationError.
    """
    store = _shared.get(url)
    if store is None:
        store = _shared.setdefault(url, open_database(url, where))
    return store


def open_database(
    url: str, where: str, on_damage: Callable[[Damage], None] = nothing
) -> PostgresStore:
    """Return the store of a database; `where` is what names its URL. Raises ConfigurationError."""
    from picoqmail.postgresql.opening import open_postgresql

    return open_postgresql(url, on_damage, where=where)
