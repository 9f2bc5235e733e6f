"""One home under trial: its spool, its accepted messages, and its mail at the relay.

The rule of this module: it prepares and reads, but never judges (invariant.py does).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from rig.hostile import HostileRelay
from rig.processes import environment, find_processes
from rig.received import Mailbox
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proof.zygote import Zygote
    from rig.faults import Fault
    from rig.received import Received

RUN_SECONDS = 60
_HERE = os.path.dirname(os.path.abspath(__file__))


@frozen
class Promise:
    """One submitted message: what must arrive, and whether success was reported."""

    token: str
    sender: str
    recipients: tuple[str, ...]
    body: bytes
    accepted: bool = True
    fields_added: bool = False
    """Whether the program completes the header, as inject and sendmail do."""

    def is_whole(self, arrived: bytes) -> bool:
        """Say whether this is the message, without our Received line."""
        if not self.fields_added:
            return arrived == self.body
        head, _, text = self.body.partition(b"\n\n")
        arrived_head, _, arrived_text = arrived.partition(b"\n\n")
        fields = arrived_head.split(b"\n")
        return arrived_text == text and all(line in fields for line in head.split(b"\n"))


@frozen
class Ledger(Mailbox):
    """The mailbox of a relay that many homes use at once; their HELO names distinguish them."""

    _by_helo: dict[str, list[Received]] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def put(self, message: Received) -> None:
        """File a message."""
        with self._lock:
            self._by_helo.setdefault(message.helo, []).append(message)

    def of(self, helo: str) -> list[Received]:
        """Return the messages of one home so far."""
        with self._lock:
            return list(self._by_helo.get(helo, ()))

    def forget(self, helo: str) -> None:
        """Drop the messages of one home, to bound memory."""
        with self._lock:
            self._by_helo.pop(helo, None)


class LedgerRelay(HostileRelay):
    """A strict relay whose mailbox is a ledger."""

    def __init__(self, faults: Mapping[str, Fault | Sequence[Fault | None]] | None = None) -> None:
        super().__init__(faults)
        self.ledger = Ledger()
        self.mailbox = self.ledger


@frozen
class Programs:
    """The programs under trial: the installed ones, or a patched copy of the package.

    `bin` is where they are installed, if not beside this interpreter.
    """

    copy: str = ""
    bin: str = ""

    def command(self, name: str, late_seconds: int = 0, *, through: bool = False) -> list[str]:
        """Return the command of picoqmail-NAME, of picoqmail without a name, or of many.py.

        The clock of the program is `late_seconds` ahead. With `through` it is started by runner.py
        in any case, which obeys its own variables.
        """
        if name == "many":
            return [sys.executable, "-I", f"{_HERE}/many.py", self.copy]
        if self.copy or late_seconds or through:
            words = [sys.executable, "-I", f"{_HERE}/runner.py", f"{late_seconds}", self.copy]
            return [*words, name or "main"]
        program = f"picoqmail-{name}" if name else "picoqmail"
        return [os.path.join(self.bin or os.path.dirname(sys.executable), program)]


def make_body(token: str, octets: int = 0) -> bytes:
    """Return a message with its token, lines that begin with dots, and `octets` of padding."""
    head = f"Subject: {token}\nX-Token: {token}\n\n.\n..a line of dots\n".encode()
    line = b"0123456789abcdef" * 4 + b"\n"
    return head + line * (octets // len(line)) + b"the end\n"


_numbers = itertools.count(1)


@define
class World(TemporaryHome):
    """A home and what it promised. `name` is its host's name, and so its name at the relay."""

    name: str
    programs: Programs = field(factory=Programs)
    promises: list[Promise] = field(factory=list)
    before: list[Received] = field(factory=list)
    """What a relay got of this home while it was prepared."""

    @classmethod
    def begin(cls, root: str, relay: str, programs: Programs | None = None) -> World:
        """Make an empty home whose mail goes to `relay`."""
        world = cls(root, f"w{next(_numbers)}.test", programs or Programs())
        world.make(world.name, relay)
        world.setting("log", f"{root}/events")
        # A breaker or a long schedule would only delay recovery.
        world.setting("retryschedule", "1")
        return world

    def clone(self, root: str, relay: str = "") -> World:
        """Return a copy of the whole home, including hard links and times, under another name."""
        subprocess.run(["cp", "-a", self.root, root], check=True)
        name = f"w{next(_numbers)}.test"
        world = evolve(self, root=root, name=name, promises=list(self.promises))
        world.setting("me", world.name)
        world.setting("log", f"{root}/events")
        if relay:
            world.relay(relay)
        return world

    def take_settings_of(self, other: World) -> None:
        """Take over each setting of another home that this one does not have."""
        for name in os.listdir(f"{other.root}/control"):
            if not os.path.exists(f"{self.root}/control/{name}"):
                shutil.copy2(f"{other.root}/control/{name}", f"{self.root}/control/{name}")

    def destroy(self) -> None:
        """Remove the home."""
        shutil.rmtree(self.root, ignore_errors=True)

    def relay(self, address: str) -> None:
        """Use another relay from now on."""
        self.setting("relayip", address)

    def promise(
        self, recipients: Sequence[str] = (), octets: int = 0, ahead: int = 0, sender: str = ""
    ) -> Promise:
        """Make a message that is not yet submitted; its sender is unique unless one is given.

        `ahead` others were made before it, and are not among the submitted messages yet.
        """
        number = len(self.promises) + ahead + 1
        token = f"{self.name}-{number}"
        to = tuple(recipients) or (f"to{number}@there.test",)
        body = make_body(token, octets)
        return Promise(token, sender or f"from{number}@here.test", to, body, accepted=False)

    def accept(self, recipients: Sequence[str] = (), octets: int = 0, sender: str = "") -> str:
        """Put a message into the spool through the library; return its ID."""
        promise = self.promise(recipients, octets, sender=sender)
        message_id = self.accepted(promise.sender, promise.recipients, promise.body)
        self.promises.append(evolve(promise, accepted=True))
        return message_id

    def run(
        self,
        command: Sequence[str],
        *,
        message: bytes = b"",
        envelope: bytes | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program, perhaps under strace, with its message on 0 and its envelope on 1.

        Returns after a sender that it started in the background has ended, too.
        """
        stdin, stdout = _pipe(message), subprocess.PIPE
        if envelope is not None:
            stdout = _pipe(envelope)
        try:
            return subprocess.run(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=self.variables(**(environ or {})),
                cwd="/",
                timeout=RUN_SECONDS,
                check=False,
            )
        finally:
            os.close(stdin)
            if envelope is not None:
                os.close(stdout)
            self.await_sender()

    def await_sender(self) -> None:
        """Wait until no sender is at work and its lock is free."""
        lock = f"{self.spool}/sender.lock"
        with contextlib.suppress(FileNotFoundError), open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def await_everybody(self) -> None:
        """Wait until no process works in this home: also none that lives on without its parent.

        A sender that has released its lock may take it once more.
        """
        mark = f"PICOQMAIL_HOME={self.root}".encode()
        while find_processes(lambda process: mark in environment(process)):
            time.sleep(0.05)

    def recover(self, zygote: Zygote, relay: str, runs: int = 3) -> list[str]:
        """Recover the spool with cron runs, each some hours later; return complaints."""
        self.relay(relay)
        complaints = []
        for number in range(runs):
            if number and not self.sidecars("new", "cur") and not self.reports():
                break
            status, said = zygote.run(self.root, "cron", offset=number * 7200)
            if status or said:
                complaints.append(f"cron run {number + 1}: exit {status}: {said}")
        return complaints

    def sidecars(self, *states: str) -> list[str]:
        """Return the paths of the sidecars in these states."""
        return sorted(
            entry.path
            for state in states
            for entry in os.scandir(f"{self.spool}/{state}")
            if entry.name.endswith(".json")
        )

    def reports(self) -> list[str]:
        """Return the names of the files that count reports; an hour later a digest follows."""
        try:
            return os.listdir(f"{self.spool}/reports")
        except FileNotFoundError:
            return []

    def events(self) -> list[str]:
        """Return the programs' log."""
        try:
            with open(f"{self.root}/events", encoding="utf-8", errors="replace") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []


def _pipe(data: bytes) -> int:
    """Return the read end of a pipe or file with these octets."""
    descriptor = os.memfd_create("input")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_sidecar(path: str) -> dict[str, object]:
    """Return a sidecar as JSON; raises ValueError if it is no JSON."""
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    if not isinstance(record, dict):
        raise ValueError(f"{path}: no object")  # noqa: TRY004 - as json says it of worse
    return record
