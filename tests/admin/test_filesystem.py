"""The probe of the spool's file system: it finds what is missing, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.admin import filesystem
from picoqmail.layout import DIRECTORIES
from proof import tracing
from rig.programs import find, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trial import Trial

SECONDS = 60


def test_a_local_file_system_keeps_every_promise(trial: Trial) -> None:
    """Nothing grave is found where these tests run, and nothing is left in the spool."""
    assert [] == [one.what for one in filesystem.examine(trial.home) if one.grave]
    assert [] == trial.files()


def test_beside_mail_it_touches_nothing(trial: Trial) -> None:
    """What lies in the spool is there afterwards, as it was."""
    trial.accepted()
    before = trial.files()
    filesystem.examine(trial.home)
    assert before == trial.files()


@pytest.fixture
def mounted(trial: Trial) -> Iterator[str]:
    """A tmpfs in the place of new/."""
    new = f"{trial.spool}/new"
    command = ["mount", "-t", "tmpfs", "-o", "mode=0700", "picoqmail-trial", new]
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("needs root, to mount a file system")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        pytest.skip(f"needs to mount a file system: {done.stderr.strip()}")
    yield new
    subprocess.run(["umount", new], check=True, timeout=SECONDS)


def test_directories_that_lie_apart(trial: Trial, mounted: str) -> None:
    """Between two file systems nothing is renamed: that is grave, and said once by each probe."""
    found = [one.what for one in filesystem.examine(trial.home) if one.grave]
    assert "tmpfs" == filesystem.type_of(mounted)
    assert any("different file systems" in one for one in found)
    assert any("renam" in one and "tmp/ and new/" in one for one in found)
    assert [] == os.listdir(f"{trial.spool}/tmp")


def test_a_spool_in_memory_is_doubtful(trial: Trial) -> None:
    """It keeps its promises, until the host restarts; that is said, and is not grave."""
    if filesystem.type_of("/dev/shm") != "tmpfs":
        pytest.skip("needs a tmpfs at /dev/shm")
    memory = f"/dev/shm/picoqmail-trial-{os.getpid()}"
    shutil.copytree(trial.root, memory)
    try:
        for name in DIRECTORIES:
            assert os.path.isdir(f"{memory}/spool/{name}")
        found = filesystem.examine(type(trial.home)(memory))
    finally:
        shutil.rmtree(memory)
    assert [("tmpfs", False)] == [(one.what.split()[4].rstrip(":"), one.grave) for one in found]


def test_without_a_place_for_the_probe_it_says_so(trial: Trial) -> None:
    """A spool that has no tmp/ cannot be tried."""
    os.rmdir(f"{trial.spool}/tmp")
    with pytest.raises(FileNotFoundError):
        filesystem.examine(trial.home)


@pytest.mark.parametrize(
    ("injected", "expected"),
    [
        ("flock:error=ENOLCK", "locking (flock) does not work"),
        ("flock:retval=0", "does not keep another process out"),
        ("fsync:error=EINVAL:when=2", "a directory cannot be made durable (fsync)"),
        ("fsync:error=EIO:when=1", "making a file durable (fsync) does not work"),
        ("link,linkat:error=EPERM", "a second name for a file (link) does not work"),
        ("fchmod,fchmodat:retval=0", "modes are not kept"),
    ],
    ids=lambda text: text.partition(" ")[0],
)
def test_what_a_network_file_system_lacks_is_told(
    trial: Trial, injected: str, expected: str
) -> None:
    """No locks, locks in name only, no fsync of directories: critical, and what to do."""
    words = [os.path.join(trial.installed.bin, "picoqmail"), "check", "--no-relay", "--json"]
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    strace = [find("strace", "strace"), "-f", "-qq", "-o", os.devnull, "-e", f"inject={injected}"]
    ran = subprocess.run(
        [*strace, *words],
        env=trial.variables(),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    found = [one for one in json.loads(ran.stdout)["findings"] if one["name"] == "filesystem"]
    assert [(expected, "CRITICAL")] == [
        (expected if expected in one["text"] else one["text"], one["status"]) for one in found
    ]
    assert all("move" in one["remedy"] for one in found)
    assert [] == trial.files()
