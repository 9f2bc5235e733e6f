"""Addresses in text: understood to the last character, or refused."""

from __future__ import annotations

import email
import email.policy
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import picoqmail
from picoqmail import smtplib_compat
from picoqmail.errors import AddressError, EnvelopeError, HeaderError
from picoqmail.message.addresses import read_list, read_one, write_one

if TYPE_CHECKING:
    from temporary_home import TemporaryHome

WHOLE = [
    ("", []),
    ("a@x", ["a@x"]),
    ("a@x, b@y", ["a@x", "b@y"]),
    (" a@x ,, b@y, ", ["a@x", "b@y"]),
    ("a@x,\r\n b@y,\n\tc@z", ["a@x", "b@y", "c@z"]),
    ("A <a@x>, B C <b@y>", ["a@x", "b@y"]),
    ('"Doe, J; <x>" <j@x>', ["j@x"]),
    ("J. Q. Doe <j@x>", ["j@x"]),
    ("J. <j@x>", ["j@x"]),
    ("'A B' <a@x>", ["a@x"]),
    ('A "B" C <a@x>', ["a@x"]),
    ("=?utf-8?q?M=C3=BCller=2C_J=C3=B6rg?= <j@x>", ["j@x"]),
    ("J\u00f6rg\u00a0M\u00fcller \U0001f600 <j@x>", ["j@x"]),
    ("a@x (A, (nested), \\) B)", ["a@x"]),
    ("(a) a (b) @ (c) x (d)", ["a@x"]),
    ("a . b @ x . net", ["a.b@x.net"]),
    ('"a b"@x', ["a b@x"]),
    ('"a\\"b\\\\"@x', ['a"b\\@x']),
    ('"a@x"@y', ["a@x@y"]),
    ("a..b@x, .a@x, a.@x", ["a..b@x", ".a@x", "a.@x"]),
    ("a@[192.0.2.1], <a@[IPv6:2001:db8::1]>", ["a@[192.0.2.1]", "a@[IPv6:2001:db8::1]"]),
    ("<@h,@i:a@x>", ["a@x"]),
    ("undisclosed-recipients:;", []),
    ("G: a@x, B <b@y>;, c@z", ["a@x", "b@y", "c@z"]),
    ("The G.: ;", []),
    ("<>", [""]),
    ("root, admin", ["root", "admin"]),
    ("j\u00f6rg@b\u00fccher.example", ["j\u00f6rg@b\u00fccher.example"]),
    ("a\u0646\u200c\u0648b@x", ["a\u0646\u200c\u0648b@x"]),
]

BROKEN = [
    "a@x; b@y",
    "a@x b@y",
    "a@x\nb@y",
    "b@ex ample.net",
    "a b@x",
    '"a" b@x',
    '"a"b@x',
    "a@x <b@y>",
    "A <a@x> B",
    "A <a@x> b@y",
    "A <a@x>; B <b@y>",
    "Doe; J <j@x>",
    "<a@x",
    "a@x>",
    "<<a@x>>",
    "A <a@x, b@y>",
    "a@@x",
    "a@b@c",
    "@x",
    "a@",
    "a@x..net",
    "a@.",
    "a@.x",
    "a@x.",
    "mailto:a@x",
    "G: a@x, b@y",
    "G: H: a@x;;",
    "a@x;",
    "[a@x]",
    "a@x/b@y|c@z",
    "a@x and b@y",
    'A "<a@x>',
    "a@x (comment",
    "a@x comment)",
    "a\\b@x",
    "a@x\\",
    "=?utf-8?q?b=40x?=",
    "=?utf-8?q?b?=@x",
    "b@=?utf-8?q?x?=",
    "<@h:>",
    "<@h:@i:a@x>",
    "a\u200b@x",
    "\ufeffa@x",
    "a@x\u2060",
    "a@x\u00a0, b@y",
    "a\u200d@x",
    "a@x\u202e",
    "a\x00@x",
    "a@x \x0b",
]


@pytest.mark.parametrize(("text", "expected"), WHOLE)
def test_a_list_is_read_whole(text: str, expected: list[str]) -> None:
    """Names, comments, groups, routes and folded lines; the order is kept."""
    assert expected == read_list("header field To", text)


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_not_understood_is_refused(text: str) -> None:
    """The error names the field and shows the text, on one line."""
    with pytest.raises(HeaderError, match="header field To") as caught:
        read_list("header field To", text)
    assert ascii(text.strip()) in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.permanent


