"""A home for a host with many users: made by root, the spool owned by a user of its own.

What may live here: what `picoqmail init --system` does beyond a home of one's own. Nobody but the
owner of the spool can list, read, alter or delete anything in it; anybody may submit, by way of
`bin/qmail-queue`, a small set-id program (qmail_queue_setid.c) that is compiled here by the host's
compiler. Nothing else runs with raised privilege.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail import durable
from picoqmail.init import LINKS, InitError, Outcome, Step, Work
from picoqmail.layout import DIRECTORIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picoqmail.home import Home

OWNER = "picoqmail"
SETID_MODE = 0o6711
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "qmail_queue_setid.c")
COMPILE_SECONDS = 60
_HARDENING = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-D_FORTIFY_SOURCE=2",
    "-fstack-protector-strong",
    "-fPIE",
    "-pie",
    "-Wl,-z,relro,-z,now",
)
# Through these a path is safe in a C string without any quoting.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._+-@")


@frozen
class Owner:
    """The user and group that the spool belongs to."""

    uid: int
    gid: int


def make_system_home(
    home: Home,
    *,
    me: str | None,
    relays: Sequence[str] = (),
    programs: Mapping[str, str],
) -> Outcome:
    """Make or mend a home for all users of this host; arguments and errors as init.make_home.

    The user `picoqmail` is made if it is missing. May be run again, after an update too: the
    set-id program is compiled anew.
    """
    require_root()
    check_programs(programs)
    owner = ensure_owner()
    prepare_directories(home, owner)
    work = Work.begin(home)
    try:
        if me is not None:
            work.control_file("me", [me])
        if relays:
            work.control_file("relayip", list(relays))
        for step in work.steps:
            if step.outcome == "made":
                # Whoever submits reads the settings; the password is in a file of its own.
                os.chmod(step.path, 0o644)
        target = build_setid(home, owner, programs)
        work.steps.append(Step(target, "made", f"set-id {OWNER}"))
        for name, program in links(programs, home).items():
            work.link(f"{home.bin}/{name}", program)
    finally:
        work.write_manifest()
    return Outcome(home.root, tuple(work.steps))


def require_root() -> None:
    """Raise InitError if this process is not root."""
    if os.geteuid() != 0:
        raise InitError("--system", "needs root", "run it with sudo, or leave --system out")


def ensure_owner() -> Owner:
    """Return the system user `picoqmail`, made if it is missing. Raises InitError."""
    try:
        return _owner()
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    remedy = f"make a system user {OWNER} with a group of its own, and run this again"
    if useradd is None:
        raise InitError(OWNER, "is no user of this host, and there is no useradd", remedy)
    command = [useradd, "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", OWNER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InitError(OWNER, f"cannot be made a user: {done.stderr.strip()}", remedy)
    return _owner()


def _owner() -> Owner:
    user = pwd.getpwnam(OWNER)
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise InitError(OWNER, "is a user with root's number", "give it one of its own")
    return Owner(user.pw_uid, grp.getgrnam(OWNER).gr_gid)


def check_programs(programs: Mapping[str, str]) -> None:
    """See that only root can change what the set-id program will run. Raises InitError.

    The interpreter, our package and our programs, and every directory above them, must belong to
    root and be writable by nobody else; and other users must be able to reach them.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    for path in (interpreter(), package, *programs.values()):
        for spelled in dict.fromkeys((path, os.path.realpath(path))):
            _check_path(spelled)


def _check_path(path: str) -> None:
    place = path
    while True:
        status = os.stat(place)
        remedy = "install picoqmail, as root, into a place of root's such as /opt/picoqmail"
        if status.st_uid != 0:
            raise InitError(place, f"belongs to user {status.st_uid} and not to root", remedy)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not sticky:
            raise InitError(place, "can be changed by others than root", remedy)
        if not status.st_mode & stat.S_IXOTH and stat.S_ISDIR(status.st_mode):
            raise InitError(place, "cannot be entered by other users", remedy)
        if place == "/":
            return
        place = os.path.dirname(place)


