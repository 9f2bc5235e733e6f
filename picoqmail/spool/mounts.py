"""What the mount table says of an open file's file system. Hot; builtins only."""

from __future__ import annotations


def type_of(descriptor: int) -> str:
    """Return the name of an open file's file system, as in mount(8); "" if unknown.

    By its mount (proc_pid_fdinfo(5), proc_pid_mountinfo(5)), because the numbers of statfs(2) are
    the same for ext2, whose driver is another one.
    """
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
            mount = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as file:
            line = next(line for line in file if line.startswith(mount + b" "))
    except (OSError, StopIteration, IndexError):
        return ""
    return line.partition(b" - ")[2].split(b" ")[0].decode("ascii", "replace")
