"""What the tests of the library share: a home to enqueue into, and what lies in its spool."""

from __future__ import annotations

import glob
import json
import os
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from pathlib import Path

ENVELOPE: dict[str, Any] = {"sender": "a@example.org", "recipients": ["b@example.net"]}


@frozen
class Home:
    """A home in a directory of the test; `root` is what a caller names."""

    root: str

    @property
    def spool(self) -> str:
        """The path of the spool."""
        return f"{self.root}/spool"

    def set(self, name: str, value: str) -> None:
        """Write a control file."""
        with open(f"{self.root}/control/{name}", "w", encoding="utf-8") as file:
            file.write(value + "\n")

    def files(self) -> list[str]:
        """All files of the spool's directories of mail, as `new/ID.eml`."""
        found = glob.glob(f"{self.spool}/*/*.*")
        return sorted(os.path.relpath(one, self.spool) for one in found)

    def ids(self, state: str = "new") -> list[str]:
        """The messages of a state, the oldest first."""
        return sorted(
            os.path.basename(one).removesuffix(".json")
            for one in glob.glob(f"{self.spool}/{state}/*.json")
        )

    def body(self, message_id: str | None, state: str = "new") -> bytes:
        """The body without our Received line."""
        with open(f"{self.spool}/{state}/{message_id}.eml", "rb") as file:
            first, _, rest = file.read().partition(b"\n")
        assert first.startswith(b"Received: by ")
        return rest

    def sidecar(self, message_id: str | None, state: str = "new") -> dict[str, Any]:
        """The sidecar."""
        with open(f"{self.spool}/{state}/{message_id}.json", encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def addresses(self, message_id: str | None, state: str = "new") -> list[str]:
        """The recipients."""
        return [one["address"] for one in self.sidecar(message_id, state)["recipients"]]


def make_home(directory: Path) -> Home:
    """Make a home there; nothing is sent from it."""
    for name in ("control", "spool/tmp", "spool/new", "spool/cur", "spool/undelivered", "bin"):
        os.makedirs(directory / name, mode=0o700)
    home = Home(str(directory))
    home.set("me", "host.example")
    return home
