"""Starting the sender in the background. Hot; builtins only.

The sender's lock decides which process starts one. A process that has just accepted a message
takes the lock and hands it to the sender that it starts, so the lock is never free in between. A
process that finds it taken need not start anything: the holder reads new/ once more after it has
released the lock (delivery/sender.py), and finds the message. INTERNALS.md has the whole argument.

An application starts the sender as another program. A program that ends with its mail forks: its
child becomes the sender, and no second interpreter is started (INTERNALS.md, "One interpreter").
"""

from __future__ import annotations

import _signal
import fcntl
import posix
import sys

from picoqmail.errors import ConfigurationError
from picoqmail.home.control import Control
from picoqmail.home.limits import OFF_WORDS
from picoqmail.home.paths import absolute, environment
from picoqmail.layout import SENDER_LOCK
from picoqmail.ledger.relay_down import relay_is_down
from picoqmail.spool.locks import take_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from picoqmail.home.paths import Home

LOCK_DESCRIPTOR = 3
LOCK_OPTION = f"--lock={LOCK_DESCRIPTOR}"
BECOME_SENDER = -1
"""What the `main` of a program returns in the child that has to become the sender."""
BUILD = ""
"""In merged files (setup.py) what they were built from; empty in modules."""
# What a relay's password command, name lookup or certificate store may need. Nothing else of the
# caller's environment reaches the sender, which behaves as it does when cron starts it.
_ENVIRONMENT = ("HOME", "LANG", "LOGNAME", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ", "USER")
# Where libpq finds a password or a service that the URL of a database does not hold.
_OF_DATABASES = ("PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR")

# Variables that take effect when a process begins: a copy of it could not get rid of that. They
# are those of the dynamic linker and of glibc's memory and character sets.
_OBEYED_AT_START = (b"LD_", b"MALLOC_", b"GLIBC_TUNABLES", b"LOCPATH", b"GCONV_PATH")
_DATABASE = "picoqmail.store.acceptance"
_IDENTITY_AT_START = posix.getuid(), posix.geteuid(), posix.getgid(), posix.getegid()


def start_sender(home: Home, now: float) -> bool:
    """Start the sender if none is active; return at once, True if one was started.

    The mail was accepted before, so no failure here is an error: cron will send it. Safe in
    threads: nothing is forked. detached_sender.py finds the sender and leaves no child, and the
    sender closes what it inherited.
    """
    try:
        if relay_is_down(home.spool, now):
            return False
        # An application's umask is its own.
        lock = take_lock(f"{home.spool}/{SENDER_LOCK}", any_umask=True)
        if lock < 0:
            return False
        try:
            from picoqmail.importing import importing

            with importing:
                from picoqmail.submission import detached_sender
            return detached_sender.start(
                home, LOCK_OPTION, lambda command: _spawn(home, lock, command)
            )
        finally:
            posix.close(lock)
    except OSError:
        # There is no descriptor, memory or process left: the message is safe and waits for cron.
        return False


def leave_a_sender(home: Home, now: float) -> bool:
    """Leave a sender behind if none is active; True in the process that has to become it.

    For programs that do nothing afterwards but end: in their own process this closes all that the
    caller gave, so that the caller's pipes end now, and returns False. In the child it returns
    True; the child has nothing of the caller's, and the sender's lock as LOCK_DESCRIPTOR. All
    frames return there, so that no message stays in memory, and `start.run_program` goes on. Where
    a fork would not do the same as a start, the sender is started as another program.

    The mail was accepted before, so no failure here is an error: cron will send it.
    """
    try:
        return not relay_is_down(home.spool, now) and _leave(home)
    except OSError:
        # There is no descriptor, memory or process left: the message is safe and waits for cron.
        return False


def _leave(home: Home) -> bool:
    _leave_caller()
    # As everything below is taken, its number is LOCK_DESCRIPTOR.
    if take_lock(f"{home.spool}/{SENDER_LOCK}") != LOCK_DESCRIPTOR:
        return False
    child = -1
    if _may_fork():
        try:
            child = posix.fork()
        except OSError:
            # There is no memory for a copy of this process. Another program takes less.
            child = -1
    if child < 0:
        _spawn(home, LOCK_DESCRIPTOR, [*sender_command(), LOCK_OPTION])
    elif not child:
        _begin_anew(home)
    return not child


def _leave_caller() -> None:
    """Close all that the caller gave, and put null in the place of 0 to 2. Raises OSError."""
    opened = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    # Out of the way of the numbers that it is about to get.
    null = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _ABOVE_THE_STANDARD)
    for standard in (0, 1, 2):
        posix.dup2(null, standard)
    _close_from(LOCK_DESCRIPTOR)


def _close_from(first: int) -> None:
    """Close all descriptors from this number on."""
    try:
        numbers = [int(name) for name in posix.listdir("/proc/self/fd")]
    except OSError:
        # There is no /proc, or no descriptor left to read it.
        posix.closerange(first, posix.sysconf("SC_OPEN_MAX"))
        return
    # Only those that are there. The limit may be below a number that was opened before. It may also
    # be a thousand million, which Python tries one by one if the C library lacks close_range(3).
    for number in numbers:
        if number >= first:
            posix.closerange(number, number + 1)


