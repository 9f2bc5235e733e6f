"""Applications in the servers that people run: what was accepted is delivered, all of it, once.

Each server serves a hundred requests by several workers at once. Each request enqueues a mail and
logs an error, which MailHandler mails. The server is ended while nothing is forced to wait for it.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rig.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rig.recording import RecordingRelay
    from trial import Trial

REQUESTS = 100
SECONDS = 60

APPLICATION = """
import logging, os
import picoqmail
from picoqmail import aio
from picoqmail.logging_handler import MailHandler

logger = logging.getLogger("shop")
logger.addHandler(
    MailHandler("Shop <shop@example.org>", "ops@example.org", "{message}", burst=100_000)
)
logger.propagate = False
if os.environ.get("EARLY"):
    logger.error("log early %d", os.getpid())

def mail(number):
    message = f"From: a@example.org\\nTo: b@example.net\\nSubject: mail {number}\\n\\nx\\n"
    return message.encode()

def application(environ, start_response):
    number = environ["QUERY_STRING"]
    picoqmail.enqueue(mail(number))
    logger.error("log %s", number)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"accepted"]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    number = scope["query_string"].decode()
    await aio.enqueue(mail(number))
    logger.error("log %s", number)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"accepted"})
"""


def need(*modules: str) -> None:
    """Skip the test unless these are installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name} (extra test-servers)")


@pytest.fixture
def project(tmp_path: Path, trial: Trial, relay: RecordingRelay) -> Iterator[Path]:
    """A directory with the application; its home has a relay."""
    (tmp_path / "shop.py").write_text(APPLICATION)
    trial.setting("relayip", relay.address)
    yield tmp_path
    trial.wait_for_senders()


