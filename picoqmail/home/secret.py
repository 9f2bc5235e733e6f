"""The relay's password: kept out of sight, and fetched by a command where the setting says so.

What may live here: the wrapper that hides a secret, and the one place that runs a command to get
it. Nothing here prints, logs or raises a text that came out of that command.

No shell is involved. The command is split as a shell would split a plain command (quotes and
backslashes understood, no variables, no pipes, no wildcards) and executed directly; to use a
shell, write `!sh -c '...'`. Its standard input is empty, its standard error goes nowhere, for it
may hold what must not be seen. It has `COMMAND_SECONDS` and then is killed with its children.
"""

from __future__ import annotations

import _thread
import posix
import time

from picoqmail.errors import EX_TEMPFAIL, PicoqmailError
from picoqmail.home.paths import is_privileged

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess

COMMAND_SECONDS = 60.0
LONGEST_SECRET_OCTETS = 65536

_RAISED_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}


class PasswordUnavailableError(PicoqmailError, OSError):
    """The command of `relaypass` gave no password: the relay's trouble, no message is charged."""

    sysexit = EX_TEMPFAIL


class RelayPassword:
    """A password, or the command that prints one; `reveal()` is the only way to see it.

    `oauth2` says that the secret is an access token (RFC 6750) for XOAUTH2 or OAUTHBEARER, and no
    password. The command runs at most once in the life of this object, when first asked for,
    even if it fails. A run of the sender makes one such object. So a broken command is started once
    a run, and a token is as fresh as its run. Safe to share between threads.
    """

    __slots__ = ("_answer", "_command", "_lock", "_source", "oauth2")

    def __init__(self, setting: str, source: str = "relaypass") -> None:
        """Read the value of `relaypass`; `source` (file and line) is named in errors.

        Raises ValueError if the value is empty, or its command has no words or an open quote.
        The text of such an error never quotes the value.
        """
        self.oauth2 = setting.startswith("oauth2!")
        self._source = source
        self._lock = _thread.allocate_lock()
        self._command: tuple[str, ...] = ()
        self._answer: str | PasswordUnavailableError | None = None
        command = setting.removeprefix("oauth2")
        if command.startswith("!"):
            self._command = _command_words(command[1:])
        elif setting:
            self._answer = setting
        else:
            raise ValueError("the password is empty")

    @property
    def is_known(self) -> bool:
        """Whether `reveal` returns at once: the setting has the secret, or the command gave it."""
        return isinstance(self._answer, str)

    def reveal(self) -> str:
        """Return the secret itself: the value, or the first line that the command prints.

        Raises PasswordUnavailableError if the command cannot be started, fails, prints nothing,
        too much or no UTF-8, or takes longer than `COMMAND_SECONDS`; the same error again when
        asked again.
        """
        with self._lock:
            if self._answer is None:
                self._answer = self._ask()
            if isinstance(self._answer, PasswordUnavailableError):
                raise self._answer
            return self._answer

    def __repr__(self) -> str:
        """Return a text that gives nothing away."""
        return "<secret>"

    __str__ = __repr__

    def __reduce__(self) -> str:
        """Refuse to be pickled: a pickle would hold the secret in clear."""
        raise TypeError("a password is not pickled")

    def _ask(self) -> str | PasswordUnavailableError:
        try:
            output = _output_of(self._command)
            # From None everywhere below: a chained decoding error would carry the octets along.
            secret = output.split(b"\n", 1)[0].rstrip(b"\r").decode()
        except UnicodeDecodeError:
            return self._error("printed bytes that are not UTF-8")
        except TimeoutError:
            return self._error(f"was still running after {COMMAND_SECONDS:.0f} seconds")
        except OSError as exc:
            return self._error(str(exc.strerror or exc))
        if not secret:
            return self._error("printed nothing on its first line")
        return secret

    def _error(self, what: str) -> PasswordUnavailableError:
        return PasswordUnavailableError(
            f"{self._source}: the command {self._command[0]!r} that should print the relay's "
            f"password {what}; run it by hand as the user who sends the mail",
        )


def secret_lines(path: str, secret: str) -> list[str]:
    """Return the lines of the control file at `path` that make `secret` the relay's password.

    A text that the file cannot hold as it is (it begins as a comment or a command does, or ends
    with a blank) stands in a comment, and a command prints it from there. Raises ValueError for
    an empty secret, and for one with control characters.
    """
    if not secret or not secret.isprintable():
        raise ValueError("a password is one line of printable characters")
    if secret[0] not in "#!" and not secret.startswith("oauth2!") and secret == secret.rstrip():
        return [secret]
    import shlex

    return [f"!sed -n s/^#=//p {shlex.quote(path)}", f"#={secret}"]


def _command_words(command: str) -> tuple[str, ...]:
    import shlex

    try:
        words = tuple(shlex.split(command))
    except ValueError:
        words = ()
    if not words or not words[0]:
        raise ValueError("after the ! there is no command, or a quote in it is left open")
    return words


def _output_of(command: tuple[str, ...]) -> bytes:
    """Return what a command prints; raises OSError, with a text free of its output."""
    # Late: most relays want a plain password or none, and each run of the sender would pay.
    import subprocess

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=_RAISED_ENVIRONMENT if is_privileged() else None,
    )
    try:
        output = _read_all(process, time.monotonic() + COMMAND_SECONDS)
    finally:
        _end(process)
    if process.returncode:
        what = (
            f"was ended by signal {-process.returncode}"
            if process.returncode < 0
            else f"failed with exit code {process.returncode}"
        )
        raise OSError(what)
    return output


def _read_all(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return the output up to its end, and wait for the process; bounded in time and memory."""
    import selectors
    import subprocess

    stdout = process.stdout
    if stdout is None:
        raise OSError("has no output")
    output = b""
    with selectors.DefaultSelector() as selector, stdout:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            block = posix.read(stdout.fileno(), LONGEST_SECRET_OCTETS)
            if not block:
                break
            output += block
            if len(output) > LONGEST_SECRET_OCTETS:
                raise OSError(f"printed more than {LONGEST_SECRET_OCTETS} bytes")
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return output


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the command: its group is its own session, with no other process."""
    if process.returncode is not None:
        return
    import contextlib
    import signal

    # No such group: it ended by itself between the check and the kill.
    with contextlib.suppress(ProcessLookupError):
        posix.killpg(process.pid, signal.SIGKILL)
    process.wait()
