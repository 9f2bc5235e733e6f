"""The whole story in a temporary home: mail in, mail out, "later", "never", and nothing lost.

What may live here: the steps of the story, each with what must be true after it. Everything is
done by the installed programs, as processes, with a sink (picoqmail sink) as their relay; this
module starts them, reads the spool, and compares. A step that went another way raises
`DemoError`. How it is printed is the business of the command; see `Narrator`.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field

from picoqmail import durable, layout
from picoqmail.delivery import policy
from picoqmail.errors import EX_SOFTWARE, EX_UNAVAILABLE, PicoqmailError
from picoqmail.home.hands import check_way
from picoqmail.home.paths import Home
from picoqmail.home.values import spelled_duration
from picoqmail.spool.locks import wait_for_lock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

WAIT_SECONDS = 60
"""How long a program, or an event of the sink, may take before the demo gives up."""

RETRY_SECONDS = 1
"""The pause that the demo's home has in `retryschedule`, where qmail's begins with 400."""

_HOST = "demo.example"
_SENDER = f"ann@{_HOST}"
_CALLERS_VARIABLES = ("PICOQMAIL_", "QMAIL", "MAIL", "NAME", "USER", "LOGNAME")
_SHOWN_TRANSCRIPT_LINES = 12


class DemoError(PicoqmailError, RuntimeError):
    """A step went another way: a bug, or a machine on which the programs cannot work."""

    sysexit = EX_SOFTWARE


class DemoUnavailableError(PicoqmailError, RuntimeError):
    """The extra `demo` is not installed."""

    sysexit = EX_UNAVAILABLE


class Narrator(Protocol):
    """Prints or records the story as it happens."""

    def step(self, title: str) -> None:
        """Begin a step."""

    def say(self, text: str) -> None:
        """Say a sentence or two about it."""

    def command(self, words: Sequence[str], given: str, code: int, output: str) -> None:
        """Show a program that was run: its words, its standard input, exit code and output."""

    def state(self, lines: Sequence[str]) -> None:
        """Show what lies in the spool."""

    def lines(self, title: str, lines: Sequence[str]) -> None:
        """Show some lines of a file."""

    def proved(self, fact: str) -> None:
        """Print a fact that was just checked."""


def play(narrator: Narrator, directory: str | None = None) -> None:
    """Play the story; `directory` is made, used and left behind, else a temporary one is removed.

    Raises DemoError if a step went another way, DemoUnavailableError without the extra
    `demo`, OSError if the disk fails. No process is left behind.
    """
    if importlib.util.find_spec("aiosmtpd") is None:
        raise DemoUnavailableError(
            "the demo needs aiosmtpd, which is not installed; install the extra demo: "
            "pip install 'picoqmail[demo]'",
        )
    if directory is None:
        # Its owner could lead what is made there, by root perhaps, to another place.
        check_way(tempfile.gettempdir(), os.geteuid())
        with tempfile.TemporaryDirectory(prefix="picoqmail-demo-") as temporary:
            _Story(narrator, temporary).play()
    else:
        if not durable.make_directory(directory):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), directory)
        _Story(narrator, os.path.abspath(directory)).play()


@define
class _Story:
    """One run of the story: where it happens, and how programs are run."""

    narrator: Narrator
    directory: str
    home: Home = field(init=False)
    maildir: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.home = Home(self.directory + "/home")
        self.maildir = self.directory + "/Maildir"

    def play(self) -> None:
        with _SinkProgram(self.directory, self.maildir, 0) as relay:
            port = relay.port
            self._make_home(port)
            self._in_and_out(relay)
        with _SinkProgram(self.directory, self.maildir, port, "--answer", "451 4.3.0 later, please",
                    "--times", "1") as relay:  # fmt: skip
            name = self._relay_says_later(relay)
            self._cron_tries_again(relay, name)
        with _SinkProgram(self.directory, self.maildir, port, "--recipient-answer",
                    "bob@example.org=550 5.1.1 no such user") as relay:  # fmt: skip
            failed = self._one_of_three(relay)
            self._by_itself(relay, failed)

    # --- the steps -------------------------------------------------------------------------------

    def _make_home(self, port: int) -> None:
        narrator = self.narrator
        narrator.step("A home")
        narrator.say(
            f"A relay listens on 127.0.0.1:{port}, a picoqmail sink, which keeps what it gets in "
            "a Maildir. `picoqmail init` makes a home for a host that sends its mail there.",
        )
        relay = f"127.0.0.1:{port}"
        self._run(self._admin("init", "--me", _HOST, "--relay", relay), code=0, quiet=True)
        self._set("retryschedule", f"{RETRY_SECONDS}s")
        self._set("bounces", "off")
        narrator.say(
            "So that nobody has to wait, this home tries deferred mail again after "
            f"{RETRY_SECONDS} second (control/retryschedule).",
        )
        self._expect_messages()
        narrator.proved("the home is there, and its spool is empty")

    def _in_and_out(self, relay: _SinkProgram) -> None:
        narrator = self.narrator
        narrator.step("A mail goes in on standard input")
        narrator.say(
            "sendmail returns when the mail is safe on disk. Here PICOQMAIL_SEND=off keeps it from "
            "starting the sender, so that the mail can be seen in the spool.",
        )
        content = "To: Bob <bob@example.org>\nSubject: the first\n\nHello, Bob!\n.\nBye.\n"
        name = self._hand_in(content)
        self._expect_messages(new=[name])
        self._show_sidecar(layout.NEW, name)
        with open(self._path(layout.NEW, name, layout.BODY), "rb") as file:
            body = file.read()

        narrator.step("It comes out of the relay")
        self._run([f"{self.home.bin}/minismtpsend"], code=0)
        mail = relay.event("mail")
        with open(mail["path"], "rb") as file:
            kept = file.read()
        narrator.lines("what the relay has kept", kept.decode("utf-8", "replace").splitlines())
        self._expect_equal("the recipients at the relay", ["bob@example.org"], mail["recipients"])
        self._expect_equal("the bytes at the relay", body.replace(b"\n", b"\r\n"), kept)
        self._expect_messages()
        narrator.proved("the relay has it, byte for byte, and it has left the spool")

    def _relay_says_later(self, relay: _SinkProgram) -> str:
        narrator = self.narrator
        narrator.step("The relay says: later")
        narrator.say("This time the relay replies 451, once. Nothing is lost by that.")
        content = "To: eve@example.org\nSubject: the second\n\nPatience.\n"
        name = self._hand_in(content)
        self._run([f"{self.home.bin}/minismtpsend"], code=75)
        relay.event("refused")
        self._expect_messages(cur=[name])
        sidecar = self._show_sidecar(layout.CUR, name)
        self._expect_equal("the attempts", 1, sidecar["attempts"])
        self._expect_equal("the state", {"eve@example.org": "pending"}, _states(sidecar))
        self._show_result(name)
        ages = [policy.QUADRATIC_STEP_SECONDS**2 * n * n for n in range(1, 6)]
        narrator.say(
            "It waits in cur/ for cron, and the relay's words lie in undelivered/. Without the "
            "setting, qmail's schedule would try again at an age of "
            f"{', '.join(map(spelled_duration, ages))} and so on, for a week.",
        )
        narrator.proved("exit code 75, one attempt counted, the mail is safe")
        return name

    def _cron_tries_again(self, relay: _SinkProgram, name: str) -> None:
        narrator = self.narrator
        narrator.step("Cron tries again")
        with open(self._path(layout.CUR, name, layout.SIDECAR), "rb") as file:
            due = json.load(file)["next_attempt"]
        # Only the clock is waited for: nothing else happens until then.
        time.sleep(max(0.0, due - time.time()))
        done = self._run([f"{self.home.bin}/minisendcron"], code=0)
        self._expect_equal("what cron would mail", "", done)
        self._expect_messages()
        mail = relay.event("mail")
        self._expect_equal("the recipients at the relay", ["eve@example.org"], mail["recipients"])
        narrator.proved("delivered at the second attempt, and cron got no output to mail")

    def _one_of_three(self, relay: _SinkProgram) -> str:
        narrator = self.narrator
        narrator.step("The relay says: never, to one of three")
        narrator.say("The relay no longer knows bob. The other two get their mail.")
        all_three = [f"{who}@example.org" for who in ("alice", "bob", "carol")]
        content = f"To: {', '.join(all_three)}\nSubject: the third\n\nTo all of you.\n"
        name = self._hand_in(content)
        self._run([f"{self.home.bin}/minismtpsend", name], code=69)
        relay.event("refused")
        mail = relay.event("mail")
        self._expect_equal(
            "the recipients at the relay",
            [all_three[0], all_three[2]],
            sorted(mail["recipients"]),
        )
        self._expect_messages(undelivered=[name])
        sidecar = self._show_sidecar(layout.UNDELIVERED, name)
        states = dict(zip(all_three, ["delivered", "failed", "delivered"], strict=True))
        self._expect_equal("the states", states, _states(sidecar))
        self._show_result(name)
        narrator.proved("exit code 69: two delivered, one failed; the mail is kept with the reason")
        return name

    def _by_itself(self, relay: _SinkProgram, failed: str) -> None:
        narrator = self.narrator
        narrator.step("And so it goes without anybody's help")
        narrator.say(
            "The same without PICOQMAIL_SEND=off: sendmail does not wait for the relay; "
            "the sender runs in the background.",
        )
        content = "To: dave@example.org\nSubject: the fourth\n\nOff it goes.\n"
        before = time.monotonic()
        self._hand_in(content, send=True)
        took = time.monotonic() - before
        mail = relay.event("mail")
        self._expect_equal("the recipients at the relay", ["dave@example.org"], mail["recipients"])
        # The sender holds its lock until it has recorded what the relay said.
        _wait_for_lock(f"{self.home.spool}/{layout.SENDER_LOCK}")
        self._expect_messages(undelivered=[failed])
        narrator.proved(f"handed in within {took:.2f} s, and delivered")

    # --- the words -------------------------------------------------------------------------------

    def _hand_in(self, content: str, *, send: bool = False) -> str:
        """Give a mail to sendmail; return its ID, "" if the sender may have taken it already."""
        before = set(self._messages(layout.NEW))
        words = [f"{self.home.bin}/sendmail", "-t", "-i", "-f", _SENDER]
        self._run(words, given=content, code=0, send=send)
        if send:
            return ""
        new = sorted(set(self._messages(layout.NEW)) - before)
        if len(new) != 1:
            raise DemoError(f"one new message was expected in {self.home.spool}/new, not {new}")
        return new[0]

    def _run(
        self,
        words: Sequence[str],
        *,
        code: int,
        given: str = "",
        send: bool = False,
        quiet: bool = False,
    ) -> str:
        """Run a program, show it, and return its output. Raises DemoError for another code."""
        try:
            done = subprocess.run(
                words,
                input=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                cwd=self.directory,
                env=_environment(self.home, send=send),
                timeout=WAIT_SECONDS,
            )
        except subprocess.TimeoutExpired as exc:
            raise DemoError(f"{words[0]} was still running after {WAIT_SECONDS} s") from exc
        shown = [word.replace(self.directory + "/", "") for word in words]
        if quiet:
            shown = ["picoqmail", *shown[3:]]
        if given and not send:
            shown.insert(0, "PICOQMAIL_SEND=off")
        output = "" if quiet and done.returncode == code else done.stdout
        self.narrator.command(shown, given, done.returncode, output)
        if done.returncode != code:
            raise DemoError(
                f"{' '.join(shown)} ended with {done.returncode}, and {code} was expected: "
                f"{done.stdout.strip() or 'it said nothing'}",
            )
        return done.stdout

    def _admin(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "picoqmail.cli.main", *words]

    def _set(self, name: str, value: str) -> None:
        with open(f"{self.home.control}/{name}", "w", encoding="utf-8") as file:
            file.write(value + "\n")

    def _path(self, state: str, name: str, suffix: str) -> str:
        return f"{self.home.spool}/{state}/{name}{suffix}"

    def _messages(self, state: str) -> list[str]:
        """Return the IDs of the messages in a directory of the spool."""
        names = os.listdir(f"{self.home.spool}/{state}")
        return sorted(n.removesuffix(layout.SIDECAR) for n in names if n.endswith(layout.SIDECAR))

    def _expect_messages(
        self,
        *,
        new: Sequence[str] = (),
        cur: Sequence[str] = (),
        undelivered: Sequence[str] = (),
    ) -> None:
        """Show the spool; raises DemoError if it has other messages than these."""
        self.narrator.state(_listing(self.home.spool))
        expected = {layout.NEW: new, layout.CUR: cur, layout.UNDELIVERED: undelivered}
        for state, names in expected.items():
            self._expect_equal(f"the messages in {state}/", list(names), self._messages(state))
        self._expect_equal("what lies in tmp/", [], os.listdir(f"{self.home.spool}/{layout.TMP}"))

    def _expect_equal(self, what: str, expected: object, actual: object) -> None:
        if expected != actual:
            raise DemoError(f"{what}: {expected!r} was expected, and it is {actual!r}")

    def _show_sidecar(self, state: str, name: str) -> dict[str, Any]:
        with open(self._path(state, name, layout.SIDECAR), "rb") as file:
            sidecar: dict[str, Any] = json.load(file)
        lines = [f"sender      {sidecar['sender']}"]
        for recipient in sidecar["recipients"]:
            reply = f"  {recipient['reply']}" if recipient["reply"] else ""
            lines.append(f"recipient   {recipient['address']}: {recipient['state']}{reply}")
        lines.append(f"attempts    {sidecar['attempts']}")
        if sidecar["attempts"] and state == layout.CUR:
            pause = sidecar["next_attempt"] - sidecar["history"][-1]["when"]
            lines.append(f"next        {spelled_duration(pause)} after that attempt")
        lifetime = spelled_duration(sidecar["expires"] - sidecar["created"])
        lines.append(f"expires     {lifetime} after it came")
        self.narrator.lines(f"in {state}/ID{layout.SIDECAR}", lines)
        return sidecar

    def _show_result(self, name: str) -> None:
        path = self._path(layout.UNDELIVERED, name, layout.RESULT)
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            raise DemoError(f"{path} should have the relay's words, and is not there") from None
        title = f"in undelivered/ID{layout.RESULT}"
        self.narrator.lines(title, lines[-_SHOWN_TRANSCRIPT_LINES:])


class _SinkProgram:
    """A `picoqmail sink` of ours, as a process; a context manager, which ends it."""

    def __init__(self, directory: str, maildir: str, port: int, *words: str) -> None:
        command = [sys.executable, "-m", "picoqmail.cli.main", "sink", "--json"]
        # With --until-eof it ends even if we are killed: then the kernel closes our end.
        self._command = [
            *command, "--until-eof", "--maildir", maildir, "--port", str(port), *words
        ]  # fmt: skip
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self.port = port

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._directory,
            env=_environment(None, send=False),
        )
        try:
            self.port = int(self.event("listening")["port"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def event(self, kind: str) -> dict[str, Any]:
        """Return the sink's next event. Raises DemoError if it is another one, or does not come."""
        event: dict[str, Any] = json.loads(self._line(kind))
        if event["event"] != kind:
            raise DemoError(f"the relay was to report {kind!r}, and reported {event}")
        return event

    def _line(self, kind: str) -> bytes:
        stdout = self._process.stdout if self._process is not None else None
        if stdout is None:
            raise DemoError("the relay was not started")
        deadline = time.monotonic() + WAIT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(deadline - time.monotonic()):
                    raise DemoError(f"the relay reported no {kind!r} within {WAIT_SECONDS} s")
                block = os.read(stdout.fileno(), 65536)
                if not block:
                    raise DemoError(f"the relay ended before it reported {kind!r}")
                self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _environment(home: Home | None, *, send: bool) -> dict[str, str]:
    """Return the environment of our programs: the caller's, without what would steer them."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_CALLERS_VARIABLES)
    }
    if home is not None:
        kept["PICOQMAIL_HOME"] = home.root
    if not send:
        kept["PICOQMAIL_SEND"] = "off"
    return kept


def _states(sidecar: dict[str, Any]) -> dict[str, str]:
    return {recipient["address"]: recipient["state"] for recipient in sidecar["recipients"]}


def _listing(spool: str) -> list[str]:
    """Return the spool as lines: each directory, and the files in it with their sizes."""
    lines = []
    for state in layout.DIRECTORIES:
        names = sorted(os.listdir(f"{spool}/{state}"))
        lines.append(f"{state}/" + ("" if names else "  (empty)"))
        for name in names:
            size = os.stat(f"{spool}/{state}/{name}").st_size
            lines.append(f"    {name}  {size} bytes")
    return lines


def _wait_for_lock(path: str) -> None:
    """Wait until no process holds a lock file. Raises DemoError after `WAIT_SECONDS`."""
    try:
        os.close(wait_for_lock(path, WAIT_SECONDS))
    except TimeoutError as exc:
        raise DemoError(f"{path} was still held after {WAIT_SECONDS} s") from exc
