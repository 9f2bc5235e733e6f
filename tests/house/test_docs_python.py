"""The examples of the pages on Python run as they are written."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from installation import CHECKOUT
from picoqmail.testing import TemporarySpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig.recording import RecordingRelay

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def spool(monkeypatch: pytest.MonkeyPatch, relay: RecordingRelay) -> Iterator[TemporarySpool]:
    """A home that the environment names, with a relay."""
    with TemporarySpool() as made:
        for name, value in made.environ.items():
            monkeypatch.setenv(name, value)
        made.set("relayip", relay.address)
        yield made


def blocks(page: str) -> list[tuple[int, str]]:
    """The examples of a page, and the line that each begins at."""
    with open(os.path.join(CHECKOUT, "docs", page), encoding="utf-8") as file:
        text = file.read()
    return [(text.count("\n", 0, one.start(1)), one[1]) for one in BLOCK.finditer(text)]


def run(page: str, *, wanted: str = "") -> dict[str, Any]:
    """Run the examples of a page in one namespace, and return it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, code in blocks(page):
        if wanted and not re.search(wanted, code):
            continue
        # Lines of a traceback are those of the page.
        exec(compile("\n" * line + code, f"docs/{page}", "exec"), names)  # noqa: S102 - our own
    return names


def test_the_page_of_the_library(spool: TemporarySpool, relay: RecordingRelay) -> None:
    """Every example runs, in order; what is delivered at the end arrives."""
    names = run("python.md")
    assert names["summary"].delivered > 100
    assert names["summary"].delivered == len(relay.wait_for(names["summary"].delivered))
    assert "delivered" in {name for name, _ in names["events"]}
    names["test_welcome"](spool)


def test_flask(spool: TemporarySpool) -> None:
    """The form is answered, its mail is there once, and an injection is refused."""
    pytest.importorskip("flask", reason="needs Flask")
    client = run("python-frameworks.md", wanted="flask")["app"].test_client()
    for _ in range(2):
        answer = client.post("/sign-up", data={"email": "b@example.net"})
        assert (200, "Mail is on its way.") == (answer.status_code, answer.text)
    spool.assert_one(to="b@example.net", subject="Welcome")
    evil = "b@example.net\nBcc: x@example.net"
    assert 400 == client.post("/sign-up", data={"email": evil}).status_code
    assert 1 == len(spool)


def test_fastapi(spool: TemporarySpool) -> None:
    """The answer has the ID of the mail, the same for a repeated request."""
    pytest.importorskip("fastapi", reason="needs FastAPI")
    testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx")
    api = run("python-frameworks.md", wanted="fastapi")["api"]
    client = testclient.TestClient(api)
    answers = [
        client.post("/orders/7/confirm", params={"email": "b@example.net"}) for _ in range(2)
    ]
    assert [200, 200] == [one.status_code for one in answers]
    mail = spool.assert_one(subject="Order 7")
    assert [{"mail": mail.id}] * 2 == [one.json() for one in answers]
    assert 422 == client.post("/orders/8/confirm", params={"email": "nobody"}).status_code


def test_celery(spool: TemporarySpool) -> None:
    """A task that runs twice sends once."""
    pytest.importorskip("celery", reason="needs Celery")
    names = run("python-frameworks.md", wanted="celery")
    results = [names["send_invoice"].apply(args=(3, "b@example.net")).get() for _ in range(2)]
    assert [spool.assert_one(subject="Invoice 3").id] * 2 == results


def test_the_settings_of_django_are_those_that_exist() -> None:
    """The page names the backend and the settings by their right names."""
    pytest.importorskip("django", reason="needs Django (extra django)")
    from django.utils.module_loading import import_string

    names = run("python-frameworks.md", wanted="settings.py")
    mailer = names["MAILERS"]["default"]
    assert import_string(names["EMAIL_BACKEND"]) is import_string(mailer["BACKEND"])
    assert import_string(mailer["BACKEND"])(**mailer["OPTIONS"])
    options = os.path.join(CHECKOUT, "picoqmail", "django", "options.py")
    with open(options, encoding="utf-8") as file:
        known = file.read()
    for name in names:
        if name.startswith("PICOQMAIL_"):
            assert name in known
