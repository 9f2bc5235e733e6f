"""Durable writes: the only module that makes, syncs, moves and removes names on the disk.

Every function does one thing to the disk, and raises OSError if it could not. The caller decides
what that means. After a failed fsync the same descriptor is never tried again: the kernel may have
dropped the dirty pages, and would then report success (fsync(2), NOTES).
"""

from __future__ import annotations

import posix

from picoqmail.layout import PRIVATE_DIRECTORY_MODE, PRIVATE_FILE_MODE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_APPEND = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC


def create(path: str, *, any_umask: bool = False, mode: int = PRIVATE_FILE_MODE) -> int:
    """Make a new file, private as a rule, and open it for writing; a symlink is never followed.

    Our programs set the umask. `any_umask` says that this process is an application's, whose umask
    may deny even the owner access to the file.
    """
    descriptor = posix.open(path, _CREATE, mode)
    if any_umask:
        try:
            restore_rights(descriptor)
        except BaseException:
            posix.close(descriptor)
            posix.unlink(path)
            raise
    return descriptor


def restore_rights(descriptor: int) -> None:
    """Give the owner of a private file the rights that an odd umask (umask(2)) denied."""
    mode = posix.fstat(descriptor).st_mode
    if mode & PRIVATE_FILE_MODE != PRIVATE_FILE_MODE:
        posix.fchmod(descriptor, mode & 0o7777 | PRIVATE_FILE_MODE)


def open_append(path: str) -> int:
    """Open a private file for appending, making it if needed."""
    return posix.open(path, _APPEND, PRIVATE_FILE_MODE)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all the data, however often the kernel takes only a part."""
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
    """Give a directory that we made the mode that an odd umask denied.

    This is done by descriptor, and only if the directory is ours. Root may have made it in another
    user's directory, and that user may have put a link in its place meanwhile. O_PATH is all that
    its mode allows yet.
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
    """Say whether a name exists. Raises OSError if that cannot be known.

    os.path.lexists reports "no" for every error, and a caller that believes it unlinks the rest.
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
    path: str,
    data: bytes | Iterable[bytes],
    modified: float | None = None,
    *,
    any_umask: bool = False,
    mode: int = PRIVATE_FILE_MODE,
) -> int:
    """Make a file with this content, open and not yet on disk; a failure leaves nothing behind.

    `data` may come in blocks. `modified` (Unix seconds) becomes its modification time; `any_umask`
    and `mode` as for `create`.
    """
    descriptor = create(path, any_umask=any_umask, mode=mode)
    try:
        if isinstance(data, bytes):
            write_all(descriptor, data)
        else:
            for block in data:
                write_all(descriptor, block)
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
    """Ask the kernel to start writing a file to the disk, without waiting for it.

    If the caller then syncs another file first, the disk writes both at once. On a file system with
    a journal this saves a quarter of the time of an acceptance. Linux does this for data that is
    not written yet (mm/fadvise.c). Where the hint does nothing, nothing is lost.
    """
    try:
        posix.posix_fadvise(descriptor, 0, 0, posix.POSIX_FADV_DONTNEED)
    except OSError:
        # This file system takes no hints. Only the sync must succeed.
        return


def create_whole(path: str, data: bytes | Iterable[bytes], modified: float | None = None) -> None:
    """Make a file with this content and sync it; a failure leaves nothing behind.

    The entry in the directory is not yet durable.
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


def replace(
    scratch: str, path: str, data: bytes | Iterable[bytes], modified: float | None = None
) -> None:
    """Replace a file as a whole, through `scratch`, a name that only the caller uses.

    `data` may come in blocks. A scratch file that a crash left is removed first. The rename is
    durable only after the directory was synced.
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


def replace_unsynced(scratch: str, path: str, data: bytes) -> None:
    """Replace a file whose loss costs nothing; its readers see the old one or the new one.

    After power loss it may be gone, empty or cut. `scratch` as for `replace`.
    """
    try:
        descriptor = create_written(scratch, data)
    except FileExistsError:
        posix.unlink(scratch)
        descriptor = create_written(scratch, data)
    try:
        posix.close(descriptor)
        posix.rename(scratch, path)
    except BaseException:
        unlink_if_there(scratch)
        raise


def make_directory(path: str, mode: int = PRIVATE_DIRECTORY_MODE) -> bool:
    """Make a directory, and its entry in the parent durable; False if it existed already.

    Its owner gets the rights of `mode`, whatever the umask.
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
    """Make a directory and all missing parents, as `make_directory` does."""
    try:
        make_directory(path, mode)
    except FileNotFoundError:
        parent = path.rpartition("/")[0]
        if not parent:
            raise
        make_directories(parent, mode)
        make_directory(path, mode)
