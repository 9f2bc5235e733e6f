"""The URL of a database: what of it is ours, what the driver's, what people may see. Pure."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from picoqmail.errors import ConfigurationError
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SCHEMES = ("postgresql", "postgres")
DEFAULT_SCHEMA = "picoqmail"
LEASE_SECONDS = 60.0
# A lease must outlast what a worker may wait for the database (connections.py).
SHORTEST_LEASE_SECONDS = 2.0

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,55}\Z")
_OURS = frozenset({"schema", "lease"})


class DatabaseAddress(Value):
    """Where the database is.

    `conninfo` is for the driver, and may hold a password. `location` is for people, and holds none.
    `schema` is the name that our tables have before theirs, `lease_seconds` how long a claim lasts
    unless it is renewed.
    """

    __slots__ = ("conninfo", "location", "schema", "lease_seconds")

    def __init__(self, conninfo: str, location: str, schema: str, lease_seconds: float) -> None:
        self.conninfo: Final = conninfo
        self.location: Final = location
        self.schema: Final = schema
        self.lease_seconds: Final = lease_seconds

    def __repr__(self) -> str:
        """Show what people may see."""
        return f"DatabaseAddress({self.location!r}, schema={self.schema!r})"


def is_database_url(text: str) -> bool:
    """Say whether a setting names a database, and not a directory."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def read_url(url: str, where: str = "PICOQMAIL_SPOOL") -> DatabaseAddress:
    """Take a URL apart: libpq's own parameters, and ours: `schema` and `lease` (seconds).

    `where` is what the error names. Raises ConfigurationError, which does not repeat the URL, for
    that may hold a password.
    """
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _refuse(where) from None
    if parts.scheme not in SCHEMES or not _has_proper_ports(parts.netloc):
        raise _refuse(where)
    ours = {name: value for name, value in given if name in _OURS}
    schema = ours.get("schema", DEFAULT_SCHEMA)
    if not _SCHEMA.match(schema):
        raise ConfigurationError(
            where,
            f"the schema {schema!a} has no proper name",
            "a to z, 0 to 9 and _ are allowed, at most 56, and no digit first",
        )
    theirs = urlencode([pair for pair in given if pair[0] not in _OURS])
    conninfo = f"postgresql://{parts.netloc}{parts.path}" + (f"?{theirs}" if theirs else "")
    return DatabaseAddress(
        conninfo, _location(parts.netloc, parts.path, given), schema, _lease(ours, where)
    )


def _refuse(where: str) -> ConfigurationError:
    return ConfigurationError(
        where,
        "is no URL of a PostgreSQL database",
        "write postgresql://USER@HOST/DATABASE, or postgresql:///DATABASE?host=/run/postgresql",
    )


def _has_proper_ports(netloc: str) -> bool:
    """Say whether what looks like a port is one; libpq takes it for the name of a service."""
    hosts = netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
    return all(not port or (port.isascii() and port.isdecimal()) for port in ports)


def _lease(ours: dict[str, str], where: str) -> float:
    try:
        lease = float(ours.get("lease", LEASE_SECONDS))
    except ValueError:
        lease = 0.0
    if not SHORTEST_LEASE_SECONDS <= lease <= 86400:
        raise ConfigurationError(
            where,
            f"the lease {ours.get('lease')!a} is no number of seconds",
            f"{SHORTEST_LEASE_SECONDS:g} to 86400 are allowed; {LEASE_SECONDS:g} is the default",
        )
    return lease


def _location(netloc: str, path: str, given: list[tuple[str, str]]) -> str:
    """Return the URL without password and parameters; a host or socket among these is shown."""
    user, at, host = netloc.rpartition("@")
    user = user.partition(":")[0]
    host = host or dict(given).get("host", "")
    return (
        f"postgresql://{user}{at}{host}{path}"
        if not host.startswith("/")
        else f"postgresql://{user}{at}{path}?host={host}"
    )
