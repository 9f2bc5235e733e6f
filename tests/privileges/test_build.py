"""What root makes with `init --system`: nowhere that others can reach, of nothing that they own."""

from __future__ import annotations

import glob
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from privileges.host import SECONDS
from rig.programs import find

if TYPE_CHECKING:
    from pathlib import Path

    from privileges.host import Host

CANNOT_CREATE = 73


def test_nothing_is_made_where_tmpdir_says(host: Host, tmp_path: Path) -> None:
    """Root's compiler and every program that root starts touch nothing in another user's TMPDIR."""
    trace = tmp_path / "trace"
    place = host.mallory.directory
    names = ("TMPDIR", "TEMP", "TMP")
    done = subprocess.run(
        [
            *(find("strace", "strace"), "-f", "-qq", "-e", "trace=%file,mkdir,mkdirat"),
            *("-o", str(trace), f"{host.bin}/picoqmail", "init", "--system"),
        ],
        env={
            "PATH": os.environ["PATH"],
            "PICOQMAIL_HOME": host.home.root,
            **dict.fromkeys(names, place),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd="/",
    )
    assert 0 == done.returncode, done.stderr
    calls = trace.read_text(errors="replace").splitlines()
    assert any("qmail_queue_setid.c" in line for line in calls)
    assert [] == [line for line in calls if f'"{place}' in line]
    assert [] == glob.glob(f"{host.home.root}/.build-*")


TEMPORARY = "from picoqmail import testing; testing.TemporarySpool()"


def test_root_plays_in_no_directory_of_another_user(host: Host) -> None:
    """The spool for tests refuses a TMPDIR that its owner could replace."""
    place = f"{host.mallory.directory}/tmp"
    os.mkdir(place, 0o700)
    os.chown(place, host.mallory.uid, host.mallory.gid)
    try:
        done = subprocess.run(
            [host.python, "-c", TEMPORARY],
            env={"PATH": os.environ["PATH"], "TMPDIR": place},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd="/",
        )
        assert done.returncode
        assert f"belongs to user {host.mallory.uid}" in done.stderr
        assert [] == os.listdir(place)
    finally:
        os.rmdir(place)


@pytest.mark.parametrize(
    "name",
    [
        "pyvenv.cfg",
        "lib/python3*/site-packages/structlog/__init__.py",
        "lib/python3*/site-packages/attr",
        "lib/python3*/site-packages/picoqmail/home",
    ],
)
def test_what_python_reads_must_be_roots(host: Host, name: str) -> None:
    """A file of the environment or a dependency in another user's hands: init says which."""
    (path,) = glob.glob(f"{host.directory}/env/{name}")
    os.chown(path, host.mallory.uid, 0)
    try:
        done = host.init()
    finally:
        os.chown(path, 0, 0)
    assert CANNOT_CREATE == done.returncode, done.stdout
    assert f"{path}: belongs to user {host.mallory.uid}" in done.stderr


def test_limits_are_set(host: Host) -> None:
    """One user can fill neither disk nor queue of a new home; what is set already stays."""
    found = {name: host.read_setting(name) for name in ("databytes", "minfree", "userlimit")}
    assert {"databytes": "52428800\n", "minfree": "67108864\n", "userlimit": "10000\n"} == found
    host.setting("userlimit", "7")
    assert 0 == host.init().returncode
    assert "7\n" == host.read_setting("userlimit")


@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_another_file_is_not_given_away_as_the_password(host: Host, kind: str) -> None:
    """Behind a link, or a second name of one: its owner and mode stay, and init says so."""
    precious = f"{host.directory}/precious"
    path = f"{host.home.control}/relaypass"
    with open(precious, "w", encoding="utf-8") as file:
        file.write("root-only\n")
    os.chmod(precious, 0o640)
    make = os.symlink if kind == "link" else os.link
    make(precious, path)
    try:
        done = host.init()
        assert (CANNOT_CREATE, True) == (done.returncode, path in done.stderr), done.stderr
        assert (0, 0o100640) == (os.stat(precious).st_uid, os.stat(precious).st_mode)
    finally:
        os.unlink(path)
        os.unlink(precious)
