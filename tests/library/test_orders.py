"""What a Mail may say: recipients of all kinds, keys, missing fields; and what is refused."""

from __future__ import annotations

import email
import http.client
import io
import os
import uuid
import zlib
from email.headerregistry import Address
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import make_msgid, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest

import picoqmail
from picoqmail import Mail
from temporary_home import FROM_A_TO_B, TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


PERSON = Address("B, C", "b", "example.net")


@pytest.mark.parametrize(
    "recipients",
    [
        "b@example.net",
        ["b@example.net"],
        ("b@example.net",),
        {"b@example.net"},
        {"b@example.net": "B"},
        {"b@example.net": "B"}.keys(),
        (one for one in ["b@example.net"]),
        iter(["b@example.net"]),
        map(str, ["b@example.net"]),
        PERSON,
        [PERSON],
        [("B, C", "b@example.net")],
        [("", "b@example.net")],
    ],
    ids=lambda one: type(one).__name__,
)
def test_recipients_are_any_iterable(home: TemporaryHome, recipients: Any) -> None:
    """Text, an Address or a pair of name and address, alone or in any iterable."""
    receipt = picoqmail.enqueue(b"", "a@example.org", recipients)
    assert ("b@example.net",) == receipt.recipients
    assert ["b@example.net"] == home.addresses(receipt.id)


def test_a_pair_of_texts_is_two_recipients(home: TemporaryHome) -> None:
    """A tuple of the outside is an iterable; a pair of name and address stands in one."""
    receipt = picoqmail.enqueue(b"", ("A", "a@example.org"), ("b@example.net", "c@example.net"))
    assert ("a@example.org", ("b@example.net", "c@example.net")) == (
        receipt.sender,
        receipt.recipients,
    )
    quoted = picoqmail.enqueue(b"", Address("", "a b", "x"), [Address("", "c,d", "y")])
    assert ("a b@x", ["c,d@y"]) == (quoted.sender, home.addresses(quoted.id))


@pytest.mark.parametrize(
    "recipients",
    [b"b@example.net", 3, [3], [None], [b"b@example.net"], [("a", "b", "c")], [["b@x"]], [], ()],
    ids=repr,
)
def test_what_is_no_recipient(home: TemporaryHome, recipients: Any) -> None:
    """An error of the tree, and no file."""
    with pytest.raises(picoqmail.EnvelopeError):
        picoqmail.enqueue(b"", "a@example.org", recipients)
    assert [] == home.everything()


# --- Streams and keys -------------------------------------------------------------------------


