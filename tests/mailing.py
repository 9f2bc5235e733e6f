"""A home for one test, and the programs that callers use, started as callers start them."""

from __future__ import annotations

import glob
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from installation import Installation

RUN_SECONDS = 60


@frozen
class Spooled:
    """One message in the spool: its sidecar, and its body without the Received line of ours."""

    record: dict[str, Any]
    message: bytes

    @property
    def recipients(self) -> list[str]:
        """The addresses of the recipients, in order."""
        return [one["address"] for one in self.record["recipients"]]


@frozen
class Mailer:
    """A home below `root` with an empty spool, and the installed programs, no sender."""

    root: str
    installed: Installation
    environ: dict[str, str] = field(factory=dict)

    def setting(self, name: str, text: str) -> None:
        """Write a control file."""
        with open(os.path.join(self.root, "control", name), "w", encoding="utf-8") as file:
            file.write(text)

    def variables(self, **more: str) -> dict[str, str]:
        """Return the environment that programs get: nothing of ours but PATH."""
        return {
            "PATH": os.environ["PATH"],
            "PICOQMAIL_HOME": self.root,
            "PICOQMAIL_SEND": "off",
            "USER": "joe",
            **self.environ,
            **more,
        }

    def run(
        self,
        program: str,
        *arguments: str | bytes,
        message: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run picoqmail-PROGRAM with the message on its standard input."""
        return subprocess.run(
            [self.installed.program(program), *arguments],
            input=message,
            capture_output=True,
            env=self.variables(**(environ or {})),
            timeout=RUN_SECONDS,
            check=False,
        )

    def accepts(
        self,
        program: str,
        *arguments: str | bytes,
        message: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> Spooled:
        """Hand in a message that must be accepted without a word, and return it as spooled."""
        before = set(self._sidecars())
        ran = self.run(program, *arguments, message=message, environ=environ)
        assert (0, b"") == (ran.returncode, ran.stderr)
        (path,) = set(self._sidecars()) - before
        return self._read(path)

    def refuses(
        self,
        program: str,
        *arguments: str | bytes,
        message: bytes = b"",
        status: int = 100,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """Hand in a message that must be refused, leaving nothing; return what was said."""
        before = self.files()
        ran = self.run(program, *arguments, message=message, environ=environ)
        assert status == ran.returncode
        assert before == self.files()
        assert ran.stderr
        return ran.stderr.decode()

    def files(self) -> list[str]:
        """Return the paths of all files in the spool."""
        return sorted(
            os.path.join(directory, name)
            for directory, _, names in os.walk(os.path.join(self.root, "spool"))
            for name in names
        )

    def spooled(self) -> list[Spooled]:
        """Return what is in new/, in order of acceptance."""
        return [self._read(path) for path in self._sidecars()]

    def _sidecars(self) -> list[str]:
        return sorted(glob.glob(os.path.join(self.root, "spool", "new", "*.json")))

    def _read(self, path: str) -> Spooled:
        with open(path, "rb") as file:
            record = json.load(file)
        with open(path.removesuffix(".json") + ".eml", "rb") as file:
            received, _, message = file.read().partition(b"\n")
        assert received.startswith(b"Received: ")
        return Spooled(record, message)


def make_mailer(directory: Path, installed: Installation) -> Mailer:
    """Make the home of a Mailer in `directory`."""
    root = directory / "home"
    for name in ("control", "bin", "spool/tmp", "spool/new", "spool/cur", "spool/undelivered"):
        os.makedirs(root / name, mode=0o700)
    (root / "control" / "me").write_text("me.test\n")
    return Mailer(str(root), installed)
