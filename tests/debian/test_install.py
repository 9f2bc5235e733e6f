"""One command makes a host's mailer: installed, asked, upgraded, removed, purged, for real."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from debian.conftest import PASSWORD, USER
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from debian.system import Debian
    from rig.recording import RecordingRelay

INSTALL = ("install", "/root/picoqmail.deb", "bsd-mailx")
SPOOL = "/var/spool/picoqmail"


def answers_for(relay: RecordingRelay) -> dict[str, str]:
    """What a person would answer for this relay."""
    return {
        "mailname": "host.example.org",
        "relay": f"localhost:{relay.port}",
        "tls": "starttls",
        "user": USER,
        "password": PASSWORD,
        "admin": "admin@example.net",
    }


def leave_mail(debian: Debian, subject: str = "waiting") -> str:
    """Submit a mail that cannot be sent, and return its ID."""
    debian.sh(f"echo body | mail -s '{subject}' you@example.net")
    wait_until(lambda: debian.run("picoqmail", "list", "--ids").output, "the mail is listed")
    ids = debian.run("picoqmail", "list", "--ids").output.split()
    return ids[-1]


def waiting(debian: Debian) -> list[str]:
    """The IDs of all messages in the spool."""
    return debian.run("picoqmail", "list", "--ids").output.split()


def test_one_command_on_a_fresh_system(
    fresh: Debian, login_relay: RecordingRelay, record_property: Callable[[str, object], None]
) -> None:
    """Real cron and mail send, to a relay with STARTTLS and a login; no other mailer is brought."""
    fresh.answer(**answers_for(login_relay))
    began = time.monotonic()
    fresh.apt("update")
    said = fresh.apt(*INSTALL, "cron")
    fresh.sh("echo body | mail -s first you@example.net")
    first = login_relay.wait_for(1)[0]
    record_property("seconds to the first delivered mail", round(time.monotonic() - began, 1))
    assert {USER} == {first.user}
    assert first.tls
    assert ("you@example.net",) == first.recipients
    assert b"\nSubject: first\n" in first.unix

    fresh.write("/etc/cron.d/trial", "@reboot root echo output of a job\n")
    with fresh.start("cron", "-f"):
        second = login_relay.wait_for(2)[1]
    assert ("admin@example.net",) == second.recipients
    assert b"output of a job" in second.unix
    assert b"\nTo: root\n" in second.unix or b"\nTo: root@" in second.unix

    others = {
        name for name in fresh.installed() if name.startswith(("exim4", "postfix", "nullmailer"))
    }
    assert set() == others
    assert [] == [line for line in said.splitlines() if line.startswith("picoqmail:")]
    assert "OK" in fresh.run("picoqmail", "check").output
    assert [] == waiting(fresh)
    assert PASSWORD not in said
    assert PASSWORD not in fresh.sh("cat /var/cache/debconf/*.dat")


def test_without_answers_mail_waits(debian: Debian) -> None:
    """Nothing is asked or said; mail is accepted and waits, and check says what is missing."""
    said = debian.apt(*INSTALL)
    assert "picoqmail:" not in said
    message = leave_mail(debian)
    done = debian.run("picoqmail", "check", "--no-relay", expect=2)
    assert "no relay is named" in done.output
    assert "/etc/picoqmail/relayip" in done.output
    assert (
        message
        in debian.run(
            "setpriv",
            "--reuid=picoqmail",
            "--regid=picoqmail",
            "--init-groups",
            "picoqmail",
            "list",
            "--ids",
        ).output
    )
    assert message in debian.run("mailq").output


@pytest.mark.parametrize(
    ("answer", "value", "setting", "reason"),
    [
        ("mailname", "two words", "me", "host name"),
        ("relay", "smtp.example.org:99999", "relayip", "port"),
        ("relay", "ftp://smtp.example.org", "relayip", "scheme"),
        ("user", "joe:secret", "relayip", "password"),
        ("admin", "ad min@example.org", "adminaddr", "--admin"),
    ],
)
def test_a_wrong_answer_is_refused_with_the_reason(
    debian: Debian, answer: str, value: str, setting: str, reason: str
) -> None:
    """Others are taken, the package is installed, and mail is accepted all the same."""
    good = {"mailname": "host.example.org", "relay": "smtp.example.org", "admin": "a@example.org"}
    debian.answer(**{**good, answer: value})
    said = debian.apt(*INSTALL)
    told, *more = [line for line in said.splitlines() if line.startswith("picoqmail init: ")]
    # A name that says nothing is taken instead, which is said, too.
    assert (answer == "mailname") == bool(more)
    assert reason in told
    assert "the answer is refused" in said
    files = {
        "me": "host.example.org",
        "relayip": "smtp+starttls://smtp.example.org",
        "adminaddr": "a@example.org",
    }
    for name, text in files.items():
        if name != setting:
            assert f"{text}\n" == debian.read(f"/etc/picoqmail/{name}")
        elif name == "me":
            assert "localhost\n" == debian.read("/etc/picoqmail/me")
        else:
            assert not debian.has(f"/etc/picoqmail/{name}")
    leave_mail(debian)


def test_a_person_is_asked_again(debian: Debian) -> None:
    """A wrong answer is refused with the reason, and the question comes again; the files follow."""
    debian.answer(mailname="host.example.org", relay="smtp.example.org", admin="a@example.org")
    debian.apt(*INSTALL)
    typed = "new.example.org\nno port:x\nmx.example.org:465\n2\njoe\n#secret\nb@example.org"
    command = "dpkg-reconfigure --frontend=teletype picoqmail"
    done = debian.run(
        "script",
        "-qec",
        command,
        "/dev/null",
        give=f"{typed}\n",
        DEBIAN_FRONTEND="teletype",
        TERM="dumb",
    )
    assert '"no port:x" is no relay' in done.output
    assert "new.example.org\n" == debian.read("/etc/picoqmail/me")
    assert "smtps://joe@mx.example.org:465\n" == debian.read("/etc/picoqmail/relayip")
    assert "b@example.org\n" == debian.read("/etc/picoqmail/adminaddr")
    assert "#=#secret\n" in debian.read("/etc/picoqmail/relaypass")
    assert "#secret" not in debian.sh("cat /var/cache/debconf/*.dat")


def newer(debian: Debian) -> str:
    """Make a later version of the package, and return its path within."""
    debian.sh(
        "dpkg-deb -R /root/picoqmail.deb /tmp/newer;"
        "sed -i 's/^Version: .*/Version: 99/' /tmp/newer/DEBIAN/control;"
        "dpkg-deb -b /tmp/newer /root/newer.deb"
    )
    return "/root/newer.deb"


def test_upgrade_and_reinstallation_keep_mail_and_settings(debian: Debian) -> None:
    """What an administrator wrote or chose stays as it is, and so does mail that waits."""
    debian.answer(mailname="host.example.org", relay="localhost:1", user="joe", password="x")
    debian.apt(*INSTALL)
    message = leave_mail(debian)
    debian.write("/etc/picoqmail/relayip", "# ours\nsmtp://joe@localhost:1\nmx2.example.org:2525\n")
    debian.write("/etc/picoqmail/rewritefrom", "me@example.org\n")
    program = "/usr/lib/picoqmail/bin/qmail-queue"
    debian.run("dpkg-statoverride", "--update", "--add", "root", "mail", "4710", program)
    before = {
        name: debian.read(f"/etc/picoqmail/{name}")
        for name in os.listdir(f"{debian.path}/etc/picoqmail")
    }
    for words in (
        ("install", newer(debian)),
        ("install", "--reinstall", "--allow-downgrades", "/root/picoqmail.deb"),
    ):
        said = debian.apt(*words)
        assert "picoqmail:" not in said
        after = {
            name: debian.read(f"/etc/picoqmail/{name}")
            for name in os.listdir(f"{debian.path}/etc/picoqmail")
        }
        assert before == after
        assert [message] == waiting(debian)
        assert "root mail 4710\n" == debian.run("stat", "-c", "%U %G %a", program).output
        assert (
            "picoqmail 600\n"
            == debian.run("stat", "-c", "%U %a", "/etc/picoqmail/relaypass").output
        )


def test_mail_outlives_removal_and_is_sent_later(debian: Debian, relay: RecordingRelay) -> None:
    """Removed with mail waiting, which stays; installed again it goes to the relay."""
    debian.answer(mailname="host.example.org", relay="localhost:1", tls="optional")
    debian.apt(*INSTALL)
    message = leave_mail(debian, "survivor")
    said = debian.apt("remove", "picoqmail")
    assert "picoqmail: 1 messages wait in /var/spool/picoqmail" in said
    assert not debian.has("/usr/sbin/sendmail")
    assert debian.has(f"{SPOOL}/new/{message}.json") or debian.has(f"{SPOOL}/cur/{message}.json")
    debian.write("/etc/picoqmail/relayip", f"{relay.address}\n")
    debian.apt(*INSTALL)
    debian.run("picoqmail", "retry", "--all")
    assert b"survivor" in relay.wait_for(1)[0].content


# What dpkg, apt and debconf keep for themselves.
BOOKS = (
    "/var/lib/dpkg/",
    "/var/lib/apt/",
    "/var/cache/apt/",
    "/var/log/",
    "/var/cache/debconf/",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid",
    "/etc/subgid",
    "/var/lib/systemd/deb-systemd",
    "/etc/.pwd.lock",
    "/root/",
)


def test_nothing_is_left_after_a_purge(debian: Debian) -> None:
    """find(1) before the installation and after the purge says the same."""
    before = debian.files()
    users = debian.read("/etc/passwd")
    debian.answer(
        mailname="host.example.org",
        relay="localhost:1",
        user="joe",
        password="x",
        admin="a@example.org",
    )
    debian.apt(*INSTALL)
    debian.sh("echo body | mail -s gone you@example.net; picoqmail-cron")
    debian.run("picoqmail", "delete", *waiting(debian))
    debian.apt("purge", "picoqmail")
    left = {path for path in debian.files() - before if not path.startswith(BOOKS)}
    assert set() == left
    assert set() == {path for path in before - debian.files() if not path.startswith(BOOKS)}
    assert users == debian.read("/etc/passwd")
    assert "picoqmail" not in debian.read("/etc/group")


@pytest.mark.parametrize("wish", ["", "true"])
def test_a_purge_keeps_mail_that_was_never_delivered(debian: Debian, wish: str) -> None:
    """It is kept with its owner, unless somebody has answered that it is to go."""
    debian.apt(*INSTALL)
    message = leave_mail(debian)
    if wish:
        debian.answer(purge_mail=wish)
    said = debian.apt("purge", "picoqmail")
    assert not debian.has("/etc/picoqmail")
    if wish:
        assert not debian.has(SPOOL)
        assert "picoqmail" not in debian.read("/etc/passwd")
    else:
        assert "1 messages were never delivered, and are kept" in said
        assert debian.sh(f"find {SPOOL} -name {message}.json -user picoqmail")
        debian.apt(*INSTALL)
        assert [message] == waiting(debian)


def test_a_purge_keeps_mail_that_was_only_just_accepted(debian: Debian) -> None:
    """A user's mail that no sender has taken out of the drop yet counts as well."""
    debian.apt(*INSTALL)
    submit = "printf 'Subject: dropped\\n\\nbody\\n' | sendmail -f a@example.org you@example.net"
    debian.run("sh", "-c", submit, user="games")
    (path,) = debian.run("find", f"{SPOOL}/drop", "-name", "*.json").output.split()
    said = debian.apt("purge", "picoqmail")
    assert "1 messages were never delivered, and are kept" in said
    assert debian.has(path)


