"""`picoqmail init --system`: what it makes, what it refuses, and mail that goes through it."""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import DIRECTORIES
from privileges.attacks import accepted
from privileges.host import ENVELOPE, MESSAGE, SECONDS
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privileges.host import Host, User
    from rig.recording import RecordingRelay

CANNOT_CREATE = 73
ENQUEUE = """
import picoqmail
receipt = picoqmail.enqueue(b"Subject: trial\\n\\nbody\\n", "a@example.org", ["b@example.net"])
"""


def owners(host: Host) -> dict[str, tuple[int, int]]:
    """The owner and mode of each part of the home, links excepted."""
    found = {}
    for directory, _, names in os.walk(host.home.root):
        for path in (directory, *(f"{directory}/{name}" for name in names)):
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                name = os.path.relpath(path, host.home.root)
                found[name] = (status.st_uid, stat.S_IMODE(status.st_mode))
    return found


def in_spool(host: Host) -> set[int]:
    """The owners of all that is in the spool, the drop excepted, in which no mail is left."""
    assert not [one for one in host.files() if one.startswith("drop/")]
    found = owners(host).items()
    return {
        uid
        for name, (uid, _) in found
        if name.startswith("spool") and not name.startswith("spool/drop")
    }


def test_owners_and_modes(host: Host) -> None:
    """Root owns what is run and read, the user `picoqmail` the spool, and nobody else anything."""
    owner = host.owner.pw_uid
    found = owners(host)
    assert {(owner, 0o700)} == {found[f"spool/{name}"] for name in DIRECTORIES} | {found["spool"]}
    assert {(0, 0o755)} == {found[name] for name in (".", "control", "bin")}
    assert (0, 0o4711) == found["bin/qmail-queue"]
    assert (0, 0o4710) == found["bin/qmail-start"]
    assert host.drop_owner.pw_gid == os.stat(f"{host.home.bin}/qmail-start").st_gid
    assert (0, 0o750) == found["spool/drop"]
    assert host.owner.pw_gid == os.stat(f"{host.home.spool}/drop").st_gid
    assert 0 == host.submit(host.mallory).returncode
    found, part = owners(host), f"spool/drop/{host.mallory.uid}"
    assert (0, 0o751) == found[part]
    assert {(host.mallory.uid, 0o2770)} == {found[f"{part}/{one}"] for one in ("tmp", "new")}
    assert (0, 0o644) == found["control/me"]


def test_init_again_changes_nothing(host: Host) -> None:
    """Also with mail in the spool; the set-id program is there at every instant."""
    # The trial of the program at its end counts for the user nobody (userlimit).
    assert 0 == host.init().returncode
    assert 0 == host.submit(host.mallory).returncode
    wait_until(lambda: not host.processes(), "the sender ends", SECONDS)
    before = owners(host)
    assert 0 == host.init("--me", "host.example").returncode
    assert before == owners(host)
    accepted(host)


def test_settings_are_judged_as_the_sender_sees_them(host: Host) -> None:
    """A password of the sender's is right to root, too; one of root's is repaired once."""
    path = f"{host.home.control}/relaypass"
    host.setting("relayip", "smtps://joe@localhost:1")
    host.setting("relaypass", "secret")
    os.chmod(path, 0o600)
    try:
        wrong = host.picoqmail("config", "relaypass")
        assert 78 == wrong.returncode
        assert "picoqmail check --repair" in wrong.stderr
        repaired = host.picoqmail("check", "--no-relay", "--repair").stdout
        assert f"{path}: belonged to user 0" in repaired
        assert (host.owner.pw_uid, 0o100600) == (os.stat(path).st_uid, os.stat(path).st_mode)
        right = host.picoqmail("config", "relaypass")
        assert (0, "") == (right.returncode, right.stderr)
        assert "relaypass" not in host.picoqmail("check", "--no-relay").stdout
    finally:
        os.unlink(path)
        os.unlink(f"{host.home.control}/relayip")


