"""The reply parser: whole, byte by byte, with a trailing rest, and what it will not take."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.smtp.reply import (
    LINES_LIMIT,
    REPLY_LIMIT,
    REPLY_LINE_LIMIT,
    Reply,
    ReplyError,
    ReplyParser,
)

MANY = b"220 hello\r\n250-one\r\n250-two\r\n250 three\r\n354\r\n550 5.1.1 no <x>\r\n"
MEANT = [
    Reply(220, "", ("hello",)),
    Reply(250, "", ("one", "two", "three")),
    Reply(354, "", ("",)),
    Reply(550, "5.1.1", ("5.1.1 no <x>",)),
]


def replies_of(*portions: bytes) -> list[Reply]:
    """Feed a parser portion by portion, and return all that it gives."""
    parser = ReplyParser()
    replies = []
    for portion in portions:
        parser.feed(portion)
        while (reply := parser.next()) is not None:
            replies.append(reply)
    return replies


def test_whole() -> None:
    """Several replies in one portion come out one by one."""
    assert replies_of(MANY) == MEANT


def test_byte_by_byte() -> None:
    """The same octets one at a time mean the same."""
    assert replies_of(*(MANY[i : i + 1] for i in range(len(MANY)))) == MEANT


@given(st.lists(st.integers(0, len(MANY)), max_size=6))
def test_any_division(cuts: list[int]) -> None:
    """However the octets are divided, the replies are the same."""
    edges = [0, *sorted(cuts), len(MANY)]
    assert replies_of(*(MANY[a:b] for a, b in pairwise(edges))) == MEANT


def test_trailing_rest() -> None:
    """What follows a reply is kept, and is_empty tells of it."""
    parser = ReplyParser()
    parser.feed(b"250 ok\r\n25")
    assert Reply(250, "", ("ok",)) == parser.next()
    assert parser.next() is None
    assert not parser.is_empty
    parser.feed(b"0 more\r\n")
    assert Reply(250, "", ("more",)) == parser.next()
    assert parser.is_empty


def test_rest_of_a_multiline_reply_is_not_empty() -> None:
    """The first lines of a reply are a part of one."""
    parser = ReplyParser()
    parser.feed(b"250-begun\r\n")
    assert parser.next() is None
    assert not parser.is_empty


@pytest.mark.parametrize(
    "octets",
    [
        b"250 bare line feed\n",
        b"250 carriage\rreturn\r\n",
        b"250 nul\0\r\n",
        b"199 too low\r\n",
        b"600 too high\r\n",
        b"25 short\r\n",
        b"2500 long\r\n",
        b"250_mark\r\n",
        b"\xb250 odd digit\r\n",
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250-one code\r\n550 another\r\n",
        b"250-then\r\nnothing like it\r\n",
    ],
)
def test_what_is_no_reply(octets: bytes) -> None:
    """Half a line end, a foreign code or two codes in one reply are errors, not replies."""
    with pytest.raises(ReplyError):
        replies_of(octets)


def test_endless_line() -> None:
    """A line without an end is given up at the limit, not at the end of memory."""
    parser = ReplyParser()
    parser.feed(b"250 " + b"x" * (REPLY_LINE_LIMIT - 5))
    assert parser.next() is None
    parser.feed(b"x")
    with pytest.raises(ReplyError):
        parser.next()


def test_endless_reply() -> None:
    """A reply without an end is given up after so many lines."""
    with pytest.raises(ReplyError):
        replies_of(b"250-x\r\n" * (LINES_LIMIT + 1))
    assert replies_of(b"250-x\r\n" * (LINES_LIMIT - 1) + b"250 x\r\n")


def test_long_reply() -> None:
    """A reply of few but long lines is bounded too."""
    line = b"250-" + b"x" * (REPLY_LINE_LIMIT - 6) + b"\r\n"
    with pytest.raises(ReplyError):
        replies_of(line * (REPLY_LIMIT // len(line) + 2))


def test_enhanced_code_must_fit() -> None:
    """An enhanced status code counts only if it is of the class of the reply (RFC 2034 4)."""
    (fits, does_not, none) = replies_of(b"450 4.7.1 x\r\n450 5.7.1 x\r\n450 4.7.1000 x\r\n")
    assert [fits.enhanced, does_not.enhanced, none.enhanced] == ["4.7.1", "", ""]


def test_text_cannot_steer_a_terminal() -> None:
    """Control characters and bytes that are no UTF-8 are shown, not passed on."""
    (reply,) = replies_of(b"550 \x1b[2J\xff \xc3\xa9\r\n")
    assert reply.text == "550 \\x1b[2J\\xff é"


@given(st.binary(max_size=200))
def test_garbage(octets: bytes) -> None:
    """Whatever comes is a reply, a part of one, or a ReplyError; nothing else is raised."""
    try:
        replies = replies_of(octets)
    except ReplyError:
        return
    assert all(200 <= reply.code < 600 for reply in replies)
