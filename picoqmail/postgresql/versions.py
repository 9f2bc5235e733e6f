"""Versions of the schema, and which programs may work with which of them. Pure.

A migration must let the programs of the version before go on: it adds tables, columns with a
default, and indexes; it takes nothing away, renames nothing, and gives nothing another meaning.
What the version before does not need any more goes with the migration after that. So the database
is migrated first, and the programs follow, host by host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.errors import ConfigurationError

if TYPE_CHECKING:
    from picoqmail.postgresql.address import DatabaseAddress

OLDEST_PROGRAM = {1: 1}
"""By number of the migration: the version that a program must at least be made for, to go on.

For a migration that follows the rule above, that is the number of the one before it, or less.
"""

PROGRAM_VERSION = max(OLDEST_PROGRAM)
"""The version that this program is made for."""

OLDEST_SERVER = 140000
"""PostgreSQL 14, as `server_version_num` has it."""


def refuse_version(
    address: DatabaseAddress, version: int | None, oldest_program: int | None
) -> None:
    """Raise ConfigurationError if a schema is too old or too new for this program."""
    version, oldest_program = version or 0, oldest_program or 0
    if version < PROGRAM_VERSION:
        raise ConfigurationError(
            address.location,
            f"its tables have version {version}, and this picoqmail needs {PROGRAM_VERSION}",
            "run: picoqmail migrate",
        )
    if oldest_program > PROGRAM_VERSION:
        raise ConfigurationError(
            address.location,
            f"its tables have version {version}, which is too new for this picoqmail",
            "install the newer picoqmail on this host, too",
        )
