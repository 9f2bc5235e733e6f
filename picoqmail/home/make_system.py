"""A home for a host with many users: made by root, the spool owned by a user of its own.

What may live here: what `picoqmail init --system` does beyond a user's own home. Only the owner of
the spool can list, read, alter or delete anything in it; every user may submit, by way of
`bin/qmail-queue`, a small set-id program (qmail_queue_setid.c) that is compiled here by the host's
compiler. Nothing else runs with raised privilege.

The Debian package brings the programs and the set-id program. What is left to be done here is the
user, the spool and the settings (`settle_packaged_home`).

Root works here on nothing that another user could move, replace or lead elsewhere meanwhile: every
directory from the root of the file system to the home must be in root's hands.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail import durable
from picoqmail.home import make
from picoqmail.home.control import MINIVARS, SECRETS, Control
from picoqmail.home.make import LINKS, HomeResult, InitError, InitRun, Step
from picoqmail.home.owner import groups_of
from picoqmail.layout import DIRECTORIES, DROP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picoqmail.home.paths import Home

OWNER = "picoqmail"
# The user for root's own mail; its group keeps a program that takes mail out of its caller's reach.
DROP_OWNER = "picoqmail-drop"
SETID_MODE = 0o4711
# Only a program that takes mail from users may start it: it has the group of the drop.
STARTER = "qmail-start"
STARTER_MODE = 0o4710
_DROP_MODE = 0o750
STAMP = ".set-id"
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE = f"{PACKAGE}/home/qmail_queue_setid.c"
COMPILE_SECONDS = 60
LIMITS = {"databytes": "52428800", "minfree": "67108864", "userlimit": "10000"}
"""What init sets in a shared home if nothing is set: 50 MiB for a message, 64 MiB that stay free,
10,000 messages of one user in an hour. One user cannot fill the disk or the queue then."""
_NOBODY = 65534
_MOST_LINKS = 40
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
    """The user that the spool belongs to, with all groups of that user."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    drop_uid: int
    drop_gid: int


def make_system_home(
    home: Home,
    *,
    settings: Mapping[str, Sequence[str]],
    replace: bool = False,
    programs: Mapping[str, str],
) -> HomeResult:
    """Make or repair a home for all users of this host; arguments and errors as init.make_home.

    The user `picoqmail` is made if it is missing. May be run again, and must be after an update
    and when that user's groups have changed: the set-id program is compiled anew, and tried.
    """
    require_root()
    if home.control != f"{home.root}/control" or home.spool != f"{home.root}/spool":
        raise InitError(
            home.root,
            "a home for many users has its control and spool within",
            "unset PICOQMAIL_CONTROL and PICOQMAIL_SPOOL; a disk of its own can be mounted there",
        )
    check_programs(programs)
    # Of the home itself, whose mode is about to be set, `prepare_directories` sees to the owner.
    check_place(os.path.dirname(home.root))
    owner = ensure_owner()
    prepare_directories(home, owner)
    work = InitRun.begin(home)
    # The sender owns the password, and nothing else that is set.
    work.trusted = (owner.uid,)
    try:
        _write_settings(work, owner, settings, replace=replace)
        target = f"{home.bin}/qmail-queue"
        _refuse_foreign(target, work.made_before)
        starter = f"{home.bin}/{STARTER}"
        _install(compile_setid(home, owner, starts_sender=True), starter, owner.drop_gid)
        _install(compile_setid(home, owner), target)
        work.steps.append(Step(starter, "made", "set-id, for the one above"))
        stamp = f"{home.root}/{STAMP}"
        durable.replace(f"{stamp}.new", stamp, _fingerprint(home, owner).encode())
        _set_mode(stamp, 0o644)
        work.steps.append(Step(target, "made", f"set-id, for the spool of {OWNER}"))
        for name, program in links(programs, home).items():
            work.link(f"{home.bin}/{name}", program)
    finally:
        work.write_manifest()
    try_setid(target)
    return HomeResult(home.root, tuple(work.steps))


def settle_packaged_home(
    home: Home, *, settings: Mapping[str, Sequence[str]], replace: bool = False
) -> HomeResult:
    """Complete the home of the Debian package, which has brought the programs.

    The user, the directories with their owners and modes, and the settings; arguments and errors
    as make_home.
    """
    require_root()
    owner = ensure_owner()
    prepare_directories(home, owner)
    # What the package made it also removes, so no manifest is kept.
    work = InitRun(home, frozenset(), trusted=(owner.uid,))
    _write_settings(work, owner, settings, replace=replace)
    setid = f"{home.bin}/qmail-queue"
    # The package cannot give it to a group that its installation makes.
    starter = f"{home.bin}/{STARTER}"
    os.chown(starter, 0, owner.drop_gid, follow_symlinks=False)
    os.chmod(starter, STARTER_MODE)
    # By dpkg-statoverride an administrator may let only one group submit.
    if os.stat(setid).st_mode & stat.S_IXOTH:
        try_setid(setid)
    return HomeResult(home.root, tuple(work.steps))