def test_an_update_without_init_is_noticed(host: Host) -> None:
    """What the set-id program was made of is compared with what it would be made of now."""
    assert 0 == host.init("--me", "host.example").returncode
    probe = (
        "from picoqmail.home import make_system; from picoqmail.home.paths import Home; "
        f"print(make_system.is_outdated(Home({host.home.root!r})))"
    )
    command = [host.python, "-I", "-c", probe]
    assert "False\n" == subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (source,) = glob.glob(f"{host.directory}/env/lib/*/site-packages/picoqmail/home/*.c")
    with open(source, encoding="utf-8") as file:
        text = file.read()
    with open(source, "a", encoding="utf-8") as file:
        file.write("/* a later version */\n")
    try:
        assert (
            "True\n" == subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    finally:
        with open(source, "w", encoding="utf-8") as file:
            file.write(text)


@pytest.fixture
def loose(host: Host) -> Iterator[str]:
    """A file of the installed package, to be spoilt and repaired."""
    (path,) = (
        f"{host.directory}/env/lib/{name}" for name in os.listdir(f"{host.directory}/env/lib")
    )
    path += "/site-packages/picoqmail/errors.py"
    yield path
    os.chown(path, 0, 0)
    os.chmod(path, 0o644)


def test_a_package_that_others_can_change_is_refused(host: Host, loose: str) -> None:
    """One file of it in another's hands, writable by others, or not readable, is enough."""
    os.chown(loose, host.mallory.uid, 0)
    done = host.init()
    assert (CANNOT_CREATE, True) == (
        done.returncode,
        f"belongs to user {host.mallory.uid}" in done.stderr,
    )
    os.chown(loose, 0, 0)
    for mode, complaint in (
        (0o664, "can be changed by others"),
        (0o600, "cannot be read by other"),
    ):
        os.chmod(loose, mode)
        done = host.init()
        assert (CANNOT_CREATE, True) == (done.returncode, complaint in done.stderr), done.stderr
        assert loose in done.stderr


def test_a_way_that_others_can_turn_is_refused(host: Host) -> None:
    """A home in a user's directory, or reached through a link that lies in one."""
    os.chmod(host.mallory.directory, 0o755)
    inside = f"{host.mallory.directory}/home"
    link = f"{host.mallory.directory}/link"
    os.symlink(host.directory, link)
    turned = f"{host.directory}/turned"
    os.symlink(link, turned)
    try:
        for root in (inside, f"{link}/other", f"{turned}/other"):
            done = host.init("--me", "x.example", PICOQMAIL_HOME=root)
            assert CANNOT_CREATE == done.returncode, done.stdout
            assert f"{host.mallory.directory}: belongs to user {host.mallory.uid}" in done.stderr
            assert not os.path.exists(root)
    finally:
        os.unlink(turned)


def test_a_spool_elsewhere_is_refused(host: Host) -> None:
    """The set-id program knows the home only, and nothing of the caller's environment."""
    done = host.init(PICOQMAIL_SPOOL=f"{host.directory}/elsewhere")
    assert (CANNOT_CREATE, True) == (done.returncode, "PICOQMAIL_SPOOL" in done.stderr)


def test_a_foreign_program_is_not_replaced(host: Host) -> None:
    """What was there under the name of the set-id program, and is not ours, stays."""
    root = f"{host.directory}/other"
    os.makedirs(f"{root}/bin")
    with open(f"{root}/bin/qmail-queue", "w", encoding="utf-8") as file:
        file.write("foreign")
    done = host.init("--me", "x.example", PICOQMAIL_HOME=root)
    assert (CANNOT_CREATE, True) == (done.returncode, "was not made by picoqmail" in done.stderr)
    with open(f"{root}/bin/qmail-queue", encoding="utf-8") as file:
        assert "foreign" == file.read()
    shutil.rmtree(root)


def test_a_link_in_the_place_of_a_spool_directory_is_refused(host: Host) -> None:
    """Whoever once took over the spool's owner cannot have root give away another directory."""
    target, place = f"{host.directory}/target", f"{host.home.spool}/undelivered"
    os.mkdir(target, 0o755)
    os.rmdir(place)
    os.symlink(target, place)
    try:
        done = host.init()
        assert (CANNOT_CREATE, True) == (done.returncode, place in done.stderr), done.stderr
        assert (0, 0o755) == (os.stat(target).st_uid, stat.S_IMODE(os.stat(target).st_mode))
    finally:
        os.unlink(place)
        os.rmdir(target)
        assert 0 == host.init().returncode


def test_a_home_of_roots_own_becomes_everybodys(host: Host) -> None:
    """Mail that root had in it before goes with the spool to its new owner."""
    root = f"{host.directory}/grown"
    environ = {"PICOQMAIL_HOME": root, "PICOQMAIL_SEND": "off"}
    assert 0 == host.picoqmail("init", "--me", "x.example", **environ).returncode
    submitted(f"{host.bin}/picoqmail-queue", environ)
    assert 0 == host.picoqmail("init", "--system", **environ).returncode
    spooled = [
        os.stat(f"{root}/spool/new/{name}").st_uid for name in os.listdir(f"{root}/spool/new")
    ]
    assert [host.owner.pw_uid] * 2 == spooled
    shutil.rmtree(root)


def submitted(program: str, environ: dict[str, str]) -> None:
    """Submit as root; fails unless that is accepted."""
    with tempfile.TemporaryFile() as one:
        one.write(ENVELOPE)
        one.seek(0)
        done = subprocess.run(
            [program], input=MESSAGE, stdout=one, env=environ, timeout=SECONDS, check=False, cwd="/"
        )
    assert 0 == done.returncode


@pytest.mark.parametrize("way", ["set-id", "own"])
def test_root_submits_like_everybody(host: Host, way: str) -> None:
    """Through either program: recorded as root's, and nothing in the spool belongs to root."""
    program = {"set-id": host.queue, "own": f"{host.bin}/picoqmail-queue"}[way]
    submitted(program, {"PICOQMAIL_HOME": host.home.root, "PATH": "/usr/bin:/bin"})
    (mail,) = host.mails()
    assert 0 == mail.record["origin"]["uid"]
    wait_until(lambda: not host.processes(), "the sender ends", SECONDS)
    assert {host.owner.pw_uid} == in_spool(host)


def test_root_works_in_the_spool_as_its_owner(host: Host, relay: RecordingRelay) -> None:
    """`picoqmail-send`, `picoqmail-cron` and the tools leave nothing of root's there."""
    assert 0 == host.submit(host.alice).returncode
    wait_until(lambda: not host.processes(), "the sender ends", SECONDS)
    host.setting("relayip", relay.address)
    os.unlink(f"{host.home.spool}/relay-down")
    environ = {"PICOQMAIL_HOME": host.home.root, "PATH": "/usr/bin:/bin"}
    for program in ("cron", "send"):
        command = [f"{host.bin}/picoqmail-{program}"]
        subprocess.run(command, env=environ, timeout=SECONDS, check=True, cwd="/")
    assert 1 == len(relay.wait_for(1))
    assert 0 == host.picoqmail("list").returncode
    assert {host.owner.pw_uid} == in_spool(host)


def by_program(host: Host, user: User, program: str) -> int:
    """Submit as a user by one of the ways that programs of the host use; the exit code."""
    mail = b"From: a@example.org\nTo: b@example.net\nSubject: trial\n\nbody\n"
    environ = {"PICOQMAIL_HOME": host.home.root, "PATH": "/usr/bin:/bin", "PICOQMAIL_SEND": "off"}
    commands = {
        "sendmail": [f"{host.home.bin}/sendmail", "-t", "-i"],
        "inject": [f"{host.home.bin}/qmail-inject"],
        "enqueue": [host.python, "-c", ENQUEUE],
    }
    done = subprocess.run(
        commands[program],
        input=mail,
        stderr=subprocess.PIPE,
        env=environ,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        timeout=SECONDS,
        check=False,
        cwd="/",
    )
    return done.returncode


@pytest.mark.parametrize("program", ["sendmail", "inject", "enqueue"])
def test_every_way_in_leads_through_the_set_id_program(
    host: Host, relay: RecordingRelay, program: str
) -> None:
    """And the sender that it starts, as the spool's owner, brings the mail to the relay at once."""
    host.setting("relayip", relay.address)
    assert 0 == by_program(host, host.alice, program)
    (mail,) = relay.wait_for(1, SECONDS)
    assert f"invoked by uid {host.alice.uid})".encode() in mail.content
    wait_until(lambda: not host.files(), "the spool is empty", SECONDS)


def test_the_line_for_cron_runs_as_the_owner(host: Host, relay: RecordingRelay) -> None:
    """What init prints for /etc/cron.d sends what waits, with a shell and nothing else."""
    assert 0 == host.submit(host.mallory).returncode
    wait_until(lambda: not host.processes(), "the sender ends", SECONDS)
    host.setting("relayip", relay.address)
    os.unlink(f"{host.home.spool}/relay-down")
    (line,) = (one for one in host.init().stdout.splitlines() if "/etc/cron.d/picoqmail" in one)
    command = line.partition(f"* * * * * {host.owner.pw_name} ")[2]
    subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        user=host.owner.pw_uid,
        group=host.owner.pw_gid,
        extra_groups=[],
        timeout=SECONDS,
        check=True,
        cwd="/",
    )
    assert 1 == len(relay.wait_for(1, SECONDS))


