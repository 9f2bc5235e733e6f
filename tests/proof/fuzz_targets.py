"""Fuzz targets: functions that take any octets, and check a parser's promises.

The rule of this module: a target raises only findings. Errors that a parser documents are results,
and are compared, not ignored: the same octets in other portions must end in the same error.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from picoqmail.errors import ConfigurationError, DamagedMessageError, EnvelopeError
from picoqmail.home import control
from picoqmail.home.minivars import parse_minivars
from picoqmail.message import tokens
from picoqmail.message.envelope import (
    EnvelopeParser,
    decode_recipients,
    decode_sender,
    encode_envelope,
)
from picoqmail.smtp.address import UnsendableAddressError, wire_path
from picoqmail.smtp.reply import LINES_LIMIT, Reply, ReplyError, ReplyParser
from picoqmail.spool.message import Message
from picoqmail.spool.sidecar import encode as encode_record
from picoqmail.spool.sidecar import new_record
from picoqmail.spool.sidecar_reading import decode
from picoqmail.submission.smtp_server import Data, Stream, _LostClientError, _RefusedError, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ID = "1.M0P1Q1R00.host"


def portions(data: bytes) -> Iterator[bytes]:
    """Return the octets in portions, whose sizes come from the octets."""
    at = 0
    while at < len(data):
        size = data[at] % 7 + 1
        yield data[at : at + size]
        at += size


def _envelope(pieces: Iterator[bytes]) -> tuple[object, ...]:
    parser = EnvelopeParser()
    try:
        for piece in pieces:
            if parser.feed(piece):
                break
        parser.close()
        sender = decode_sender(parser.sender or b"")
        return sender, tuple(decode_recipients(parser.recipients))
    except EnvelopeError as exc:
        return (type(exc),)


def envelope(data: bytes) -> None:
    """The envelope: portions do not matter; an accepted one can be written and sent as it is."""
    whole = _envelope(iter([data]))
    assert whole == _envelope(portions(data))
    if len(whole) == 2:
        sender, recipients = whole
        assert isinstance(sender, str)
        assert isinstance(recipients, tuple)
        assert data.startswith(encode_envelope(sender, recipients))
        for address in recipients:
            line = wire_path(address)
            assert "\r" not in line
            assert "\n" not in line
            # A command contains only a path, so nothing after it can become a parameter.
            assert line.count("<") == 1 or '"' in line


def sidecar(data: bytes) -> None:
    """A sidecar is damaged, or it is read; then writing and reading it again gives the same."""
    try:
        decode(data, ID)
        message = Message.from_sidecar(data, ID)
    except DamagedMessageError:
        return
    again = message.to_sidecar()
    assert message == Message.from_sidecar(again, ID)
    assert again == Message.from_sidecar(again, ID).to_sidecar()


def _replies(pieces: Iterator[bytes]) -> list[Reply | None]:
    """Return the replies, None for an error."""
    parser = ReplyParser()
    found: list[Reply | None] = []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (reply := parser.next()) is not None:
                found.append(reply)
    except ReplyError:
        found.append(None)
    return found


def reply(data: bytes) -> None:
    """Replies: portions do not matter; codes and lengths are within bounds; all is printable."""
    whole = _replies(iter([data]))
    assert whole == _replies(portions(data))
    for one in whole:
        if one is None:
            continue
        assert 200 <= one.code <= 599
        assert len(one.lines) <= LINES_LIMIT
        assert one.text.isprintable()


def submitted(data: bytes) -> None:
    """The content of -bs: portions do not matter; only CRLF . CRLF ends it; nothing is lost."""

    def content(pieces: Iterator[bytes]) -> tuple[bytes, bool, bytes]:
        stream = Stream(lambda: next(pieces, b""))
        reader = Data(stream)
        found = io.BytesIO()
        try:
            while block := reader.read():
                found.write(block)
        except _LostClientError:
            return b"", False, b""
        rest = stream._buffer + b"".join(pieces)
        return found.getvalue(), True, rest

    stored, ended, rest = content(iter([data]))
    assert (stored, ended, rest) == content(portions(data))
    wire = b"\r\n" + data
    end = wire.find(b"\r\n.\r\n")
    assert ended == (end >= 0)
    if ended:
        assert rest == wire[end + 5 :]
        lines = wire[:end].split(b"\r\n")[1:]
        plain = b"".join(line.removeprefix(b".") + b"\n" for line in lines)
        assert plain == stored


def path(data: bytes) -> None:
    """MAIL and RCPT of -bs: a path or a refusal, nothing else."""
    for keyword in (b"FROM", b"TO"):
        try:
            address, parameters = path_of(data, keyword)
        except _RefusedError:
            continue
        assert isinstance(address, bytes)
        assert all(isinstance(one, bytes) for one in parameters)


def _addresses(found: list[tokens.Token]) -> list[bytes] | None:
    addresses: list[bytes] = []
    listed = tokens.address_list(
        list(found), lambda address: addresses.append(tokens.unquote(address))
    )
    return None if listed is None else addresses


def address_tokens(data: bytes) -> None:
    """Address tokens: never an exception; the written field names the same addresses.

    Empty words are an exception: they are not written.
    """
    found = tokens.parse(data)
    if found is None:
        return
    plain = [one for one in found if one != (tokens.ATOM, b"")]
    again = tokens.parse(tokens.unparse(plain))
    assert again is not None
    # A quoted sign in a word is written without quotes, as by qmail; then anything may change.
    assert b"\\" in data or _addresses(plain) == _addresses(again)


def quoting(data: bytes) -> None:
    """Quoting an address and reading it again gives the address."""
    box, at, _ = data.rpartition(b"@")
    if not box or not at:
        return
    # Domains are checked elsewhere; here the mailbox may contain anything.
    address = box + b"@there.test"
    found = tokens.parse(tokens.quote_address(address))
    assert found is not None
    assert address == tokens.unquote(found)


def minivars(data: bytes) -> None:
    """control/minivars: values, or an error that names file and line; nothing is ignored."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    error: ConfigurationError | None = None
    found: dict[str, list[tuple[str, int]]] = {}
    try:
        found = parse_minivars("minivars", text)
    except ConfigurationError as exc:
        error = exc
    assert error is None or error.where.startswith("minivars:")
    for name, lines in found.items():
        assert name == name.upper()
        assert isinstance(control.ControlValue("minivars", lines).text, str)