@pytest.mark.parametrize("kept", [False, True])
def test_a_program_of_the_host_is_never_overwritten(debian: Debian, kept: bool) -> None:  # noqa: FBT001
    """A file that no package brought stops the installation, unless it was given another place."""
    text = "#!/bin/sh\nexec cat\n"
    debian.write("/usr/sbin/sendmail", text, 0o755)
    if kept:
        words = (
            "--local",
            "--no-rename",
            "--divert",
            "/usr/sbin/sendmail.distrib",
            "--add",
            "/usr/sbin/sendmail",
        )
        debian.run("dpkg-divert", *words)
    said = debian.apt(*INSTALL, expect=0 if kept else 100)
    assert text == debian.read("/usr/sbin/sendmail")
    if kept:
        assert debian.has("/usr/sbin/sendmail.distrib")
    else:
        assert "/usr/sbin/sendmail belongs to no package, and is left alone" in said
        assert "picoqmail" not in debian.installed()


def test_cron_retries_where_systemd_does_not_run(debian: Debian) -> None:
    """The line of cron.d sends what is due, and leaves that to the timer where systemd runs."""
    debian.answer(mailname="host.example.org", relay="localhost:1")
    debian.apt(*INSTALL)
    lines = debian.read("/etc/cron.d/picoqmail").splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    schedule, _, command = line.partition(" picoqmail ")
    assert "* * * * *" == schedule
    debian.sh("mkdir -p /run/systemd/system")
    assert "" == debian.sh(command)
    assert not debian.has(f"{SPOOL}/cron.lock")
    debian.sh("rm -r /run/systemd")
    assert "" == debian.sh(command)
    assert debian.has(f"{SPOOL}/cron.lock")
    assert debian.has("/usr/lib/systemd/system/picoqmail.timer")
    assert debian.has("/etc/systemd/system/timers.target.wants/picoqmail.timer")


