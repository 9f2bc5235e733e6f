"""What a start costs: the programs that run once a mail import little and take little time."""

from __future__ import annotations

import json
import os
import subprocess
from statistics import median
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from installation import Installation

# None of these may be imported on the way of a mail into the spool: each costs milliseconds.
HEAVY = {
    "aiosmtpd",
    "argparse",
    "asyncio",
    "attr",
    "attrs",
    "collections",
    "contextlib",
    "dataclasses",
    "datetime",
    "email",
    "enum",
    "functools",
    "importlib.metadata",
    "inspect",
    "json",
    "locale",
    "logging",
    "os",
    "pathlib",
    "portalocker",
    "random",
    "re",
    "rich",
    "selectors",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
    "uuid",
}
# Processor time of the median run, in units of a bare interpreter's. Wall time depends on what else
# the machine does; this hardly does. About 1.5, of which the shell of the launcher is 0.1.
TIMES_OF_A_BARE_START = 2.0
ROUNDS = 20

REPORT = """
import sys
before = set(sys.modules)
sys.path.append(sys.argv[1] + "/picoqmail/merged")
import picoqmail_{module}
sys.path[-1] = sys.argv[1]
status = sys.modules["picoqmail.cli.{module}"].main(sys.argv[3:])
# Of the package only what the merged file brought: these are names of one module.
names = [name for name in set(sys.modules) - before if sys.modules[name] is not picoqmail_{module}]
import json
with open(sys.argv[2], "w") as file:
    json.dump([status, names], file)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a caller, with a home whose spool is empty and no sender."""
    home = tmp_path / "home"
    for name in ("control", "spool/tmp", "spool/new", "spool/cur", "spool/undelivered"):
        os.makedirs(home / name, mode=0o700)
    (home / "control" / "me").write_text("host.example\n")
    return {"PATH": os.environ["PATH"], "PICOQMAIL_HOME": str(home), "PICOQMAIL_SEND": "off"}


def site_packages(installed: Installation) -> str:
    """The directory of the installed package."""
    environment = os.path.dirname(installed.bin)
    (library,) = os.listdir(os.path.join(environment, "lib"))
    return os.path.join(environment, "lib", library, "site-packages")


def envelope(directory: Path) -> int:
    """Return a descriptor from which the envelope of one mail can be read."""
    path = directory / "envelope"
    path.write_bytes(b"Fa@example.org\0Tb@example.net\0\0")
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("queue", ()),
        ("inject", ("-fa@example.org", "b@example.net")),
        ("sendmail", ("-fa@example.org", "-t", "-i")),
        ("sendmail", ("-i", "-FCronDaemon", "-B8BITMIME", "-oem", "b@example.net")),
    ],
)
def test_a_mail_is_accepted_without_a_heavy_import(
    installed: Installation,
    environ: dict[str, str],
    tmp_path: Path,
    module: str,
    arguments: tuple[str, ...],
) -> None:
    """From the start to the yes, nothing is imported that is not needed for it."""
    packages = site_packages(installed)
    report = tmp_path / "report.json"
    script = REPORT.format(module=module)
    descriptor = envelope(tmp_path)
    with subprocess.Popen(
        [installed.python, "-I", "-S", "-c", script, packages, str(report), *arguments],
        stdin=subprocess.PIPE,
        stdout=descriptor,
        env=environ,
    ) as process:
        os.close(descriptor)
        process.communicate(b"From: a@example.org\nTo: b@example.net\n\nbody\n", timeout=30)
    status, names = json.loads(report.read_text())
    assert 0 == status
    assert [] == sorted(HEAVY.intersection(names))
    assert [] == [name for name in names if name.startswith("picoqmail")]
    new = os.path.join(environ["PICOQMAIL_HOME"], "spool", "new")
    assert 2 == len(os.listdir(new))


# What the sending programs may import beyond that, once there is mail: patterns and their needs.
SENDING = {"collections", "enum", "functools", "re"}


@pytest.mark.parametrize(("module", "allowed"), [("cron", set()), ("send", SENDING)])
def test_a_sending_program_starts_without_a_heavy_import(
    installed: Installation,
    environ: dict[str, str],
    tmp_path: Path,
    module: str,
    allowed: set[str],
) -> None:
    """With nothing to do cron imports little; the sender no package and no module for reports."""
    report = tmp_path / "report.json"
    script = REPORT.format(module=module)
    subprocess.run(
        [installed.python, "-I", "-S", "-c", script, site_packages(installed), str(report)],
        check=True,
        env=environ,
        timeout=30,
    )
    status, names = json.loads(report.read_text())
    assert 0 == status
    assert [] == sorted(HEAVY.intersection(names) - allowed)
    assert [] == [name for name in names if name.startswith("picoqmail")]


def test_the_queue_starts_nearly_as_fast_as_bare_python(
    installed: Installation, environ: dict[str, str], tmp_path: Path
) -> None:
    """Accepting a mail takes little more than starting and stopping an interpreter."""
    bare, queue = [], []
    for _ in range(ROUNDS):
        bare.append(seconds([installed.python, "-I", "-S", "-c", "pass"], environ, tmp_path))
        queue.append(seconds([installed.program("queue")], environ, tmp_path))
    assert median(queue) / median(bare) < TIMES_OF_A_BARE_START
    assert 2 * ROUNDS == len(os.listdir(os.path.join(environ["PICOQMAIL_HOME"], "spool", "new")))


def seconds(command: list[str], environ: dict[str, str], directory: Path) -> float:
    """Run the command as the queue is run, and return the processor time that it took."""
    descriptor = envelope(directory)
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, descriptor, 1),
            ],
        )
        _, status, used = os.wait4(pid, 0)
    finally:
        os.close(descriptor)
    assert 0 == status
    return used.ru_utime + used.ru_stime
