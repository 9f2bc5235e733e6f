"""A home of one's own, without root: any uid, private whatever the umask, the rest read-only."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from privileges.host import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privileges.host import Host
    from rig.recording import RecordingRelay

# Of no user, as in a container that was started with --user.
UNKNOWN = 54321
MAIL = b"From: a@example.org\nTo: b@example.net\nSubject: trial\n\nbody\n"
HOME_TROUBLE = 61
TEMPORARY = 111
CONFIGURATION = 78


@pytest.fixture
def place() -> Iterator[str]:
    """An empty directory of that user's, outside of everybody else's."""
    directory = tempfile.mkdtemp(prefix="pq-own-")
    os.chown(directory, UNKNOWN, UNKNOWN)
    yield directory
    shutil.rmtree(directory)


def run(
    command: list[str], environ: dict[str, str], umask: int = 0o022
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as the unknown user, with a mail on its standard input."""
    return subprocess.run(
        command,
        input=MAIL,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", **environ},
        user=UNKNOWN,
        group=UNKNOWN,
        extra_groups=[],
        umask=umask,
        cwd="/",
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_everything_is_private_to_a_user_without_a_name(
    host: Host, place: str, relay: RecordingRelay, umask: int
) -> None:
    """Init, inject, send and cron work for a uid that passwd(5) does not know, and without HOME."""
    home = f"{place}/home"
    environ = {"PICOQMAIL_HOME": home, "PICOQMAIL_SEND": "off"}
    words = ["init", "--me", "host.example", "--relay", relay.address]
    if umask == 0o777:
        # The directory above is made by the same umask, and nobody could enter that.
        os.mkdir(home, 0o700)
        os.chown(home, UNKNOWN, UNKNOWN)
    done = run([f"{host.bin}/picoqmail", *words], environ, umask)
    assert 0 == done.returncode, done.stderr
    done = run([f"{home}/bin/sendmail", "-t"], environ, umask)
    assert 0 == done.returncode, done.stderr
    seen = set()
    for directory, names, files in os.walk(home):
        seen |= {("directory", mode(f"{directory}/{name}")) for name in names}
        paths = [f"{directory}/{name}" for name in files]
        seen |= {("file", mode(path)) for path in paths if not os.path.islink(path)}
    assert {("directory", 0o700), ("file", 0o600)} == seen
    for program in ("minisendcron", "minismtpsend"):
        assert 0 == run([f"{home}/bin/{program}"], environ, umask).returncode
    assert f"by uid {UNKNOWN})".encode() in relay.wait_for(1)[0].content


def mode(path: str) -> int:
    """The permissions of a file or directory, of the unknown user's."""
    found = os.lstat(path)
    assert UNKNOWN == found.st_uid
    return stat.S_IMODE(found.st_mode)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("picoqmail-queue", HOME_TROUBLE),
        ("picoqmail-inject", TEMPORARY),
        ("picoqmail-cron", CONFIGURATION),
        ("picoqmail-send", CONFIGURATION),
    ],
)
def test_nothing_says_where_the_home_is(host: Host, program: str, status: int) -> None:
    """No PICOQMAIL_HOME, no HOME, no entry in passwd(5): one clear line, and no traceback."""
    if os.path.exists("/var/qmail/control/me"):
        pytest.skip("this host has a home in /var/qmail")
    done = run([f"{host.bin}/{program}"], {})
    assert status == done.returncode, done.stderr
    assert b"PICOQMAIL_HOME" in done.stderr
    assert 1 == done.stderr.count(b"\n")


def test_all_but_the_home_is_read_only(host: Host, place: str, relay: RecordingRelay) -> None:
    """In a mount namespace whose root is read-only, mail is accepted and sent."""
    home = f"{place}/home"
    environ = {"PICOQMAIL_HOME": home, "PICOQMAIL_SEND": "off"}
    words = ["init", "--me", "host.example", "--relay", relay.address]
    assert 0 == run([f"{host.bin}/picoqmail", *words], environ).returncode
    as_user = f"setpriv --reuid={UNKNOWN} --regid={UNKNOWN} --clear-groups"
    script = (
        f"set -e; mount --bind {home} {home}; mount -o remount,bind,ro /; "
        "for m in /tmp /var /run /dev/shm; do "
        "if mountpoint -q $m; then mount -o remount,bind,ro $m; fi; done; "
        f"! touch {place}/probe 2>/dev/null || exit 99; "
        f"{as_user} {home}/bin/sendmail -t; {as_user} {home}/bin/minismtpsend; "
        f"{as_user} {host.bin}/picoqmail status"
    )
    words = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script]
    done = subprocess.run(
        words,
        input=MAIL,
        capture_output=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ},
        cwd="/",
        timeout=SECONDS,
        check=False,
    )
    if b"mount: " in done.stderr or b"unshare: " in done.stderr:
        pytest.skip(f"needs a mount namespace: {shlex.quote(done.stderr.decode())}")
    assert 0 == done.returncode, done.stderr
    assert [("b@example.net",)] == [one.recipients for one in relay.wait_for(1)]


def test_what_root_left_in_it_is_named_and_stops_no_mail(
    host: Host, place: str, relay: RecordingRelay
) -> None:
    """A message and a key that root restored cannot be read: check says chown, the rest goes."""
    home = f"{place}/home"
    environ = {"PICOQMAIL_HOME": home, "PICOQMAIL_SEND": "off"}
    words = ["init", "--me", "host.example", "--relay", relay.address]
    assert 0 == run([f"{host.bin}/picoqmail", *words], environ).returncode
    for _ in range(2):
        assert 0 == run([f"{home}/bin/sendmail", "-t"], environ).returncode
    message = min(entry.path for entry in os.scandir(f"{home}/spool/new"))
    key = f"{home}/spool/idempotency/{'0' * 64}"
    os.mkdir(os.path.dirname(key), 0o700)
    os.chown(os.path.dirname(key), UNKNOWN, UNKNOWN)
    with open(key, "wb"):
        os.chmod(key, 0o600)
    os.utime(key, (1, 1))
    strange = [message, f"{os.path.splitext(message)[0]}.json", key]
    for path in strange:
        os.chown(path, 0, 0)
    done = run([f"{host.bin}/picoqmail", "check", "--repair", "--no-relay"], environ)
    for path in strange:
        assert f"chown {UNKNOWN} {path}".encode() in done.stdout, done
    with open(f"{home}/control/log", "w", encoding="utf-8") as file:
        file.write(f"{home}/events\n")
    run([f"{home}/bin/minisendcron"], environ)
    assert [("b@example.net",)] == [one.recipients for one in relay.wait_for(1)]
    with open(f"{home}/events", encoding="utf-8") as file:
        assert f"Permission denied: {message}" in file.read()
    for path in strange:
        os.chown(path, UNKNOWN, UNKNOWN)
    assert 0 == run([f"{home}/bin/minisendcron"], environ).returncode
    assert 2 == len({one.content for one in relay.wait_for(2)})
