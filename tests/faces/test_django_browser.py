"""A Django project in a browser: a form that sends mail while the relay is down, and the admin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from installation import CHECKOUT

pytest.importorskip("django", reason="needs Django (extra django)")

import picoqmail
from browser import Browser
from rig.recording import RecordingRelay
from rig.waiting import free_port, wait_until
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PROJECT = os.path.join(CHECKOUT, "tests", "django_project.py")


@pytest.fixture
def home(tmp_path: Path) -> TemporaryHome:
    """A home whose relay is down: nothing listens there."""
    made = TemporaryHome(str(tmp_path / "home")).make()
    made.setting("relayip", f"127.0.0.1:{free_port()}")
    return made


@pytest.fixture
def server(home: TemporaryHome, tmp_path: Path) -> Iterator[str]:
    """The project, served; its address."""
    environ = {name: value for name, value in os.environ.items() if name != "PICOQMAIL_SEND"}
    command = [sys.executable, PROJECT, home.root, str(tmp_path / "database"), "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    ) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
        process.terminate()


@pytest.mark.slow
def test_a_form_is_answered_at_once_and_its_mail_is_not_lost(
    home: TemporaryHome, server: str, tmp_path: Path, relay: RecordingRelay
) -> None:
    """Posted while the relay is down, answered at once, explained, held; then delivered."""
    pictures = os.environ.get("PICOQMAIL_SCREENSHOTS", str(tmp_path))
    with Browser() as browser:
        browser.open(server)
        browser.write("#email", "b@example.net")
        started = time.monotonic()
        browser.click("#go")
        assert "Mail is on its way." == browser.text("#done")
        assert time.monotonic() - started < 5
        spool = picoqmail.Spool(home.root)
        # The sender that the request started finds the relay down, by itself.
        wait_until(lambda: os.path.exists(f"{home.spool}/relay-down"), "the outage is noticed", 30)
        (entry,) = spool.list()

        browser.open(f"{server}admin/picoqmail/spooledmessage/")
        browser.write("#id_username", "root")
        browser.write("#id_password", "secret")
        browser.click("input[type=submit]")
        listing = browser.text()
        assert "b@example.net" in listing
        assert "is down" in listing
        browser.screenshot(f"{pictures}/changelist.png")
        browser.click("#picoqmail-list tbody th a")
        assert entry.id in browser.text("#content")
        browser.click("button[value=hold]")
        assert "is held" in browser.text(".messagelist")
        browser.screenshot(f"{pictures}/message.png")
        assert home.sidecar(entry.id, "cur")["held"]
        browser.click("button[value=release]")
        assert "is released" in browser.text(".messagelist")

    home.setting("relayip", relay.address)
    assert 1 == spool.deliver([entry.id], forced=True).delivered
    (got,) = relay.wait_for(1)
    assert ("b@example.net",) == tuple(got.recipients)
    assert b"Thank you." in got.content


@pytest.mark.slow
def test_requeue_and_delete_in_the_browser(
    home: TemporaryHome, server: str, tmp_path: Path, rig: Any
) -> None:
    """What failed for good gets a new life; what is deleted is gone, after a question."""
    pictures = os.environ.get("PICOQMAIL_SCREENSHOTS", str(tmp_path))
    home.setting("bounces", "off")
    answers = {"RCPT <gone@example.net>": ["550 5.1.1 no such user"]}
    home.setting("relayip", rig(RecordingRelay(answers=answers)).address)
    spool = picoqmail.Spool(home.root, send=False)
    for recipient in ("gone@example.net", "b@example.net"):
        message = b"From: a@example.org\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= <b>\n\nx\n"
        spool.enqueue(message, "a@example.org", [recipient])
        if recipient.startswith("gone"):
            assert 1 == spool.deliver().failed
    (failed,) = home.ids("undelivered")
    with Browser() as browser:
        browser.open(f"{server}admin/picoqmail/spooledmessage/?state=undelivered")
        browser.write("#id_username", "root")
        browser.write("#id_password", "secret")
        browser.click("input[type=submit]")
        assert "Gr\u00fc\u00dfe <b>" in browser.text("#picoqmail-list")
        assert "550 5.1.1 no such user" in browser.text("#picoqmail-list")
        browser.tick(f"input[value='{failed}']")
        browser.click("button[value=requeue]")
        assert "is due now for 1 recipient" in browser.text(".messagelist")
        assert [] == home.ids("undelivered")

        browser.open(f"{server}admin/picoqmail/spooledmessage/")
        for stem in (*home.ids("new"), *home.ids("cur")):
            browser.tick(f"input[value='{stem}']")
        browser.click("button[value=delete]")
        assert "Delete 2 messages?" in browser.text("#content")
        assert "Gr\u00fc\u00dfe <b>" in browser.text("#picoqmail-doomed")
        browser.screenshot(f"{pictures}/delete.png")
        assert 2 == len((*home.ids("new"), *home.ids("cur")))
        browser.click("#picoqmail-confirm")
        assert "The spool has no such mail." in browser.text("#content")
        assert 2 == browser.text(".messagelist").count("me.test")
        browser.screenshot(f"{pictures}/deleted.png")
    assert [] == home.files()
