"""Homes of other users, and homes that others can write to: neither gives rights nor is obeyed."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import NEW
from privileges.host import SECONDS, processes_of, processes_told_of
from rig import certificates
from rig.hostile import EVERYTHING, HostileRelay
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from privileges.host import Host, User
    from rig.recording import RecordingRelay
    from trial import Trial

MAIL = b"From: a@example.org\nTo: b@example.net\nSubject: trial\n\nbody\n"
CONFIGURATION = 78
CRITICAL = 2
ENQUEUE = """
import os, picoqmail
try:
    picoqmail.enqueue(b"Subject: trial\\n\\nbody\\n", "a@example.org", ["b@example.net"])
except picoqmail.ConfigurationError as exc:
    print(exc)
try:
    print(picoqmail.Spool().status())
except picoqmail.ConfigurationError as exc:
    print(exc)
assert 0 == os.getuid() == os.geteuid()
"""
SMTP = b"EHLO x\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\nS: x\r\n\r\n.\r\nQUIT\r\n"


@pytest.fixture
def evil(host: Host) -> Iterator[str]:
    """A home of mallory's whose programs and password command leave the uid that ran them."""
    if os.path.exists("/var/qmail/control/me"):
        pytest.skip("this host has a home in /var/qmail")
    directory = host.mallory.directory
    home = f"{directory}/.local/state/picoqmail"
    environ = {"HOME": directory, "PATH": "/usr/bin:/bin"}
    words = [f"{host.bin}/picoqmail", "init", "--me", "evil.example", "--relay", "127.0.0.1:9"]
    done = as_user(host.mallory, words, environ)
    assert 0 == done.returncode, done.stderr
    trap = f"{directory}/trap"
    with open(trap, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{{ id -u; env; }} >>{directory}/ran\necho secret\n")
    os.chmod(trap, 0o755)
    for name in os.listdir(f"{home}/bin"):
        os.unlink(f"{home}/bin/{name}")
        os.symlink(trap, f"{home}/bin/{name}")
        os.chown(f"{home}/bin/{name}", host.mallory.uid, host.mallory.gid, follow_symlinks=False)
    own(host.mallory, f"{home}/control/relaypass", f"!{trap}\n", 0o600)
    own(host.mallory, f"{home}/control/relayip", "mallory@127.0.0.1:9\n", 0o600)
    yield home
    # A sender that a test left behind would make files anew, also one that is still root's.
    wait_until(
        lambda: not processes_told_of(directory) and not processes_of(host.mallory.uid),
        "the programs that a test left behind end",
        SECONDS,
    )
    shutil.rmtree(f"{directory}/.local")
    for name in ("trap", "ran", "link", "parts"):
        path = f"{directory}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def as_user(
    user: User, command: list[str], environ: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a user of the host."""
    return subprocess.run(
        command,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environ,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        cwd="/",
        timeout=SECONDS,
        check=False,
    )


def own(user: User, path: str, text: str, mode: int) -> None:
    """Write a file of a user's."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chown(path, user.uid, user.gid)
    os.chmod(path, mode)


def as_root(
    host: Host, program: str, environ: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run a program as root."""
    commands = {
        "sendmail": ([f"{host.bin}/picoqmail-sendmail", "-t"], MAIL),
        "smtp": ([f"{host.bin}/picoqmail-sendmail", "-bs"], SMTP),
        "mailq": ([f"{host.bin}/picoqmail-sendmail", "-bp"], b""),
        "run-queue": ([f"{host.bin}/picoqmail-sendmail", "-q"], b""),
        "inject": ([f"{host.bin}/picoqmail-inject"], MAIL),
        "enqueue": ([host.python, "-c", ENQUEUE], b""),
        "send": ([f"{host.bin}/picoqmail-send"], b""),
        "cron": ([f"{host.bin}/picoqmail-cron"], b""),
        "status": ([f"{host.bin}/picoqmail", "status"], b""),
        "config": ([f"{host.bin}/picoqmail", "config"], b""),
        "check": ([f"{host.bin}/picoqmail", "check", "--repair"], b""),
        "retry": ([f"{host.bin}/picoqmail", "retry", "--all"], b""),
        "import": ([f"{host.bin}/picoqmail", "import-config", "ssmtp", "/dev/null"], b""),
        "init": ([f"{host.bin}/picoqmail", "init", "--me", "x.example"], b""),
        "units": ([f"{host.bin}/picoqmail", "init", "--units"], b""),
    }
    command, data = commands[program]
    return subprocess.run(
        command,
        input=data,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "ROOTS_OWN": "hidden", **environ},
        cwd="/",
        timeout=SECONDS,
        check=False,
    )


PROGRAMS = (
    "sendmail",
    "smtp",
    "mailq",
    "run-queue",
    "inject",
    "enqueue",
    "send",
    "cron",
    "status",
    "config",
    "check",
    "retry",
    "import",
    "init",
    "units",
)


@pytest.mark.parametrize("named", ["PICOQMAIL_HOME", "HOME"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_root_runs_nothing_of_another_users_home(
    host: Host, evil: str, program: str, named: str
) -> None:
    """Every program becomes the owner or refuses; the owner gets neither rights nor environment."""
    environ = {"PICOQMAIL_HOME": evil} if named != "HOME" else {"HOME": host.mallory.directory}
    done = as_root(host, program, environ)
    ran = f"{host.mallory.directory}/ran"
    if os.path.exists(ran):
        with open(ran, encoding="utf-8") as file:
            text = file.read()
        assert "0" not in text.splitlines()
        assert "ROOTS_OWN" not in text
    for directory, names, files in os.walk(evil):
        for name in (*names, *files):
            assert host.mallory.uid == os.lstat(f"{directory}/{name}").st_uid, name
    assert b"Traceback" not in done.stderr + done.stdout
    if program == "enqueue":
        assert 2 == done.stdout.count(b"run this as")
    if program in ("sendmail", "inject"):
        assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize("way", ["spool", "home", "above", "control"])
@pytest.mark.parametrize("program", ["send", "cron", "sendmail", "enqueue", "check", "config"])
def test_root_keeps_no_rights_through_a_link(
    host: Host, evil: str, rig: Callable[..., HostileRelay], program: str, way: str
) -> None:
    """A link of mallory's into a home of root's: no secret goes out, no file is touched."""
    relay = rig(HostileRelay(offers=EVERYTHING))
    roots = f"{host.directory}/roots"
    environ = {"PATH": "/usr/bin:/bin", "PICOQMAIL_HOME": roots, "PICOQMAIL_SEND": "off"}
    made = host.picoqmail("init", "--me", "x.example", "--relay", "127.0.0.1:9", **environ)
    assert 0 == made.returncode, made.stderr
    precious, secret = f"{host.directory}/precious", f"{host.directory}/secret"
    for path in (precious, secret):
        with open(path, "w", encoding="utf-8") as file:
            file.write("root-only\n")
        os.chmod(path, 0o600)
    control = f"{evil}/control"
    own(host.mallory, f"{control}/relayip", f"mallory@{relay.address}\n", 0o600)
    own(host.mallory, f"{control}/cleartextauth", "on\n", 0o600)
    os.unlink(f"{control}/relaypass")
    links = {f"{control}/relaypass": secret, f"{host.mallory.directory}/link": precious}
    named = evil
    if way == "spool":
        shutil.rmtree(f"{evil}/spool")
        links[f"{evil}/spool"] = f"{roots}/spool"
    elif way == "control":
        shutil.rmtree(f"{evil}/spool")
        shutil.copytree(f"{roots}/spool", f"{evil}/spool")
    elif way == "home":
        named = f"{host.mallory.directory}/parts"
        links[named] = roots
    else:
        links[f"{host.mallory.directory}/parts"] = host.directory
        named = f"{host.mallory.directory}/parts/roots"
    try:
        for path, target in links.items():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.symlink(target, path)
            os.chown(path, host.mallory.uid, host.mallory.gid, follow_symlinks=False)
        # Only now: whatever still runs in this home would make the file where the link belongs.
        own(host.mallory, f"{control}/log", f"{host.mallory.directory}/link debug\n", 0o600)
        assert 0 == as_root(host, "sendmail", environ).returncode
        as_root(host, program, {**environ, "PICOQMAIL_HOME": named, "PICOQMAIL_SEND": "on"})
        assert [] == relay.messages
        assert [] == [line for _, line in relay.commands if line.upper().startswith(b"AUTH")]
        for path in (precious, secret):
            with open(path, encoding="utf-8") as file:
                assert "root-only\n" == file.read()
            assert (0, 0o100600) == (os.stat(path).st_uid, os.stat(path).st_mode)
        assert 0 == os.stat(f"{roots}/spool").st_uid
    finally:
        shutil.rmtree(roots)
        os.unlink(precious)
        os.unlink(secret)


def test_a_group_of_its_own_may_write(host: Host, evil: str) -> None:
    """Where every user has a private group, umask 002 is no danger: such settings are obeyed."""
    for path in (evil, f"{evil}/control", f"{evil}/control/me"):
        os.chmod(path, 0o775 if os.path.isdir(path) else 0o664)
    environ = {"PICOQMAIL_HOME": evil, "PATH": "/usr/bin:/bin"}
    done = as_user(host.mallory, [f"{host.bin}/picoqmail-cron"], environ)
    assert (0, b"") == (done.returncode, done.stderr)
    os.chown(f"{evil}/control/me", host.mallory.uid, host.alice.gid)
    os.chmod(f"{evil}/control/me", 0o664)
    done = as_user(host.mallory, [f"{host.bin}/picoqmail-cron"], environ)
    assert CONFIGURATION == done.returncode
    assert f"can be changed by group {host.alice.gid}".encode() in done.stderr


# --- Homes that others can write to --------------------------------------------------------------


def need_root() -> None:
    """Skip the test unless a file can be given away."""
    if os.geteuid():
        pytest.skip("giving a file away takes root")


def loosen(trial: Trial, what: str) -> Callable[[], object]:
    """Let others change something of a home; return what repairs it."""
    control = f"{trial.root}/control"
    if what == "owner":
        need_root()
        os.chown(f"{control}/relayip", 54321, 54321)
        return functools.partial(os.chown, f"{control}/relayip", os.getuid(), os.getgid())
    if what == "authority":
        trial.setting("tlsca", f"{trial.root}/authority.pem")
        shutil.copy(certificates.default().trusted, f"{trial.root}/authority.pem")
    if what == "minivars":
        trial.setting("minivars", "RETRYSCHEDULE=5m\n")
    paths = {
        "home": trial.root,
        "control": control,
        "above": os.path.dirname(trial.root),
        "file": f"{control}/relayip",
        "minivars": f"{control}/minivars",
        "authority": f"{trial.root}/authority.pem",
    }
    before = os.stat(paths[what]).st_mode & 0o7777
    os.chmod(paths[what], before | 0o022)
    return functools.partial(os.chmod, paths[what], before)


@pytest.mark.parametrize(
    "what", ["home", "control", "above", "file", "minivars", "authority", "owner"]
)
def test_settings_that_others_can_write_are_not_obeyed(
    trial: Trial, relay: RecordingRelay, picoqmail: Callable[..., object], what: str
) -> None:
    """The sender refuses with a clear line, check is critical, and the mail waits; then it goes."""
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    repair = loosen(trial, what)
    for program in ("send", "cron"):
        ran = trial.run(program)
        assert CONFIGURATION == ran.returncode
        assert b"can be changed by" in ran.stderr or b"belongs to user 54321" in ran.stderr
    assert [] == relay.messages
    assert [message_id] == trial.ids(NEW)
    done = picoqmail(trial, "check", "--no-relay")
    assert CRITICAL == done.returncode, done.stdout  # type: ignore[attr-defined]
    repair()
    assert 0 == trial.send()
    assert 1 == len(relay.messages)


@pytest.mark.parametrize("what", ["home", "control"])
def test_init_repairs_a_home_that_others_can_write_to(
    trial: Trial, picoqmail: Callable[..., object], what: str
) -> None:
    """What init keeps, it takes out of the hands of others."""
    loosen(trial, what)
    done = picoqmail(trial, "init")
    assert 0 == done.returncode, done.stderr  # type: ignore[attr-defined]
    assert 0 == os.stat(trial.root).st_mode & 0o022
    assert 0 == os.stat(f"{trial.root}/control").st_mode & 0o022


@pytest.mark.parametrize("what", ["above", "file"])
def test_init_refuses_what_others_may_have_written(
    trial: Trial, picoqmail: Callable[..., object], what: str
) -> None:
    """A setting may say anything by now, and the way to the home is not init's to repair."""
    repair = loosen(trial, what)
    done = picoqmail(trial, "init")
    repair()
    assert done.returncode in (73, CONFIGURATION)  # type: ignore[attr-defined]
    assert "chmod go-w" in done.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["link", "hard link", "owner"])
def test_a_log_that_others_chose_is_not_written(
    trial: Trial, kind: str, relay: RecordingRelay
) -> None:
    """A link, a second name and a file of another user stay as they are; the mail goes."""
    if kind == "owner":
        need_root()
    trial.setting("relayip", relay.address)
    path, precious = f"{trial.root}/events", f"{trial.root}/precious"
    with open(precious, "w", encoding="utf-8") as file:
        file.write("kept")
    if kind == "link":
        os.symlink(precious, path)
    elif kind == "hard link":
        os.link(precious, path)
    else:
        os.rename(precious, path)
        os.chown(path, 54321, 54321)
        precious = path
    trial.setting("log", f"{path} debug")
    trial.queued()
    assert 0 == trial.send()
    with open(precious, encoding="utf-8") as file:
        assert "kept" == file.read()


def test_a_password_behind_a_link_is_not_read(trial: Trial) -> None:
    """It says so, and what to write there instead; the mail waits."""
    with open(f"{trial.root}/elsewhere", "w", encoding="utf-8") as file:
        file.write("secret\n")
    os.chmod(f"{trial.root}/elsewhere", 0o600)
    os.symlink(f"{trial.root}/elsewhere", f"{trial.root}/control/relaypass")
    trial.setting("relayip", "joe@127.0.0.1:9")
    message_id = trial.queued()
    ran = trial.run("send")
    assert CONFIGURATION == ran.returncode
    assert b"!cat /path" in ran.stderr
    assert [message_id] == trial.ids(NEW)


def test_nothing_that_a_link_leads_to_is_to_be_given_away(host: Host, evil: str) -> None:
    """A link to a file of root's as `relaypass`: no advice to root may be what mallory wants."""
    os.unlink(f"{evil}/control/relaypass")
    os.symlink("/etc/shadow", f"{evil}/control/relaypass")
    os.chown(f"{evil}/control/relaypass", host.mallory.uid, host.mallory.gid, follow_symlinks=False)
    environ = {"PICOQMAIL_HOME": evil, "PATH": "/usr/bin:/bin"}
    for words in (["check", "--no-relay"], ["config"]):
        command = [f"{host.bin}/picoqmail", *words]
        root = subprocess.run(command, capture_output=True, env=environ, check=False, cwd="/")
        for done in (as_user(host.mallory, command, environ), root):
            said = done.stdout + done.stderr
            assert b"must not be a link" in said, said
            assert b"chown" not in said, said