class Failing:
    """A stream that fails as streams of other libraries do."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def read(self, _octets: int) -> bytes:
        """Fail."""
        raise self._error


def closed() -> io.BytesIO:
    """A stream that was closed."""
    made = io.BytesIO(b"x")
    made.close()
    return made


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (closed(), "closed"),
        (Failing(http.client.IncompleteRead(b"x", 10)), "IncompleteRead"),
        (Failing(zlib.error("Error -3 while decompressing")), "Error -3"),
        (Failing(EOFError()), "EOFError"),
        (Failing(OSError(5, "Input/output error")), "Input/output error"),
    ],
)
def test_a_stream_that_fails(home: TemporaryHome, stream: Any, text: str) -> None:
    """Whatever it raises becomes an InputError that says so; nothing is in the spool."""
    with pytest.raises(picoqmail.InputError, match=text) as caught:
        picoqmail.enqueue(stream, **FROM_A_TO_B)
    assert isinstance(caught.value, OSError)
    assert [] == home.everything()


def test_a_stream_that_cannot_be_read(home: TemporaryHome, tmp_path: Path) -> None:
    """One that is open for writing only."""
    with (tmp_path / "x").open("wb") as stream, pytest.raises(picoqmail.InputError):
        picoqmail.enqueue(stream, **FROM_A_TO_B)
    assert [] == home.everything()


@pytest.mark.parametrize("key", [uuid.UUID(int=1), 3, b"k", "", "k" * 1025, True], ids=repr)
def test_a_key_is_text(home: TemporaryHome, key: Any) -> None:
    """Other kinds are refused by an error of the tree, alone and among many."""
    with pytest.raises(picoqmail.MessageError, match="not text of 1 to 1024"):
        picoqmail.enqueue(b"", **FROM_A_TO_B, idempotency_key=key)
    results = picoqmail.enqueue_many(
        Mail(b"", **FROM_A_TO_B, idempotency_key=one) for one in ("good", key, "also good")
    )
    assert [False, True, False] == [isinstance(one, Exception) for one in results]
    assert isinstance(results[1], picoqmail.MessageError)
    assert 2 == len(home.ids())


# --- The same message again ---------------------------------------------------------------------


def newsletter(text: str = "Dear B") -> EmailMessage:
    """A message with a picture, as a program builds it for each try."""
    made = EmailMessage()
    made["From"] = "a@example.org"
    made["To"] = "b@example.net"
    made["Message-ID"] = make_msgid()
    made.set_content(text)
    content_id = make_msgid()
    made.add_alternative(f'<p>{text}<img src="cid:{content_id[1:-1]}">', subtype="html")
    parts: Any = made.get_payload()
    parts[1].add_related(b"\x89PNG", "image", "png", cid=content_id)
    return made


def of_old(text: str = "Dear B") -> MIMEMultipart:
    """One of the classes of old, whose boundary is random once it was written."""
    made = MIMEMultipart()
    made["From"] = "a@example.org"
    made["To"] = "b@example.net"
    made.attach(MIMEText(text))
    made.as_bytes()
    return made


@pytest.mark.parametrize("made", [newsletter, of_old])
@pytest.mark.parametrize("form", [lambda one: one, bytes, lambda one: io.BytesIO(bytes(one))])
def test_a_message_built_anew_is_the_same(
    home: TemporaryHome, made: Callable[..., Any], form: Callable[[Any], Any]
) -> None:
    """Another boundary, Content-ID and Message-ID: the first receipt; another text: an error."""
    first = picoqmail.enqueue(form(made()), idempotency_key="k")
    again = picoqmail.enqueue(form(made()), idempotency_key="k")
    assert (first.id, True) == (again.id, again.repeated)
    with pytest.raises(picoqmail.KeyReusedError):
        picoqmail.enqueue(form(made("Dear C")), idempotency_key="k")
    with pytest.raises(picoqmail.KeyReusedError):
        picoqmail.enqueue(form(made()), recipients=["c@example.net"], idempotency_key="k")
    assert 1 == len(home.ids())


def test_the_key_alone_may_decide(home: TemporaryHome) -> None:
    """`on_reuse="return"`: whatever comes with a used key is the first message again."""
    first = picoqmail.enqueue(newsletter(), idempotency_key="k")
    other = picoqmail.enqueue(
        newsletter("Dear C"),
        recipients=["c@example.net"],
        idempotency_key="k",
        on_reuse="return",
    )
    assert (first.id, True) == (other.id, other.repeated)
    several = picoqmail.enqueue_many(
        Mail(b"%d" % n, **FROM_A_TO_B, idempotency_key="k", on_reuse="return") for n in range(3)
    )
    assert [first.id] * 3 == [one.id for one in several.receipts]
    with picoqmail.prepare(b"", **FROM_A_TO_B, idempotency_key="k", on_reuse="return") as pending:
        assert first.id == pending.commit().id
    with pytest.raises(picoqmail.KeyReusedError):
        picoqmail.prepare(b"", **FROM_A_TO_B, idempotency_key="k")
    wrong: Any = "ignore"
    with pytest.raises(picoqmail.MessageError, match="on_reuse"):
        picoqmail.enqueue(b"", **FROM_A_TO_B, on_reuse=wrong)
    assert [first.id] == home.ids()


def test_a_record_of_the_version_before(home: TemporaryHome) -> None:
    """Its fingerprint cannot be compared, so the key decides: no false alarm after an upgrade."""
    first = picoqmail.enqueue(b"x", **FROM_A_TO_B, idempotency_key="k")
    directory = f"{home.spool}/idempotency"
    (name,) = [one for one in os.listdir(directory) if not one.startswith(".")]
    path = f"{directory}/{name}"
    with open(path, "r+b") as file:
        record = file.read().replace(b'"2:', b'"')
        file.seek(0)
        file.truncate()
        file.write(record)
    again = picoqmail.enqueue(b"x", **FROM_A_TO_B, idempotency_key="k")
    assert (first.id, True) == (again.id, again.repeated)


# --- Missing fields -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "begins", "ends"),
    [
        (b"Subject: x\n\nbody\n", b"Subject: x\nDate: ", b"\n\nbody\n"),
        (b"Subject: x\r\n\r\nbody\r\n", b"Subject: x\r\nDate: ", b"\r\n\r\nbody\r\n"),
        (b"Subject: x", b"Subject: x\nDate: ", b">\n"),
        (b"From x\nSubject: x\n\nbody", b"From x\nSubject: x\nDate: ", b"\n\nbody"),
        (b"\nbody\n", b"Date: ", b"\n\nbody\n"),
        (b"body\n", b"Date: ", b"\n\nbody\n"),
        (b"", b"Date: ", b">\n"),
        ("Subject: x\n\nbody\n", b"Subject: x\nDate: ", b"\n\nbody\n"),
    ],
)
def test_missing_fields_are_added(
    home: TemporaryHome, message: Any, begins: bytes, ends: bytes
) -> None:
    """Date and Message-ID, at the end of the header, with its line ends."""
    receipt = picoqmail.enqueue(message, **FROM_A_TO_B, add_missing=True)
    octets = home.message(receipt.id)
    assert octets.startswith(begins)
    assert octets.endswith(ends)
    assert (b"\r\n" in message if isinstance(message, bytes) else False) == (b"\r" in octets)
    parsed = email.message_from_bytes(octets)
    assert parsedate_to_datetime(str(parsed["Date"])).year > 2000
    assert str(parsed["Message-ID"]).endswith("@me.test>")
    assert 1 == len(parsed.get_all("Date", ()))


def test_what_is_there_stays(home: TemporaryHome) -> None:
    """Only what is missing is added, and nothing without the wish; a key's message is the same."""
    octets = b"DATE : Mon, 1 Jan 2024 00:00:00 +0000\nmessage-id:<x@y>\n\nbody\n"
    assert octets == home.message(picoqmail.enqueue(octets, **FROM_A_TO_B, add_missing=True).id)
    assert b"x" == home.message(picoqmail.enqueue(b"x", **FROM_A_TO_B).id)
    made = EmailMessage()
    made["From"], made["To"] = "a@example.org", "b@example.net"
    for _ in range(2):
        receipt = picoqmail.enqueue(made, add_missing=True, idempotency_key="k")
    assert receipt.repeated
    assert made["Date"] is None, "the caller's object stays as it was"
    one, two = (
        email.message_from_bytes(home.message(picoqmail.enqueue(made, add_missing=True).id))
        for _ in range(2)
    )
    assert one["Message-ID"] != two["Message-ID"]