def interpreter() -> str:
    """The interpreter that our programs are run by, as it is spelled here (not resolved, because
    a virtual environment is known by its own link).
    """
    return os.path.abspath(sys.executable)


def prepare_directories(home: Home, owner: Owner) -> None:
    """Give the parts of a home their owners and modes. Raises InitError, OSError."""
    for path in (home.root, home.control, home.bin):
        _directory(path, 0, 0, 0o755)
    for path in (home.spool, *(f"{home.spool}/{name}" for name in DIRECTORIES)):
        _directory(path, owner.uid, owner.gid, 0o700)


def _directory(path: str, uid: int, gid: int, mode: int) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _directory(parent, 0, 0, 0o755)
    durable.make_directory(path, mode)
    # By descriptor, so that nothing put in its place meanwhile is given away.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid not in (0, uid):
            raise InitError(path, f"belongs to user {status.st_uid}", "move it away")
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        durable.sync(descriptor)
    finally:
        os.close(descriptor)


def build_setid(home: Home, owner: Owner, programs: Mapping[str, str]) -> str:
    """Compile the set-id program into `bin/qmail-queue`; returns its path. Raises InitError.

    Whatever was there under that name is replaced in one step if it was ours (a regular file of
    the spool's owner, or a link of ours), else refused.
    """
    compiler = shutil.which("cc", path="/usr/bin:/bin:/usr/local/bin")
    if compiler is None:
        raise InitError(
            "cc",
            "is not here, and bin/qmail-queue has to be compiled",
            "install a C compiler (Debian: apt-get install gcc libc6-dev), or see the sudo rule in "
            "docs/security.md",
        )
    target = f"{home.bin}/qmail-queue"
    _refuse_foreign(target, owner, programs)
    defines = {
        "HOME_PATH": home.root,
        "PYTHON_PATH": interpreter(),
        "PROGRAM_PATH": programs["picoqmail-queue"],
    }
    for path in defines.values():
        if not _PLAIN.issuperset(path):
            raise InitError(path, "has a character that a fixed path may not have", "rename it")
    with tempfile.TemporaryDirectory() as scratch:
        built = f"{scratch}/qmail-queue"
        command = [compiler, *_HARDENING, *(f'-D{k}="{v}"' for k, v in defines.items())]
        done = subprocess.run(
            [*command, "-o", built, SOURCE],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILE_SECONDS,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
        if done.returncode:
            raise InitError(SOURCE, f"cannot be compiled: {done.stderr.strip()[-500:]}")
        with open(built, "rb") as file:
            program = file.read()
    _install(program, target, owner)
    return target


def _refuse_foreign(target: str, owner: Owner, programs: Mapping[str, str]) -> None:
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode) and os.readlink(target) == programs["picoqmail-queue"]:
        return
    if stat.S_ISREG(status.st_mode) and status.st_uid == owner.uid:
        return
    raise InitError(target, "was not made by picoqmail", "move it away and run this again")


def _install(program: bytes, target: str, owner: Owner) -> None:
    """Put the program in place whole; it is set-id only once nobody can write to it."""
    scratch = f"{target}.{os.getpid()}.new"
    descriptor = durable.create(scratch)
    try:
        durable.write_all(descriptor, program)
        os.fchown(descriptor, owner.uid, owner.gid)
        os.fchmod(descriptor, SETID_MODE)
        durable.sync(descriptor)
    finally:
        os.close(descriptor)
    durable.rename(scratch, target)
    durable.sync_directory(os.path.dirname(target))


def links(programs: Mapping[str, str], home: Home) -> dict[str, str]:
    """The links of a system's `bin/`: as everywhere, but the queue is the set-id program."""
    setid = f"{home.bin}/qmail-queue"
    return {
        name: setid if program == "picoqmail-queue" else programs[program]
        for name, program in LINKS.items()
        if name != "qmail-queue"
    }