def _write_settings(
    work: InitRun, owner: Owner, settings: Mapping[str, Sequence[str]], *, replace: bool
) -> None:
    for name, lines in settings.items():
        work.control_file(name, lines, replace=replace)
    control = Control(work.home.control, (owner.uid,))
    for name, value in LIMITS.items():
        if control.read(name) is None:
            work.control_file(name, [value])
    for step in work.steps:
        if step.outcome in {"made", "replaced"} and os.path.basename(step.path) not in SECRETS:
            # Every user who submits reads the settings; the password is in a file of its own.
            _set_mode(step.path, 0o644)
    work.steps += settle_control(work.home, owner, work.made_before)


def _set_mode(path: str, mode: int) -> None:
    """Set the mode of a file of root's, by descriptor. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def require_root() -> None:
    """Raise InitError if this process is not root."""
    if os.geteuid() != 0:
        raise InitError("--system", "needs root", "run it with sudo, or leave --system out")


def ensure_owner() -> Owner:
    """Return the system user `picoqmail`, made if it is missing, and that of the drop.

    Raises InitError.
    """
    for name in (OWNER, DROP_OWNER):
        _ensure_user(name)
    return _owner()


def _ensure_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        _make_user(name)


def _make_user(name: str) -> None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    remedy = f"make a system user {name} with a group of its own, and run this again"
    if useradd is None:
        raise InitError(name, "is no user of this host, and there is no useradd", remedy)
    command = [useradd, "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InitError(name, f"cannot be made a user: {done.stderr.strip()}", remedy)


def _owner() -> Owner:
    user, drop = pwd.getpwnam(OWNER), pwd.getpwnam(DROP_OWNER)
    groups = tuple(groups_of(user.pw_uid, user.pw_gid))
    if user.pw_uid == 0 or 0 in groups:
        raise InitError(OWNER, "is a user with root's number or group", "give it one of its own")
    if drop.pw_uid in (0, user.pw_uid) or drop.pw_gid == 0 or drop.pw_gid in groups:
        remedy = "give it a number and a group of its own"
        raise InitError(DROP_OWNER, f"is not apart from root and {OWNER}", remedy)
    return Owner(user.pw_uid, user.pw_gid, groups, drop.pw_uid, drop.pw_gid)


# --- Whose hands it is in ------------------------------------------------------------------------


def check_programs(programs: Mapping[str, str]) -> None:
    """See that only root can change what the set-id program will run. Raises InitError.

    The interpreter with its `pyvenv.cfg` and standard library, our package and those that it
    imports with every file in them, and our programs; every directory on the way to them, and every
    link on that way. And other users must be able to reach them.
    """
    if not os.path.isdir(f"{PACKAGE}/cli"):
        raise InitError(PACKAGE, "is not an installed picoqmail", _ELSEWHERE)
    for path in (interpreter(), *_beside_interpreter(), *programs.values()):
        check_place(path)
    for path in (PACKAGE, sysconfig.get_path("stdlib"), *_dependencies()):
        check_place(path)
        _check_tree(path)


def _beside_interpreter() -> list[str]:
    """Return what decides where Python looks for modules, and the libraries that it is linked with.

    See site(3): `pyvenv.cfg` stands beside the interpreter or one directory higher, and names the
    Python that has the standard library.
    """
    directory = os.path.dirname(interpreter())
    found = [f"{directory}/pyvenv.cfg", f"{os.path.dirname(directory)}/pyvenv.cfg"]
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    found.append(f"{sys.base_prefix}/{sys.platlibdir}/python{version}.zip")
    # Where modules in C are, if that is not below the standard library.
    found += [path for path in sys.path if path.endswith("/lib-dynload")]
    library = sysconfig.get_config_var("INSTSONAME")
    place = sysconfig.get_config_var("LIBDIR")
    return [*found, f"{place}/{library}"] if library and place else found


def _dependencies() -> list[str]:
    """Return the packages that ours imports, and those of our own that were merged beside it."""
    packages = os.path.dirname(PACKAGE)
    names = ("attr", "attrs", "portalocker", "structlog", "typing_extensions.py")
    return [path for name in names if os.path.lexists(path := f"{packages}/{name}")]


def _check_tree(root: str) -> None:
    """Check every file below a directory; a link is followed. Raises InitError, OSError."""
    if not os.path.isdir(root):
        return
    for directory, names, files in os.walk(root, onerror=_raise):
        # Python is started without them (-S); the packages that are used are checked by name.
        names[:] = [one for one in names if one not in ("site-packages", "dist-packages")]
        for path in (directory, *(f"{directory}/{name}" for name in (*names, *files))):
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                check_place(path)
            else:
                _check_hands(path, status)


def _raise(exc: OSError) -> None:
    raise exc


_ELSEWHERE = "install picoqmail, as root, into a place of root's such as /opt/picoqmail"


def check_place(path: str) -> None:
    """See that only root can put something else in the place of a path. Raises InitError.

    What is not there yet is not checked. Every link is followed step by step, because the owner of
    a directory on the way could change it.
    """
    pending = _parts(path)
    place = "/"
    _check_hands(place, os.lstat(place))
    links_left = _MOST_LINKS
    while pending:
        part = pending.pop()
        if part == "..":
            place = os.path.dirname(place)
            continue
        step = os.path.join(place, part)
        try:
            status = os.lstat(step)
        except FileNotFoundError:
            return
        _check_hands(step, status)
        if not stat.S_ISLNK(status.st_mode):
            place = step
            continue
        links_left -= 1
        if not links_left:
            raise InitError(path, "leads through too many links", _ELSEWHERE)
        target = os.readlink(step)
        place = "/" if target.startswith("/") else place
        pending += _parts(target)


def _parts(path: str) -> list[str]:
    """Return the parts of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _check_hands(path: str, status: os.stat_result) -> None:
    if status.st_uid != 0:
        raise InitError(path, f"belongs to user {status.st_uid} and not to root", _ELSEWHERE)
    if stat.S_ISLNK(status.st_mode):
        return
    is_directory = stat.S_ISDIR(status.st_mode)
    # In a sticky directory, such as /tmp, nobody can move or remove what belongs to root.
    if status.st_mode & 0o022 and not (is_directory and status.st_mode & stat.S_ISVTX):
        remedy = f"chmod go-w it, or {_ELSEWHERE}"
        raise InitError(path, "can be changed by others than root", remedy)
    needed = stat.S_IXOTH if is_directory else stat.S_IROTH
    if not status.st_mode & needed:
        what = "entered" if is_directory else "read"
        remedy = f"chmod go+rX it, or {_ELSEWHERE}"
        raise InitError(path, f"cannot be {what} by other users", remedy)


