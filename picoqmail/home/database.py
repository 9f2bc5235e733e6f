"""Which database a home keeps its mail in, if any. Hot; builtins only.

`PICOQMAIL_SPOOL` names it, or the setting `spool`, whose value may hold a password. Most homes have
neither, and find that out by one look for a file.
"""

from __future__ import annotations

from picoqmail.errors import ConfigurationError
from picoqmail.home.control import Control
from picoqmail.home.limits import OFF_WORDS
from picoqmail.home.paths import is_database_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.control import ControlValue
    from picoqmail.home.paths import Home

DATABASE_SETTING = "spool"
FALLBACK_SETTING = "fallback"
_OTHERS = 0o077


def database_of(home: Home, control: Control | None = None) -> tuple[str, str]:
    """Return the URL of a home's database and where that stands; "" if its spool is a directory.

    `control` as for read_limits. Raises ConfigurationError.
    """
    if home.database:
        return home.database, "PICOQMAIL_SPOOL"
    value = (control or Control(home.control)).read(DATABASE_SETTING)
    return ("", "") if value is None else (read_database(value), value.where())


def read_database(value: ControlValue) -> str:
    """Return the URL that the setting `spool` has. Raises ConfigurationError.

    The error does not repeat the value, which may hold a password.
    """
    url = value.text
    if not is_database_url(url):
        raise ConfigurationError(
            value.where(),
            "is no URL of a PostgreSQL database",
            "write postgresql://USER@HOST/DATABASE, or remove it: the spool is a directory then",
        )
    if value.mode & _OTHERS and has_password(url):
        raise ConfigurationError(
            value.where(),
            f"holds a password, and others may read it (mode {value.mode & 0o7777:04o})",
            f"chmod 0600 {value.path}",
        )
    return url


def has_password(url: str) -> bool:
    """Say whether a URL holds a password, in its authority or among its parameters."""
    return without_password(url) != url


def without_password(url: str) -> str:
    """Return a URL for people: without the password that it may hold."""
    scheme, _, rest = url.partition("://")
    place, question, parameters = rest.partition("?")
    authority, slash, path = place.partition("/")
    user, at, host = authority.rpartition("@")
    kept = [one for one in parameters.split("&") if not one.startswith("password=")]
    return "".join(
        [f"{scheme}://", user.partition(":")[0], at, host, slash, path]
        + ([question, "&".join(kept)] if parameters else [question])
    )


def falls_back(home: Home) -> bool:
    """Say whether the host's directory takes mail while the database is away: `fallback`.

    Raises ConfigurationError.
    """
    value = Control(home.control).read(FALLBACK_SETTING)
    return value is None or value.text.lower() not in OFF_WORDS
