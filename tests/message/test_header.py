"""Reading a header: where fields begin and end, and where the body does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.errors import MessageTooLargeError
from picoqmail.message.header import MessageReader, date_field, field_name, message_id_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def read(pieces: Iterable[bytes], **options: Any) -> tuple[list[bytes], bytes]:
    """Return the fields and the body of the message that comes in these pieces."""
    rest = iter(piece for piece in pieces if piece)
    message = MessageReader(lambda: next(rest, b""), **options)
    return list(message.fields()), b"".join(message.body())


@pytest.mark.parametrize(
    ("text", "fields", "body"),
    [
        (b"", [], b""),
        (b"\n", [], b"\n"),
        (b"A: b\n\nx\n", [b"A: b\n"], b"\nx\n"),
        (b"A: b\n c\n\td\nE: f\n\n", [b"A: b\n c\n\td\n", b"E: f\n"], b"\n"),
        (b"A: b", [b"A: b\n"], b""),
        (b"A: b\n\nx", [b"A: b\n"], b"\nx\n"),
        (b"A: b\nno field\nx\n", [b"A: b\n"], b"\nno field\nx\n"),
        (b" x\nA: b\n", [], b"\n x\nA: b\n"),
        (b"From joe\n x\nA: b\n", [b"MBOX-Line: From joe\n x\n", b"A: b\n"], b""),
        (b"From : joe\n", [b"MBOX-Line: From : joe\n"], b""),
        (b"A: b\r\n\r\nx\r\n", [b"A: b\r\n"], b"\n\r\nx\r\n"),
        (b"\xef\xbb\xbfA: b\n", [], b"\n\xef\xbb\xbfA: b\n"),
        (b"A: \0\xff\n\n\0", [b"A: \0\xff\n"], b"\n\0\n"),
    ],
)
def test_a_message_is_taken_apart(text: bytes, fields: list[bytes], body: bytes) -> None:
    """Whole and byte by byte, a message has the same fields and the same body."""
    assert (fields, body) == read([text])
    assert (fields, body) == read(text[at : at + 1] for at in range(len(text)))


def test_a_line_of_just_a_cr_may_end_a_header() -> None:
    """Where it is asked for, and then no blank line is put in."""
    text = b"A: b\r\n\r\nx\r\n"
    assert ([b"A: b\r\n"], b"\r\nx\r\n") == read([text], crlf_blank=True)
    assert ([b"A: b\r\n"], b"\n\r\nx\r\n") == read([text], crlf_blank=False)


@given(st.lists(st.sampled_from([b"A: b", b"\n", b" ", b"From ", b"x", b":", b"\r", b"\0"])))
def test_pieces_do_not_matter(pieces: list[bytes]) -> None:
    """However the bytes arrive, the same comes out."""
    assert read([b"".join(pieces)]) == read(pieces)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"To: x", b"to"),
        (b"TO \t: x", b"to"),
        (b"X(y): v", b"x(y)"),
        (b"a b: c", b""),
        (b": x", b""),
        (b" : x", b""),
        (b"no colon", b""),
        (b"\xc3\xbc: x", b""),
    ],
)
def test_a_field_has_a_printable_name(line: bytes, name: bytes) -> None:
    """A name is printable ASCII without blanks; blanks before the colon do not count."""
    assert name == field_name(line)


def test_a_header_without_end_is_refused() -> None:
    """A header over the limit is an error, found without reading all of it."""
    chunks = iter([b"A: b\n" * 100] * 10)
    with pytest.raises(MessageTooLargeError, match="header is longer"):
        read(chunks, max_header=1000)
    assert 10 - 3 == len(list(chunks))
    with pytest.raises(MessageTooLargeError):
        read([b"A: ", b"b" * 2000], max_header=1000)


def test_a_body_has_no_limit() -> None:
    """The limit of the header does not concern the body."""
    assert ([b"A: b\n"], b"\n" + b"x\n" * 5000) == read(
        [b"A: b\n\n", b"x\n" * 5000], max_header=100
    )


def test_added_fields_have_the_form_of_rfc_5322() -> None:
    """Date in universal time; Message-ID from time, pid, chance and host."""
    assert date_field(1795346977) == b"Date: 22 Nov 2026 11:29:37 -0000\n"
    assert (b"Message-ID: <20261122112937.7.abc.picoqmail@id.test>\n") == message_id_field(
        1795346977, 7, "abc", b"id.test"
    )
