"""A host with many users, as `picoqmail init --system` makes it: real users, a real set-id program.

It needs root and an interpreter that other users can start, which that of a virtual environment
below /root is not: so it is Debian's.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import importlib.metadata
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

from attrs import frozen

import installation
from picoqmail.home.make_system import DROP_OWNER, OWNER, STARTER
from picoqmail.home.paths import Home
from picoqmail.layout import (
    BODY,
    BREAKER,
    DIRECTORIES,
    DROP,
    NEW,
    SIDECAR,
    STATES,
    TMP,
    USERS,
)
from rig.processes import environment, find_processes
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SYSTEM_PYTHON = "/usr/bin/python3"
SECONDS = 60
NOT_STARTED = 250
ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"
MESSAGE = b"Subject: trial\n\nbody\n"
NEEDED = ("attr", "attrs", "portalocker", "structlog")
CHECK = "import sys, venv; sys.exit(sys.version_info < (3, 11))"


def missing() -> str:
    """What this machine lacks for these tests, "" if nothing."""
    if os.geteuid() != 0:
        return "needs root, to make users and a set-id program"
    for program in ("cc", "useradd", "userdel"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: gcc, libc6-dev, passwd)"
    if not os.access(SYSTEM_PYTHON, os.X_OK):
        return f"needs {SYSTEM_PYTHON} (Debian: python3)"
    if subprocess.run([SYSTEM_PYTHON, "-c", CHECK], check=False, capture_output=True).returncode:
        return f"needs {SYSTEM_PYTHON} to be 3.11 or later, with venv (Debian: python3-venv)"
    return ""


@frozen
class User:
    """A user of the host, with a directory of their own."""

    name: str
    uid: int
    gid: int
    directory: str


@frozen
class Mail:
    """A message in the spool."""

    state: str
    id: str
    record: dict[str, Any]
    body: bytes


@frozen
class Host:
    """Where everything is; and verbs to be one of its users."""

    directory: str
    python: str
    bin: str
    home: Home
    alice: User
    mallory: User

    @property
    def queue(self) -> str:
        """The set-id program."""
        return f"{self.home.bin}/qmail-queue"

    @property
    def owner(self) -> pwd.struct_passwd:
        """The user that the spool belongs to."""
        return pwd.getpwnam(OWNER)

    @property
    def drop_owner(self) -> pwd.struct_passwd:
        """The user for root's mail, whose group programs that take mail have."""
        return pwd.getpwnam(DROP_OWNER)

    def part_of(self, user: User) -> str:
        """The directory that the mail of a user is accepted in."""
        return f"{self.home.spool}/{DROP}/{user.uid}"

    def parts(self) -> list[str]:
        """The directories of all users who have submitted mail, below the spool."""
        return [f"{DROP}/{name}" for name in sorted(os.listdir(f"{self.home.spool}/{DROP}"))]

    def init(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `picoqmail init --system` as root."""
        return self.picoqmail("init", "--system", *words, **environ)

    def picoqmail(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `picoqmail WORDS` as root."""
        return subprocess.run(
            [f"{self.bin}/picoqmail", *words],
            env={"PATH": os.environ["PATH"], "PICOQMAIL_HOME": self.home.root, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd="/",
        )

    def run_as(
        self,
        user: User,
        command: Sequence[str],
        *,
        message: bytes = MESSAGE,
        envelope: bytes = ENVELOPE,
        environ: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
        cwd: str = "/",
        groups: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as a user: message on 0, envelope on 1, both files of nobody's.

        `prepare` is called in the child, as that user, right before the command is executed.
        """
        with contextlib.ExitStack() as files:
            zero, one, two = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            for file, data in ((zero, message), (one, envelope)):
                file.write(data)
                file.seek(0)
            standard = (zero.fileno(), one.fileno(), two.fileno())
            pid = start_as(
                user,
                command,
                standard,
                environ=environ or {},
                prepare=prepare,
                cwd=cwd,
                groups=groups,
            )
            code = wait_for(pid)
            two.seek(0)
            return subprocess.CompletedProcess(list(command), code, None, two.read())

    def submit(self, user: User, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Submit a message as a user through the set-id program."""
        return self.run_as(user, [self.queue], **options)

    def setting(self, name: str, text: str) -> None:
        """Write a control file, as root."""
        path = f"{self.home.control}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.chmod(path, 0o644)

    def read_setting(self, name: str) -> str:
        """The text of a control file."""
        with open(f"{self.home.control}/{name}", encoding="utf-8") as file:
            return file.read()

    def settings(self) -> list[str]:
        """The names of the control files."""
        return os.listdir(self.home.control)

    def remove_setting(self, name: str) -> None:
        """Remove a control file, as root."""
        os.unlink(f"{self.home.control}/{name}")

    def mails(self) -> list[Mail]:
        """All messages in the spool and its drop, once no sender is at work."""
        wait_until(lambda: not self.processes(), "the sender ends", SECONDS)
        found = []
        for state in (*STATES, *(f"{part}/{NEW}" for part in self.parts())):
            for path in glob.glob(f"{self.home.spool}/{state}/*{SIDECAR}"):
                with open(path, encoding="utf-8") as file:
                    record = json.load(file)
                stem = path[: -len(SIDECAR)]
                with open(stem + BODY, "rb") as body:
                    found.append(Mail(state, os.path.basename(stem), record, body.read()))
        return found

    def files(self) -> list[str]:
        """All files of messages in the spool and its drop, whole or not."""
        places = [f"{part}/{name}" for part in self.parts() for name in (TMP, NEW)]
        return [
            f"{name}/{one}"
            for name in (*DIRECTORIES, *places)
            for one in os.listdir(f"{self.home.spool}/{name}")
        ]

    def empty(self) -> None:
        """Bring the spool back to what init left."""
        places = [f"{part}/{name}" for part in self.parts() for name in (TMP, NEW, USERS)]
        for name in (*DIRECTORIES, *places):
            for path in glob.glob(f"{self.home.spool}/{name}/*"):
                os.unlink(path)
        for name in (BREAKER, "users"):
            path = f"{self.home.spool}/{name}"
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)

    def processes(self) -> list[int]:
        """The processes of the spool's owner, and those that are about to become one."""
        return processes_of(self.owner.pw_uid, f"{self.home.bin}/{STARTER}".encode())


def processes_of(uid: int, command: bytes | None = None) -> list[int]:
    """The processes that run as this user, or whose command begins so."""

    def is_one(directory: str) -> bool:
        # The command first: whatever has another one by then is the user's already.
        with open(f"{directory}/cmdline", "rb") as file:
            has_name = command is not None and file.read().startswith(command)
        return has_name or os.stat(directory).st_uid == uid

    return find_processes(is_one)


def processes_told_of(directory: str) -> list[int]:
    """The processes that have something in this directory in their environment."""
    place = f"={directory}".encode()
    return find_processes(lambda process: any(place in one for one in environment(process)))


def start_as(
    user: User,
    command: Sequence[str],
    standard: tuple[int, int, int],
    *,
    environ: Mapping[str, str],
    prepare: Callable[[], object] | None,
    cwd: str,
    groups: Sequence[int],
) -> int:
    """Start a command as a user; returns its pid. NOT_STARTED is its exit code if that failed.

    By fork and exec and nothing else: subprocess has descriptors of its own in the way.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        os.setgroups(list(groups))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        os.chdir(cwd)
        if prepare is not None:
            prepare()
        os.execve(command[0], list(command), dict(environ))  # noqa: S606 - no shell, on purpose
    finally:
        os._exit(NOT_STARTED)


def wait_for(pid: int) -> int:
    """The exit code of a child, negative for a signal; it is killed after SECONDS."""
    code: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    try:
        wait_until(has_ended, f"process {pid} ends", SECONDS)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return code[0]


@contextlib.contextmanager
def make_host(wheel: str) -> Iterator[Host]:
    """Make the users, install the wheel where they can reach it, and run `init --system`.

    Everything is taken away again, users that were there before excepted. One run after the other:
    the first to end would take the users of the spool away from the rest.
    """
    with contextlib.ExitStack() as undo:
        alone = undo.enter_context(open("/opt/.picoqmail-trial.lock", "w", encoding="ascii"))
        fcntl.flock(alone, fcntl.LOCK_EX)
        directory = tempfile.mkdtemp(prefix="picoqmail-trial-", dir="/opt")
        undo.callback(shutil.rmtree, directory)
        os.chmod(directory, 0o755)
        for name in (OWNER, DROP_OWNER):
            try:
                pwd.getpwnam(name)
            except KeyError:
                undo.callback(_remove_user, name)
        names = (f"pq-{name}-{os.getpid()}" for name in ("alice", "mallory"))
        alice, mallory = (_make_user(undo, name) for name in names)
        python = _install(wheel, f"{directory}/env")
        host = Host(
            directory,
            python,
            os.path.dirname(python),
            Home(f"{directory}/home"),
            alice,
            mallory,
        )
        made = host.init("--me", "host.example")
        if made.returncode:
            raise RuntimeError(f"picoqmail init --system: {made.stdout}{made.stderr}")
        yield host


def _install(wheel: str, directory: str) -> str:
    subprocess.run(
        [SYSTEM_PYTHON, "-m", "venv", "--without-pip", directory],
        check=True,
        timeout=SECONDS,
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        umask=0o022,
    )
    python = f"{directory}/bin/python3"
    installation.install(wheel, python)
    (packages,) = glob.glob(f"{directory}/lib/python3*/site-packages")
    for name in NEEDED:
        # Copied, for other users may not enter the directory that ours are in.
        distribution = "attrs" if name == "attr" else name
        source = str(importlib.metadata.distribution(distribution).locate_file(name))
        shutil.copytree(source, f"{packages}/{name}")
    subprocess.run(["chmod", "-R", "go+rX,go-w", directory], check=True, timeout=SECONDS)
    subprocess.run(["chown", "-R", "0:0", directory], check=True, timeout=SECONDS)
    return python


def _make_user(undo: contextlib.ExitStack, name: str) -> User:
    subprocess.run(
        ["useradd", "--no-create-home", "--user-group", name], check=True, timeout=SECONDS
    )
    undo.callback(_remove_user, name)
    made = pwd.getpwnam(name)
    directory = tempfile.mkdtemp(prefix=f"{name}-")
    undo.callback(shutil.rmtree, directory)
    os.chown(directory, made.pw_uid, made.pw_gid)
    return User(name, made.pw_uid, made.pw_gid, directory)


def _remove_user(name: str) -> None:
    subprocess.run(["userdel", "--force", name], check=True, timeout=SECONDS, capture_output=True)
