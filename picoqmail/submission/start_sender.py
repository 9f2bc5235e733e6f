"""Starting the sender in the background. Hot; builtins only.

The sender's lock decides which process starts one. A process that has just accepted a message
takes the lock and hands it to the sender that it starts, so the lock is never free in between. A
process that finds it taken need not start anything: the holder reads new/ once more after it has
released the lock (delivery/sender.py), and finds the message. INTERNALS.md has the whole argument.
"""

from __future__ import annotations

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
# What a relay's password command, name lookup or certificate store may need. Nothing else of the
# caller's environment reaches the sender, which behaves as it does when cron starts it.
_ENVIRONMENT = ("HOME", "LANG", "LOGNAME", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ", "USER")
# Where libpq finds a password or a service that the URL of a database does not hold.
_OF_DATABASES = ("PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR")


def start_sender(home: Home, now: float, *, leaving: bool = False) -> bool:
    """Start the sender if none is active; return at once, True if one was started.

    The mail was accepted before, so no failure here is an error: cron will send it. Safe in
    threads: nothing is forked. `leaving` says that this process does nothing else afterwards. Then
    its descriptors are closed first, those of its caller above all, and init adopts the sender.
    Otherwise detached_sender.py finds the sender and leaves no child, and the sender closes what
    it inherited.
    """
    try:
        if relay_is_down(home.spool, now):
            return False
        if leaving:
            posix.closerange(LOCK_DESCRIPTOR, posix.sysconf("SC_OPEN_MAX"))
        # A process that goes on afterwards is an application, and its umask is its own.
        lock = take_lock(f"{home.spool}/{SENDER_LOCK}", any_umask=not leaving)
        if lock < 0:
            return False
        try:
            if leaving:
                _spawn(home, lock, [*sender_command(), LOCK_OPTION])
            else:
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
    return True


def start_in_front(home: Home) -> None:
    """Have the second set-id program start the sender, for a process that may only add to the drop.

    That program looks at breaker and lock, which this process cannot reach. To be called last: the
    descriptors of this process are closed. Its failure is no error, as in `start_sender`.
    """
    program = f"{home.bin}/qmail-start"
    try:
        if not starts_at_once(home):
            return
        posix.closerange(LOCK_DESCRIPTOR, posix.sysconf("SC_OPEN_MAX"))
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
    posix.closerange(LOCK_DESCRIPTOR + 1, posix.sysconf("SC_OPEN_MAX"))
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
    kept = {name: environ[name] for name in _ENVIRONMENT if name in environ}
    kept["PICOQMAIL_HOME"] = home.root
    kept["PICOQMAIL_CONTROL"] = home.control
    kept["PICOQMAIL_SPOOL"] = home.database or home.spool
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
            setsigdef=IGNORED_BY_PYTHON,
        )
    finally:
        for descriptor in opened:
            posix.close(descriptor)
