"""What the email package writes of an object: its fields, and not one line more."""

from __future__ import annotations

import email
import email.policy
from email.header import Header
from email.message import EmailMessage, Message
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail import smtplib_compat
from picoqmail.errors import MessageError
from picoqmail.library.api import Spool
from picoqmail.message.generator import write_object
from picoqmail.message.header import field_name
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORD = "=?UTF-8?Q?x=0ABcc:_i@e?="


def modern() -> EmailMessage:
    """A message of today's interface, with the policy `default`."""
    made = EmailMessage()
    made["From"] = "a@example.org"
    made["To"] = "b@example.net"
    made.set_content("text\n")
    return made


def with_field(made: Message[Any, Any], name: str, value: Any) -> Message[Any, Any]:
    """The same with a field more."""
    made[name] = value
    return made


def attached(filename: str) -> Message[Any, Any]:
    """A message whose attachment has a name of somebody's choosing."""
    made = modern()
    made.add_attachment(b"x", maintype="a", subtype="b", filename=filename)
    return made


def inner() -> Message[Any, Any]:
    """A part of a part has the line too much."""
    part = MIMEBase("application", "octet-stream")
    part["Content-Description\nContent-Type: text/html"] = "x"
    made = MIMEMultipart()
    made.attach(MIMEText("text"))
    nested = MIMEMultipart()
    nested.attach(part)
    made.attach(nested)
    return made


def parsed(raw: bytes) -> Message[Any, Any]:
    """A message that came as octets, with the policy `default`."""
    return email.message_from_bytes(raw, policy=email.policy.default)


FORGED: dict[str, Callable[[], Message[Any, Any]]] = {
    "an encoded word": lambda: with_field(modern(), "Subject", WORD),
    "base64": lambda: with_field(modern(), "Subject", "=?utf-8?b?eApCY2M6IGlAZQ==?= "),
    "an empty line": lambda: with_field(modern(), "Subject", "=?utf-8?q?x=0A=0Abody?="),
    "CR LF": lambda: with_field(modern(), "Subject", "=?utf-8?q?x=0D=0ABcc:_i@e?="),
    "CR": lambda: with_field(modern(), "Subject", "=?utf-8?q?x=0DBcc:_i@e?="),
    "a name and address": lambda: with_field(modern(), "Reply-To", f"{WORD} <r@example.org>"),
    "a field of any name": lambda: with_field(modern(), "X-Mine", f"{WORD} y"),
    "the name of a file": lambda: attached(filename=WORD),
    "a field's name": lambda: with_field(MIMEText("x"), "Subject\nBcc: i@e", "y"),
    "a name with a colon": lambda: with_field(MIMEText("x"), "Bcc: i@e, x", "y"),
    "a name with a blank": lambda: with_field(MIMEText("x"), "Bcc ", "i@e"),
    "no name": lambda: with_field(MIMEText("x"), "", "y"),
    "a value of old": lambda: with_field(MIMEText("x"), "Subject", "y\nBcc: i@e"),
    "an early end": lambda: with_field(MIMEText("x"), "Subject", "y\n\nbody"),
    "an early end in CR": lambda: with_field(MIMEText("x"), "Subject", "y\r\rbody"),
    "a line end at the end": lambda: with_field(MIMEText("x"), "Subject", "y\n\n"),
    "a part of a part": inner,
    "what was parsed": lambda: parsed(b"Subject: " + b"y " * 60 + WORD.encode() + b"\n\nbody\n"),
}


@pytest.fixture
def home(tmp_path: Path) -> TemporaryHome:
    """A home that nothing is sent from."""
    return TemporaryHome(str(tmp_path / "home")).make()


@pytest.mark.parametrize("utf8", [False, True])
@pytest.mark.parametrize("kind", FORGED)
def test_no_line_comes_from_a_value(kind: str, *, utf8: bool) -> None:
    """Either Python refuses it, or writes it as text of that field, or we refuse it."""
    try:
        made = FORGED[kind]()
    except ValueError:
        return  # Refused by the email package when it was set.
    try:
        octets = write_object(made, utf8=utf8)
    except MessageError as exc:
        assert str(exc).isprintable()  # noqa: PT017 - the other outcome is as good
        return
    lines = octets.partition(b"\n\n")[0].split(b"\n")
    names = [field_name(one) for one in lines if one[:1] not in (b" ", b"\t")]
    assert [one.lower().encode() for one in made.keys()] == names  # noqa: SIM118 - with duplicates
    assert b"\nBcc: i@e" not in octets.replace(b"\r", b"\n")
    assert b"\nContent-Type: text/html" not in octets


@pytest.mark.parametrize("kind", ["a field's name", "an early end", "no name", "a part of a part"])
def test_what_every_python_writes_is_refused(home: TemporaryHome, kind: str) -> None:
    """By the library, and in front of smtplib's interface; nothing is in the spool."""
    spool = Spool(home.root, send=False)
    with pytest.raises(MessageError, match=r"not a field of the message|cannot be written"):
        spool.enqueue(FORGED[kind](), "a@example.org", ["b@example.net"])
    (outcome,) = spool.enqueue_many([_mail(FORGED[kind]())])
    assert isinstance(outcome, MessageError)
    with (
        smtplib_compat.SMTP(home=home.root, send=False) as smtp,
        pytest.raises(MessageError),
    ):
        smtp.send_message(FORGED[kind](), "a@example.org", "b@example.net")
    assert [] == home.files()


def _mail(message: Message[Any, Any]) -> Any:
    from picoqmail import Mail

    return Mail(message, "a@example.org", ["b@example.net"])


GOOD: dict[str, Callable[[], Message[Any, Any]]] = {
    "modern": modern,
    "long": lambda: with_field(modern(), "Subject", "w\u00f6rter " * 200),
    "one long word": lambda: with_field(modern(), "Subject", "x" * 3000),
    "many recipients": lambda: with_field(
        modern(), "Cc", ", ".join(f"N\u00e4me {n} <r{n}@example.net>" for n in range(100))
    ),
    "of old": lambda: with_field(MIMEText("x\n"), "Subject", "folded\n by hand\n\tonce more"),
    "a header object": lambda: with_field(
        MIMEText("x"), "Subject", Header("\u00fc" * 200, "utf-8")
    ),
    "an attached name": lambda: attached(filename="\u00fc x.pdf"),
    "folded with CR LF": lambda: email.message_from_bytes(
        b"Subject: a\r\n b\r\nX-Raw: \xfc\r\n \xfc\r\n\r\nbody\r\n"
    ),
    "no header": lambda: email.message_from_bytes(b"\nbody\n"),
    "a part without a header": lambda: email.message_from_bytes(
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\npart\n--x--\n"
    ),
    "a message in a message": lambda: email.message_from_bytes(
        b"Content-Type: message/rfc822\n\nSubject: \xe4\n b\n\nbody\n"
    ),
    "an mbox line": lambda: email.message_from_bytes(b"From x\nSubject: a\n\nbody\n"),
}


@pytest.mark.parametrize("utf8", [False, True])
@pytest.mark.parametrize("kind", GOOD)
def test_what_is_right_is_written(kind: str, *, utf8: bool) -> None:
    """Folded, encoded, nested: nothing that the email package writes well is refused."""
    octets = write_object(GOOD[kind](), utf8=utf8)
    again = email.message_from_bytes(octets, policy=email.policy.default)
    assert [] == again.defects
    expected = [one.lower() for one in GOOD[kind]().keys()]  # noqa: SIM118 - with duplicates
    assert expected == [one.lower() for one in again.keys()]  # noqa: SIM118