PRESEED = {
    "exim4-daemon-light": (
        "exim4-config",
        "exim4/dc_eximconfig_configtype select local delivery only; not on a network",
    ),
    "postfix": ("postfix", "postfix/main_mailer_type select Satellite system"),
    "nullmailer": ("nullmailer", "nullmailer/relayhost string localhost smtp --port=1"),
    "msmtp-mta": ("msmtp", "msmtp/apparmor boolean false"),
}
# How each is handed a mail that it keeps, and where it keeps it.
THEIR_QUEUES = {
    "exim4-daemon-light": ("sendmail -odq you@example.net", "/var/spool/exim4/input"),
    "postfix": (
        "{ postfix check 2>/dev/null; sendmail you@example.net; }",
        "/var/spool/postfix/maildrop",
    ),
    "nullmailer": ("sendmail you@example.net", "/var/spool/nullmailer/queue"),
    "msmtp-mta": ("", ""),
}


@pytest.mark.parametrize("other", THEIR_QUEUES)
def test_takes_the_place_of_another_mailer_and_gives_it_back(
    debian: Debian, other: str, relay: RecordingRelay
) -> None:
    """In both directions with mail waiting: each queue stays, and ours is sent when we are back."""
    package, line = PRESEED[other]
    debian.run("debconf-set-selections", give=f"{package} {line}\n")
    debian.apt("install", other)
    submit, queue = THEIR_QUEUES[other]
    if submit:
        debian.sh(f"printf 'Subject: theirs\n\nbody\n' | {submit}")
    theirs = debian.sh(f"find {queue} -type f") if queue else ""
    assert bool(queue) == bool(theirs)

    debian.answer(mailname="host.example.org", relay="localhost:1", tls="optional")
    said = debian.apt(*INSTALL)
    assert other not in debian.installed()
    assert "picoqmail-sendmail" in debian.run("readlink", "/usr/sbin/sendmail").output
    assert ("1 messages wait in " + queue in said) == bool(queue)
    assert theirs == (debian.sh(f"find {queue} -type f") if queue else "")
    message = leave_mail(debian, "ours")

    said = debian.apt("install", other)
    assert "picoqmail" not in debian.installed()
    assert "picoqmail: 1 messages wait in /var/spool/picoqmail" in said
    assert "picoqmail" not in debian.run("readlink", "-f", "/usr/sbin/sendmail").output
    assert debian.sh(f"find {SPOOL} -name {message}.json")

    debian.apt(*INSTALL)
    debian.write("/etc/picoqmail/relayip", f"{relay.address}\n")
    debian.run("picoqmail", "retry", "--all")
    assert b"ours" in relay.wait_for(1)[0].content
    assert theirs == (debian.sh(f"find {queue} -type f") if queue else "")


