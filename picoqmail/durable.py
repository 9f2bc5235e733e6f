"""Durable writes: the only module that makes, syncs, moves and removes names on the disk.

Every function does one thing to the disk and raises OSError if it could not; who calls says what
that means. After a failed fsync the same descriptor is never tried again: the kernel may have
dropped the dirty pages and would answer yes (fsync(2), NOTES).
"""

from __future__ import annotations

import posix

from picoqmail.layout import PRIVATE_DIRECTORY_MODE, PRIVATE_FILE_MODE

_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_APPEND = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC


def create(path: str, *, any_umask: bool = False) -> int:
    """Make a file that did not exist, private, open for writing; a symlink is never followed.

    Our programs set the umask. `any_umask` says that this process is an application's, whose umask
    may withhold the file from its owner, too.
    """
    descriptor = posix.open(path, _CREATE, PRIVATE_FILE_MODE)
    if any_umask:
        try:
            restore_rights(descriptor)
        except BaseException:
            posix.close(descriptor)
            posix.unlink(path)
            raise
    return descriptor


def restore_rights(descriptor: int) -> None:
    """Give the owner of a private file what an odd umask (umask(2)) withheld from him."""
    mode = posix.fstat(descriptor).st_mode
    if mode & PRIVATE_FILE_MODE != PRIVATE_FILE_MODE:
        posix.fchmod(descriptor, mode & 0o7777 | PRIVATE_FILE_MODE)


def open_append(path: str) -> int:
    """Open a private file for appending, making it if needed."""
    return posix.open(path, _APPEND, PRIVATE_FILE_MODE)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however often the kernel takes less than it was given."""
    written = posix.write(descriptor, data)
    while written < len(data):
        data = data[written:]
        written = posix.write(descriptor, data)


sync = posix.fsync
rename = posix.rename
link = posix.link
symlink = posix.symlink
unlink = posix.unlink


def _restore_directory(path: str, mode: int) -> None:
    """Give a directory that we made its mode, which an odd umask withheld.

    By descriptor, and only if it is ours: root may be making it in a directory of somebody else's,
    who has put a link in its place meanwhile. It cannot be opened for more than its place yet.
    """
    descriptor = posix.open(path, posix.O_PATH | _DIRECTORY | posix.O_NOFOLLOW)
    try:
        if posix.fstat(descriptor).st_uid == posix.geteuid():
            posix.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        posix.close(descriptor)
    sync_directory(path)


def sync_directory(path: str) -> None:
    """Make the entries of a directory durable."""
    descriptor = posix.open(path, _DIRECTORY)
    try:
        posix.fsync(descriptor)
    finally:
        posix.close(descriptor)


def is_there(path: str) -> bool:
    """Say whether a name exists. Raises OSError where that cannot be known.

    os.path.lexists takes every error for a no, and whoever believes it unlinks what is left.
    """
    try:
        posix.lstat(path)
    except FileNotFoundError:
        return False
    return True


def unlink_if_there(path: str) -> bool:
    """Unlink a file; False if there was none."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return False
    return True


def create_written(
    path: str, data: bytes, modified: float | None = None, *, any_umask: bool = False
) -> int:
    """Make a file with this content, open and not on disk yet; nothing is left if that fails.

    `modified` (Unix seconds) becomes its modification time; `any_umask` as for `create`.
    """
    descriptor = create(path, any_umask=any_umask)
    try:
        write_all(descriptor, data)
        if modified is not None:
            posix.utime(descriptor, (modified, modified))
    except BaseException:
        try:
            posix.close(descriptor)
        finally:
            unlink_if_there(path)
        raise
    return descriptor


def begin_writing(descriptor: int) -> None:
    """Have the kernel write a file to the disk now, without waiting for it.

    Who then syncs another file first waits for both at once: on a file system with a journal a
    quarter of the time of an acceptance. It is what the hint does for data that was not written
    yet (mm/fadvise.c of Linux); where it does nothing nothing is lost.
    """
    try:
        posix.posix_fadvise(descriptor, 0, 0, posix.POSIX_FADV_DONTNEED)
    except OSError:
        # A file system that takes no hints. What must succeed is the sync.
        return


def create_whole(path: str, data: bytes, modified: float | None = None) -> None:
    """Make a file with this content, its data on disk; nothing is left of it if that fails.

    The entry in the directory is not durable yet.
    """
    descriptor = create_written(path, data, modified)
    try:
        try:
            posix.fsync(descriptor)
        finally:
            posix.close(descriptor)
    except BaseException:
        unlink_if_there(path)
        raise


def replace(scratch: str, path: str, data: bytes, modified: float | None = None) -> None:
    """Replace a file whole, by way of `scratch`, a name that only the caller uses.

    A scratch file that a crash left there goes first. The rename is not durable before the
    directory was synced.
    """
    try:
        create_whole(scratch, data, modified)
    except FileExistsError:
        posix.unlink(scratch)
        create_whole(scratch, data, modified)
    try:
        posix.rename(scratch, path)
    except BaseException:
        unlink_if_there(scratch)
        raise


def make_directory(path: str, mode: int = PRIVATE_DIRECTORY_MODE) -> bool:
    """Make a directory and its entry in the parent durable; False if it was there already.

    Its owner has the rights that `mode` says, whatever the umask.
    """
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        return False
    if posix.lstat(path).st_mode & mode & 0o700 != mode & 0o700:
        _restore_directory(path, mode)
    parent, slash, _ = path.rpartition("/")
    sync_directory(parent or slash or ".")
    return True


def make_directories(path: str, mode: int = PRIVATE_DIRECTORY_MODE) -> None:
    """Make a directory, and before it those above it that are missing, as `make_directory` does."""
    try:
        make_directory(path, mode)
    except FileNotFoundError:
        parent = path.rpartition("/")[0]
        if not parent:
            raise
        make_directories(parent, mode)
        make_directory(path, mode)
