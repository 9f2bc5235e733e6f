"""Addresses on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.smtp.address import (
    UnsendableAddressError,
    expand_verp,
    needs_smtputf8,
    plain_sender,
    to_xtext,
    wire_path,
)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("", "<>"),
        ("#@[]", "<>"),
        ("a@example.org", "<a@example.org>"),
        ("a.b+c=d@example.org", "<a.b+c=d@example.org>"),
        ("postmaster", "<postmaster>"),
        ("a b@example.org", '<"a b"@example.org>'),
        (".a@example.org", '<".a"@example.org>'),
        ("a..b@example.org", '<"a..b"@example.org>'),
        ('a"b\\c@example.org', '<"a\\"b\\\\c"@example.org>'),
        ("a@b@example.org", '<"a@b"@example.org>'),
        ("a> SIZE=1@example.org", '<"a> SIZE=1"@example.org>'),
        ("a@[192.0.2.1]", "<a@[192.0.2.1]>"),
        ("jörg@exämple.org", "<jörg@exämple.org>"),
    ],
)
def test_paths(raw: str, path: str) -> None:
    """A raw address becomes a path; quotes only where RFC 5321 4.1.2 wants them."""
    assert path == wire_path(raw)


@pytest.mark.parametrize(
    "raw",
    ["a@b> SIZE=1", "a@b c", "a@", "@b", "a\r\nRCPT TO:<x>@b", "a\0@b", "a@<b", "a\x7f@b", "a@b\n"],
)
def test_unsendable(raw: str) -> None:
    """What cannot be a path is refused and never repaired."""
    with pytest.raises(UnsendableAddressError):
        wire_path(raw)


@given(st.text(max_size=40))
def test_nothing_escapes(raw: str) -> None:
    """No address can put a line end, or a parameter, into a command."""
    try:
        path = wire_path(raw)
    except UnsendableAddressError:
        return
    assert not any(ord(character) < 32 for character in path)
    inside, end = path[1:-1], path[-1]
    quoted, local, position = inside.startswith('"'), inside, 0
    if quoted:
        position = 1
        while inside[position] != '"':
            position += 2 if inside[position] == "\\" else 1
        local = inside[position + 1 :]
    assert end == ">"
    assert "<" not in local
    assert ">" not in local
    assert " " not in local


def test_smtputf8() -> None:
    """SMTPUTF8 is needed where either side of the address is beyond ASCII."""
    assert [False, True, True] == [needs_smtputf8(a) for a in ("a@b", "é@b", "a@é")]


@pytest.mark.parametrize(
    ("raw", "xtext"),
    [("abc", "abc"), ("a b", "a+20b"), ("a+b", "a+2Bb"), ("a+20b", "a+20b"), ("é", "+C3+A9")],
)
def test_xtext(raw: str, xtext: str) -> None:
    """RFC 3461 4: what is xtext stays, what is not becomes it."""
    assert xtext == to_xtext(raw)


@pytest.mark.parametrize(
    ("sender", "recipient", "expected"),
    [
        ("list-@h-@[]", "u@d", "list-u=d@h"),
        ("a@h", "u@d", "a@h"),
        ("#@[]", "u@d", "#@[]"),
        ("", "u@d", ""),
        ("list-@h-@[]", "a@b@d", "list-a@b=d@h"),
    ],
)
def test_verp(sender: str, recipient: str, expected: str) -> None:
    """Only a sender that asks for it is expanded."""
    assert expected == expand_verp(sender, recipient)


@pytest.mark.parametrize(
    ("sender", "expected"), [("list-@h-@[]", "list-@h"), ("a@h", "a@h"), ("#@[]", "#@[]")]
)
def test_reports_go_to_the_plain_sender(sender: str, expected: str) -> None:
    """A VERP sender without its end; any other stays."""
    assert expected == plain_sender(sender)
