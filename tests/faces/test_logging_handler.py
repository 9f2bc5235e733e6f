"""Log records by mail: none blocks, none raises, few are mailed."""

from __future__ import annotations

import email
import email.policy
import logging
import os
import signal
import subprocess
import sys
import threading
from email.headerregistry import Address
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.errors import AddressError, EnvelopeError
from picoqmail.logging_handler import MailHandler
from rig.waiting import wait_until
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


@pytest.mark.slow
def test_what_was_suppressed_is_told_without_another_record(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """When the period is over a summary goes out by itself."""
    handler(burst=1, period_seconds=3)
    logger.error("one")
    logger.error("two")
    wait_until(lambda: len(home.ids()) > 1, "the summary", 20)
    assert "1 more records" == mails(home)[1]["Subject"]
    assert "two" in mails(home)[1].get_content()


def test_trouble_neither_blocks_nor_raises(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """With a spool in trouble logging goes on at once; records wait, and come when it is well."""
    made = handler(capacity=3)
    os.rename(f"{home.root}/spool", f"{home.root}/away")
    # What waited for the spool would wait for ever: it is well only after these.
    for number in range(10):
        logger.error("number %d", number)
    wait_until(lambda: made.lost >= 6, "the others are given up", 10)
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


@pytest.mark.parametrize(
    ("sender", "recipients", "expected"),
    [
        (
            "App <app@example.org>",
            "Ops, B <ops@example.org>".replace(", ", " "),
            ("App <app@example.org>", "Ops B <ops@example.org>", ["ops@example.org"]),
        ),
        (
            ("The \u00c4pp", "app@example.org"),
            [Address("Ops, B", "ops", "example.org"), "b@example.net"],
            (
                "The \u00c4pp <app@example.org>",
                '"Ops, B" <ops@example.org>, b@example.net',
                ["ops@example.org", "b@example.net"],
            ),
        ),
        (
            '"a b"@example.org',
            ['"c d"@example.net'],
            ('"a b"@example.org', '"c d"@example.net', ["c d@example.net"]),
        ),
    ],
)
def test_addresses_with_names(
    home: TemporaryHome, logger: logging.Logger, sender: Any, recipients: Any, expected: Any
) -> None:
    """The name is for the reader, the address alone for the envelope."""
    made = MailHandler(sender, recipients, home=home.root, send=False)
    logger.addHandler(made)
    logger.error("x")
    made.flush()
    (mail,) = mails(home)
    (stem,) = home.ids()
    assert expected == (mail["From"], mail["To"], home.addresses(stem))
    assert made.sender == home.sidecar(stem)["sender"]


@pytest.mark.parametrize(
    "wrong", ["a@x, b@y", "A <a@x", "", "a@x b@y", "root", ("A", "nobody"), "a@x\u200b"]
)
def test_wrong_addresses_show_at_once(home: TemporaryHome, wrong: Any) -> None:
    """Sender or recipient, with or without a name."""
    if wrong:
        with pytest.raises(EnvelopeError):
            MailHandler(wrong, "ops@example.org", home=home.root)
    with pytest.raises(EnvelopeError):
        MailHandler("app@example.org", [wrong], home=home.root)
    with pytest.raises(EnvelopeError):
        MailHandler("app@example.org", [], home=home.root)


@pytest.mark.slow
def test_memory_is_bounded_in_octets_too(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """Large records wait up to the bound; one that is too large is cut, and says so."""
    made = handler(capacity_octets=1_000_000, burst=100)
    os.rename(f"{home.root}/spool", f"{home.root}/away")
    logger.error("first")
    for _ in range(10):
        logger.error("x" * 200_000)
    assert made._octets <= 1_000_000
    assert 6 <= made.lost <= 7
    os.rename(f"{home.root}/away", f"{home.root}/spool")
    made.flush(20)
    assert 11 - made.lost == len(home.ids())
    assert 0 == made._octets
    logger.error("y" * 300_000)
    made.flush()
    assert "[37856 characters more]" in mails(home)[-1].get_content()[-100:]


def test_what_was_suppressed_is_told_at_the_end(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """A program that ends before the period does tells of them all the same; a child not."""
    made = handler(burst=1)
    for number in range(5):
        logger.error("number %d", number)
    made.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            made.close()
            status = 0
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 1 == len(home.ids())
    made.close()
    assert "4 more records" == mails(home)[1]["Subject"]
    assert "number 4" in mails(home)[1].get_content()
    assert 0 == made.lost


AT_THE_END = """
import atexit, sys
def last():
    import logging
    logging.getLogger().error("last")
    if len(sys.argv) > 3:
        logging.getLogger().error("the very last")
if sys.argv[2] == "after":
    atexit.register(last)
import logging
from picoqmail.logging_handler import MailHandler
logging.getLogger().addHandler(
    MailHandler("a@example.org", "b@example.net", home=sys.argv[1], send=False)
)
if sys.argv[2] == "before":
    atexit.register(last)
if sys.argv[2] == "thread":
    import threading
    threading.Thread(target=lambda: (threading.main_thread().join(), last())).start()
"""


@pytest.mark.parametrize("more", [[], ["more"]])
@pytest.mark.parametrize("when", ["before", "after", "thread"])
def test_the_last_words_of_a_program(home: TemporaryHome, when: str, more: list[str]) -> None:
    """Logged in atexit, before and after logging was shut down, or by a thread that outlives main.

    Python 3.12 and later start no thread then.
    """
    command = [sys.executable, "-c", AT_THE_END, home.root, when, *more]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "" == ran.stderr
    expected = ["ERROR: last", "ERROR: the very last"][: 1 + len(more)]
    assert expected == [one["Subject"] for one in mails(home)]


def test_a_record_within_a_record(
    home: TemporaryHome, logger: logging.Logger, handler: Callable[..., MailHandler]
) -> None:
    """A signal may come while a record is kept, and its handler may log: nothing waits for ever."""
    made = handler(burst=10_000, capacity=100_000)
    before = signal.signal(signal.SIGALRM, lambda *_: logger.error("signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(300):
            logger.error("number %d", number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    made.flush(60)
    subjects = [one["Subject"] for one in mails(home)]
    assert 300 == sum(one.startswith("ERROR: number") for one in subjects)
    assert "ERROR: signal" in subjects


GREENLETS = """
import logging, os, sys, time
from picoqmail.logging_handler import MailHandler
handler = MailHandler("a@example.org", "b@example.net", home=sys.argv[1], send=False, burst=1000)
logging.getLogger().addHandler(handler)
logging.error("parent")
handler.flush()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
if sys.argv[2] == "before":
    logging.error("child, with a thread")
    handler.flush()
from gevent import monkey
monkey.patch_all()
import gevent
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)
gevent.spawn(tick)
def work(number):
    logging.error("greenlet %d", number)
    gevent.sleep(0.001)
    logging.error("greenlet %d again", number)
gevent.joinall([gevent.spawn(work, number) for number in range(20)], timeout=30)
gevent.sleep(0.3)
handler.flush(20)
assert max(b - a for a, b in zip(ticks, ticks[1:])) < 2, "the loop stood still"
assert not handler.lost
"""


@pytest.mark.parametrize("when", ["after", "before"])
def test_threads_that_become_greenlets(home: TemporaryHome, when: str) -> None:
    """Made before a server forks, logged in after gevent exchanged the threads of the child."""
    pytest.importorskip("gevent", reason="needs gevent (extra test-servers)")
    command = [sys.executable, "-c", GREENLETS, home.root, when]
    subprocess.run(command, check=True, timeout=90)
    subjects = sorted(one["Subject"] for one in mails(home))
    assert (41 if when == "after" else 42) == len(subjects) == len(set(subjects))
