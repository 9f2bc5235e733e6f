"""The envelope of the qmail-queue interface: both directions, whole or in pieces, and refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.errors import (
    AddressError,
    AddressTooLongError,
    EnvelopeError,
    TruncatedEnvelopeError,
)
from picoqmail.message import envelope
from picoqmail.message.envelope import EnvelopeParser, check_recipients, check_sender
from picoqmail.smtp.address import wire_path

ADDRESS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40
).filter(lambda text: len(text.encode()) <= envelope.ADDRESS_LIMIT_OCTETS)


def parsed(data: bytes, piece: int) -> tuple[bytes | None, list[bytes]]:
    """Feed the octets in pieces of that size."""
    parser = EnvelopeParser()
    for start in range(0, len(data), piece):
        if parser.feed(data[start : start + piece]):
            break
    parser.close()
    return parser.sender, parser.recipients


@given(sender=ADDRESS, recipients=st.lists(ADDRESS, max_size=5), piece=st.integers(1, 50))
def test_what_is_encoded_is_parsed(sender: str, recipients: list[str], piece: int) -> None:
    """Both directions agree, whatever pieces the octets come in."""
    data = envelope.encode_envelope(sender, recipients)
    expected = (sender.encode(), [one.encode() for one in recipients])
    assert expected == parsed(data, piece)


def test_what_follows_the_final_nul_is_ignored() -> None:
    """As by qmail, in the same piece or in another."""
    for piece in (1, 4, 100):
        assert (b"", [b"b@c"]) == parsed(b"F\0Tb@c\0\0Tx@y\0junk", piece)


def test_order_and_duplicates_are_kept() -> None:
    """A recipient named twice is two recipients."""
    assert ["b@c", "a@c", "b@c"] == check_recipients(["b@c", "a@c", "b@c"])


@pytest.mark.parametrize("piece", [1, 7, 3000])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TruncatedEnvelopeError),
        (b"F", TruncatedEnvelopeError),
        (b"Fa@b", TruncatedEnvelopeError),
        (b"Fa@b\0", TruncatedEnvelopeError),
        (b"Fa@b\0Tc@d", TruncatedEnvelopeError),
        (b"Fa@b\0Tc@d\0", TruncatedEnvelopeError),
        (b"Ta@b\0\0", EnvelopeError),
        (b"\0", EnvelopeError),
        (b"Fa@b\0Fc@d\0\0", EnvelopeError),
        (b"Fa@b\0tc@d\0\0", EnvelopeError),
        (b"F" + b"a" * 1003 + b"\0\0", AddressTooLongError),
        (b"Fa@b\0T" + b"a" * 1003 + b"\0\0", AddressTooLongError),
        (b"Fa@b\0T" + b"a" * 5000, AddressTooLongError),
    ],
)
def test_a_malformed_envelope_is_told(data: bytes, error: type[Exception], piece: int) -> None:
    """Exactly this error, in whatever pieces it came."""
    with pytest.raises(EnvelopeError) as caught:
        parsed(data, piece)
    assert error is type(caught.value)


def test_1002_octets_are_allowed() -> None:
    """The limit is qmail's, and it is counted in octets."""
    longest = "a" * 500 + "@" + "b" * 501
    assert (longest.encode(), []) == parsed(envelope.encode_envelope(longest, []), 100)
    assert [longest] == check_recipients([longest])
    with pytest.raises(AddressTooLongError):
        check_recipients([longest + "c"])


def test_memory_is_bounded_before_the_nul_comes() -> None:
    """An endless address is refused at its 1004th octet, not collected."""
    parser = EnvelopeParser()
    parser.feed(b"F" + b"a" * 1002)
    with pytest.raises(AddressTooLongError):
        parser.feed(b"a")


@pytest.mark.parametrize(
    "sender",
    ["", "#@[]", "a@b", "list-@example.org-@[]", '"a b"@c', "Ü@ü.de", "a@[1..2]", "a..b@c"],
)
def test_senders_of_qmail_are_taken(sender: str) -> None:
    """The null sender, the double bounce, VERP, and anything that can be quoted on the wire."""
    assert sender == check_sender(sender)


UNSENDABLE = [
    "",
    "a",
    "a@",
    "@b",
    "a@b> SIZE=1",
    "a@b c",
    "a@<b>",
    "a\r@b",
    "a\nRCPT TO:<x@y>@b",
    "a@b\n",
    "a\0@b",
    "a\x1b@b",
    "a\x7f@b",
    "a\x85@b",
    "a@b\u2028",
    "a@b\u00a0c",
    "a@b\u3000c",
    "a@.",
    "a@b..net",
    "a@.b",
    "a@b.",
    "a@..",
    "\udcff@b",
]


@pytest.mark.parametrize("address", UNSENDABLE)
def test_an_address_that_cannot_be_sent_is_refused(address: str) -> None:
    """One bad among good refuses all, and says which it is."""
    with pytest.raises(AddressError) as caught:
        check_recipients(["good@example.net", address])
    assert (1, address) == (caught.value.index, caught.value.address)
    assert caught.value.permanent
    assert "recipient 2" in str(caught.value)
    # The text goes into logs and to terminals: it cannot forge a line there.
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", [b"\xff@b", b"a@\xc3", b"\xed\xa0\x80@b"])
def test_octets_that_are_no_utf8_are_refused(raw: bytes) -> None:
    """The sidecar is UTF-8, and SMTPUTF8 knows nothing else."""
    with pytest.raises(AddressError, match="not UTF-8"):
        envelope.decode_recipients([raw])
    with pytest.raises(AddressError, match="the sender"):
        envelope.decode_sender(raw)


@given(st.text(st.sampled_from('ab@.<> "\\\t\n\x85\u2028\u00a0\u3000ü\ud800'), max_size=8))
def test_what_is_taken_can_be_written_on_the_wire(address: str) -> None:
    """Acceptance and SMTP agree: no message is accepted that no relay could ever be told."""
    try:
        check_recipients([address])
    except AddressError:
        return
    assert wire_path(address).startswith("<")