def test_a_home_made_by_pip_takes_the_host_s_names_and_gives_them_back(
    debian: Debian, wheel: str, relay: RecordingRelay
) -> None:
    """By diversions: a mailer that is installed later does not get them, and an own file stays."""
    debian.apt("install", "--no-install-recommends", "gcc", "libc6-dev", "python3-venv")
    shutil.copy(wheel, f"{debian.path}/root/")
    debian.sh(
        "python3 -m venv --system-site-packages /opt/picoqmail;"
        "/opt/picoqmail/bin/pip install --no-index --no-deps /root/*.whl"
    )
    program = "/opt/picoqmail/bin/picoqmail"
    own = "#!/bin/sh\nexit 1\n"
    debian.write("/usr/bin/mailq", own, 0o755)
    init = (program, "init", "--system", "--sendmail", "--me", "host.example.org")
    said = debian.run(*init, "--relay", relay.address, expect=73).output
    assert "/usr/bin/mailq: left alone" in said
    assert own == debian.read("/usr/bin/mailq")
    debian.apt("install", "nullmailer", "bsd-mailx")
    assert "/var/qmail/bin/sendmail\n" == debian.run("readlink", "/usr/sbin/sendmail").output
    assert debian.has("/usr/sbin/sendmail.distrib")
    debian.sh("echo body | mail -s diverted you@example.net")
    assert b"diverted" in relay.wait_for(1)[0].content
    assert "/usr/sbin/sendmail leads here" in debian.run(program, "check", "--no-relay").output
    assert debian.has("/opt/picoqmail/share/man/man1/picoqmail.1")

    left = debian.run(program, "init", "--uninstall").output
    assert "removed /usr/sbin/sendmail" in left
    for advice in ("rm -r /var/qmail", "userdel picoqmail", "rm -r /opt/picoqmail"):
        assert advice in left
    assert "nullmailer" in debian.run("dpkg-query", "--search", "/usr/sbin/sendmail").output
    assert "diversion" not in debian.run("dpkg-divert", "--list", "/usr/sbin/sendmail").output
    done = debian.run(program, "check", "--no-relay", expect=None)
    assert "/usr/sbin/sendmail belongs to the package nullmailer" in done.output
