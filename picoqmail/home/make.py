"""Making a home: its directories, first control files and the links in `bin/`.

What may live here: everything that `picoqmail init` does to a disk. What is asked, and how it
is printed, is the business of the command.

Four rules. Nothing that lies there already is overwritten; it is right, or it is refused with a
reason. What an earlier run made is written down in `.made-by-picoqmail`; its mode is repaired, and
so is that of the spool's directories, for mail is always private. No symbolic link
is followed inside the home, and everything must belong to the user who runs this. Another user's
link or directory would carry our files to a place of theirs. Whatever is made is on disk, entry in
the directory included, when `make_home` returns.

A home is private: directories 0700, files 0600.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
import sysconfig
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from picoqmail import durable, layout
from picoqmail.errors import PicoqmailError
from picoqmail.home import hands
from picoqmail.home.control import SECRETS, Control, read_text
from picoqmail.home.paths import Home

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MANIFEST = ".made-by-picoqmail"

# The names of 2003 and of qmail, and which of our programs stands behind each. mailq and newaliases
# are sendmail under other names, as everywhere.
LINKS = {
    "minismtpq": "picoqmail-queue",
    "minismtpsend": "picoqmail-send",
    "minisendcron": "picoqmail-cron",
    "qmail-queue": "picoqmail-queue",
    "qmail-inject": "picoqmail-inject",
    "sendmail": "picoqmail-sendmail",
    "mailq": "picoqmail-sendmail",
    "newaliases": "picoqmail-sendmail",
}

EX_CANTCREAT = 73


class InitError(PicoqmailError, OSError):
    """The home cannot be made here: a part of it is not ours, or no directory can be made."""

    sysexit = EX_CANTCREAT

    def __init__(self, path: str, problem: str, remedy: str = "") -> None:
        super().__init__()
        # Not OSError's arguments, which are an errno and a text.
        self.args = (path, problem, remedy)
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        """Return where it was, what it was, and what to do."""
        return f"{self.path}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


@frozen
class Step:
    """What became of one path: `made`, `replaced`, `repaired`, `kept` or `refused`, and why."""

    path: str
    outcome: str
    detail: str = ""


@frozen
class HomeResult:
    """What a run did to a home; `refused` are the steps that left something foreign alone."""

    root: str
    steps: tuple[Step, ...]

    @property
    def refused(self) -> tuple[Step, ...]:
        """The steps that were refused, in order."""
        return tuple(step for step in self.steps if step.outcome == "refused")


def make_home(
    home: Home,
    *,
    settings: Mapping[str, Sequence[str]],
    replace: bool = False,
    programs: Mapping[str, str],
) -> HomeResult:
    """Make what is missing of a home, and return what was done to each part of it.

    `settings` has the lines of the control files to write, by name; they must have been checked.
    `replace` has them written also where another value is set. `programs` has the absolute path
    of each program that `LINKS` names; see `find_programs`.

    A foreign file in the place of a link, or a control file with another value, is refused and
    left alone, and the rest is done. Raises InitError if one of the directories cannot be ours
    (they come before any file), ConfigurationError if `minivars` cannot be understood, OSError if
    the disk fails. What was made until then stays, and the next run finds it.
    """
    for path in (home.root, home.control, home.spool):
        _check_way(os.path.dirname(path), (home.root, home.control))
    work = InitRun.begin(home)
    try:
        work.directory(home.root, parents=True)
        for path in (home.control, home.spool, home.bin):
            work.directory(path, parents=path != home.bin)
        for name in layout.DIRECTORIES:
            work.directory(f"{home.spool}/{name}")
        for name, lines in settings.items():
            work.control_file(name, lines, replace=replace)
        for name, program in LINKS.items():
            work.link(f"{home.bin}/{name}", programs[program])
    finally:
        work.write_manifest()
    return HomeResult(home.root, tuple(work.steps))


def take_from_others(home: Home) -> tuple[Step, ...]:
    """Let nobody else change home and control any more, so that settings can be read.

    Returns what was done. Raises InitError, OSError.
    """
    steps = []
    for path in (home.root, home.control):
        if not os.path.isdir(path):
            continue
        descriptor = _open_directory(path, follow=path == home.root)
        try:
            status = os.fstat(descriptor)
            mode = stat.S_IMODE(status.st_mode)
            if status.st_uid == os.geteuid() and mode & 0o022:
                os.fchmod(descriptor, mode & ~0o022)
                durable.sync(descriptor)
                detail = f"mode was {mode:04o}, so others could change it"
                steps.append(Step(path, "repaired", detail))
        finally:
            os.close(descriptor)
    return tuple(steps)


def find_programs(environment_directories: Iterable[str] | None = None) -> dict[str, str]:
    """Return the absolute path of each of our programs, as they are installed.

    They are looked for beside the running script, beside the interpreter, and where this
    interpreter installs scripts, unless other directories are given. Raises InitError if one is
    nowhere.
    """
    if environment_directories is None:
        environment_directories = (
            os.path.dirname(os.path.abspath(sys.argv[0])),
            os.path.dirname(os.path.realpath(sys.argv[0])),
            os.path.dirname(sys.executable),
            sysconfig.get_path("scripts"),
        )
    # Twice the same directory is the usual case.
    directories = list(dict.fromkeys(path for path in environment_directories if path))
    found = {}
    for program in dict.fromkeys(LINKS.values()):
        for directory in directories:
            path = f"{directory}/{program}"
            if os.access(path, os.X_OK) and os.path.isfile(path):
                found[program] = path
                break
        else:
            raise InitError(
                program,
                f"is not installed in any of {', '.join(directories)}",
                "install picoqmail again and start its own picoqmail program",
            )
    return found


def crontab_line(home: Home) -> str:
    """Return the line for crontab(5) that retries mail each minute; an idle run costs little.

    A percent sign would end the command there, so it gets its backslash.
    """
    words = [f"PICOQMAIL_HOME={shlex.quote(home.root)}"]
    usual = Home(home.root)
    if home.control != usual.control:
        words.append(f"PICOQMAIL_CONTROL={shlex.quote(home.control)}")
    if home.spool != usual.spool:
        words.append(f"PICOQMAIL_SPOOL={shlex.quote(home.spool)}")
    words.append(shlex.quote(f"{home.bin}/minisendcron"))
    return "* * * * * " + " ".join(words).replace("%", r"\%")


@define
class InitRun:
    """One run: the home, what earlier runs made, and what was done so far."""

    home: Home
    made_before: frozenset[str]
    steps: list[Step] = field(factory=list)
    trusted: tuple[int, ...] = ()
    """Users who may own settings, besides the one who runs this."""

    @classmethod
    def begin(cls, home: Home) -> InitRun:
        """Read what earlier runs made of this home. Raises InitError."""
        return cls(home, _read_manifest(home))

    def directory(self, path: str, *, parents: bool = False) -> None:
        """Make a private directory, or see that the one there is ours. Raises InitError."""
        if parents:
            _make_parents(path)
        try:
            made = durable.make_directory(path)
        except OSError as exc:
            raise InitError(path, f"cannot be made: {exc.strerror}") from exc
        if made:
            self._note(path, "made")
            return
        descriptor = _open_directory(path, follow=path == self.home.root)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise InitError(
                    path,
                    f"belongs to user {status.st_uid}, and you are user {os.geteuid()}",
                    "run this as that user, or give it to yourself with chown",
                )
            mode = stat.S_IMODE(status.st_mode)
            if mode == layout.PRIVATE_DIRECTORY_MODE:
                self._note(path, "kept")
            elif self._relative(path) in self.made_before or self._is_in_spool(path):
                os.fchmod(descriptor, layout.PRIVATE_DIRECTORY_MODE)
                durable.sync(descriptor)
                self._note(path, "repaired", f"mode was {mode:04o}")
            else:
                self._note(path, "kept", f"mode {mode:04o}")
        finally:
            os.close(descriptor)

    def control_file(self, name: str, lines: Sequence[str], *, replace: bool = False) -> None:
        """Write a control file, unless the setting is there already, in its file or minivars.

        With `replace` a file with another value is replaced; minivars is never edited.
        """
        path = f"{self.home.control}/{name}"
        value = Control(self.home.control, self.trusted).read(name)
        data = "".join(f"{line}\n" for line in lines).encode()
        if value is None:
            if create_durably(path, data):
                self._note(path, "made")
            else:
                self._note(path, "refused", "a link or directory lies there; move it away")
            return
        there = [text for text, _ in value.lines]
        # Part of a secret may stand in a comment (see secret_lines).
        if read_text(path) == data.decode() if name in SECRETS else there == list(lines):
            self._note(path, "kept")
        elif replace and value.path == path:
            durable.replace(f"{path}.{os.getpid()}.new", path, data)
            durable.sync_directory(self.home.control)
            self._note(path, "replaced")
        else:
            differs = f"{value.where()} says another value"
            if name not in SECRETS:
                differs = f"{value.where()} says {' '.join(there)!r} and not {' '.join(lines)!r}"
            self._note(path, "refused", f"{differs}; edit it if it is wrong, or use --replace")

    def link(self, path: str, target: str) -> None:
        """Make a link to one of our programs; one of ours that points elsewhere is replaced."""
        try:
            durable.symlink(target, path)
        except FileExistsError:
            self._existing_link(path, target)
            return
        durable.sync_directory(os.path.dirname(path))
        self._note(path, "made", target)

    def _existing_link(self, path: str, target: str) -> None:
        there = os.readlink(path) if os.path.islink(path) else None
        if there == target:
            self._note(path, "kept", target)
        elif there is not None and self._relative(path) in self.made_before:
            scratch = f"{path}.{os.getpid()}.new"
            durable.symlink(target, scratch)
            durable.rename(scratch, path)
            durable.sync_directory(os.path.dirname(path))
            self._note(path, "repaired", f"{target}; was {there}")
        else:
            what = "a file" if there is None else f"a link to {there}"
            self._note(
                path,
                "refused",
                f"{what} lies there that this program did not make; move it away and run this "
                f"again, if {os.path.basename(path)} is to be {os.path.basename(target)}",
            )

    def write_manifest(self) -> None:
        """Write down what this run and earlier ones made, for the next one."""
        made = {self._relative(step.path) for step in self.steps if step.outcome == "made"}
        if made <= self.made_before:
            return
        path = f"{self.home.root}/{MANIFEST}"
        names = sorted(made | self.made_before)
        data = "# picoqmail init made these; it repairs nothing else.\n" + "\n".join(names) + "\n"
        durable.replace(f"{path}.{os.getpid()}", path, os.fsencode(data))
        durable.sync_directory(self.home.root)

    def _is_in_spool(self, path: str) -> bool:
        """Say whether mail lies there: then it is private, also if we did not make it."""
        return path == self.home.spool or path.startswith(self.home.spool + "/")

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.home.root)

    def _note(self, path: str, outcome: str, detail: str = "") -> None:
        self.steps.append(Step(path, outcome, detail))


def _read_manifest(home: Home) -> frozenset[str]:
    """Return what earlier runs made, relative to the home; raises InitError for a file not ours."""
    path = f"{home.root}/{MANIFEST}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return frozenset()
    except OSError as exc:
        raise InitError(path, f"cannot be read: {exc.strerror}") from exc
    with open(descriptor, "rb") as manifest:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise InitError(path, "belongs to another user", "run this as that user")
        lines = os.fsdecode(manifest.read()).splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _check_way(path: str, ours: tuple[str, ...]) -> None:
    """Check that no other user can replace the home. Raises InitError.

    The directories of the home itself (`ours`) are repaired later.
    """
    if path in ours:
        return
    try:
        hands.check_way(path, os.geteuid())
    except hands.HandsError as exc:
        problem = f"{exc.problem}, and so could replace the home"
        raise InitError(exc.where, problem, exc.remedy) from exc
    except OSError as exc:
        raise InitError(path, f"cannot be examined: {exc.strerror}") from exc


def _make_parents(path: str) -> None:
    """Make the directories above a path, durably; they are not part of the home."""
    parent = os.path.dirname(path)
    try:
        if parent:
            durable.make_directories(parent)
    except OSError as exc:
        where = exc.filename or parent
        raise InitError(where, f"cannot be made: {exc.strerror}") from exc


def _open_directory(path: str, *, follow: bool) -> int:
    """Open a directory that is none by way of a link, unless `follow`. Raises InitError.

    The home itself may be a link: its name was given to us, and its owner is checked next.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        return os.open(path, flags)
    except NotADirectoryError as exc:
        what = "a symbolic link" if os.path.islink(path) else "not a directory"
        raise InitError(
            path,
            f"is {what}, and a directory must be there",
            "move it away, or name the place itself with PICOQMAIL_HOME, PICOQMAIL_CONTROL or "
            "PICOQMAIL_SPOOL",
        ) from exc
    except OSError as exc:
        raise InitError(path, f"cannot be opened: {exc.strerror}") from exc


def create_durably(path: str, data: bytes) -> bool:
    """Make a file whole, or not at all; False if its name was taken meanwhile."""
    scratch = f"{path}.{os.getpid()}.new"
    durable.create_whole(scratch, data)
    try:
        durable.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        durable.unlink(scratch)
    durable.sync_directory(os.path.dirname(path))
    return True