def interpreter() -> str:
    """Return the interpreter that our programs are run by, as it is spelled here.

    Not resolved, because a virtual environment is known by its own link.
    """
    return os.path.abspath(sys.executable)


# --- Directories and settings --------------------------------------------------------------------


def prepare_directories(home: Home, owner: Owner) -> None:
    """Give the parts of a home their owners and modes. Raises InitError, OSError."""
    for path in (home.root, home.control, home.bin):
        _directory(path, 0, 0, 0o755)
    if os.path.isdir(home.spool) and os.lstat(home.spool).st_uid == 0:
        # The home was root's own until now: no other user could put anything there.
        _adopt(home.spool, owner)
    for path in (home.spool, *(f"{home.spool}/{name}" for name in DIRECTORIES)):
        _directory(path, owner.uid, owner.gid, 0o700)
    # Root's: the programs that take mail make a part for each user in it, with root's rights.
    _directory(f"{home.spool}/{DROP}", 0, owner.gid, _DROP_MODE)


def _directory(path: str, uid: int, gid: int, mode: int) -> int:
    """Make a directory, or repair the one there; returns whose it was."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _directory(parent, 0, 0, 0o755)
    durable.make_directory(path, mode)
    # By descriptor, so that nothing put in its place meanwhile is given away.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        what = "is a link or no directory" if os.path.lexists(path) else "cannot be opened"
        raise InitError(path, f"{what}: {exc.strerror}", "move it away") from exc
    try:
        status = os.fstat(descriptor)
        if status.st_uid not in (0, uid):
            raise InitError(path, f"belongs to user {status.st_uid}", "move it away")
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        durable.sync(descriptor)
    finally:
        os.close(descriptor)
    return status.st_uid


def _adopt(spool: str, owner: Owner) -> None:
    """Give away all that is in a spool of root's, by descriptors, before the spool itself."""
    for _, _, files, directory in os.fwalk(spool, topdown=False, onerror=_raise):
        for name in files:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, dir_fd=directory)
            except OSError as exc:
                if exc.errno == errno.ELOOP:
                    continue
                raise
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.fchown(descriptor, owner.uid, owner.gid)
            finally:
                os.close(descriptor)
        if not os.path.samestat(os.fstat(directory), os.lstat(spool)):
            os.fchown(directory, owner.uid, owner.gid)


