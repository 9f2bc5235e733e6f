"""A Django project in a browser: a form that sends mail while the relay is down, and the admin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from installation import CHECKOUT

pytest.importorskip("django", reason="needs Django (extra django)")

import picoqmail
from browser import Browser
from rig.waiting import free_port, wait_until
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rig.recording import RecordingRelay

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
