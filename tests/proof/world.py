"""One home under trial: its spool, what was promised about it, and what its relay got of it.

The rule of this module: it prepares and it looks; it never judges (invariant.py does).
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
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from rig.hostile import HostileRelay
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
    """One message that was handed in: what must arrive, and whether anybody was told yes."""

    token: str
    sender: str
    recipients: tuple[str, ...]
    body: bytes
    accepted: bool = True
    fields_added: bool = False
    """Whether the program completes the header, as inject and sendmail do."""

    def is_whole(self, arrived: bytes) -> bool:
        """Whether this is the message, without the Received line of ours."""
        if not self.fields_added:
            return arrived == self.body
        head, _, text = self.body.partition(b"\n\n")
        arrived_head, _, arrived_text = arrived.partition(b"\n\n")
        fields = arrived_head.split(b"\n")
        return arrived_text == text and all(line in fields for line in head.split(b"\n"))


@frozen
class Ledger(Mailbox):
    """The mailbox of a relay that many homes use at once, told apart by their HELO names."""

    _by_helo: dict[str, list[Received]] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def put(self, message: Received) -> None:
        """File a message."""
        with self._lock:
            self._by_helo.setdefault(message.helo, []).append(message)

    def of(self, helo: str) -> list[Received]:
        """What came from one home so far."""
        with self._lock:
            return list(self._by_helo.get(helo, ()))

    def forget(self, helo: str) -> None:
        """Drop what came from one home, to keep memory bounded."""
        with self._lock:
            self._by_helo.pop(helo, None)


class LedgerRelay(HostileRelay):
    """A strict relay whose mailbox is a ledger."""

    def __init__(self, faults: Mapping[str, Fault] | None = None) -> None:
        super().__init__(faults)
        self.ledger = Ledger()
        self.mailbox = self.ledger


@frozen
class Programs:
    """The programs under trial: the installed ones, or a patched copy of the package."""

    copy: str = ""

    def command(self, name: str) -> list[str]:
        """How to start picoqmail-NAME; picoqmail itself if there is no name, many.py for `many`."""
        if name == "many":
            return [sys.executable, "-I", f"{_HERE}/many.py", *([self.copy] if self.copy else [])]
        if self.copy:
            return [sys.executable, "-I", f"{_HERE}/runner.py", self.copy, name or "main"]
        program = f"picoqmail-{name}" if name else "picoqmail"
        return [os.path.join(os.path.dirname(sys.executable), program)]


def make_body(token: str, octets: int = 0) -> bytes:
    """A message that names its token; with lines that begin with dots, and `octets` of padding."""
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
        # A breaker or a long schedule would only make recovery wait.
        world.setting("retryschedule", "1")
        return world

    def clone(self, root: str, relay: str = "") -> World:
        """A copy of all of it, hard links and times included, under a name of its own."""
        subprocess.run(["cp", "-a", self.root, root], check=True)
        name = f"w{next(_numbers)}.test"
        world = evolve(self, root=root, name=name, promises=list(self.promises))
        world.setting("me", world.name)
        world.setting("log", f"{root}/events")
        if relay:
            world.relay(relay)
        return world

    def destroy(self) -> None:
        """Remove the home."""
        shutil.rmtree(self.root, ignore_errors=True)

    def relay(self, address: str) -> None:
        """Send all mail to another relay from now on."""
        self.setting("relayip", address)

    def promise(self, recipients: Sequence[str] = (), octets: int = 0, ahead: int = 0) -> Promise:
        """Think of a message; nobody has been told anything about it yet.

        `ahead` others were thought of before it and are not among the promises yet.
        """
        number = len(self.promises) + ahead + 1
        token = f"{self.name}-{number}"
        to = tuple(recipients) or (f"to{number}@there.test",)
        body = make_body(token, octets)
        return Promise(token, f"from{number}@here.test", to, body, accepted=False)

    def accept(self, recipients: Sequence[str] = (), octets: int = 0) -> str:
        """Put a message into the spool by way of the library; returns its ID."""
        promise = self.promise(recipients, octets)
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

        Returns when a sender that it left in the background has ended, too.
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
        """Wait until no sender is at work: its lock can be had."""
        lock = f"{self.spool}/sender.lock"
        with contextlib.suppress(FileNotFoundError), open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def recover(self, zygote: Zygote, relay: str, runs: int = 3) -> list[str]:
        """Bring the spool to order as cron does, each run some hours later; returns complaints."""
        self.relay(relay)
        complaints = []
        for number in range(runs):
            if number and not self.sidecars("new", "cur"):
                break
            status, said = zygote.run(self.root, "cron", offset=number * 7200)
            if status or said:
                complaints.append(f"cron run {number + 1}: exit {status}: {said}")
        return complaints

    def sidecars(self, *states: str) -> list[str]:
        """Paths of the sidecars in these states."""
        return sorted(
            entry.path
            for state in states
            for entry in os.scandir(f"{self.spool}/{state}")
            if entry.name.endswith(".json")
        )

    def events(self) -> list[str]:
        """What the programs logged."""
        try:
            with open(f"{self.root}/events", encoding="utf-8", errors="replace") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []


def _pipe(data: bytes) -> int:
    """The read end of something that holds these octets and then ends."""
    descriptor = os.memfd_create("input")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_sidecar(path: str) -> dict[str, object]:
    """A sidecar as JSON; ValueError if it is none."""
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    if not isinstance(record, dict):
        raise ValueError(f"{path}: no object")  # noqa: TRY004 - as json says it of worse
    return record
