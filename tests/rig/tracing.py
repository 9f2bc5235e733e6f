"""The calls of a real program on a spool, as the steps of transitions.TRANSITIONS."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from rig.programs import find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CALLS = "openat,open,creat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat"
REMOVALS = "unlink,unlinkat"
TRACED_SECONDS = 120

_CALL = re.compile(r"^(?:\d+ +)?(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")

Step = tuple[str, ...]


def trace(
    command: Sequence[str], spool: str, environ: Mapping[str, str], **descriptors: int
) -> tuple[int, list[Step]]:
    """Run a command under strace; returns its exit code and its steps below `spool`.

    A step is an operation and paths relative to the spool: create, write (once for each file,
    however many calls it took), sync, syncdir, rename, link, unlink. Failed calls are left out.
    """
    log = f"{spool}.trace"
    strace = [find("strace", "strace"), "-f", "-y", "-s", "0", "-e", f"trace={CALLS},{REMOVALS}"]
    ran = subprocess.run(
        [*strace, "-o", log, *command],
        env=environ,
        check=False,
        capture_output="stdout" not in descriptors,
        timeout=TRACED_SECONDS,
        **descriptors,  # type: ignore[call-overload]
    )
    with open(log, encoding="utf-8", errors="replace") as file:
        steps = [step for line in file for step in _step(line, spool + "/")]
    os.unlink(log)
    return ran.returncode, _merged(steps)


def _step(line: str, spool: str) -> list[Step]:
    found = _CALL.match(line)
    if found is None or found["result"].startswith("-"):
        return []
    name, arguments = found["name"], found["arguments"]
    descriptor = _DESCRIPTOR.match(arguments)
    paths = [descriptor[1]] if descriptor else _PATH.findall(arguments)
    if not paths or not all(path.startswith(spool) for path in paths):
        return []
    if name.startswith("open") and "O_CREAT" not in arguments:
        return []
    operation = {
        "openat": "create",
        "open": "create",
        "creat": "create",
        "pwrite64": "write",
        "fsync": "sync",
        "fdatasync": "sync",
        "renameat": "rename",
        "renameat2": "rename",
        "linkat": "link",
        "unlinkat": "unlink",
    }.get(name, name)
    short = [path.removeprefix(spool) for path in paths]
    if operation == "sync" and "/" not in short[0]:
        operation = "syncdir"
    return [(operation, *short)]


def _merged(steps: list[Step]) -> list[Step]:
    return [
        step
        for before, step in zip([(), *steps], steps, strict=False)
        if not (step[0] == "write" and step == before)
    ]