def on_wire(data: bytes) -> None:
    """An address on its way to the relay: a path without control characters, or refused."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        line = wire_path(text)
    except UnsendableAddressError:
        return
    assert "\r" not in line
    assert "\n" not in line
    assert "\0" not in line


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        envelope,
        sidecar,
        reply,
        submitted,
        path,
        address_tokens,
        quoting,
        minivars,
        on_wire,
    )
}

# The first inputs of a corpus, for formats that chance does not find.
SEEDS: dict[str, bytes] = {
    "sidecar": encode_record(
        new_record(
            ID,
            "a@b",
            ["c@d", "e@f"],
            created=1,
            next_attempt=1,
            expires=2,
            size=3,
            crc32=4,
            origin={"uid": 0},
        )
    ),
    "minivars": b"export NAME='a b'\nOTHER=\"c\"\n",
    "reply": b"250-one\r\n250 two\r\n",
    "submitted": b"From: a\r\n\r\n..\r\n.\r\nQUIT\r\n",
}

# Pieces that a generator without coverage feedback would never find.
PIECES: dict[str, tuple[bytes, ...]] = {
    "envelope": (b"F", b"T", b"\0", b"a@b", b"#@[]", b"@", b"<", b">", b" ", b"\xc3\xa9"),
    "sidecar": (
        b'{"version": 1, "id": "1.M0P1Q1R00.host", "sender": "a@b", "recipients": [',
        b'{"address": "c@d", "state": "pending", "reply": null}',
        b'], "created": 1, "next_attempt": 1, "expires": 2, "attempts": 0, "size": 3, "crc32": 4, ',
        b'"held": false, "history": [], "origin": {}',
        b"}", b"[", b"NaN", b"1e999", b'"x": ', b"\\ud800", b", ", b"-1",
    ),
    "reply": (b"250", b"-", b" ", b"\r\n", b"\n", b"\r", b"2.1.0 ", b"599", b"354 go", b"x" * 500),
    "submitted": (b"\r\n", b".", b"\r", b"\n", b"..", b"text", b"\r\n.\r\n"),
    "path": (b"FROM:", b"TO:", b"<", b">", b"a@b", b'"', b"\\", b" SIZE=1", b"@x:", b"postmaster"),
    "address_tokens": (
        b"a", b"@", b".", b"<", b">", b",", b";", b":", b'"', b"(", b")", b"\\", b" ",
    ),
    "quoting": (b"a", b"@", b".", b" ", b'"', b"\\", b"(", b"b.c"),
    "minivars": (b"NAME=", b"'", b'"', b"\\", b"\n", b"#", b" ", b"$", b"`", b"export ", b"x"),
    "on_wire": (b"a", b"@", b"b", b'"', b"\\", b" ", b"<", b">", b"\xc3\xa9", b"[1.2.3.4]"),
}  # fmt: skip
