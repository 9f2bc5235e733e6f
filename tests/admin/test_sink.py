"""The sink: takes mail as it comes, refuses what it is told to, ends when it is told to."""

from __future__ import annotations

import contextlib
import json
import mailbox
import os
import selectors
import signal
import smtplib
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aiosmtpd", reason="the sink is part of the extra demo")

from picoqmail.admin import sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = b"Subject: dots and \xc3\xa4\r\n\r\n.\r\n..two\r\n\ttab \r\nno end"
WAIT_SECONDS = 30


class Running:
    """A `picoqmail sink --json` of ours, its port, and the events it tells."""

    def __init__(self, maildir: Path, *words: str) -> None:
        """Start it on a free port, and wait until it listens."""
        command = [sys.executable, "-m", "picoqmail.cli.main", "sink", "--json"]
        self.process = subprocess.Popen(
            [*command, "--maildir", str(maildir), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        listening = self.event()
        assert listening["event"] == "listening"
        self.port = int(listening["port"])

    def event(self) -> dict[str, Any]:
        """Return the next event; fails after `WAIT_SECONDS`."""
        assert self.process.stdout is not None
        line = b""
        deadline = time.monotonic() + WAIT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                assert selector.select(deadline - time.monotonic()), "the sink says nothing"
                octet = os.read(self.process.stdout.fileno(), 1)
                assert octet, self.process.communicate()[1]
                line += octet
        found: dict[str, Any] = json.loads(line)
        return found

    def client(self) -> smtplib.SMTP:
        """Return a client of Python's own, connected."""
        return smtplib.SMTP("127.0.0.1", self.port, timeout=WAIT_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, bytes]:
        """End it by a signal; return its exit code and what it said on standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=WAIT_SECONDS)
        return self.process.returncode, errors


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return a function that starts sinks; they are killed at the end, if they still run."""
    started: list[Running] = []

    def start_one(*words: str) -> Running:
        started.append(Running(tmp_path / "maildir", *words))
        return started[-1]

    yield start_one
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


def mails(tmp_path: Path) -> list[bytes]:
    """Return what lies in the Maildir's new/, in order of arrival."""
    return [path.read_bytes() for path in sorted((tmp_path / "maildir/new").iterdir())]


def test_keeps_octets_and_envelope(start: Callable[..., Running], tmp_path: Path) -> None:
    """A mail is kept as it came over the wire, the envelope beside it, and both are told."""
    running = start()
    with running.client() as client:
        client.sendmail(
            "", ["a@example.org", "b@example.org", "a@example.org"], CONTENT, ["BODY=8BITMIME"]
        )
    told = running.event()
    assert mails(tmp_path) == [CONTENT + b"\r\n"]
    envelope = json.loads((tmp_path / f"maildir/envelopes/{told['name']}.json").read_text())
    assert {"event": "mail", **envelope} == told
    assert (told["sender"], told["recipients"]) == (
        "",
        ["a@example.org", "b@example.org", "a@example.org"],
    )
    assert "BODY=8BITMIME" in told["mail_options"]
    assert told["size"] == len(CONTENT) + 2
    assert list((tmp_path / "maildir/tmp").iterdir()) == []


def test_unix_lines(start: Callable[..., Running], tmp_path: Path) -> None:
    """With --unix-lines a mail reader finds the mail as it likes it."""
    running = start("--unix-lines")
    with running.client() as client:
        client.sendmail("x@example.org", ["a@example.org"], CONTENT)
    assert mails(tmp_path) == [(CONTENT + b"\r\n").replace(b"\r\n", b"\n")]
    with contextlib.closing(mailbox.Maildir(str(tmp_path / "maildir"))) as reader:
        assert len(reader) == 1


def test_answers_first_n_messages(start: Callable[..., Running], tmp_path: Path) -> None:
    """--answer with --times refuses the first messages, and takes the next."""
    running = start("--answer", "451 4.7.1 later, please", "--times", "2")
    with running.client() as client:
        for _ in range(2):
            with pytest.raises(smtplib.SMTPDataError) as caught:
                client.sendmail("x@example.org", ["a@example.org"], CONTENT)
            assert (caught.value.smtp_code, caught.value.smtp_error) == (
                451,
                b"4.7.1 later, please",
            )
        client.sendmail("x@example.org", ["a@example.org"], CONTENT)
    assert len(mails(tmp_path)) == 1
    assert [running.event()["event"] for _ in range(3)] == ["refused", "refused", "mail"]


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("mail", smtplib.SMTPSenderRefused),
        ("rcpt", smtplib.SMTPRecipientsRefused),
        ("data", smtplib.SMTPDataError),
        ("content", smtplib.SMTPDataError),
    ],
)
def test_answers_by_phase(
    start: Callable[..., Running],
    tmp_path: Path,
    phase: str,
    error: type[smtplib.SMTPException],
) -> None:
    """Each phase can be refused, every time, and then nothing is kept."""
    running = start("--answer", f"{phase}=550 5.7.0 never")
    with running.client() as client:
        for _ in range(2):
            with pytest.raises(error, match=r"550"):
                client.sendmail("x@example.org", ["a@example.org"], CONTENT)
            told = running.event()
            assert (told["event"], told["phase"]) == ("refused", phase)
    assert mails(tmp_path) == []


