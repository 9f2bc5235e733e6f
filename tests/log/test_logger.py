"""The log: one line an event, in the place that was asked for, and never in the way of mail."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.home.paths import Home
from picoqmail.home.values import log_choice
from picoqmail.log import logger, places, text
from picoqmail.log.choice import LogChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home with a spool directory."""
    (tmp_path / "spool").mkdir()
    return Home(str(tmp_path))


@pytest.fixture
def open_log() -> Iterator[Callable[..., logger.Log]]:
    """Return `log.open_log`; what it opens is closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(logger.open_log(*words, **more))


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a bound datagram socket in the place of /dev/log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "devlog"))
        listener.settimeout(10)
        yield listener


def told(choice: str, home: Home, *levels: str) -> str:
    """Return what an event of each level writes to standard error."""
    stream = io.StringIO()
    opened = logger.open_log(log_choice(choice), home.spool, stderr=stream)
    for level in levels:
        opened.event(f"at_{level}", level=level, relay="mx:25")
    return stream.getvalue()


def test_levels(home: Home) -> None:
    """Only events of the chosen level and above are written, info being the default."""
    levels = ("debug", "info", "warning", "error")
    assert re.findall("at_([a-z]+)", told("stderr", home, *levels)) == list(levels[1:])
    assert re.findall("at_([a-z]+)", told("stderr debug", home, *levels)) == list(levels)
    assert re.findall("at_([a-z]+)", told("stderr error", home, *levels)) == ["error"]
    assert told("off", home, *levels) == ""


def test_line_for_people(home: Home) -> None:
    """A line has time, level, event and facts, in this order."""
    line = told("stderr", home, "warning")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z warning at_warning relay=mx:25\n", line
    )


def test_json_line(home: Home) -> None:
    """A json log is one object a line, with level, event, time and facts."""
    document = json.loads(told("json", home, "error"))
    assert (document["event"], document["level"], document["relay"]) == (
        "at_error",
        "error",
        "mx:25",
    )
    assert document["pid"] == os.getpid()
    assert "timestamp" in document


def test_json_file(open_log: Callable[..., logger.Log], home: Home, tmp_path: Path) -> None:
    """A json log may have a file of its own, private."""
    opened = open_log(LogChoice("json", str(tmp_path / "x.json"), "info"), home.spool)
    opened.event("one", name="fact")
    opened.event("two")
    lines = (tmp_path / "x.json").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["one", "two"]
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600


@given(st.text(), st.text())
def test_no_second_line(reply: str, event_text: str) -> None:
    """Whatever a relay says, it is one line, and drives no terminal."""
    for choice in ("stderr", "json"):
        stream = io.StringIO()
        opened = logger.open_log(log_choice(choice), "/nowhere/spool", stderr=stream)
        opened.event("refused", reply=reply, text=event_text)
        assert stream.getvalue().count("\n") == 1
        assert stream.getvalue()[:-1].isprintable()
        assert opened.lost == 0


def test_default_on_a_terminal(
    open_log: Callable[..., logger.Log], home: Home, tmp_path: Path
) -> None:
    """Where a person looks on, events are shown there."""
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as stream, open(master, "rb") as reader:
        opened = open_log(log_choice("auto"), home.spool, stderr=stream, syslog_socket="/nowhere")
        opened.event("relay_down", level="error")
        assert b"relay_down" in os.read(reader.fileno(), 4096)
    assert not (tmp_path / "spool/log").exists()


def test_default_is_syslog(
    open_log: Callable[..., logger.Log], home: Home, syslog: socket.socket, tmp_path: Path
) -> None:
    """Without a terminal, events go to syslog with facility mail, and nothing is printed."""
    stream = io.StringIO()
    opened = open_log(
        log_choice("auto"),
        home,
        program="picoqmail-cron",
        stderr=stream,
        syslog_socket=str(tmp_path / "devlog"),
    )
    opened.event("relay_down", level="error", relay="mx:25")
    line = syslog.recv(65536).decode()
    assert re.fullmatch(
        r"<19>[A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d picoqmail-cron\[\d+\]: "
        r"relay_down relay=mx:25",
        line,
    )
    assert stream.getvalue() == ""


def test_default_without_syslog(
    open_log: Callable[..., logger.Log], home: Home, tmp_path: Path
) -> None:
    """With neither, events go to a private file in the spool, and nothing is printed."""
    stream = io.StringIO()
    opened = open_log(log_choice("auto"), home.spool, stderr=stream, syslog_socket="/nowhere")
    opened.event("relay_down", level="error")
    assert "relay_down" in (tmp_path / "spool/log").read_text()
    assert (tmp_path / "spool/log").stat().st_mode & 0o777 == 0o600
    assert stream.getvalue() == ""


def test_spool_log_stays_small(
    open_log: Callable[..., logger.Log], home: Home, tmp_path: Path
) -> None:
    """The spool's log begins anew at a megabyte; one older one is kept."""
    path = tmp_path / "spool/log"
    path.write_bytes(b"x" * places.SPOOL_LOG_OCTETS)
    open_log(log_choice("auto"), home.spool, stderr=io.StringIO(), syslog_socket="/no").event("new")
    assert path.stat().st_size < 1000
    assert (tmp_path / "spool/log.1").stat().st_size == places.SPOOL_LOG_OCTETS


