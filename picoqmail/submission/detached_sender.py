"""The sender of a process that goes on: found wherever it is, and started so that no child is left.

Imported only by applications, and late: a program that ends after its mail starts the sender that
was installed beside it (start_sender.py).

An application need not be Python's own program. In uWSGI, mod_wsgi and the like `sys.executable` is
the server, in a frozen program (PyInstaller, Nuitka) the program itself: to run that again would
start the application once more. So a name is used only if it is an interpreter's, or that of an
installed picoqmail-send.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from picoqmail.home.paths import absolute
from picoqmail.importing import importing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from picoqmail.home.paths import Home

SHELL = "/bin/sh"
PROGRAM = "picoqmail-send"
# The name of 2003, under which `picoqmail init` links the same program into the home.
PROGRAM_OF_HOME = "minismtpsend"
_LONGEST_PAUSE_SECONDS = 1.0

# Run by an interpreter: without site at first, so that the parent of the two is soon gone.
_START = """\
import posix, sys
forks, where = sys.argv[1:3]
if forks and posix.fork():
    posix._exit(0)
import site
site.main()
sys.path.insert(0, where)
from picoqmail.cli.send import main
sys.exit(main(sys.argv[3:]))"""

_warned = False


def start(home: Home, option: str, spawn: Callable[[list[str]], int]) -> bool:
    """Start a sender of `home` by `spawn`, which returns a pid; False if none can be started.

    `option` is the sender's argument. Init becomes the sender's parent, so that nobody has to wait
    for it. A process that is init itself, as in a container, waits in the background. Raises
    OSError.
    """
    command = find(home)
    if command is None:
        _warn(home)
        return False
    is_init = os.getpid() == 1
    if is_init:
        pass
    elif os.access(SHELL, os.X_OK):
        # Cheaper than an interpreter that forks.
        command = [SHELL, "-c", '"$@" &', "sh", *command]
    else:
        command[command.index("")] = "fork"
    try:
        pid = spawn([*command, option])
    except (FileNotFoundError, PermissionError):
        # Such as a script whose interpreter is gone.
        _warn(home)
        return False
    if is_init:
        _wait_in_background(pid)
    else:
        os.waitpid(pid, 0)
    return True


def find(home: Home) -> list[str] | None:
    """Return the command that runs a sender, None if there is none.

    The program of this installation; an interpreter, with our modules; the program of the
    installation that made the home; one on PATH. Where there is no shell, which the programs are
    started by, an interpreter alone.
    """
    where = absolute(__file__).rsplit("/", 3)[0]
    has_shell = os.access(SHELL, os.X_OK)
    for path in _own_programs(where) if has_shell else ():
        if _may_run(path):
            return [path]
    for path in _interpreters():
        if _may_run(path) and os.path.isdir(f"{where}/picoqmail"):
            return [path, "-I", "-S", "-c", _START, "", where]
    for path in _other_programs(home) if has_shell else ():
        if _may_run(path):
            return [path]
    return None


def is_frozen() -> bool:
    """Whether this is one program with Python in it, which cannot run another one's text."""
    return bool(getattr(sys, "frozen", False)) or "__compiled__" in globals()


def _own_programs(where: str) -> Iterator[str]:
    """Return where an installer puts the programs of the package that lies in `where`."""
    for directory in (
        os.path.dirname(sys.executable or ""),
        f"{sys.prefix}/bin",
        f"{sys.exec_prefix}/bin",
        os.path.normpath(f"{where}/../../../bin"),
        f"{where}/bin",
    ):
        if directory:
            yield f"{directory}/{PROGRAM}"


def _interpreters() -> Iterator[str]:
    if is_frozen():
        return
    for path in (sys.executable, getattr(sys, "_base_executable", None)):
        if path and os.path.basename(path).startswith(("python", "pypy")):
            yield path
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix):
        yield f"{prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"


def _other_programs(home: Home) -> Iterator[str]:
    yield f"{home.bin}/{PROGRAM_OF_HOME}"
    for directory in os.environ.get("PATH", "").split(":"):
        if directory.startswith("/"):
            yield f"{directory}/{PROGRAM}"


def _may_run(path: str) -> bool:
    """Whether it is a program, and belongs to us or to root: nobody else may choose what we run."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    ours = found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o002
    return ours and os.path.isfile(path) and os.access(path, os.X_OK)


def _warn(home: Home) -> None:
    """Say once a process that nobody sends, also where warnings are made errors.

    The mail was accepted, and no exception may say otherwise.
    """
    global _warned  # noqa: PLW0603 - once a process
    if _warned:
        return
    _warned = True
    with importing:
        import contextlib
        import warnings

    with contextlib.suppress(Warning):
        warnings.warn(
            f"no sender can be started for {home.spool}: there is no interpreter, and no {PROGRAM} "
            f"beside it, in {home.bin} or on PATH; cron will send the mail. Install picoqmail, or "
            "set PICOQMAIL_SEND=off",
            RuntimeWarning,
            stacklevel=2,
        )


def _wait_in_background(pid: int) -> None:
    """Wait for a child in a thread, and leave no zombie.

    It looks again and again, for a greenlet that waited in the system would stop all others.
    """
    with importing:
        import threading
        import time

    def wait() -> None:
        pause = 0.05
        try:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        except ChildProcessError:
            # The application waits for all its children, or ignores their end.
            return

    try:
        threading.Thread(target=wait, name="picoqmail sender", daemon=True).start()
    except RuntimeError:
        # At the end of the program no thread can be had, and none is needed: init's end is all's.
        return