def test_answers_greeting(start: Callable[..., Running]) -> None:
    """The greeting can be refused, EHLO and HELO alike."""
    running = start("--answer", "ehlo=550 5.7.0 who are you")
    with running.client() as client:
        assert client.ehlo()[0] == 550
        assert client.helo()[0] == 550


def test_421_ends_the_connection(start: Callable[..., Running]) -> None:
    """After 421 the sink hangs up, as RFC 5321 has it."""
    running = start("--answer", "mail=421 4.3.2 going down")
    with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT_SECONDS) as link:
        link.sendall(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\n")
        said = b""
        while block := link.recv(4096):
            said += block
    assert said.endswith(b"421 4.3.2 going down\r\n")


def test_recipient_answer(start: Callable[..., Running], tmp_path: Path) -> None:
    """One recipient is refused, the others get the mail."""
    running = start("--recipient-answer", "Bad@example.org=550 5.1.1 no=body")
    with running.client() as client:
        refused = client.sendmail(
            "x@example.org", ["a@example.org", "bad@Example.org", "c@example.org"], CONTENT
        )
    assert refused == {"bad@Example.org": (550, b"5.1.1 no=body")}
    assert running.event()["event"] == "refused"
    assert running.event()["recipients"] == ["a@example.org", "c@example.org"]
    assert len(mails(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly(start: Callable[..., Running], number: signal.Signals) -> None:
    """It ends with 0 and a last word, though a client is still connected."""
    running = start()
    with running.client() as client:
        client.ehlo()
        assert running.stop(number) == (0, b"")


def test_ends_with_its_standard_input(tmp_path: Path) -> None:
    """With --until-eof it ends when whoever started it does, however that ends."""
    command = [sys.executable, "-m", "picoqmail.cli.main", "sink", "--until-eof"]
    done = subprocess.run(
        [*command, "--maildir", str(tmp_path / "maildir")],
        input=b"some words do not end it\n",
        capture_output=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0
    assert done.stdout.endswith(b"stopped; 0 mails kept\n")


def test_without_the_extra() -> None:
    """Without aiosmtpd the sink says what to install."""
    code = (
        "import sys; sys.modules['aiosmtpd'] = None\n"
        "from picoqmail.cli.main import main; sys.exit(main(['sink']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 69
    assert "pip install 'picoqmail[demo]'" in done.stderr


def test_disk_that_fails(start: Callable[..., Running], tmp_path: Path) -> None:
    """What cannot be kept is not taken: 451, and the client still has it."""
    running = start()
    (tmp_path / "maildir/tmp").rmdir()
    with (
        running.client() as client,
        pytest.raises(smtplib.SMTPDataError, match=r"451.*cannot write"),
    ):
        client.sendmail("x@example.org", ["a@example.org"], CONTENT)
    assert mails(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--answer", "250 fine"],
        ["--answer", "later"],
        ["--answer", "banner=451"],
        ["--answer", "451 a\r\n250 b"],
        ["--recipient-answer", "nobody"],
        ["--port", "70000"],
        ["--host", "192.0.2.1"],
        ["--host", "localhost"],
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str]) -> None:
    """A wrong word is exit 64 with one line, and no server."""
    command = [sys.executable, "-m", "picoqmail.cli.main", "sink", "--maildir", str(tmp_path / "m")]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
    )
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("picoqmail sink: ", "usage: "))


def test_port_in_use(start: Callable[..., Running], tmp_path: Path) -> None:
    """A port that is taken is told, and no traceback."""
    port = start().port
    command = [sys.executable, "-m", "picoqmail.cli.main", "sink", "--maildir", str(tmp_path / "m")]
    done = subprocess.run(
        [*command, "--port", str(port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 71
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_reply_text() -> None:
    """A bare code gets an enhanced code of its class, and a text."""
    assert sink.reply_line("451") == "451 4.0.0 refused on request"
    assert sink.refusal("rcpt=550 x", 3) == sink.Refusal("rcpt", "550 x", 3)
