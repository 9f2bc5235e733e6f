"""Minimal systems of Debian, in which packages are installed for real: a root, and namespaces.

A root is made once by mmdebstrap; each test works in an overlay over it, so that it begins anew and
leaves nothing. The network is the machine's own: a relay on 127.0.0.1 is the same within.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

BUILD = f"{CHECKOUT}/packaging/build-deb"
NEEDED = {"mmdebstrap": "mmdebstrap", "dpkg-checkbuilddeps": "dpkg-dev", "nsenter": "util-linux"}
SUITES = {"12": "bookworm", "13": "trixie"}
INSTALL_SECONDS = 300
_UNATTENDED = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}
# dpkg need not sync in a root that lives for a minute.
_APT = ("apt-get", "--quiet", "--yes", "-o", "Dpkg::Options::=--force-unsafe-io")


def missing() -> str:
    """What this machine lacks for these tests, "" if nothing."""
    if os.geteuid() != 0:
        return "needs root, to enter a system of Debian's"
    for program, package in NEEDED.items():
        if shutil.which(program, path=_UNATTENDED["PATH"]) is None:
            return f"needs {program} (Debian: {package})"
    command = ["dpkg-checkbuilddeps", f"{CHECKOUT}/debian/control"]
    done = subprocess.run(command, capture_output=True, text=True, env=_UNATTENDED, check=False)
    return f"needs Debian packages: {done.stderr.strip()}" if done.returncode else ""


def build_package(directory: str) -> str:
    """Build the package from this checkout into a directory, and return its path."""
    subprocess.run(
        [BUILD, directory], check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL
    )
    (path,) = [
        f"{directory}/{name}"
        for name in os.listdir(directory)
        if name.startswith("picoqmail_") and name.endswith(".deb")
    ]
    return path


def mirror() -> list[str]:
    """Where this machine gets Debian's packages from, as an argument of mmdebstrap's."""
    targets = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Component: main",
            "Origin: Debian",
            "Label: Debian",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    return targets.stdout.split()[:1]


def make_base(suite: str, directory: str) -> None:
    """Make a minimal system, with lists of packages that are up to date."""
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=apt", "--mode=root", suite, directory, *mirror()],
        check=True,
        timeout=INSTALL_SECONDS,
    )
    shutil.copy("/etc/resolv.conf", f"{directory}/etc/resolv.conf")
    with open(f"{directory}/etc/hosts", "w", encoding="utf-8") as file:
        file.write("127.0.0.1 localhost\n127.0.1.1 host.example.org host\n::1 localhost\n")


@frozen
class Ran:
    """What a command in a system came to: its exit code, and what it printed to either side."""

    code: int
    output: str


@define
class Debian:
    """A system that runs: verbs to do something in it. A context manager.

    `base` is the directory of a system, or several with colons between: what one lacks the next one
    has. What is changed lies in the directory `upper`, and is gone at the end if none is given.
    """

    base: str
    upper: str = ""
    _pid: int = 0
    _stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    path: str = ""
    root: str = ""

    def __enter__(self) -> Self:
        """Mount the overlay in namespaces of its own, and hold them."""
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="debian-"))
        self.root = f"{scratch}/root"
        os.mkdir(self.root)
        changes = self.upper or f"{scratch}/changes"
        os.makedirs(f"{changes}/upper")
        os.makedirs(f"{changes}/work")
        script = """
            mount --make-rprivate /
            mount -t overlay overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" "$2/root"
            mount -t proc proc "$2/root/proc"
            mount -t tmpfs -o mode=1777 tmpfs "$2/root/dev/shm"
            mount -t devpts -o newinstance,ptmxmode=666 devpts "$2/root/dev/pts"
            exec chroot "$2/root" sh -c 'echo ready; exec sleep infinity'
        """
        names = ("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "sh", "-ec")
        holder = self._stack.enter_context(
            subprocess.Popen(
                [*names, script, "sh", self.base, scratch, changes],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        self._stack.callback(holder.kill)
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            raise RuntimeError("the system cannot be entered; what unshare or mount said is above")
        with open(f"/proc/{holder.pid}/task/{holder.pid}/children", encoding="ascii") as file:
            self._pid = int(file.read().split()[0])
        self.path = f"/proc/{self._pid}/root"
        self.run("hostname", "host.example.org")
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of the system, and unmount it."""
        self._stack.close()

    def command(self, *words: str) -> list[str]:
        """The command line that runs a command within."""
        return [
            "nsenter",
            "--target",
            str(self._pid),
            "--mount",
            "--pid",
            "--uts",
            "--root",
            "--wd",
            *words,
        ]

    def beside(self, *words: str) -> list[str]:
        """The command line that runs a command of this machine, to which `root` is the system."""
        return ["nsenter", "--target", str(self._pid), "--mount", *words]

    def run(
        self, *words: str, give: str = "", expect: int | None = 0, user: str = "", **environ: str
    ) -> Ran:
        """Run a command as root or another user. Raises AssertionError if its code is another."""
        if user:
            words = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words)
        done = subprocess.run(
            self.command(*words),
            input=give,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS,
            env={**_UNATTENDED, **environ},
        )
        assert expect in (None, done.returncode), f"{words}: exit {done.returncode}\n{done.stdout}"
        return Ran(done.returncode, done.stdout)

    def sh(self, script: str) -> str:
        """Run a shell's line that must succeed, and return what it printed."""
        return self.run("sh", "-ec", script).output

    def start(self, *words: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run a daemon in the foreground until the end of the context."""

        @contextlib.contextmanager
        def running() -> Iterator[subprocess.Popen[bytes]]:
            with subprocess.Popen(self.command(*words), env=_UNATTENDED) as process:
                yield process
                process.terminate()

        return running()

    def apt(self, *words: str, expect: int | None = 0, **environ: str) -> str:
        """Run apt-get, unattended."""
        return self.run(*_APT, *words, expect=expect, **environ).output

    def answer(self, **answers: str) -> None:
        """Give answers to the package's questions before it is installed (debconf)."""
        kinds = {"password": "password", "tls": "select", "purge_mail": "boolean"}
        lines = [
            f"picoqmail picoqmail/{name.replace('_', '-')} {kinds.get(name, 'string')} {value}\n"
            for name, value in answers.items()
        ]
        self.run("debconf-set-selections", give="".join(lines))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file within."""
        os.makedirs(os.path.dirname(self.path + path), exist_ok=True)
        with open(self.path + path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path + path, mode)

    def read(self, path: str) -> str:
        """The text of a file within."""
        with open(self.path + path, encoding="utf-8") as file:
            return file.read()

    def has(self, path: str) -> bool:
        """Whether there is anything at a path within."""
        return os.path.lexists(self.path + path)

    def installed(self) -> set[str]:
        """The names of the packages that are installed."""
        found = self.run("dpkg-query", "-f", "${db:Status-Abbrev} ${Package}\n", "-W").output
        return {line.split()[1] for line in found.splitlines() if line.startswith("ii")}

    def files(self) -> set[str]:
        """All paths of the system but those of the kernel's."""
        return set(self.run("find", "/", "-xdev", "-not", "-path", "/tmp/*").output.splitlines())
