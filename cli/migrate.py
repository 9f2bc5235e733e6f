"""`picoqmail migrate`: make or update the tables in the database that keeps the mail.

Exit codes: 0; 78 the database cannot be used, or is of a later version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.cli.output import print_json
from picoqmail.errors import ConfigurationError
from picoqmail.home.database import database_of
from picoqmail.home.paths import locate

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Workers of the version before go on meanwhile. Nothing is done if the tables are up to "
        "date."
    )
    parser.add_argument(
        "--sql",
        action="store_true",
        help="print the statements that are missing, for those who run the database, and run none",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the migrations that are missing, or print them."""
    from picoqmail.postgresql.address import read_url
    from picoqmail.postgresql.opening import demand_driver

    url, where = database_of(locate())
    if not url:
        raise ConfigurationError(
            "PICOQMAIL_SPOOL",
            "names no database, nor does the setting spool",
            "write postgresql://USER@HOST/DATABASE into one of them",
        )
    address = read_url(url, where)
    demand_driver(where)
    from picoqmail.postgresql import migration

    if arguments.sql:
        print(migration.script(address.schema, migration.applied(address)), end="")
        return 0
    done = migration.migrate(address)
    if arguments.json:
        print_json({"database": address.location, "applied": done})
        return 0
    for name in done:
        print(f"{address.location}: applied {name}")
    if not done:
        print(f"{address.location}: up to date")
    return 0