SINGLE = [
    ("b@y", "b@y"),
    ('"a b"@y', "a b@y"),
    ('"a,b"@y', "a,b@y"),
    ('"a\\"b"@y', 'a"b@y'),
    ("a..b@y", "a..b@y"),
    ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("a'b+c=d/e@y", "a'b+c=d/e@y"),
    ("j\u00f6rg@b\u00fccher.example", "j\u00f6rg@b\u00fccher.example"),
    ("", ""),
    ("#@[]", "#@[]"),
    ("list-@example.org-@[]", "list-@example.org-@[]"),
]


@pytest.mark.parametrize(("text", "expected"), SINGLE)
def test_one_address(text: str, expected: str) -> None:
    """As RFC 5321 has it; senders of qmail stay what they are."""
    assert expected == read_one(text)


NOT_ONE = [
    "a@x, b@y",
    "a@x,b@y",
    "a@x; b@y",
    "a@x b@y",
    " b@y",
    "b@y ",
    "b@y\t",
    "b@y,",
    ",b@y",
    "b@y;",
    "<b@y>",
    "B <b@y>",
    "b@y (B)",
    "a b@y",
    "a@b@c",
    "a:b@y",
    "a\\b@y",
    '"a"b@y',
    '"a@y',
    "b@x y",
    "b\u200b@y",
    "\u200bb@y",
    "b@y\ufeff",
    "b@y\u00a0",
    "\u2060b@y",
    "b\u00ad@y",
    "b@y\u200d",
    "b@\u202ey",
    "b@x..net",
    "a@.",
]


@pytest.mark.parametrize("text", NOT_ONE)
def test_what_is_not_one_address_is_refused(home: TemporaryHome, text: str) -> None:
    """As recipient and as sender, with its index; nothing is in the spool."""
    with pytest.raises(AddressError) as caught:
        picoqmail.enqueue(b"", "a@example.org", ["good@example.net", text])
    assert (1, text) == (caught.value.index, caught.value.address)
    assert caught.value.permanent
    with pytest.raises(AddressError) as caught:
        picoqmail.enqueue(b"", text, ["good@example.net"])
    assert caught.value.index is None
    assert [] == home.files()


@given(
    st.text(st.sampled_from('ab.@" \\,;<>()[]:\u00fc'), min_size=1, max_size=8),
    st.sampled_from(["x", "x.net", "[192.0.2.1]", "b\u00fccher.example"]),
)
def test_what_is_written_is_read_back(local: str, domain: str) -> None:
    """Any local part that the spool can hold can be written as text, alone or in a list."""
    raw = f"{local}@{domain}"
    assert raw == read_one(write_one(raw))
    assert [raw, raw] == read_list("field", f"{write_one(raw)}, A <{write_one(raw)}>")


@given(st.text(st.sampled_from('ab@.,;:<>()[]"\\ \n=?\u200b'), max_size=20))
def test_nothing_vanishes(text: str) -> None:
    """Whatever the text: it is refused, or has no letter in an address that is not found."""
    try:
        found = read_list("field", text)
    except HeaderError:
        return
    assert text.count("@") <= sum(one.count("@") for one in found) or any(
        c in text for c in '("<:'
    ), "an @ outside of names, comments and routes is one of an address"


def modern(name: str, value: Any) -> Message[Any, Any]:
    """A message of today's interface with that field."""
    made: Message[Any, Any] = EmailMessage()
    made["From" if name != "From" else "To"] = "a@example.org"
    made[name] = value
    return made


def of_old(name: str, value: Any) -> Message[Any, Any]:
    """The same with the policy of old."""
    made = MIMEText("text\n")
    made["From" if name != "From" else "To"] = "a@example.org"
    made[name] = value
    return made


def octets(name: str, value: Any) -> bytes:
    """The same as octets."""
    other = "From" if name != "From" else "To"
    return f"{other}: a@example.org\n{name}: {value}\n\ntext\n".encode("utf-8", "surrogateescape")


def parsed(name: str, value: Any) -> Message[Any, Any]:
    """The same, parsed from octets."""
    return email.message_from_bytes(octets(name, value), policy=email.policy.default)


