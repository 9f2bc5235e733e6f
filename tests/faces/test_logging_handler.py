"""Log records by mail: none blocks, none raises, few are mailed."""

from __future__ import annotations

import email
import email.policy
import logging
import os
import threading
import time
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.errors import AddressError
from picoqmail.logging_handler import MailHandler
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> TemporaryHome:
    """A home."""
    return TemporaryHome(str(tmp_path / "home")).make()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own, whose handlers are closed after it."""
    logger = logging.Logger("test")  # noqa: LOG001 - of this test alone
    yield logger
    for handler in logger.handlers:
        handler.close()


@pytest.fixture
def handler(home: TemporaryHome, logger: logging.Logger) -> Callable[..., MailHandler]:
    """Make a handler of that home, attached to the logger."""

    def make(**more: Any) -> MailHandler:
        arguments = {"home": home.root, "send": False, **more}
        made = MailHandler("app@example.org", ["ops@example.org", "b@example.net"], **arguments)
        logger.addHandler(made)
        return made

    return make


def mails(home: TemporaryHome) -> list[EmailMessage]:
    """The spooled mails, oldest first."""
    return [
        email.message_from_bytes(home.message(one), EmailMessage, policy=email.policy.default)
        for one in home.ids()
    ]


def test_an_error_is_mailed(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """A record of the level becomes a mail with its traceback; one below it does not."""
    made = handler()
    logger.warning("not this")
    try:
        int("no number")
    except ValueError:
        logger.exception("Order %s\nBcc: x@example.net failed, \u00fc \ud800", 7)
    made.flush()
    (mail,) = mails(home)
    assert "ERROR: Order 7 Bcc: x@example.net failed, \u00fc ?" == mail["Subject"]
    assert "auto-generated" == mail["Auto-Submitted"]
    assert mail["Date"]
    assert mail["Message-ID"].endswith("@example.org>")
    assert "ValueError: invalid literal" in mail.get_content()
    (stem,) = home.ids()
    assert ["ops@example.org", "b@example.net"] == home.addresses(stem)
    assert 0 == made.lost


def test_a_flood_is_a_few_mails(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """Over the limit records are counted, and the next mail tells of them."""
    now = [0.0]
    made = handler(burst=2, period_seconds=60, clock=lambda: now[0])
    for number in range(50):
        logger.error("number %d", number)
    made.flush()
    assert 2 == len(mails(home))
    now[0] = 61.0
    logger.error("later")
    made.flush()
    third = mails(home)[2].get_content()
    assert "later" in third
    assert "48 records before this" in third
    assert "number 2\n" in third
    assert "and 28 more" in third


def test_what_was_suppressed_is_told_without_another_record(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """When the period is over a summary goes out by itself."""
    handler(burst=1, period_seconds=3)
    logger.error("one")
    logger.error("two")
    deadline = time.monotonic() + 20
    while len(home.ids()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "1 more records" == mails(home)[1]["Subject"]
    assert "two" in mails(home)[1].get_content()


def test_trouble_neither_blocks_nor_raises(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """With a spool in trouble logging goes on at once; records wait, and come when it is well."""
    made = handler(capacity=3)
    os.rename(f"{home.root}/spool", f"{home.root}/away")
    started = time.monotonic()
    for number in range(10):
        logger.error("number %d", number)
    assert time.monotonic() - started < 1
    deadline = time.monotonic() + 10
    while made.lost < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.lost in (6, 7), "three or four are kept: the queue, and the one in hand"
    os.rename(f"{home.root}/away", f"{home.root}/spool")
    made.flush(20)
    assert 10 - made.lost == len(home.ids())


def test_a_record_that_cannot_be_formatted(
    home: TemporaryHome,
    logger: logging.Logger,
    handler: Callable[..., MailHandler],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong record is told as logging tells it, and nothing is raised."""
    made = handler()
    logger.error("%d", "no number")
    assert "Logging error" in capsys.readouterr().err
    assert 1 == made.lost
    assert [] == home.ids()


def test_a_forked_child_mails_its_own(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """After a fork parent and child each mail what they log, and nothing twice."""
    made = handler()
    logger.error("before")
    made.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            logger.error("child")
            made.flush()
            status = 0
        finally:
            os._exit(status)
    logger.error("parent")
    made.flush()
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    subjects = sorted(one["Subject"] for one in mails(home))
    assert ["ERROR: before", "ERROR: child", "ERROR: parent"] == subjects


def test_close_brings_in_what_waits_and_ends_the_thread(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """At the end of a program nothing is lost, and no thread stays."""
    made = handler()
    logger.error("last")
    thread = made._thread
    made.close()
    assert 1 == len(home.ids())
    assert isinstance(thread, threading.Thread)
    thread.join(10)
    assert not thread.is_alive()


def test_a_wrong_address_shows_at_once(home: TemporaryHome) -> None:
    """Not with the first error, when it is too late."""
    with pytest.raises(AddressError):
        MailHandler("app@example.org", "nobody", home=home.root)
