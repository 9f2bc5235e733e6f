"""One command makes a host's mailer: installed, asked, upgraded, removed and purged in real systems."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from debian.conftest import PASSWORD, USER
from rig.waiting import wait_until

if TYPE_CHECKING:
    from debian.system import Debian
    from rig.recording import RecordingRelay

INSTALL = ("install", "/root/picoqmail.deb")
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
    fresh: Debian, login_relay: RecordingRelay, record_property: pytest.RecordProperty
) -> None:
    """Real cron and mail send, to a relay with STARTTLS and a login; no other mailer is brought."""
    fresh.answer(**answers_for(login_relay))
    began = time.monotonic()
    fresh.apt("update")
    said = fresh.apt(*INSTALL, "cron", "bsd-mailx")
    fresh.sh("echo body | mail -s first you@example.net")
    first = login_relay.wait_for(1)[0]
    record_property("seconds to the first delivered mail", round(time.monotonic() - began, 1))
    assert {USER} == {first.user}
    assert first.tls
    assert ("you@example.net",) == first.recipients
    assert b"\nSubject: first\n" in first.unix
    assert "root@host.example.org" == first.sender

    fresh.write("/etc/cron.d/trial", "@reboot root echo output of a job\n")
    with fresh.start("cron", "-f"):
        second = login_relay.wait_for(2)[1]
    assert ("admin@example.net",) == second.recipients
    assert b"output of a job" in second.unix
    assert b"\nTo: root\n" in second.unix or b"\nTo: root@" in second.unix

    others = {name for name in fresh.installed() if name.startswith(("exim4", "postfix", "nullmailer"))}
    assert set() == others
    assert [] == [line for line in said.splitlines() if line.startswith("picoqmail:")]
    assert "OK" in fresh.run("picoqmail", "check").output
    assert [] == waiting(fresh)
    assert PASSWORD not in said
    assert PASSWORD not in fresh.sh("cat /var/cache/debconf/*.dat")
