"""Where everything is: the home and its directories. Plain stdlib; no file is opened here.

A home holds `control/`, `spool/` and `bin/`. Which one is used is decided here and nowhere else.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

QMAIL_HOME = "/var/qmail"


class Home:
    """Absolute paths of one home; `control` and `spool` may lie elsewhere than under `root`."""

    __slots__ = ("bin", "control", "root", "spool")

    def __init__(self, root: str, control: str = "", spool: str = "") -> None:
        """`control` and `spool` default to the directories of that name in `root`."""
        self.root = root
        self.control = control or root + "/control"
        self.spool = spool or root + "/spool"
        self.bin = root + "/bin"

    def __repr__(self) -> str:
        """Show the root, which is what people look for."""
        return f"Home({self.root!r})"


def is_privileged() -> bool:
    """Say whether this process runs with rights that its caller does not have (set-id)."""
    return os.getuid() != os.geteuid() or os.getgid() != os.getegid()


def locate(environ: Mapping[str, str] | None = None, *, privileged: bool | None = None) -> Home:
    """Find the home of this process.

    `PICOQMAIL_HOME`; unset, `/var/qmail` if it has a `control/me`; else
    `$XDG_STATE_HOME/picoqmail` (`~/.local/state/picoqmail`). `PICOQMAIL_CONTROL` and
    `PICOQMAIL_SPOOL` override two of its directories. With raised privilege the caller's
    environment is not looked at: the home is `/var/qmail`.
    """
    if is_privileged() if privileged is None else privileged:
        return Home(QMAIL_HOME)
    if environ is None:
        environ = os.environ
    root = environ.get("PICOQMAIL_HOME", "")
    if root:
        root = os.path.abspath(root)
    elif os.path.exists(QMAIL_HOME + "/control/me"):
        root = QMAIL_HOME
    else:
        root = personal_root(environ)
    control = environ.get("PICOQMAIL_CONTROL", "")
    spool = environ.get("PICOQMAIL_SPOOL", "")
    return Home(root, control and os.path.abspath(control), spool and os.path.abspath(spool))


def personal_root(environ: Mapping[str, str]) -> str:
    """The home of a user who has no other: `$XDG_STATE_HOME/picoqmail`, as the XDG base
    directory specification has it (a relative value there is to be ignored).
    """
    state = environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        state = os.path.expanduser("~/.local/state")
    return state + "/picoqmail"
