"""Help for the tests of others: the fixture, in a project of its own, and its assertions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from email.message import EmailMessage
from typing import TYPE_CHECKING

import pytest

import picoqmail
from picoqmail.testing import TemporarySpool

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = """
import subprocess, sys
import picoqmail

def send(to, subject="Welcome"):
    text = f"From: app@example.org\\nTo: {to}\\nSubject: {subject}\\n\\nDear B\\n"
    picoqmail.enqueue(text)

def test_one(picoqmail_spool):
    picoqmail_spool.assert_nothing()
    send("b@example.net")
    mail = picoqmail_spool.assert_one(to="b@example.net", subject="Welcome", text="^Dear")
    assert "app@example.org" == mail.sender

def test_a_child_process_too(picoqmail_spool):
    code = "import picoqmail; picoqmail.enqueue(b'', 'a@b', 'c@d')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 1 == len(picoqmail_spool)

def test_that_fails(picoqmail_spool):
    send("b@example.net", "Other")
    picoqmail_spool.assert_one(subject="Welcome")
"""


@pytest.mark.slow
def test_the_fixture_in_a_project(tmp_path: Path) -> None:
    """Each test has a spool of its own, children included; what fails says what was there."""
    (tmp_path / "test_project.py").write_text(PROJECT)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    plugins = subprocess.run(
        [sys.executable, "-m", "pytest", "--trace-config", "--collect-only", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "picoqmail.pytest_plugin" not in plugins.stdout:
        # An environment whose metadata are older than the plugin.
        options += ["-p", "picoqmail.pytest_plugin"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 failed, 2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "0 mails, not one, for subject='Welcome'; in the spool:" in ran.stdout
    assert "to b@example.net: 'Other'" in ran.stdout


def test_what_is_known_of_a_mail() -> None:
    """Envelope, octets, text, attachments and times of what was enqueued."""
    with TemporarySpool(me="other.example") as spool:
        message = EmailMessage()
        message["From"] = "a@example.org"
        message["To"] = "b@example.net"
        message["Subject"] = "Gr\u00fc\u00dfe"
        message.set_content("plain\n")
        message.add_alternative("<p>html", subtype="html")
        message.add_attachment(b"x", maintype="a", subtype="b", filename="x.bin")
        later = int(time.time()) + 3600
        picoqmail.enqueue(message, home=spool.root, not_before=later)
        (mail,) = spool.mails
        assert ("a@example.org", ("b@example.net",)) == (mail.sender, mail.recipients)
        assert ("Gr\u00fc\u00dfe", "plain\n", later) == (mail.subject, mail.text, mail.not_before)
        assert ["x.bin"] == [one.get_filename() for one in mail.attachments]
        assert mail.raw.startswith(b"From: a@example.org\n")
        assert mail.id.endswith(".other.example")
        with pytest.raises(AssertionError, match="1 mails, not 2, for all"):
            spool.assert_count(2)
        spool.clear()
        spool.assert_nothing()
        root = spool.root
    assert not os.path.exists(root)
