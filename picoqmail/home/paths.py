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
    """Absolute paths of one home; `control` and `spool` may lie elsewhere than under `root`."""

    __slots__ = ("bin", "control", "root", "spool")

    def __init__(self, root: str, control: str = "", spool: str = "") -> None:
        """`control` and `spool` default to the directories of that name in `root`.

        Those of `PACKAGED_HOME` are `/etc/picoqmail` and `/var/spool/picoqmail`.
        """
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
    `PICOQMAIL_SPOOL` override two of its directories. With raised privilege the caller's
    environment is not looked at: the home is that of this host, `/var/qmail` if it has none.
    """
    if is_privileged() if privileged is None else privileged:
        return Home(host_root() or QMAIL_HOME)
    if environ is None:
        environ = environment()
    root = environ.get("PICOQMAIL_HOME", "")
    root = absolute(root) if root else host_root() or personal_root(environ)
    control = environ.get("PICOQMAIL_CONTROL", "")
    spool = environ.get("PICOQMAIL_SPOOL", "")
    return Home(root, control and absolute(control), spool and absolute(spool))


def host_root() -> str:
    """Return the home that everybody on this host uses, "" if there is none.

    `/var/qmail` if it has a `control/me`; else that of the Debian package if it is installed.
    """
    if exists(QMAIL_HOME + "/control/me"):
        return QMAIL_HOME
    return PACKAGED_HOME if exists(PACKAGED_HOME + "/bin/qmail-queue") else ""


def personal_root(environ: Mapping[str, str]) -> str:
    """Return the home of a user who has no other: `$XDG_STATE_HOME/picoqmail`.

    The XDG base directory specification has a relative value there ignored.
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
                    "say with it where the home is",
                ) from None
        state = own.rstrip("/") + "/.local/state"
    return state + "/picoqmail"


def environment() -> Mapping[str, str]:
    """Return the environment of this process, as it got it.

    That of `os` if anybody has imported it, for he may have changed it.
    """
    if "os" in sys.modules:
        return sys.modules["os"].environ  # type: ignore[no-any-return]
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in posix.environ.items()
    }


def caller_uid(environ: Mapping[str, str]) -> int:
    """Return the real uid of whoever submits mail.

    Our own, unless the set-id program or sudo, which alone make this process the spool's owner
    for somebody else, say whose it was.

    Who starts our program by himself may say anything here; he is the owner of the spool then,
    and deceives nobody but himself.
    """
    own = posix.getuid()
    told = environ.get("PICOQMAIL_CALLER") or (own and environ.get("SUDO_UID")) or ""
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 11 else own


def become_owner(home: Home) -> bool:
    """Root in somebody else's spool becomes its owner, for good; True if that was done.

    A file that root left there could not be read by the sender; and whoever once took over the
    spool's owner could lead root astray by a link. The groups are the owner's, as if he had
    logged in. Where the spool cannot be looked at nothing is done: whoever uses it next says what
    is wrong. Raises OSError if we may not.
    """
    if posix.geteuid() != 0:
        return False
    try:
        found = posix.stat(home.spool)
    except OSError:
        return False
    if found.st_uid == 0:
        return False
    posix.setgroups(groups_of(found.st_uid, found.st_gid))
    posix.setresgid(found.st_gid, found.st_gid, found.st_gid)
    posix.setresuid(found.st_uid, found.st_uid, found.st_uid)
    return True


def groups_of(uid: int, gid: int) -> list[int]:
    """Return all groups of a user, `gid` among them; that alone for a uid that has no name."""
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return [gid]
    return posix.getgrouplist(name, gid)


def absolute(path: str) -> str:
    """Return the path from the root; what the kernel resolves (`..`, links) is left to it."""
    return path.rstrip("/") or "/" if path.startswith("/") else f"{posix.getcwd()}/{path}"


def exists(path: str) -> bool:
    """Say whether there is anything at a path that we may look at."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
