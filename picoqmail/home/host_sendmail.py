"""The names by which a host calls its mailer: giving them to a home, and whose they are.

What may live here: `/usr/sbin/sendmail` and the names beside it. Where dpkg is, a diversion holds
them, so that a package which is installed later puts its own program elsewhere. A file that no
package brought is somebody's own, and is neither moved nor overwritten.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from picoqmail import durable
from picoqmail.home.make import InitError, Step

if TYPE_CHECKING:
    from picoqmail.home.paths import Home

SENDMAIL = "/usr/sbin/sendmail"
NAMES = {
    SENDMAIL: "sendmail",
    "/usr/lib/sendmail": "sendmail",
    "/usr/bin/mailq": "mailq",
    "/usr/bin/newaliases": "newaliases",
}
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_DIVERTED = ".distrib"


def take(home: Home) -> list[Step]:
    """Let the host's names lead to a home, each as far as it is free. Raises InitError, OSError."""
    return [_take(path, f"{home.bin}/{name}") for path, name in NAMES.items()]


def _take(path: str, target: str) -> Step:
    if os.path.islink(path) and os.readlink(path) == target:
        return Step(path, "kept", target)
    divert = shutil.which("dpkg-divert", path=_PATH)
    if os.path.lexists(path) and (divert is None or not package_of(path)):
        what = f"a link to {os.readlink(path)}" if os.path.islink(path) else "a file"
        text = f"{what} lies there that no package brought; move it away and run this again"
        return Step(path, "refused", text)
    if divert is not None:
        words = ["--local", "--rename", "--divert", path + _DIVERTED, "--add", path]
        done = subprocess.run([divert, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InitError(path, f"cannot be diverted: {done.stderr.strip()}", "see dpkg-divert")
    durable.symlink(target, path)
    durable.sync_directory(os.path.dirname(path))
    return Step(path, "made", target)


def give_back(home: Home) -> list[str]:
    """Remove the names that lead to a home, and let packages have them again; returns the paths."""
    removed = []
    for path, name in NAMES.items():
        if not os.path.islink(path) or os.readlink(path) != f"{home.bin}/{name}":
            continue
        durable.unlink(path)
        divert = shutil.which("dpkg-divert", path=_PATH)
        if divert is not None:
            words = ["--local", "--rename", "--divert", path + _DIVERTED, "--remove", path]
            done = subprocess.run([divert, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                raise InitError(
                    path, f"is still diverted: {done.stderr.strip()}", "see dpkg-divert"
                )
        durable.sync_directory(os.path.dirname(path))
        removed.append(path)
    return removed


def whose(path: str, home: Home) -> str:
    """Return what a name of the host's is: "" if the home's program, else words for people."""
    if not os.path.exists(path):
        return "is a link that leads nowhere" if os.path.islink(path) else "is not there"
    if os.path.realpath(path) == os.path.realpath(f"{home.bin}/sendmail"):
        return ""
    package = package_of(path)
    if package:
        return f"belongs to the package {package}"
    real = os.path.realpath(path)
    package = package_of(real) if real != path else ""
    return f"is {real}, of the package {package}" if package else f"is {real}, of no package"


def package_of(path: str) -> str:
    """Return the package that brought a file, "" if none did, or if this host has no dpkg."""
    query = shutil.which("dpkg-query", path=_PATH)
    if query is None:
        return ""
    done = subprocess.run([query, "--search", path], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        package, colon, _ = line.rpartition(": ")
        if colon and not package.startswith("diversion by"):
            return package
    return ""
