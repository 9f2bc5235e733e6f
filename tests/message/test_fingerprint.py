"""The hash of what a message says: the same for one built anew, another for another."""

from __future__ import annotations

import email.policy
from email import message_from_bytes
from email.message import EmailMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import make_msgid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.message.fingerprint import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def fingerprint(octets: bytes, piece: int = 1 << 18) -> str:
    """Of octets that come in pieces."""
    made = Fingerprint()
    for start in range(0, len(octets), piece):
        made.update(octets[start : start + piece])
    return made.hexdigest()


def newsletter(
    subject: str = "Gr\u00fc\u00dfe", text: str = "Dear B\n", picture: bytes = b"\x89PNG\0" * 100
) -> EmailMessage:
    """A message as frameworks build it: text, HTML with a picture in it, an attachment."""
    made = EmailMessage()
    made["From"] = "App <app@example.org>"
    made["To"] = "b@example.net"
    made["Subject"] = subject
    made["Message-ID"] = make_msgid()
    made.set_content(text)
    content_id = make_msgid(domain="x" * (len(make_msgid()) % 7) + ".example")
    made.add_alternative(
        f'<p>{text}</p> \u00fc <img src="cid:{content_id[1:-1]}"> {"=" * 100}', subtype="html"
    )
    html: Any = made.get_payload()
    html[1].add_related(picture, "image", "png", cid=content_id)
    made.add_attachment(
        b"%PDF\r\n\0\xff" * 50, maintype="application", subtype="pdf", filename="x.pdf"
    )
    return made


def of_old(text: str = "Dear B\n") -> Any:
    """The same by the classes of old, whose boundary is made when it is written."""
    made = MIMEMultipart("mixed")
    made["Subject"] = "x"
    made.attach(MIMEText(text, "plain", "utf-8"))
    made.attach(MIMEApplication(b"\0\1\2" * 40))
    return made


def encoded(cte: str) -> bytes:
    """One text in several encodings."""
    made = EmailMessage()
    made["Subject"] = "x"
    made.set_content("f\u00fcr b \n\nlast\n" + "long " * 40 + "\n", cte=cte)
    made.add_attachment("<p>f\u00fcr", subtype="html", cte=cte)
    return made.as_bytes(policy=email.policy.default.clone(cte_type="8bit"))


