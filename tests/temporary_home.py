"""A temporary home: made for one test, and looked at by the json module rather than by ours."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from picoqmail.home.limits import Limits
from picoqmail.home.paths import Home
from picoqmail.layout import BODY, CUR, DIRECTORIES, NEW, RESULT, SIDECAR, UNDELIVERED
from picoqmail.spool.incoming import Incoming

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

HOST = "me.test"
MESSAGE = b"Subject: trial\n\nbody\n"
# For what takes an envelope by these names.
FROM_A_TO_B: dict[str, Any] = {"sender": "a@example.org", "recipients": ["b@example.net"]}


@frozen
class Spooled:
    """One message in the spool: its sidecar, and its body without the Received line of ours."""

    record: dict[str, Any]
    message: bytes

    @property
    def recipients(self) -> list[str]:
        """The addresses of the recipients, in order."""
        return [one["address"] for one in self.record["recipients"]]


@define
class TemporaryHome:
    """A home in the directory `root`, which is what a caller names."""

    root: str

    # Making it so.

    def make(self, me: str = HOST, relay: str = "") -> Self:
        """Make its directories, private as init makes them, and its first settings."""
        for name in ("control", "bin", *(f"spool/{one}" for one in DIRECTORIES)):
            os.makedirs(f"{self.root}/{name}", mode=0o700)
        self.setting("me", me)
        if relay:
            self.setting("relayip", relay)
        return self

    def setting(self, name: str, text: str) -> None:
        """Write a control file."""
        with open(f"{self.root}/control/{name}", "w", encoding="utf-8") as file:
            file.write(text + "\n")

    @property
    def home(self) -> Home:
        """The home as the library has it."""
        return Home(self.root)

    @property
    def spool(self) -> str:
        """The path of the spool."""
        return f"{self.root}/spool"

    def variables(self, **more: str) -> dict[str, str]:
        """Return the environment of a program: nothing of ours but PATH, and nothing is sent."""
        path = os.environ.get("PATH", "/usr/bin:/bin")
        return {"PATH": path, "PICOQMAIL_HOME": self.root, "PICOQMAIL_SEND": "off", **more}

    def accepted(
        self,
        sender: str = "a@example.org",
        recipients: Sequence[str] = ("b@example.net",),
        message: bytes = MESSAGE,
    ) -> str:
        """Put a message into the spool by the library; returns its ID."""
        with open(f"{self.root}/control/me", encoding="utf-8") as file:
            limits = Limits(file.read().strip())
        incoming = Incoming(self.spool, limits, program="trial", uid=os.getuid(), pid=os.getpid())
        incoming.write(message)
        return incoming.commit(sender, list(recipients))

    def edit(self, message_id: str, **values: object) -> None:
        """Change keys of a message's sidecar where it lies, as an older or newer program might.

        Its time becomes that of `next_attempt`, as it would be.
        """
        state = self.state(message_id)
        record = self.sidecar(message_id)
        record.update(values)
        with open(self.path(state, message_id), "w", encoding="utf-8") as file:
            json.dump(record, file)
        due = record["next_attempt"]
        if isinstance(due, int) and 0 <= due < 2**33:
            os.utime(self.path(state, message_id), (due, due))
        os.utime(f"{self.spool}/{state}")

    def deferred(self, **values: object) -> str:
        """Put a message into cur/ as one that was tried before and is due; returns its ID."""
        message_id = self.accepted()
        for suffix in (BODY, SIDECAR):
            source, target = (self.path(state, message_id, suffix) for state in (NEW, CUR))
            os.rename(source, target)
        self.edit(message_id, **values)
        return message_id

    def rename(self, message_id: str, name: str) -> None:
        """Give a message another ID, as one that was accepted at another time."""
        state = self.state(message_id)
        self.edit(message_id, id=name)
        for suffix in (BODY, SIDECAR):
            os.rename(self.path(state, message_id, suffix), self.path(state, name, suffix))

    # Looking.

    def path(self, state: str, message_id: str | None, suffix: str = SIDECAR) -> str:
        """The path of a file of a message."""
        return f"{self.spool}/{state}/{message_id}{suffix}"

    def names(self, state: str) -> list[str]:
        """All file names in a directory of the spool."""
        return sorted(os.listdir(f"{self.spool}/{state}"))

    def files(self) -> list[str]:
        """All files of messages, as `state/name`."""
        return [f"{state}/{name}" for state in DIRECTORIES for name in self.names(state)]

    def everything(self) -> list[str]:
        """All files of the spool, whatever they are, relative to it."""
        return sorted(
            os.path.relpath(os.path.join(directory, name), self.spool)
            for directory, _, names in os.walk(self.spool)
            for name in names
        )

    def ids(self, state: str = NEW) -> list[str]:
        """The messages whose sidecar lies in a state, the oldest first."""
        return [n.removesuffix(SIDECAR) for n in self.names(state) if n.endswith(SIDECAR)]

    def state(self, message_id: str | None) -> str:
        """The one state that a message is in."""
        (state,) = [one for one in (NEW, CUR, UNDELIVERED) if message_id in self.ids(one)]
        return state

    def sidecar(self, message_id: str | None, state: str = "") -> dict[str, Any]:
        """Read a sidecar, by the json module; in this state, or in whichever it is."""
        with open(self.path(state or self.state(message_id), message_id), encoding="utf-8") as file:
            record = json.load(file)
        assert isinstance(record, dict)
        return record

    def addresses(self, message_id: str | None) -> list[str]:
        """The recipients of a message, in order."""
        return [one["address"] for one in self.sidecar(message_id)["recipients"]]

    def outcomes(self, message_id: str) -> list[str]:
        """The outcomes in a message's history."""
        return [entry["outcome"] for entry in self.sidecar(message_id)["history"]]

    def body(self, message_id: str | None) -> bytes:
        """The body beside the sidecar."""
        with open(self.path(self.state(message_id), message_id, BODY), "rb") as file:
            return file.read()

    def message(self, message_id: str | None) -> bytes:
        """The body without the Received line of ours, which must be its first."""
        received, _, message = self.body(message_id).partition(b"\n")
        assert received.startswith(b"Received: by ")
        return message

    def spooled(self) -> list[Spooled]:
        """What is in new/, in order of acceptance."""
        return [Spooled(self.sidecar(one), self.message(one)) for one in self.ids(NEW)]

    def result(self, message_id: str) -> str:
        """What the relay said, as kept in undelivered/."""
        with open(self.path(UNDELIVERED, message_id, RESULT), encoding="utf-8") as file:
            return file.read()


def age(path: str, seconds: float) -> None:
    """Make a file that much older; its directory shows that something changed."""
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    os.utime(os.path.dirname(path))