def test_the_sudo_rule_of_the_manual(host: Host) -> None:
    """Without a compiler: a script in the place of the set-id program, and sudo."""
    if shutil.which("sudo") is None:
        pytest.skip("needs sudo (Debian: sudo)")
    program = f"{host.bin}/picoqmail-queue"
    words = f"/usr/bin/env PICOQMAIL_HOME={host.home.root} {program}"
    rule, script = f"/etc/sudoers.d/picoqmail-trial-{os.getpid()}", f"{host.directory}/by-sudo"
    with open(rule, "w", encoding="utf-8") as file:
        file.write(f"ALL ALL=(picoqmail) NOPASSWD: NOSETENV: {words}\n")
    try:
        os.chmod(rule, 0o440)
        with open(script, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\nexec sudo -n -u picoqmail {words}\n")
        os.chmod(script, 0o755)
        environ = {"PATH": "/usr/bin:/bin", "PICOQMAIL_CALLER": "0", "PICOQMAIL_SPOOL": "/tmp"}
        done = host.run_as(host.mallory, [script], environ=environ)
        assert 0 == done.returncode, done.stderr
        accepted(host)
        forbidden = [shutil.which("sudo") or "", "-n", "-u", "picoqmail", *shlex.split(words), "x"]
        assert 1 == host.run_as(host.mallory, forbidden, environ=environ).returncode
    finally:
        os.unlink(rule)
