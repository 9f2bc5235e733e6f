"""Whose hands a home is in: what others could have changed is not obeyed. Hot; builtins only.

What may live here: judging owners and modes of files, and of every directory and link on the way to
them. Nothing is changed and no content is read.

A file is trusted if it belongs to root or to the user of this process, and nobody else may write to
it. The same holds for each directory on the way, except that others may write to a sticky one such
as /tmp: they cannot move what is ours there. Whoever owns "/" is trusted like root, because a user
namespace may show root under another number. A group counts as nobody else if it is its user's own:
it has the user's name, is the user's first group, and has no other member.
"""

from __future__ import annotations

import posix

from picoqmail.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Of st_mode; the module stat would be one more to import.
TYPE_BITS = 0o170000
LINK_TYPE = 0o120000
DIRECTORY_TYPE = 0o040000
_FILE_TYPE = 0o100000
_STICKY = 0o1000
_GROUP_WRITES, _OTHERS_WRITE = 0o020, 0o002
_MOST_LINKS = 40


class HandsError(ConfigurationError):
    """A part of a home could have been changed by others than its user, so it is not obeyed."""


def steps_to(
    path: str, known: dict[str, posix.stat_result] | None = None
) -> Iterator[tuple[str, posix.stat_result]]:
    """Yield every directory and link on the way to a path, and the path itself, with lstat(2).

    Links are followed step by step. The way ends early at what is not there. `known` is for several
    ways that are examined at one time: what is in it is not asked again. Raises OSError.
    """
    known = {} if known is None else known
    pending = _parts(path)
    place = "/"
    yield place, known.get(place) or known.setdefault(place, posix.lstat(place))
    links_left = _MOST_LINKS
    while pending:
        part = pending.pop()
        if part == "..":
            place = place.rpartition("/")[0] or "/"
            continue
        step = f"{place.rstrip('/')}/{part}"
        try:
            status = known.get(step) or known.setdefault(step, posix.lstat(step))
        except (FileNotFoundError, NotADirectoryError):
            return
        yield step, status
        if status.st_mode & TYPE_BITS != LINK_TYPE:
            place = step
            continue
        links_left -= 1
        if not links_left:
            raise HandsError(path, "leads through too many links", "name the place itself")
        target = posix.readlink(step)
        place = "/" if target.startswith("/") else place
        pending += _parts(target)


def _parts(path: str) -> list[str]:
    """Return the parts of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def check_way(path: str, uid: int, known: dict[str, posix.stat_result] | None = None) -> None:
    """Check that nobody but root and a user can put something else in the place of a path.

    Each step is asked for its owner and mode each time. Only if one has changed since this process
    has found the way good are they judged again. `known` as for `steps_to`. Raises HandsError,
    OSError.
    """
    known = {} if known is None else known
    if _is_as_good_as_before(_good_ways.get((path, uid), ()), known):
        return
    trusted = {0, uid}
    way = []
    for step, status in steps_to(path, known):
        if step == "/":
            trusted.add(status.st_uid)
        check_hands(step, status, uid, trusted)
        way.append((step, _rights(status)))
    # Not what owner and mode alone do not decide: where a link leads, who is in a group; nor a way
    # that ended early. A link makes a way longer than its path, or gives its steps other names.
    is_plain = [step for step, _ in way] == _plain_steps(path)
    if is_plain and not any(_asks_for_group(mode) for _, (mode, _, _) in way):
        if len(_good_ways) >= _MOST_GOOD_WAYS:
            _good_ways.clear()
        _good_ways[path, uid] = tuple(way)


# Ways that were found good, by path and user: each step with its rights then.
_good_ways: dict[tuple[str, int], tuple[tuple[str, tuple[int, int, int]], ...]] = {}
_MOST_GOOD_WAYS = 64


def _is_as_good_as_before(
    way: tuple[tuple[str, tuple[int, int, int]], ...], known: dict[str, posix.stat_result]
) -> bool:
    for step, rights in way:
        try:
            status = known.get(step) or known.setdefault(step, posix.lstat(step))
        except (FileNotFoundError, NotADirectoryError):
            return False
        if _rights(status) != rights:
            return False
    return bool(way)


def _rights(status: posix.stat_result) -> tuple[int, int, int]:
    """Return all that `check_hands` judges: type and mode, user, group."""
    return status.st_mode, status.st_uid, status.st_gid


def _plain_steps(path: str) -> list[str]:
    """Return the steps to a path that leads through no link."""
    steps = ["/"]
    for part in reversed(_parts(path)):
        steps.append(f"{steps[-1].rstrip('/')}/{part}")
    return steps


def _asks_for_group(mode: int) -> bool:
    """Say whether a judgement on this mode may depend on who is in a group."""
    is_sticky = mode & TYPE_BITS == DIRECTORY_TYPE and mode & _STICKY
    return bool(mode & _GROUP_WRITES and not is_sticky)


def check_hands(
    path: str, status: posix.stat_result, uid: int, trusted: set[int] | None = None
) -> None:
    """Check owner and mode of one file, directory or link. Raises HandsError.

    `trusted` are the users who may own it: by default root and `uid`, who uses it.
    """
    if status.st_uid not in ({0, uid} if trusted is None else trusted):
        raise HandsError(
            path,
            f"belongs to user {status.st_uid}, and user {uid} does not obey what others can change",
            f"run this as user {status.st_uid}, or give it to user {uid} or to root with chown",
        )
    kind = status.st_mode & TYPE_BITS
    if kind == LINK_TYPE or not status.st_mode & (_GROUP_WRITES | _OTHERS_WRITE):
        return
    if kind == DIRECTORY_TYPE and status.st_mode & _STICKY:
        return
    if not status.st_mode & _OTHERS_WRITE and _is_private_group(status):
        return
    who = "everybody" if status.st_mode & _OTHERS_WRITE else f"group {status.st_gid}"
    raise HandsError(
        path,
        f"can be changed by {who} (mode {status.st_mode & 0o7777:04o}), so it is not obeyed",
        f"see that it is right, and run: chmod go-w {path}",
    )


def is_plain_file(status: posix.stat_result) -> bool:
    """Say whether this is a file, and no directory, pipe or device."""
    return status.st_mode & TYPE_BITS == _FILE_TYPE


def is_link(path: str) -> bool:
    """Say whether there is a link of this name, as far as this process can see."""
    try:
        return posix.lstat(path).st_mode & TYPE_BITS == LINK_TYPE
    except OSError:
        return False


def _is_private_group(status: posix.stat_result) -> bool:
    """Say whether the group of a file is that of its owner alone."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    is_own = user.pw_gid == status.st_gid and user.pw_name == group.gr_name
    return is_own and {user.pw_name}.issuperset(group.gr_mem)
