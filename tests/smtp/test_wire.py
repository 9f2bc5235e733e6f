"""The bytes on the wire: line ends, folding, dots, and no other end of data than ours."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.smtp.wire import LINE_LIMIT, Encoder
from smtp.scripted import encode_whole

ODD = (
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\r\n",
    b"\n\r",
    b"\r\0\n",
    b"\r\n\0",
    b"\0",
    b"\x0b",
    b"\x0c",
    b"\xc2\x85",
    b"\x85",
    b"\xe2\x80\xa8",
)
PIECES = (*ODD, b".", b"..", b"a", b" ", b"\t", b"x" * 997, b"\xc3\xa9" * 499, b"\xff" * 1200)


def in_portions(message: bytes, cuts: list[int], *, stuffed: bool = True) -> bytes:
    """Encode a message cut at these places."""
    encoder = Encoder(stuffed=stuffed)
    edges = [0, *sorted(cut % (len(message) + 1) for cut in cuts), len(message)]
    out = [encoder.encode(message[a:b]) for a, b in itertools.pairwise(edges)]
    return b"".join(out) + encoder.finish()


def reference(message: bytes, *, stuffed: bool) -> bytes:
    """Say the same as the contract, octet by octet and with no thought of speed."""
    out, in_header = [], True
    for text in reference_lines(message):
        in_header = in_header and text != b""
        rest = text
        while len(rest) > LINE_LIMIT:
            at, gap = reference_cut(rest, in_header=in_header)
            out.append(rest[:at])
            rest = gap + rest[at:]
        out.append(rest)
    return b"".join(
        (b"." if stuffed and text.startswith(b".") else b"") + text + b"\r\n" for text in out
    )


def reference_lines(message: bytes) -> list[bytes]:
    """Divide into lines."""
    lines, line = [], bytearray()
    for position, octet in enumerate(message):
        if octet == 0x0A:
            lines.append(bytes(line))
            line.clear()
        elif octet != 0x0D:
            line.append(octet or 0x20)
        elif message[position + 1 : position + 2] != b"\n":
            line += b" "
    return [*lines, bytes(line)] if line else lines


def reference_cut(text: bytes, *, in_header: bool) -> tuple[int, bytes]:
    """Return where a line that is too long is cut, and what is inserted there."""
    blanks = [i for i in range(1, LINE_LIMIT + 1) if text[i] in b" \t"]
    if in_header and blanks and text[: blanks[-1]].strip(b" \t"):
        return blanks[-1], b""
    starts = [i for i in range(LINE_LIMIT, LINE_LIMIT - 4, -1) if text[i] & 0xC0 != 0x80]
    return (starts or [LINE_LIMIT])[0], b" "


messages = st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=12).map(b"".join)


@given(messages, st.lists(st.integers(0, 20000), max_size=5), st.booleans())
def test_any_division_gives_the_same(message: bytes, cuts: list[int], stuffed: bool) -> None:  # noqa: FBT001
    """Where a message is cut into blocks changes nothing, and the rules are the contract's."""
    assert reference(message, stuffed=stuffed) == in_portions(message, cuts, stuffed=stuffed)


@pytest.mark.parametrize("first", ODD)
@pytest.mark.parametrize("second", ODD)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_smuggling(first: bytes, second: bytes, end: bytes) -> None:
    """No A.B, wherever it stands and however it is cut, is an end of data for anybody."""
    smuggled = first + b"." + second + b"MAIL FROM:<x>"
    for message in (
        smuggled + end,
        b"Subject: x" + end + end + b"text" + smuggled + end,
        b"Subject: x" + end + end + b"text" + end + first + b"." + second,
    ):
        whole = encode_whole(message)
        assert_strict(whole)
        for cut in range(len(message) + 1):
            assert whole == in_portions(message, [cut])
        # The dot is stuffed wherever it begins a line, so the receiver gets it back, once.
        unstuffed = re.sub(rb"(?m)^\.", b"", whole)
        assert encode_whole(message, stuffed=False) == unstuffed


def assert_strict(wire: bytes) -> None:
    """Check what the strictest receiver checks."""
    assert wire == b"" or wire.endswith(b"\r\n")
    rest = wire.replace(b"\r\n", b"")
    assert b"\r" not in rest
    assert b"\n" not in rest
    assert b"\0" not in rest
    lines = wire.split(b"\r\n")
    assert b"." not in lines
    assert all(len(line) <= LINE_LIMIT + 1 for line in lines)


@given(messages)
def test_a_strict_receiver_takes_everything(message: bytes) -> None:
    """Only CRLF, no NUL, no long line, no lone dot, and an end with CRLF."""
    assert_strict(encode_whole(message))


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (b"", b""),
        (b"\n", b"\r\n"),
        (b".", b"..\r\n"),
        (b".\n", b"..\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n"),
        (b"a\r.\nb\r\n", b"a .\r\nb\r\n"),
        (b"a\r\r\n", b"a \r\n"),
        (b"a\r", b"a \r\n"),
        (b"a\r\n.\r\n", b"a\r\n..\r\n"),
        (b"a\0b\n", b"a b\r\n"),
        (b"\r\0\n.\n", b"  \r\n..\r\n"),
    ],
)
def test_examples(message: bytes, wire: bytes) -> None:
    """The cases that one would ask about first."""
    assert wire == encode_whole(message)


def test_body_lines_are_folded_at_the_limit() -> None:
    """A long line of a body is cut at 998 octets; the next one begins with a blank."""
    lines = encode_whole(b"S: x\n\n" + b"y" * 2500 + b"\n").split(b"\r\n")[2:-1]
    assert [b"y" * 998, b" " + b"y" * 997, b" " + b"y" * 505] == lines


def test_characters_stay_whole() -> None:
    """A cut never falls inside a character, whatever its length."""
    for character, shift in itertools.product(("é", "€", "😀"), range(4)):
        text = "a" * shift + character * 900
        wire = encode_whole(b"\n" + text.encode() + b"\n")
        assert text == wire.decode().replace("\r\n ", "").strip()


def test_header_lines_are_folded_at_a_blank() -> None:
    """A long list of recipients loses no address to the fold, and unfolds to what it was."""
    header = b"To: " + b", ".join(b"user%d@example.net" % i for i in range(200))
    wire = encode_whole(header + b"\n\nbody\n")
    folded, _, body = wire.partition(b"\r\n\r\n")
    assert header == folded.replace(b"\r\n", b"")
    assert body == b"body\r\n"
    assert all(line.rstrip(b",").endswith((b"net", b"To:")) for line in folded.split(b"\r\n"))


def test_memory_is_bounded() -> None:
    """A line without an end is passed on as it comes."""
    encoder = Encoder()
    for _ in range(100):
        assert len(encoder.encode(b"x" * 65536)) > 64000
