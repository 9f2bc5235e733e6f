"""Address tokens: what qmail's addresses(5) says, for any bytes and in bounded time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.message.tokens import (
    ATOM,
    COLON,
    COMMA,
    COMMENT,
    DOT,
    LITERAL,
    QUOTE,
    address_list,
    needs_quotes,
    parse,
    quote_address,
    unparse,
    unquote,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.message.tokens import Token

MEGABYTE = 1_000_000
SECONDS_FOR_A_MEGABYTE = 20  # a hundred times what it takes; a square would be over by far

# Bytes that mean something, often, and any others.
soup = st.lists(
    st.one_of(
        st.sampled_from([bytes([byte]) for byte in b' \t\r\n()<>[]@.,;:\\"a+']),
        st.binary(max_size=4),
    ),
    max_size=60,
).map(b"".join)


def nothing(_address: list[Token]) -> None:
    """Leave the address as it is."""


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (b"a . b", [(ATOM, b"a"), (DOT, b""), (ATOM, b"b")]),
        (b"a\\ b", [(ATOM, b"a b")]),
        (b"a)b", [(QUOTE, b"a)b")]),
        (b"a\xc3\xbc", [(QUOTE, b"a\xc3\xbc")]),
        (b"a(b)c", [(ATOM, b"a"), (COMMENT, b"b"), (ATOM, b"c")]),
        (b"(a (b) \\) c)", [(COMMENT, b"a b ) c")]),
        (b'"a\\"b"c', [(QUOTE, b'a"b'), (ATOM, b"c")]),
        (b"[a\\]b]", [(LITERAL, b"a]b")]),
        (b"a\\", [(ATOM, b"a")]),
        (b"\\", [(ATOM, b"")]),
        (b"", []),
    ],
)
def test_a_text_is_cut_into_tokens(text: bytes, tokens: list[Token]) -> None:
    """Blanks separate, a backslash quotes, an unusual byte makes a quoted string."""
    assert tokens == parse(text)


@pytest.mark.parametrize("text", [b")", b"a ]", b"(a", b'"a', b"[a", b"(a\\", b'"\\', b"((a)"])
def test_an_unbalanced_text_is_none(text: bytes) -> None:
    """A bracket or quote that is not closed, or closes nothing, makes the whole unparsable."""
    assert parse(text) is None


@given(soup)
def test_any_bytes_are_cut_and_written(text: bytes) -> None:
    """No bytes crash the parser, the list or the writer, and a field ends with a newline."""
    tokens = parse(b"To: " + text)
    if tokens is not None:
        listed = address_list(tokens, nothing)
        assert unparse(tokens).endswith(b"\n")
        assert listed is None or listed[:2] == [(ATOM, b"To"), (COLON, b"")]


@given(soup)
def test_an_unchanged_list_keeps_all_but_commas(text: bytes) -> None:
    """Whatever is no comma comes out of a list in order; only commas are added."""
    tokens = parse(b"To: " + text)
    listed = None if tokens is None else address_list(tokens, nothing)
    if tokens is not None and listed is not None:

        def kept(some: list[Token]) -> list[Token]:
            return [one for one in some if one[0] not in (COMMA, COMMENT)]

        assert kept(tokens) == kept(listed)
        assert len(listed) >= len(tokens)


@given(st.binary(max_size=40), st.sampled_from([b"example.org", b"[192.0.2.1]", b"a.b.c"]))
def test_a_quoted_address_is_read_as_what_it_was(box: bytes, host: bytes) -> None:
    """quote_address and parse are inverse, whatever stands before the last @."""
    address = box + b"@" + host
    tokens = parse(quote_address(address))
    assert tokens is not None
    assert address == unquote(tokens)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (b"", True),
        (b"a.b", False),
        (b".a", True),
        (b"a.", True),
        (b"a..b", True),
        (b"a b", True),
        (b"a=b/c!d%e+f", False),
        (b"\xc3\xbc", True),
        (b"a,b", True),
    ],
)
def test_only_what_must_be_is_quoted(box: bytes, expected: bool) -> None:  # noqa: FBT001
    """A local part is quoted if RFC 5321 has no other way to write it."""
    assert expected == needs_quotes(box)


def test_addresses_come_last_first_and_reversed() -> None:
    """The callback sees the addresses from right to left, each in reverse."""
    seen = []
    tokens = parse(b"To: A <a@b>, g: c, d e;, f")
    assert tokens is not None
    address_list(tokens, lambda address: seen.append(unquote(address[::-1])))
    assert [b"f", b"e", b"d", b"c", b"a@b"] == seen


def test_a_written_list_is_folded_after_commas_only() -> None:
    """No line with more than one address is wider than 78; one address is never broken."""
    tokens = parse(b"To: " + b",".join(b"user%d@example.org" % number for number in range(40)))
    assert tokens is not None
    lines = unparse(tokens).split(b"\n")
    assert len(lines) > 10
    assert all(len(line) <= 78 for line in lines)
    assert all(line.startswith(b"  user") for line in lines[1:-1])
    long = parse(b"To: " + b"a" * 200 + b"@example.org, b@example.org")
    assert long is not None
    assert [b"To: " + b"a" * 200 + b"@example.org,", b"  b@example.org", b""] == unparse(
        long
    ).split(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        b"a ",
        b"a.",
        b",",
        b"@",
        b"<",
        b"><",
        b":;",
        b"(",
        b"()",
        b'"',
        b'""',
        b"[]",
        b"\\",
        b"\\\\a",
    ],
)
def test_a_megabyte_of_anything_takes_bounded_time(piece: bytes) -> None:
    """Time grows with the length, not with its square."""
    begun = time.process_time()
    tokens = parse(b"To: " + piece * (MEGABYTE // len(piece)))
    if tokens is not None:
        listed = address_list(tokens, nothing)
        if listed is not None:
            unparse(listed)
    assert time.process_time() - begun < SECONDS_FOR_A_MEGABYTE


def test_comments_nest_ten_thousand_deep() -> None:
    """Depth costs no stack."""
    assert [(COMMENT, b"x")] == parse(b"(" * 10000 + b"x" + b")" * 10000)
