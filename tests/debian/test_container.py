"""The steps of the Containerfile, run in a system of Debian as a container engine would."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from installation import CHECKOUT
from rig.recording import RecordingRelay
from rig.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from debian.system import Debian

CONTAINERFILE = f"{CHECKOUT}/packaging/container/Containerfile"
# What engines set, and a user that no file of the system knows.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UID = 54321
SECONDS = 60


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile, in order."""
    with open(CONTAINERFILE, encoding="utf-8") as file:
        lines = re.sub(r"\\\n", "", file.read()).splitlines()
    found = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in found]


def value(name: str) -> str:
    """What follows the only instruction of that name."""
    (found,) = [rest for one, rest in instructions() if one == name]
    return found


@pytest.fixture
def image(debian: Debian, package: str) -> Debian:
    """The system after FROM, COPY and RUN; the volume is there, for anybody to be its owner."""
    for name, rest in instructions():
        if name == "COPY":
            source, target = rest.split()
            source = package if source.startswith("dist/") else f"{CHECKOUT}/{source}"
            if target.endswith("/"):
                target += os.path.basename(source)
            shutil.copy(source, debian.path + target)
        elif name == "RUN":
            debian.sh(rest)
    debian.sh(f"mkdir {value('VOLUME')}; chown {UID} {value('VOLUME')}")
    return debian


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Containers that a test has started: killed at its end, if they still run."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        if process.poll() is None:
            # The signal of --kill-child is lost where a process changes its user.
            with contextlib.suppress(LookupError, FileNotFoundError):
                os.kill(process_1(process), signal.SIGKILL)
            process.kill()
            process.communicate(timeout=SECONDS)


def start(image: Debian, *command: str, **environ: str) -> subprocess.Popen[str]:
    """Start a container: process 1, no privileges, a root that is read-only, a volume, a /tmp."""
    script = """
        root=$1 volume=$2 uid=$3
        shift 3
        mount --bind "$root" "$root"
        mount --bind "$root$volume" "$root$volume"
        mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        exec setpriv --no-new-privs chroot --userspec="$uid:$uid" --groups= "$root" "$@"
    """
    variables = dict(one.split("=", 1) for one in value("ENV").split())
    words = command or shlex.split(value("CMD").strip("[]").replace('"', "").replace(",", " "))
    (entrypoint,) = shlex.split(value("ENTRYPOINT").strip("[]"))
    settings = {"PATH": _PATH, "HOME": "/", **variables, **environ}
    pairs = [f"{name}={text}" for name, text in settings.items()]
    namespaces = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-ec",
        script,
        "sh",
    ]
    inside = [image.root, value("VOLUME"), str(UID), "env", "-i", *pairs, entrypoint, *words]
    return subprocess.Popen(
        image.beside(*namespaces, *inside),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def process_1(container: subprocess.Popen[str]) -> int:
    """The pid, seen from here, of the container's process 1, the end of a chain of children."""
    pid = container.pid
    while True:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            (names,) = re.findall(r"^NSpid:\s*(.*)$", file.read(), re.MULTILINE)
        if names.split()[-1] == "1" and len(names.split()) > 1 and pid != container.pid:
            return pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = file.read().split()
        if not children:
            raise LookupError("it has not started yet")
        pid = int(children[0])


def stop(container: subprocess.Popen[str]) -> str:
    """Do what an engine does to stop a container: SIGTERM to process 1. Returns what it printed."""
    os.kill(process_1(container), signal.SIGTERM)
    said, _ = container.communicate(timeout=SECONDS)
    assert 0 == container.returncode, said
    return said


def test_a_container_sends_and_leaves_nothing_when_it_is_stopped(
    image: Debian, started: list[subprocess.Popen[str]]
) -> None:
    """Mail of its beginning is sent at once, mail of its end before it ends; no zombie is left."""
    with RecordingRelay() as relay:
        container = start(image, MAIL_NAME="app.example.org", MAIL_RELAY=relay.address)
        started.append(container)
        relay.wait_for(1)
        first = process_1(container)
        wait_until(lambda: not zombies(first), "process 1 has collected the sender", SECONDS)
        assert "" == stop(container)
        subjects = [
            re.findall(rb"^Subject: (.*)$", one.unix, re.MULTILINE) for one in relay.wait_for(2)
        ]
    assert [[b"the application has begun"], [b"the application was told to stop"]] == subjects


def zombies(pid: int) -> list[int]:
    """The children of a process that nobody has waited for."""
    found = []
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = [int(one) for one in file.read().split()]
    for child in children:
        with open(f"/proc/{child}/stat", encoding="utf-8") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                found.append(child)
    return found


def test_mail_that_no_relay_takes_outlives_the_container(
    image: Debian, started: list[subprocess.Popen[str]]
) -> None:
    """The relay is down to the end: it is said how much waits, and the next container brings it."""
    port = free_port()
    settings = {"MAIL_NAME": "app.example.org", "MAIL_ADMIN": "admin@example.net"}
    command = ("sh", "-c", "echo body | sendmail root; exec sleep infinity")
    container = start(image, *command, MAIL_RELAY=f"127.0.0.1:{port}", **settings)
    started.append(container)
    wait_until(lambda: spooled(image), "the mail is spooled", SECONDS)
    os.kill(process_1(container), signal.SIGTERM)
    said, _ = container.communicate(timeout=SECONDS)
    assert "entrypoint: 1 messages wait on the volume for the next start" in said
    with RecordingRelay() as relay:
        container = start(image, "sleep", "infinity", MAIL_RELAY=relay.address, **settings)
        started.append(container)
        wait_until(lambda: "sleep" in names_of(container), "the application runs", SECONDS)
        os.kill(process_1(container), signal.SIGTERM)
        container.communicate(timeout=SECONDS)
        assert ("admin@example.net",) == relay.wait_for(1)[0].recipients


def spooled(image: Debian) -> list[str]:
    """The sidecars on the volume."""
    found = image.run("find", value("VOLUME"), "-path", "*/spool/[nc]*", "-name", "*.json")
    return found.output.split()


def names_of(container: subprocess.Popen[str]) -> set[str]:
    """The names of what runs in a container, below process 1; none before it runs."""
    try:
        first = process_1(container)
        with open(f"/proc/{first}/task/{first}/children", encoding="ascii") as file:
            children = file.read().split()
        found = set()
        for child in children:
            with open(f"/proc/{child}/cmdline", encoding="utf-8") as file:
                found.add(file.read().partition("\0")[0])
    except (LookupError, FileNotFoundError, ProcessLookupError):
        return set()
    return found
