"""The way into this room: the only module that may be imported where the driver is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.errors import ConfigurationError
from picoqmail.postgresql.address import read_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.postgresql.store import PostgresStore
    from picoqmail.spool.claim import Damage


def nothing_to_do(_what: object) -> None:
    """Do nothing with it."""


def demand_driver(where: str = "PICOQMAIL_SPOOL") -> None:
    """Raise ConfigurationError if the driver, psycopg 3, is not installed or does not load."""
    try:
        import psycopg  # noqa: F401 - only whether it can be
    except ImportError as exc:
        raise ConfigurationError(
            where,
            f"the driver for PostgreSQL cannot be loaded: {str(exc).splitlines()[0]}",
            "install it: pip install 'picoqmail[postgresql]'",
        ) from exc


def open_postgresql(
    url: str,
    on_damage: Callable[[Damage], None] = nothing_to_do,
    on_takeover: Callable[[str], None] = nothing_to_do,
    where: str = "PICOQMAIL_SPOOL",
) -> PostgresStore:
    """Return the store of a URL; nothing is connected before it is used.

    `where` is what an error names: the setting or variable that holds the URL. Raises
    ConfigurationError.
    """
    address = read_url(url, where)
    demand_driver(where)
    from picoqmail.postgresql.store import PostgresStore

    return PostgresStore(address, on_damage, on_takeover)
