"""A directory that serves as the root of a mail server that cannot be installed here.

Debian's mail servers exclude each other as packages, and each has its own users and compiled-in
paths. So each package is unpacked, not installed, into its own root directory. The libraries of
this machine and a passwd file with the users are added, and chroot(8) does the rest.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import subprocess
import tempfile
from typing import TYPE_CHECKING

import portalocker

from rig.programs import missing

if TYPE_CHECKING:
    from collections.abc import Sequence

DOWNLOAD_SECONDS = 120
# IDs that no other user of the machine has, so that no other process may read the files.
FIRST_ID = 64700
DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}


def cache() -> str:
    """Return the directory of the downloaded packages, made if necessary."""
    path = os.environ.get("PICOQMAIL_RIG_CACHE") or os.path.expanduser("~/.cache/picoqmail-rig")
    os.makedirs(path, exist_ok=True)
    return path


def download(package: str) -> str:
    """Return the path of a Debian package, fetched once by apt-get."""
    pattern = os.path.join(cache(), f"{package}_*.deb")
    # Tests that run side by side take turns: none sees a package of which another has a part.
    with portalocker.Lock(os.path.join(cache(), "lock"), timeout=2 * DOWNLOAD_SECONDS):
        if not glob.glob(pattern):
            said = _fetch(package)
            if not glob.glob(pattern):
                missing(f"cannot get Debian's {package} (apt-get update first?): {said}")
    return max(glob.glob(pattern))


def _fetch(package: str) -> str:
    """Fetch a package into the cache, and return what went wrong."""
    try:
        ran = subprocess.run(
            ["apt-get", "-qq", "download", package],
            cwd=cache(),
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return ran.stderr


class PrivateRoot:
    """Unpacks `packages` into a new root, and adds `users` with their own uids.

    `programs` are files of the packages or of this machine (`/bin/sh`); their libraries are added.
    """

    def __init__(
        self, name: str, packages: Sequence[str], users: Sequence[str], programs: Sequence[str]
    ) -> None:
        if os.getuid() != 0:
            missing(f"{name} needs a root directory of its own, and only root may chroot")
        self.path = tempfile.mkdtemp(prefix=f"rig-{name}-")
        os.chmod(self.path, 0o755)
        for package in packages:
            archive = download(package)
            subprocess.run(["dpkg", "-x", archive, self.path], check=True, timeout=60)
        for directory in ("dev", "etc", "proc", "run", "tmp", "mail", "var/empty", "bin"):
            os.makedirs(self.inside(directory), exist_ok=True)
        if not os.path.lexists(self.inside("var/run")):
            os.symlink("/run", self.inside("var/run"))
        os.chmod(self.inside("tmp"), stat.S_ISVTX | 0o777)
        self._make_devices()
        self.uids = {user: FIRST_ID + index for index, user in enumerate(users)}
        self._write_users()
        for program in programs:
            self._give_libraries(program)

    def inside(self, path: str) -> str:
        """Return the real path of a path in the private root."""
        return os.path.join(self.path, path.lstrip("/"))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the private root, with its directories."""
        os.makedirs(os.path.dirname(self.inside(path)), exist_ok=True)
        with open(self.inside(path), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.inside(path), mode)

    def own(self, path: str, user: str, mode: int = 0o755) -> None:
        """Make a directory of the private root that belongs to that user."""
        os.makedirs(self.inside(path), exist_ok=True)
        os.chown(self.inside(path), self.uids[user], self.uids[user])
        os.chmod(self.inside(path), mode)

    def command(self, *argv: str) -> list[str]:
        """Return the command that runs argv inside."""
        return ["chroot", self.path, *argv]

    def _make_devices(self) -> None:
        for name, numbers in DEVICES.items():
            path = self.inside(f"dev/{name}")
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*numbers))
            except PermissionError:
                missing(f"{path} cannot be made: this container has no CAP_MKNOD")
            os.chmod(path, 0o666)

    def _write_users(self) -> None:
        accounts = {"root": 0, **self.uids}
        self.write(
            "etc/passwd",
            "".join(f"{user}:x:{n}:{n}::/mail:/bin/sh\n" for user, n in accounts.items()),
        )
        self.write("etc/group", "".join(f"{user}:x:{n}:\n" for user, n in accounts.items()))
        self.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
        self.write("etc/hosts", "127.0.0.1 localhost\n")
        self.write("etc/resolv.conf", "")

    def _give_libraries(self, program: str) -> None:
        path = self.inside(program)
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy2(program, path)
        own = [os.path.dirname(library) for library in self._libraries_of_the_packages()]
        said = subprocess.run(
            ["ldd", path],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(set(own)))},
        ).stdout
        if "not found" in said:
            missing(f"{program} lacks libraries, see .ci/run for their packages: {said}")
        for library in re.findall(r"(/\S+) \(0x", said):
            target = self.inside(library)
            if not library.startswith(self.path) and not os.path.exists(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy2(library, target)

    def _libraries_of_the_packages(self) -> list[str]:
        return glob.glob(self.inside("usr/lib/**/lib*.so*"), recursive=True)