def two(octets: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Both of them."""
    first, second = octets
    return first, second


SAME: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "built anew": lambda: (newsletter().as_bytes(), newsletter().as_bytes()),
    "of old": lambda: (of_old().as_bytes(), of_old().as_bytes()),
    "line ends": lambda: (
        newsletter().as_bytes(),
        newsletter().as_bytes(policy=email.policy.SMTP),
    ),
    "folded": lambda: (
        newsletter("w\u00f6rter " * 30).as_bytes(policy=email.policy.SMTP),
        newsletter("w\u00f6rter " * 30).as_bytes(
            policy=email.policy.SMTP.clone(max_line_length=200)
        ),
    ),
    "international": lambda: (
        newsletter().as_bytes(policy=email.policy.SMTPUTF8),
        newsletter().as_bytes(policy=email.policy.SMTP),
    ),
    "8bit and base64": lambda: (encoded("8bit"), encoded("base64")),
    "8bit and quoted-printable": lambda: (encoded("8bit"), encoded("quoted-printable")),
    "trace and signature": lambda: (
        b"Received: from a\n by b; now\nDKIM-Signature: t=1\nSubject: x\n\nbody\n",
        b"DKIM-Signature: t=2; b=x\nDate: now\nSubject: x\n\nbody\n",
    ),
    "order of fields": lambda: (b"A: 1\nB: 2\n\nx\n", b"B: 2\nA: 1\n\nx\n"),
    "preamble": lambda: (
        b"Content-Type: multipart/mixed; boundary=x\n\nold\n--x\n\nbody\n--x--\nepilogue",
        b'Content-Type: multipart/mixed; boundary="y y"\n\nnew\n--y y\n\nbody\n--y y--\n',
    ),
    "a signature that holds its time": lambda: two(
        b"Content-Type: multipart/signed; boundary=x\n\n--x\n\nbody\n--x\n"
        b"Content-Type: application/pgp-signature\n\n%d\n--x--\n" % time
        for time in (1, 2)
    ),
}

MIXED = b"Content-Type: multipart/mixed; boundary=%b\n\n"
OTHER: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "subject": lambda: (newsletter().as_bytes(), newsletter("other").as_bytes()),
    "text": lambda: (newsletter().as_bytes(), newsletter(text="Dear C\n").as_bytes()),
    "picture": lambda: (newsletter().as_bytes(), newsletter(picture=b"\x89PNG\1").as_bytes()),
    "of old": lambda: (of_old().as_bytes(), of_old("Dear C\n").as_bytes()),
    "body": lambda: (b"A: 1\n\nx\n", b"A: 1\n\ny\n"),
    "fields": lambda: (b"A: 1\n\nx\n", b"A: 2\n\nx\n"),
    "a field more": lambda: (b"A: 1\n\nx\n", b"A: 1\nA: 1\n\nx\n"),
    "what is a body": lambda: (b"A: 1\n\nB: 2\n\nx", b"A: 1\nB: 2\n\nx"),
    "no delimiter": lambda: (
        b"Content-Type: multipart/mixed; boundary=x\n\none\n",
        b"Content-Type: multipart/mixed; boundary=x\n\ntwo\n",
    ),
    "parts": lambda: (
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na\n--x\n\nb\n--x--\n",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na\n\nb\n--x--\n",
    ),
    "nesting": lambda: (
        MIXED % b"x" + b"--x\n" + MIXED % b"y" + b"--y\n\na\n--y\n\nb\n--y--\n--x--\n",
        MIXED % b"x" + b"--x\n" + MIXED % b"y" + b"--y\n\na\n--y--\n--x\n\nb\n--x--\n",
    ),
    "which picture": lambda: two(
        b"Content-Type: multipart/related; boundary=x\n\n"
        b"--x\nContent-Type: text/html\n\ncid:%b cid:%b\n"
        b"--x\nContent-ID: <1@x>\nContent-Type: image/png\n\nfirst\n"
        b"--x\nContent-ID: <2@x>\nContent-Type: image/png\n\nsecond\n--x--\n" % order
        for order in ((b"1@x", b"2@x"), (b"2@x", b"1@x"))
    ),
    "a message in it": lambda: two(
        b"Content-Type: message/rfc822\n\nSubject: %d\n\nbody\n" % number for number in (1, 2)
    ),
    "the end of an attachment": lambda: (
        b"Content-Transfer-Encoding: base64\nContent-Type: a/b\n\nAAAA\nAA==\n",
        b"Content-Transfer-Encoding: base64\nContent-Type: a/b\n\nAAAA\nAQ==\n",
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_says_the_same(kind: str) -> None:
    """Another boundary, Content-ID, Message-ID, folding or encoding is the same message."""
    first, second = SAME[kind]()
    assert first != second
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize("kind", OTHER)
def test_what_says_something_else(kind: str) -> None:
    """Text, fields, parts, their order and what a link leads to count."""
    first, second = OTHER[kind]()
    assert fingerprint(first) != fingerprint(second)


SAMPLES = [make()[0] for make in (*SAME.values(), *OTHER.values())]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 76, 1000])
def test_pieces_do_not_matter(piece: int) -> None:
    """A stream gives what it has."""
    for octets in SAMPLES:
        assert fingerprint(octets) == fingerprint(octets, piece)


@given(
    st.lists(
        st.sampled_from(
            [b"--x\n", b"--x--\n", b"--x", b"\n", b"\r\n", b"Content-ID: <a@b>\n", b"cid:a@b ",
             b"Content-Type: multipart/mixed; boundary=x\n", b"Content-Type: message/rfc822\n",
             b"Content-Transfer-Encoding: base64\n", b"-", b"=\n", b"a", b" b\n", b"cid:", b"\r",
             b"Content-Transfer-Encoding: quoted-printable\n", b"y" * 1500]
        ),
        max_size=14,
    ),
    st.integers(1, 40),
)  # fmt: skip
def test_any_octets_in_any_pieces(lines: list[bytes], piece: int) -> None:
    """Nothing is raised, and the pieces do not matter."""
    octets = b"".join(lines)
    assert fingerprint(octets) == fingerprint(octets, piece)


def test_what_the_email_package_reads_back_is_the_same() -> None:
    """A message that went through a parser says what it said."""
    octets = newsletter().as_bytes()
    assert fingerprint(octets) == fingerprint(
        message_from_bytes(octets, policy=email.policy.default).as_bytes()
    )


def test_memory_is_bounded() -> None:
    """A line or a header without an end is not collected."""
    made = Fingerprint()
    for start in (b"x" * 100, b"Content-Type: multipart/mixed; boundary=x\n\n"):
        made = Fingerprint()
        made.update(start)
        for _ in range(40):
            made.update(b"y" * (1 << 20))
        assert len(made._waiting) + len(made._header or b"") < 1 << 25
        assert made.hexdigest().startswith("2:")