def settle_control(home: Home, owner: Owner, made_before: frozenset[str]) -> list[Step]:
    """Let each setting be read by all who need it, and the password only by the owner."""
    steps = []
    for name in sorted(os.listdir(home.control)):
        path = f"{home.control}/{name}"
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except OSError as exc:
            if exc.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            if name == "relaypass":
                text = "is a link, and no secret is read through one; write it there itself"
                steps.append(Step(path, "refused", text))
            continue  # a link to a setting elsewhere, or a socket
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                continue
            mode = stat.S_IMODE(status.st_mode)
            if name in SECRETS:
                steps += _give_password(path, descriptor, status, owner)
            elif mode & stat.S_IROTH:
                continue
            elif f"control/{name}" in made_before:
                os.fchmod(descriptor, 0o644)
                steps.append(Step(path, "repaired", f"mode was {mode:04o}"))
            else:
                text = "is not readable by all users, who need it to submit mail; chmod 644 it"
                if name == MINIVARS:
                    text += f", and move a RELAYPASS in it to {home.control}/relaypass"
                steps.append(Step(path, "refused", text))
        finally:
            os.close(descriptor)
    return steps


def _give_password(path: str, descriptor: int, status: os.stat_result, owner: Owner) -> list[Step]:
    """Let the owner alone read the password; what was done."""
    mode = stat.S_IMODE(status.st_mode)
    if (status.st_uid, mode) == (owner.uid, 0o600):
        return []
    if status.st_nlink != 1:
        text = "has a second name, which may serve another purpose; write the password anew"
        return [Step(path, "refused", text)]
    os.fchmod(descriptor, 0o600)
    os.fchown(descriptor, owner.uid, owner.gid)
    detail = f"mode 0600, for {OWNER}; was {mode:04o}, of user {status.st_uid}"
    return [Step(path, "repaired", detail)]


# --- The set-id program --------------------------------------------------------------------------


def compile_setid(home: Home, owner: Owner, *, starts_sender: bool = False) -> bytes:
    """Compile the set-id program for a home, or that which starts the sender. Raises InitError."""
    compiler = shutil.which("cc", path="/usr/bin:/bin:/usr/local/bin")
    if compiler is None:
        raise InitError(
            "cc",
            "is not here, and bin/qmail-queue has to be compiled",
            "install a C compiler (Debian: apt-get install gcc libc6-dev), or see the sudo rule in "
            "docs/security.md",
        )
    check_place(compiler)
    defines = _defines(home, owner)
    if starts_sender:
        defines["STARTS_SENDER"] = "1"
    # Not where TMPDIR says: its owner could replace the directory while the compiler runs.
    with (
        tempfile.TemporaryDirectory(prefix=".build-", dir=home.root) as scratch,
        contextlib.closing(_Scratch(scratch)) as directory,
    ):
        command = [compiler, *_HARDENING, *(f"-D{name}={value}" for name, value in defines.items())]
        done = subprocess.run(
            [*command, "-o", "qmail-queue", SOURCE],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILE_SECONDS,
            cwd=scratch,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TMPDIR": scratch},
        )
        if done.returncode:
            raise InitError(SOURCE, f"cannot be compiled: {done.stderr.strip()[-500:]}")
        return directory.read("qmail-queue")


class _Scratch:
    """A directory of root's, held by its descriptor."""

    def __init__(self, path: str) -> None:
        """Raises InitError if it is not root's alone, OSError."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags)
        status = os.fstat(self._descriptor)
        if status.st_uid != 0 or status.st_mode & 0o077:
            self.close()
            raise InitError(path, "is not root's alone", "run this again")

    def read(self, name: str) -> bytes:
        """Return the content of a file of root's in it. Raises InitError, OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=self._descriptor)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_uid != 0 or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise InitError(name, "was not made by the compiler", "run this again")
            return file.read()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def _defines(home: Home, owner: Owner) -> dict[str, str]:
    """Return what is fixed in the set-id program at compile time. Raises InitError."""
    paths = {
        "HOME_PATH": home.root,
        "PYTHON_PATH": interpreter(),
        "PACKAGES_PATH": os.path.dirname(PACKAGE),
        "SPOOL_PATH": home.spool,
        "SEND_PATH": _sender(home),
    }
    for path in paths.values():
        if not _PLAIN.issuperset(path):
            raise InitError(path, "has a character that a fixed path may not have", "rename it")
    defines = {name: f'"{path}"' for name, path in paths.items()}
    defines["OWNER_UID"], defines["OWNER_GID"] = f"{owner.uid}U", f"{owner.gid}U"
    defines["OWNER_GROUPS"] = ",".join(f"{group}U" for group in owner.groups)
    defines["DROP_UID"], defines["DROP_GID"] = f"{owner.drop_uid}U", f"{owner.drop_gid}U"
    defines["AGAIN"] = '"run picoqmail init --system again"'
    return defines