def served(
    project: Path,
    trial: Trial,
    command: list[str],
    port: int,
    *,
    early: bool = False,
    before_end: Callable[[], object] = lambda: None,
) -> None:
    """Start the server, make the requests, end it as its administrator does."""
    environ = {
        **trial.sending(),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(project),
        **({"EARLY": "yes"} if early else {}),
    }
    with (
        (project / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=project, env=environ, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        try:
            wait_until(lambda: answers(port) or server.poll() is not None, "it serves", SECONDS)
            with ThreadPoolExecutor(8) as clients:
                got = list(clients.map(lambda number: ask(port, number), range(1, REQUESTS + 1)))
            assert [b"accepted"] * REQUESTS == got, (project / "log").read_text()
            before_end()
        finally:
            server.terminate()
            try:
                server.wait(SECONDS)
            finally:
                # What it left running; usually nothing.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)


def ask(port: int, number: int) -> bytes:
    """One request."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{number}", timeout=SECONDS) as answer:
        content: bytes = answer.read()
    return content


def answers(port: int) -> bool:
    """Whether the server serves; the request has a number of its own."""
    try:
        return ask(port, 0) == b"accepted"
    except OSError:
        return False


def check(trial: Trial, relay: RecordingRelay, *, early: int = 0) -> None:
    """Every accepted mail and every record arrived, once."""
    expected = 2 * REQUESTS + 2 + early
    try:
        got = relay.wait_for(expected, SECONDS)
    except TimeoutError:
        # What follows says what is missing.
        got = relay.messages
    subjects = collections.Counter(
        line.removeprefix(b"Subject: ").decode()
        for one in got
        for line in one.unix.split(b"\n")
        if line.startswith(b"Subject: ")
    )
    numbers = range(REQUESTS + 1)
    wanted = {f"{kind} {number}": 1 for kind in ("mail", "log") for number in numbers}
    rest = {name: count for name, count in subjects.items() if name not in wanted}
    assert wanted == {name: subjects[name] for name in wanted}
    assert all(name.startswith("log early ") for name in rest)
    assert early <= len(rest)
    assert set(rest.values()) <= {1}
    wait_until(lambda: not trial.files(), "the spool is empty", SECONDS)


GUNICORN = {
    "sync": ["-k", "sync"],
    "gthread": ["-k", "gthread", "--threads", "4"],
    "gevent": ["-k", "gevent"],
    "sync, preload": ["-k", "sync", "--preload"],
    "gthread, preload": ["-k", "gthread", "--threads", "4", "--preload"],
    "gevent, preload": ["-k", "gevent", "--preload"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUNICORN)
def test_gunicorn(project: Path, trial: Trial, relay: RecordingRelay, kind: str) -> None:
    """With processes, threads and greenlets, loaded before the workers are forked or after."""
    need("gunicorn", *(["gevent"] if "gevent" in kind else []))
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}"]
    early = "preload" in kind
    served(project, trial, [*command, *GUNICORN[kind], "shop:application"], port, early=early)
    check(trial, relay, early=int(early))


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["none", "threads", "lazy"])
def test_uwsgi(project: Path, trial: Trial, relay: RecordingRelay, threads: str) -> None:
    """It is no interpreter, and runs no thread of the application unless it is told to."""
    program = os.path.join(os.path.dirname(sys.executable), "uwsgi")
    if not os.path.exists(program):
        pytest.skip("needs uWSGI: pip install uwsgi")
    port = free_port()
    command = [program, "--http-socket", f"127.0.0.1:{port}", "--module", "shop:application"]
    command += ["--master", "--processes", "2", "--home", sys.prefix, "--die-on-term"]
    command += {"none": [], "threads": ["--threads", "4"], "lazy": ["--lazy-apps"]}[threads]
    served(project, trial, command, port)
    check(trial, relay)


@pytest.mark.slow
def test_uvicorn(project: Path, trial: Trial, relay: RecordingRelay) -> None:
    """An asynchronous application, two processes."""
    need("uvicorn")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--workers", "2", "shop:asgi"]
    # Its workers die of the signal, without a word to Python: what waits in memory would be lost.
    served(project, trial, command, port, before_end=lambda: relay.wait_for(202, SECONDS))
    check(trial, relay)


TASKS = """
import celery, os, picoqmail
app = celery.Celery("tasks", broker="filesystem://", backend=f"file://{os.getcwd()}/results")
app.conf.broker_transport_options = {
    "data_folder_in": "queue", "data_folder_out": "queue", "store_processed": False,
    "control_folder": "control",
}

@app.task
def mail(number):
    message = f"From: a@example.org\\nTo: b@example.net\\nSubject: mail {number}\\n\\nx\\n"
    return picoqmail.enqueue(message.encode(), idempotency_key=str(number)).id

@app.task
def wrong(kind):
    if kind == "address":
        picoqmail.enqueue(b"", "a@example.org", ["b@example.net", "b@x..net"])
    if kind == "home":
        picoqmail.enqueue(b"", "a@example.org", ["b@example.net"], home="/nonexistent")
    spool = picoqmail.Spool()
    os.rename(spool.home.spool + "/tmp", spool.home.spool + "/away")
    try:
        spool.get("1.M1P1Q1R1.x")
        picoqmail.enqueue(b"", "a@example.org", ["b@example.net"])
    finally:
        os.rename(spool.home.spool + "/away", spool.home.spool + "/tmp")
"""
CALLER = """
import picoqmail, tasks
results = [tasks.mail.delay(number) for number in range(30)]
ids = {one.get(timeout=60) for one in results}
assert len(ids) == 30, ids
again = {one.get(timeout=60) for one in [tasks.mail.delay(number) for number in range(30)]}
assert again == ids
for kind, error, text in (
    ("address", picoqmail.AddressError, "recipient 2 'b@x..net' cannot be sent"),
    ("home", picoqmail.ConfigurationError, "/nonexistent: there is no home"),
    ("message", picoqmail.NoSuchMessageError, "no such message"),
):
    try:
        tasks.wrong.delay(kind).get(timeout=60)
    except error as exc:
        assert text in str(exc), str(exc)
        if kind == "address":
            assert (exc.index, exc.address) == (1, "b@x..net"), vars(exc)
    else:
        raise AssertionError(kind)
print("all is well")
"""


@pytest.mark.slow
def test_celery(project: Path, trial: Trial, relay: RecordingRelay) -> None:
    """Two forked workers; mail by key goes once; errors come back with type, text and facts."""
    need("celery")
    (project / "tasks.py").write_text(TASKS)
    for name in ("queue", "control", "results"):
        (project / name).mkdir()
    environ = {**trial.sending(), "PATH": os.environ["PATH"], "PYTHONPATH": str(project)}
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", "2"]
    command += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    with (
        (project / "log").open("wb") as log,
        subprocess.Popen(command, cwd=project, env=environ, stdout=log, stderr=log) as worker,
    ):
        try:
            caller = subprocess.run(
                [sys.executable, "-c", CALLER],
                cwd=project,
                env=environ,
                capture_output=True,
                text=True,
                timeout=150,
                check=False,
            )
        finally:
            worker.terminate()
            worker.wait(SECONDS)
    assert "all is well\n" == caller.stdout, caller.stderr + (project / "log").read_text()
    relay.wait_for(30, SECONDS)
    trial.wait_for_senders()
    assert [] == trial.files()
