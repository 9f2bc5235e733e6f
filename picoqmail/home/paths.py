"""Where everything is: the home and its directories. Plain stdlib; no file is opened here.

A home holds `control/`, `spool/` and `bin/`. Which one is used is decided here and nowhere else.
The home of the Debian package is spread over the places that Debian has for such things.

This module and the other hot ones call `posix`, the builtin that `os` is made of on every Unix:
importing `os` would cost the programs that are started once a mail a sixth of their time.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

QMAIL_HOME = "/var/qmail"
PACKAGED_HOME = "/usr/lib/picoqmail"
_PACKAGED_CONTROL = "/etc/picoqmail"
_PACKAGED_SPOOL = "/var/spool/picoqmail"


class Home:
    """Absolute paths of one home; `control` and `spool` may lie elsewhere than under `root`.

    `database` is the URL that `PICOQMAIL_SPOOL` named, "" as a rule. Then `spool` is the directory
    that takes mail while the database is away.
    """

    __slots__ = ("bin", "control", "database", "root", "spool")

    def __init__(self, root: str, control: str = "", spool: str = "", database: str = "") -> None:
        """`control` and `spool` default to the directories of that name in `root`.

        Those of `PACKAGED_HOME` are `/etc/picoqmail` and `/var/spool/picoqmail`.
        """
        self.database = database
        packaged = root == PACKAGED_HOME
        self.root = root
        self.control = control or (_PACKAGED_CONTROL if packaged else root + "/control")
        self.spool = spool or (_PACKAGED_SPOOL if packaged else root + "/spool")
        self.bin = root + "/bin"

    def __repr__(self) -> str:
        """Show the root, which is what people look for."""
        return f"Home({self.root!r})"


def is_privileged() -> bool:
    """Say whether this process runs with rights that its caller does not have (set-id)."""
    return posix.getuid() != posix.geteuid() or posix.getgid() != posix.getegid()


def locate(environ: Mapping[str, str] | None = None, *, privileged: bool | None = None) -> Home:
    """Find the home of this process.

    `PICOQMAIL_HOME`; unset, that of this host (see `host_root`); else
    `$XDG_STATE_HOME/picoqmail` (`~/.local/state/picoqmail`). `PICOQMAIL_CONTROL` and
    `PICOQMAIL_SPOOL` override two of its directories; the latter may also be the URL of a database
    (postgresql://). With raised privilege the caller's
    environment is ignored: the home is that of this host, `/var/qmail` if it has none.
    """
    if is_privileged() if privileged is None else privileged:
        return Home(host_root() or QMAIL_HOME)
    if environ is None:
        environ = environment()
    root = environ.get("PICOQMAIL_HOME", "")
    root = absolute(root) if root else host_root() or personal_root(environ)
    control = environ.get("PICOQMAIL_CONTROL", "")
    spool = environ.get("PICOQMAIL_SPOOL", "")
    control = control and absolute(control)
    if is_database_url(spool):
        return Home(root, control, database=spool)
    return Home(root, control, spool and absolute(spool))


def is_database_url(text: str) -> bool:
    """Say whether a spool is named by the URL of a database, and not by a path."""
    return text.startswith(("postgresql://", "postgres://"))


def host_root() -> str:
    """Return the home that all users of this host share, "" if there is none.

    `/var/qmail` if it has a `control/me`; else that of the Debian package if it is installed.
    """
    if exists(QMAIL_HOME + "/control/me"):
        return QMAIL_HOME
    return PACKAGED_HOME if exists(PACKAGED_HOME + "/bin/qmail-queue") else ""


def personal_root(environ: Mapping[str, str]) -> str:
    """Return a user's own home: `$XDG_STATE_HOME/picoqmail`.

    The XDG base directory specification says to ignore a relative value there.
    """
    state = environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        own = environ.get("HOME", "")
        if not own.startswith("/"):
            import pwd

            try:
                own = pwd.getpwuid(posix.getuid()).pw_dir
            except KeyError:
                from picoqmail.errors import ConfigurationError

                raise ConfigurationError(
                    "PICOQMAIL_HOME",
                    f"is not set, nor is HOME, and user {posix.getuid()} has no entry in passwd(5)",
                    "set it to the path of the home",
                ) from None
        state = own.rstrip("/") + "/.local/state"
    return state + "/picoqmail"


def environment() -> Mapping[str, str]:
    """Return the environment of this process.

    That of `os` if that is imported, for the application may have changed it; else as it was at the
    start.
    """
    if "os" in sys.modules:
        return sys.modules["os"].environ  # type: ignore[no-any-return]
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in posix.environ.items()
    }


def caller_uid(environ: Mapping[str, str]) -> int:
    """Return the real uid of the user who submits mail.

    It is our own, unless the set-id program or sudo passes on that of another user. Only these make
    this process the spool's owner for another user. A user who sets the variable by hand is the
    owner of the spool already, and deceives nobody else.
    """
    own = posix.getuid()
    given = environ.get("PICOQMAIL_CALLER") or (own and environ.get("SUDO_UID")) or ""
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 11 else own


def absolute(path: str) -> str:
    """Return the path from the root; what the kernel resolves (`..`, links) is left to it."""
    return path.rstrip("/") or "/" if path.startswith("/") else f"{posix.getcwd()}/{path}"


def exists(path: str) -> bool:
    """Say whether there is anything at a path, as far as this process can see."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