def _sender(home: Home) -> str:
    """The program that sends: beside the interpreter as a rule, which saves following a link."""
    beside = f"{os.path.dirname(interpreter())}/picoqmail-send"
    return beside if os.access(beside, os.X_OK) else f"{home.bin}/minismtpsend"


def _fingerprint(home: Home, owner: Owner) -> str:
    """Return a text that changes with the source of the program and with what is fixed in it."""
    with open(SOURCE, "rb") as file:
        digest = hashlib.sha256(file.read())
    digest.update(repr(sorted(_defines(home, owner).items())).encode())
    return digest.hexdigest() + "\n"


def is_outdated(home: Home) -> bool:
    """Say whether the set-id program of a system home is not the one that would be made now.

    So it is after an update of picoqmail, or of Python, or of the owner's groups. Anybody may ask:
    the program itself can be read by root only, so what it was made of stands beside the home.
    """
    try:
        with open(f"{home.root}/{STAMP}", encoding="utf-8") as file:
            return file.read() != _fingerprint(home, _owner())
    except (FileNotFoundError, KeyError):
        return True


def _refuse_foreign(target: str, made_before: frozenset[str]) -> None:
    if os.path.lexists(target) and "bin/qmail-queue" not in made_before:
        raise InitError(target, "was not made by picoqmail", "move it away and run this again")


def _install(program: bytes, target: str, group: int = 0) -> None:
    """Put the program in place whole; it is set-id only once it is whole, and only once.

    A user may have made a hard link to the one before, to keep it for when a fault in it becomes
    known: its rights go with its name.
    """
    scratch = f"{target}.new"
    durable.unlink_if_there(scratch)
    descriptor = durable.create(scratch)
    try:
        durable.write_all(descriptor, program)
        os.fchown(descriptor, 0, group)
        os.fchmod(descriptor, STARTER_MODE if group else SETID_MODE)
        durable.sync(descriptor)
        before = _open_before(target)
        durable.rename(scratch, target)
        if before >= 0:
            os.fchmod(before, 0)
            os.close(before)
    finally:
        os.close(descriptor)
        durable.unlink_if_there(scratch)
    durable.sync_directory(os.path.dirname(target))


def _open_before(target: str) -> int:
    """Return the program that is about to be replaced, -1 if there is none or only a link."""
    try:
        return os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP):
            return -1
        raise


def try_setid(target: str) -> None:
    """Submit, as a user without rights, a message to nobody. Raises InitError.

    It leaves nothing in the spool, and shows that the bit counts in this place, that the
    interpreter can be reached, and that the settings can be read.
    """
    envelope, writing = os.pipe()
    try:
        os.write(writing, b"F\0\0")
        os.close(writing)
        done = subprocess.run(
            [target],
            stdin=subprocess.DEVNULL,
            stdout=envelope,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=COMPILE_SECONDS,
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=(),
            cwd="/",
            env={},
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise InitError(target, f"cannot be run by other users: {exc}") from exc
    finally:
        os.close(envelope)
    if done.returncode:
        said = done.stderr.strip() or "no word"
        raise InitError(target, f"does not work for other users, exit {done.returncode}: {said}")


def links(programs: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return the links of a system's `bin/`: as everywhere, but the queue is the set-id program."""
    setid = f"{home.bin}/qmail-queue"
    return {
        name: setid if program == "picoqmail-queue" else programs[program]
        for name, program in LINKS.items()
        if name != "qmail-queue"
    }


def cron_file(home: Home) -> tuple[str, str]:
    """Return the path and the line of a file for cron(8) that retries mail as the spool's owner."""
    times, command = make.crontab_line(home).split(" PICOQMAIL_HOME=", 1)
    return f"/etc/cron.d/{OWNER}", f"{times} {OWNER} PICOQMAIL_HOME={command}"
