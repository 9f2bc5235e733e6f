"""Whose home it is, and what root does in the home of another user: become that user. Hot.

Nothing of such a home is read, followed or executed with root's rights. A program becomes its owner
before it looks into it. A library call, which must not change the user of an application, refuses.
"""

from __future__ import annotations

import posix
import sys

from picoqmail.home.hands import (
    LINK_TYPE,
    TYPE_BITS,
    HandsError,
    check_hands,
    check_way,
    is_link,
    steps_to,
)
from picoqmail.home.paths import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home


def owner_of(home: Home) -> int:
    """Return the uid that works in a home: that of its spool.

    Links of other users are not followed. Home and control have to belong to the same user, or to
    root as in a shared home. Raises HandsError if they do not, OSError.
    """
    found = {}
    for path in (home.root, home.control, home.spool):
        try:
            status = posix.lstat(path)
            if status.st_uid == 0 and status.st_mode & TYPE_BITS == LINK_TYPE:
                status = posix.stat(path)
        except FileNotFoundError:
            continue
        found[path] = status.st_uid
    if not found:
        return 0
    owner = found.get(home.spool, max(found.values()))
    for path, uid in found.items():
        if uid not in (0, owner):
            raise HandsError(
                path,
                f"belongs to user {uid}, and the spool of this home to user {owner}",
                "give all of a home to one user, or all but its spool to root",
            )
    return owner


def check_roots_own(home: Home) -> None:
    """Check that root may use a home with root's rights. Raises HandsError, OSError.

    Home and control are root's on every step of the way. So is the way to the spool, but the spool
    itself may belong to a separate user, as in a shared home.
    """
    known: dict[str, posix.stat_result] = {}
    for path in (home.root, home.control):
        check_way(path, 0, known)
    if not is_link(home.spool):
        check_way(home.spool.rpartition("/")[0] or "/", 0, known)
        return
    way = list(steps_to(home.spool, known))
    trusted = {0, way[0][1].st_uid}
    for step, status in way[:-1]:
        check_hands(step, status, 0, trusted)


def refuse_root(home: Home, program: str = "") -> bool:
    """Refuse what root must not do with root's rights, in a process that cannot give them up.

    That is to use a home of another user, or to start a `program` of one. Raises HandsError that
    says what to do; nothing if this process is not root. Return whether it is root, so that every
    directory on the way to the home's settings was judged.
    """
    if posix.geteuid() != 0:
        return False
    try:
        check_roots_own(home)
        if program:
            check_way(program, 0)
    except HandsError as exc:
        raise HandsError(
            exc.where,
            f"{exc.problem}; root uses nothing of a home that is not root's",
            f"run this as the owner of {home.root}, or hand the mail to picoqmail-sendmail",
        ) from None
    except OSError as exc:
        raise HandsError(home.root, f"cannot be examined: {exc.strerror}") from exc
    return True


def refuse_root_in_spool(home: Home) -> None:
    """Refuse root's rights in a spool of another user, as `refuse_root` does for a home."""
    refuse_root(home)
    if posix.geteuid() != 0:
        return
    owner = owner_of(home)
    if owner != 0:
        raise HandsError(
            home.spool,
            f"belongs to user {owner}, and this process is root",
            f"run this as user {owner}, or use the commands of picoqmail, which become that user",
        )


def become_owner(home: Home) -> bool:
    """Root in another user's home becomes that user, for good; True if that was done.

    A file that root left there could not be read by the sender. And the owner could have root read,
    follow or execute what is there, with root's rights. The groups are the owner's, as after a
    login, and no more of root's environment is left than a login would give. Raises
    ConfigurationError if the home belongs to several users, or if root's own can be changed by
    others; OSError.
    """
    if posix.geteuid() != 0:
        return False
    try:
        uid = owner_of(home)
        if uid == 0:
            check_roots_own(home)
            return False
        gid = posix.lstat(home.spool if exists(home.spool) else home.root).st_gid
    except OSError as exc:
        raise HandsError(home.root, f"cannot be examined: {exc.strerror}") from exc
    name, directory, gid = _identity_of(uid, gid)
    posix.setgroups(groups_of(uid, gid))
    posix.setresgid(gid, gid, gid)
    posix.setresuid(uid, uid, uid)
    _leave_environment(HOME=directory, USER=name, LOGNAME=name)
    return True


def become_submitter(home: Home) -> None:
    """Root that submits mail becomes the owner of a home whose settings are not root's own.

    In a shared home root stays root, and its mail goes through the set-id program like everybody's.
    Raises what `become_owner` raises.
    """
    if posix.geteuid() != 0:
        return
    try:
        check_roots_own(home)
    except (HandsError, OSError):
        become_owner(home)


def _identity_of(uid: int, gid: int) -> tuple[str, str, int]:
    """Return name, directory and group of a user; without a name, `gid` unless it is root's."""
    import pwd

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return "", "", gid or uid
    return user.pw_name, user.pw_dir, user.pw_gid


# What a login would leave, too: terminal, language, time zone.
_KEPT = ("PATH", "TERM", "TZ", "LANG", "LANGUAGE", "NO_COLOR", "COLUMNS", "LINES")


def _leave_environment(**changed: str) -> None:
    """Drop the variables of root's environment: a command of the new user's could read them."""
    for octets in list(posix.environ):
        name = octets.decode("utf-8", "surrogateescape")
        if name in _KEPT or name.startswith(("PICOQMAIL_", "LC_", "SSL_CERT_")):
            continue
        posix.unsetenv(octets)
        del posix.environ[octets]
        if "os" in sys.modules:
            sys.modules["os"].environ.pop(name, None)
    for name, value in changed.items():
        if value:
            posix.putenv(name, value)
            posix.environ[name.encode()] = value.encode()
            if "os" in sys.modules:
                sys.modules["os"].environ[name] = value


def groups_of(uid: int, gid: int) -> list[int]:
    """All groups of a user, `gid` among them; that alone for a uid that has no name."""
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return [gid]
    return posix.getgrouplist(name, gid)
