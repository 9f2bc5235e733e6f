"""Postfix's smtp-sink: fast, written by others, made to measure clients; see smtp-sink(1)."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from attrs import frozen

from rig.programs import find
from rig.received import Received
from rig.server import DaemonRelay
from rig.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class _Dump:
    """One dump file in its parts: the header that smtp-sink adds, and the message."""

    header: list[tuple[str, str]]
    content: bytes


class Sink(DaemonRelay):
    """smtp-sink on a free port of 127.0.0.1; a context manager.

    Each mail goes to its own file, unless `keep` is false (for measuring). `options` are passed to
    the program: `["-r", "RCPT"]` defers every recipient, `["-f", "."]` refuses every content,
    `["-p"]` offers no PIPELINING, `["-L"]` speaks LMTP, `["-w", "2"]` waits.
    """

    def __init__(self, options: Sequence[str] = (), *, keep: bool = True) -> None:
        self.port = free_port()
        directory = tempfile.mkdtemp(prefix="rig-sink-")
        dump = ["-d", os.path.join(directory, "mail.")] if keep else []
        # Started by root, the program requires a user to become.
        user = ["-u", "root"] if os.getuid() == 0 else []
        super().__init__(
            [
                find("smtp-sink", "postfix"),
                "-4",
                *dump,
                *user,
                *options,
                f"{self.host}:{self.port}",
                "1024",
            ],
            directory,
            output=os.path.join(directory, "log"),
        )

    @property
    def messages(self) -> list[Received]:
        """The accepted messages, in order of their files' times."""
        paths = [
            os.path.join(self.directory, name)
            for name in os.listdir(self.directory)
            if name.startswith("mail.")
        ]
        paths.sort(key=lambda path: os.stat(path).st_mtime_ns)
        return [_received(path) for path in paths]


def _received(path: str) -> Received:
    dump = _take_apart(path)
    mail = next((value for name, value in dump.header if name == "X-Mail-Args"), "")
    rcpts = [value for name, value in dump.header if name == "X-Rcpt-Args"]
    helo = next((value for name, value in dump.header if name == "X-Helo-Args"), "")
    return Received(
        sender=_path(mail),
        recipients=tuple(_path(rcpt) for rcpt in rcpts),
        content=dump.content.replace(b"\n", b"\r\n"),
        mail_parameters=_parameters(mail),
        rcpt_parameters=tuple(_parameters(rcpt) for rcpt in rcpts),
        helo=helo,
    )


def _take_apart(path: str) -> _Dump:
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    header = []
    position = 0
    while lines[position].startswith(b"X-"):
        name, _, value = lines[position].decode("utf-8", "replace").partition(": ")
        header.append((name, value))
        position += 1
    # smtp-sink's own Received: has three lines. The last line of a dump is empty, and so is the
    # last part of split().
    return _Dump(header, b"\n".join(lines[position + 3 : -2]) + b"\n")


def _path(arguments: str) -> str:
    return arguments.partition("<")[2].rpartition(">")[0]


def _parameters(arguments: str) -> tuple[str, ...]:
    return tuple(arguments.rpartition(">")[2].split())