def _may_fork() -> bool:
    """Say whether a copy of this process makes the same sender as another program would.

    Not if this process is no merged program: only there it is known that all modules are of one
    version. Not if it had or has other rights than its caller. Not if it talked to a database,
    whose library may have threads. Not if the C library, Python or the dynamic linker obeyed a
    variable when this process began that a sender does not get.
    """
    identity = posix.getuid(), posix.geteuid(), posix.getgid(), posix.getegid()
    return (
        BUILD != ""
        and _DATABASE not in sys.modules
        and identity == _IDENTITY_AT_START
        and identity[0] == identity[1]
        and identity[2] == identity[3]
        and sys.getfilesystemencoding() == "utf-8"
        and not any(name.startswith(_OBEYED_AT_START) for name in posix.environ)
    )


def _begin_anew(home: Home) -> None:
    """Give the forked child what a started sender has: session, signals, environment.

    Umask, limits and priorities are inherited either way. Raises OSError.
    """
    posix.setsid()
    for number in _signal.valid_signals():
        if _signal.getsignal(number) not in (_signal.SIG_DFL, None):
            _signal.signal(number, _signal.SIG_DFL)
    for number in IGNORED_BY_PYTHON:
        _signal.signal(number, _signal.SIG_IGN)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    kept = sender_environment(home, environment())
    if kept.get("LANG", "C") in ("C", "POSIX"):
        # As Python does for its own children where the locale is C (PEP 538).
        kept["LC_CTYPE"] = "C.UTF-8"
    # First all go, also a second entry of the same name: then C's getenv(3) finds these alone.
    for name in posix.environ:
        if name:
            posix.unsetenv(name)
    posix.environ.clear()
    for word, value in kept.items():
        posix.putenv(word, value)
        posix.environ[word.encode()] = value.encode("utf-8", "surrogateescape")
    if "os" in sys.modules:
        environ = sys.modules["os"].environ
        environ.clear()
        environ.update(kept)


def start_in_front(home: Home) -> None:
    """Have the second set-id program start the sender, for a process that may only add to the drop.

    That program looks at breaker and lock, which this process cannot reach. To be called last: the
    descriptors of this process are closed. Its failure is no error, as in `start_sender`.
    """
    program = f"{home.bin}/qmail-start"
    try:
        if not starts_at_once(home):
            return
        _close_from(LOCK_DESCRIPTOR)
        null = posix.open("/dev/null", posix.O_RDWR)
        actions = [(posix.POSIX_SPAWN_DUP2, null, standard) for standard in (0, 1, 2)]
        posix.posix_spawn(program, [program], {}, file_actions=actions, setsid=True)
    except (OSError, ConfigurationError):
        # The message is safe and waits for cron, which reports a wrong setting.
        return


def starts_at_once(home: Home) -> bool:
    """Say whether mail of users starts a sender (setting sendatonce). Raises ConfigurationError."""
    value = Control(home.control).read("sendatonce")
    return value is None or value.text.lower() not in OFF_WORDS


def keep_lock() -> int:
    """Keep the lock that `start_sender` handed to this process; return its descriptor.

    Close what else was inherited, and leave the caller's directory. Raises OSError.
    """
    posix.set_inheritable(LOCK_DESCRIPTOR, False)  # noqa: FBT003 - it takes no keywords
    posix.chdir("/")
    _close_from(LOCK_DESCRIPTOR + 1)
    return LOCK_DESCRIPTOR


def sender_command() -> list[str]:
    """Return the picoqmail-send that was installed beside this program, else it by module."""
    program = sys.executable.rpartition("/")[0] + "/picoqmail-send"
    if posix.access(program, posix.X_OK):
        return [program]
    # An interpreter embedded elsewhere, or scripts installed apart from it.
    where = absolute(__file__).rsplit("/", 3)[0]  # two directories up: the package's
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from picoqmail.cli.send import main"
    script = f"{start}; sys.exit(main(sys.argv[1:]))"
    return [sys.executable or "python3", "-I", "-c", script, where]


def sender_environment(home: Home, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a sender: what it may need, and this home."""
    kept = {
        "PICOQMAIL_HOME": home.root,
        "PICOQMAIL_CONTROL": home.control,
        "PICOQMAIL_SPOOL": home.database or home.spool,
    }
    kept.update({name: environ[name] for name in _ENVIRONMENT if name in environ})
    if home.database:
        kept.update({name: environ[name] for name in _OF_DATABASES if name in environ})
    return kept


# Python ignores these, and an ignored signal stays ignored over exec.
IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE, SIGXFSZ; the module signal would import enum
_ABOVE_THE_STANDARD = 10


def _spawn(home: Home, lock: int, command: list[str]) -> int:
    """Run it in a session of its own: null on 0 to 2, the lock on 3. Return its pid."""
    opened = [posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)]
    try:
        # Out of the way of the numbers that they are about to get.
        opened.append(fcntl.fcntl(opened[0], fcntl.F_DUPFD_CLOEXEC, _ABOVE_THE_STANDARD))
        opened.append(fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, _ABOVE_THE_STANDARD))
        null, held = opened[1:]
        return posix.posix_spawn(
            command[0],
            command,
            sender_environment(home, environment()),
            file_actions=[
                *((posix.POSIX_SPAWN_DUP2, null, standard) for standard in (0, 1, 2)),
                (posix.POSIX_SPAWN_DUP2, held, LOCK_DESCRIPTOR),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_signal.valid_signals(),
        )
    finally:
        for descriptor in opened:
            posix.close(descriptor)
