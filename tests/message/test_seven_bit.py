"""A message in 7 bits says what it said before, to a reader that somebody else wrote."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8, default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.message.seven_bit import NotConvertibleError, convert


def read(message: bytes) -> EmailMessage:
    """Return a message as the email package reads it; it must be ASCII."""
    assert message.isascii()
    found = message_from_bytes(message, policy=default)
    assert isinstance(found, EmailMessage)
    return found


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.just("\n")))
def test_plain_text_without_mime_is_kept(text: str) -> None:
    """It is given the fields of MIME; what a reader sees is the same."""
    found = read(convert(f"Subject: x\n\nü{text}\n".encode()))
    # The line ends of base64 are those of the wire.
    assert f"ü{text}\n" == found.get_content().replace("\r\n", "\n")


def test_what_is_ascii_keeps_its_octets() -> None:
    """Only the part and the field with 8-bit octets are written anew."""
    text = (
        "Received: by x\nDKIM-Signature: v=1;\n\ta=b\nFrom: a@x.test\nSubject:  odd   blanks\n"
        'MIME-Version: 1.0\nContent-Type: multipart/mixed;\n boundary="b"\n\npreamble\n--b\n\n'
        "first  \n--b\nContent-Type: text/plain; charset=utf-8\n\ngrün\n--b--\nepilogue\n"
    )
    converted = convert(text.encode()).decode()
    head, _, tail = text.partition("Content-Type: text/plain")
    assert converted.startswith(head)
    assert converted.endswith("gr=C3=BCn\n--b--\nepilogue\n")
    assert tail


@pytest.mark.parametrize(
    ("field", "read_as"),
    [
        ("Subject: Grüße", ("Subject", "Grüße")),
        ("From: Jörg Müller <a@x.test>", ("From", "Jörg Müller <a@x.test>")),
        ('To: "Ü, B" <a@x.test>, c@y.test', ("To", '"Ü, B" <a@x.test>, c@y.test')),
        ("X-Note: " + "lång " * 60, ("X-Note", ("lång " * 60).strip())),
    ],
)
def test_header_fields_become_encoded_words(field: str, read_as: tuple[str, str]) -> None:
    """RFC 2047; no address is encoded."""
    name, value = read_as
    assert value == read(convert(f"{field}\n\nx\n".encode()))[name]


def test_attachments_that_are_no_text_are_base64() -> None:
    """Their lines end as on the wire."""
    text = b"Content-Type: application/x; a=b\nContent-Transfer-Encoding: 8bit\n\n\xff\xfe\n\x80\n"
    assert b"\xff\xfe\r\n\x80\r\n" == read(convert(text)).get_content()


def test_much_that_is_not_ascii_is_base64() -> None:
    """Quoted-printable would be three times as long."""
    converted = convert(("Subject: x\n\n" + "ありがとう\n" * 20).encode())
    assert b"Content-Transfer-Encoding: base64" in converted
    assert "ありがとう\n" * 20 == read(converted).get_content().replace("\r\n", "\n")


def test_what_is_no_utf_8_is_of_an_unknown_charset() -> None:
    """RFC 1428; nothing is guessed."""
    assert b"charset=unknown-8bit" in convert(b"Subject: x\n\n\xe4\n")


def test_nested_parts_and_messages() -> None:
    """Each leaf is converted; the containers say 7bit."""
    inner = EmailMessage()
    inner["Subject"] = "Füße"
    inner.set_content("größer\n", cte="8bit")
    outer = EmailMessage()
    outer["Subject"] = "x"
    outer.set_content("kühl\n", cte="8bit")
    outer.add_attachment(inner)
    converted = convert(outer.as_bytes(policy=SMTPUTF8.clone(linesep="\n", cte_type="8bit")))
    text, enclosed = read(converted).iter_parts()
    assert "kühl\n" == text.get_content()
    found = enclosed.get_content()
    assert ("Füße", "größer\n") == (found["Subject"], found.get_content())
    assert b"8bit" not in converted


@pytest.mark.parametrize(
    "head",
    [
        'Content-Type: multipart/signed; boundary="b"',
        'Content-Type: multipart/encrypted; boundary="b"',
        "Content-Type: application/pkcs7-mime",
        "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64",
        "Content-Type: multipart/mixed",
        'Content-Type: multipart/mixed; boundary="c"',
        "To: ü@x.test",
        "ü: x",
    ],
)
def test_what_cannot_be_converted_is_refused(head: str) -> None:
    """Signed, encrypted, or of a structure that is not what it says."""
    with pytest.raises(NotConvertibleError):
        convert(f"{head}\n\n--b\n\nü\n--b--\n".encode())


def test_signed_text_is_not_touched() -> None:
    """Also where OpenPGP signs without MIME."""
    with pytest.raises(NotConvertibleError, match="signed"):
        convert("Subject: x\n\n-----BEGIN PGP SIGNED MESSAGE-----\n\nü\n".encode())


def test_deep_nesting_ends() -> None:
    """Before the stack does."""
    text = "ü\n"
    for _ in range(200):
        text = f"Content-Type: message/rfc822\n\n{text}"
    with pytest.raises(NotConvertibleError, match="deep"):
        convert(text.encode())


def test_a_report_makes_do_with_the_header_of_signed_mail() -> None:
    """A report goes through whatever the mail holds; its status keeps its addresses (RFC 6533)."""
    text = (
        "Content-Type: multipart/report; boundary=b\n\n--b\n\nü\n--b\n"
        "Content-Type: message/global-delivery-status\nContent-Transfer-Encoding: 8bit\n\n"
        "Final-Recipient: utf-8; ü@x.test\n--b\nContent-Type: message/rfc822\n\n"
        "Subject: Grüße\nContent-Type: multipart/signed; boundary=c\n\n--c\n\nü\n--c--\n\n--b--\n"
    )
    converted = convert(text.encode())
    assert b"Content-Type: message/delivery-status\n" in converted
    assert rb"Final-Recipient: utf-8; \x{FC}@x.test" in converted
    last = list(read(converted).iter_parts())[-1]
    assert "text/rfc822-headers" == last.get_content_type()
    assert "Subject: Grüße\n" in last.get_content()