def test_syslog_that_starts_again(
    open_log: Callable[..., logger.Log], home: Home, tmp_path: Path
) -> None:
    """After syslog was started again the next event finds it."""
    path = str(tmp_path / "devlog")
    opened = open_log(log_choice("syslog"), home.spool, syslog_socket=path)
    for count in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(path)
            opened.event("hello", count=count)
            listener.settimeout(10)
            assert listener.recv(4096).endswith(f"count={count}".encode())
        os.unlink(path)


def test_syslog_that_reads_nothing(
    open_log: Callable[..., logger.Log], home: Home, syslog: socket.socket, tmp_path: Path
) -> None:
    """A syslog that is stuck costs its events, and no time; when it reads again, it is told."""
    opened = open_log(log_choice("syslog"), home.spool, syslog_socket=str(tmp_path / "devlog"))
    for _ in range(5000):
        opened.event("many", text="x" * 500)
        if opened.lost:
            break
    assert opened.lost == 1
    syslog.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while syslog.recv(65536):
            pass
    opened.event("after")
    assert b"1 events before this could not be written" in syslog.recv(65536)
    assert syslog.recv(65536).endswith(b": after")
    assert opened.lost == 0


def test_syslog_on_a_stream(
    open_log: Callable[..., logger.Log], home: Home, tmp_path: Path
) -> None:
    """A syslog that listens on a stream gets records that end with NUL."""
    path = str(tmp_path / "devlog")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        open_log(log_choice("syslog"), home.spool, syslog_socket=path).event("hello")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            assert connection.recv(4096).endswith(b": hello\0")


def test_long_line_is_cut_whole(
    open_log: Callable[..., logger.Log], home: Home, syslog: socket.socket, tmp_path: Path
) -> None:
    """A line that syslog would cut is cut by us, between two characters."""
    opened = open_log(log_choice("syslog"), home.spool, syslog_socket=str(tmp_path / "devlog"))
    opened.event("long", text="ä" * 10000)
    data = syslog.recv(65536)
    assert places.LONGEST_DATAGRAM - 1 <= len(data) <= places.LONGEST_DATAGRAM
    assert data.decode().endswith("ä")


@pytest.mark.parametrize("path", ["/nowhere/log", "/dev/full", "/proc/self"])
def test_log_that_cannot_be_written(
    open_log: Callable[..., logger.Log], home: Home, path: str
) -> None:
    """A log on a full disk, or nowhere, loses its events, and raises nothing."""
    opened = open_log(LogChoice("file", path, "info"), home.spool)
    opened.event("one")
    opened.event("two")
    assert opened.lost >= 1


def test_closed_standard_error(open_log: Callable[..., logger.Log], home: Home) -> None:
    """A closed or missing standard error stops nothing."""
    stream = io.StringIO()
    stream.close()
    opened = open_log(log_choice("stderr"), home.spool, stderr=stream)
    opened.event("one")
    assert opened.lost == 1


def test_pipe_that_nobody_reads(
    open_log: Callable[..., logger.Log], home: Home, tmp_path: Path
) -> None:
    """A named pipe without a reader does not stop the run."""
    os.mkfifo(tmp_path / "fifo")
    opened = open_log(LogChoice("file", str(tmp_path / "fifo"), "info"), home.spool)
    opened.event("one")
    assert opened.lost == 1


def test_nobody_elses_logging_is_touched(home: Home) -> None:
    """The configuration of structlog and logging stays that of the application."""
    before = (structlog.is_configured(), structlog.get_config(), list(logging.root.handlers))
    told("stderr", home, "info")
    after = (structlog.is_configured(), structlog.get_config(), list(logging.root.handlers))
    assert after == before


def test_structlog_comes_late() -> None:
    """Importing the log, events that are off, and plain lines do without it: it takes 80 ms."""
    code = (
        "import sys\nfrom picoqmail.log import logger as log\n"
        "from picoqmail.home.values import log_choice\n"
        "plain = log.open_log(log_choice('stderr'), '/nowhere/spool')\n"
        "plain.event('off', level='debug')\n"
        "plain.event('on')\n"
        "print('structlog' in sys.modules)\n"
        "log.open_log(log_choice('json'), '/nowhere/spool').event('on')\n"
        "print('structlog' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "True"]


def test_plain_lines_have_the_time_as_structlog_writes_it() -> None:
    """ISO 8601, UTC, microseconds: whichever of the two rendered a line."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    before = str(stamp(None, "info", {})["timestamp"])
    ours = text._timestamp(time.time_ns())
    after = str(stamp(None, "info", {})["timestamp"])
    assert before <= ours <= after
    assert len(before) == len(ours)
    assert "1970-01-01T00:00:01.000002Z" == text._timestamp(1_000_002_999)