@pytest.mark.parametrize("form", [modern, of_old, octets, parsed])
@pytest.mark.parametrize("name", ["To", "Cc", "Bcc", "From"])
@pytest.mark.parametrize(
    "text", ["a@x; b@y", "a@x b@y", "b@ex ample.net", "b@x..net", "A <a@x> B <b@y>", "b\u200b@x"]
)
def test_no_recipient_vanishes(home: TemporaryHome, form: Any, name: str, text: str) -> None:
    """Whatever form the message has: an error that names the field, and nothing in the spool."""
    with pytest.raises(EnvelopeError, match=rf"header field {name} ") as caught:
        picoqmail.enqueue(form(name, text))
    assert isinstance(caught.value, HeaderError)
    message = form(name, text)
    if isinstance(message, bytes):
        message = email.message_from_bytes(message)
    with pytest.raises(EnvelopeError, match=rf"header field {name} "):
        smtplib_compat.SMTP().send_message(message)
    assert [] == home.files()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # redmail and others give a list of strings.
        (lambda: modern("To", ["a@x", "B <b@y>"]), ["a@x", "b@y"]),
        (lambda: modern("To", [Address("A, B", "a", "x"), Address("", "b", "y")]), ["a@x", "b@y"]),
        (lambda: modern("To", Address("A", "a b", "x")), ["a b@x"]),
        (lambda: modern("To", "J\u00f6rg, M <j@x>".replace(", ", " ")), ["j@x"]),
        (lambda: modern("To", "=?utf-8?q?M=C3=BCller=2C_J=C3=B6rg?= <j@x>, b@y"), ["j@x", "b@y"]),
        (lambda: modern("To", "J. Q. Doe <j@x>, undisclosed:;, a..b@z"), ["j@x", "a..b@z"]),
        (lambda: of_old("To", Header("J\u00f6rg <j@x>", "utf-8")), ["j@x"]),
        (lambda: of_old("To", '"A, B" <a@x>, G: b@y;'), ["a@x", "b@y"]),
        (lambda: octets("To", "=?utf-8?q?M=C3=BCller=2C?= <j@x>,\n b@y"), ["j@x", "b@y"]),
        (lambda: octets("To", "J\u00f6rg <j@x>"), ["j@x"]),
        (lambda: parsed("To", "=?utf-8?q?M=C3=BCller=2C?= <j@x>,\n b@y"), ["j@x", "b@y"]),
    ],
)
def test_what_is_right_is_taken(home: TemporaryHome, message: Any, expected: list[str]) -> None:
    """Lists of strings, names with commas, encoded words, groups: as smtplib reads them."""
    receipt = picoqmail.enqueue(message())
    assert expected == list(receipt.recipients) == home.addresses(receipt.id)


def header_of_several() -> Header:
    """A header made of an encoded name and a plain address."""
    made = Header("M\u00fcller, J\u00f6rg", "utf-8")
    made.append(" <j@x>", "us-ascii")
    return made


def test_a_comma_in_an_encoded_name_is_no_separator(home: TemporaryHome) -> None:
    """The name stays a name where its letters are encoded."""
    assert ("j@x",) == picoqmail.enqueue(of_old("To", header_of_several())).recipients
    assert 1 == len(home.ids())


@pytest.mark.parametrize(
    ("given", "expected"),
    [(" b@y ", "b@y"), ("\tB <b@y>\r\n", "b@y"), ("b@y (B)", "b@y"), ('"a b"@y', "a b@y")],
)
def test_smtplib_strips(home: TemporaryHome, given: str, expected: str) -> None:
    """In front of smtplib's interface an address may have a name, and blanks around it."""
    smtplib_compat.SMTP().sendmail("a@example.org", [given], b"x")
    assert [expected] == home.addresses(home.ids()[0])


@pytest.mark.parametrize("given", ["a@x, b@y", "b@y,", "b\u200b@y", "b@x..net", "a@x b@y"])
def test_smtplib_refuses(home: TemporaryHome, given: str) -> None:
    """What is not one address is refused there, too, and the good ones get the mail."""
    refused = smtplib_compat.SMTP().sendmail("a@example.org", [given, "c@z"], b"x")
    assert [given] == list(refused)
    assert ["c@z"] == home.addresses(home.ids()[0])


@pytest.mark.parametrize("form", [modern, of_old, octets])
def test_a_field_is_read_only_if_it_is_asked(home: TemporaryHome, form: Any) -> None:
    """Who gives the envelope may have anything in the header; who gives a half, in the other."""
    broken = "a@x; b@y"
    picoqmail.enqueue(form("To", broken), "s@example.org", ["b@example.net"])
    picoqmail.enqueue(form("From", broken), "s@example.org")
    receipt = picoqmail.enqueue(form("To", broken), recipients=["b@example.net"])
    assert "a@example.org" == receipt.sender
    message = form("Cc", broken)
    if isinstance(message, bytes):
        message = email.message_from_bytes(message)
    assert {} == smtplib_compat.SMTP().send_message(message, "s@example.org", "b@example.net")
    assert 4 == len(home.ids())
    with pytest.raises(HeaderError, match="field From"):
        picoqmail.enqueue(form("From", broken), recipients=["b@example.net"])
