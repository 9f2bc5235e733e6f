"""How a relay is written."""

from __future__ import annotations

import pytest

from picoqmail.smtp.relay_address import Relay, RelayAddressError, parse_relay


@pytest.mark.parametrize(
    ("text", "relay"),
    [
        ("mail.example.org", Relay("smtp", "mail.example.org", 25)),
        (" mail.example.org:2525 ", Relay("smtp", "mail.example.org", 2525)),
        ("192.0.2.1", Relay("smtp", "192.0.2.1", 25)),
        ("[2001:db8::1]:26", Relay("smtp", "2001:db8::1", 26)),
        ("[2001:db8::1]", Relay("smtp", "2001:db8::1", 25)),
        ("2001:db8::1", Relay("smtp", "2001:db8::1", 25)),
        ("smtp://h", Relay("smtp", "h", 25)),
        ("smtp://h/", Relay("smtp", "h", 25)),
        ("smtps://joe@h", Relay("smtps", "h", 465, "joe")),
        ("smtp+starttls://joe@example.com@h", Relay("smtp+starttls", "h", 587, "joe@example.com")),
        ("lmtp://[::1]:2400", Relay("lmtp", "::1", 2400)),
        ("lmtp+unix:///run/lmtp", Relay("lmtp+unix", "", 0, "", "/run/lmtp")),
        ("joe@h:587", Relay("smtp", "h", 587, "joe")),
    ],
)
def test_understood(text: str, relay: Relay) -> None:
    """Every form that the documentation names."""
    assert relay == parse_relay(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://h",
        "h:",
        "h:0",
        "h:65536",
        "h:x",
        "h:²",
        "[::1",
        "[::1]x",
        "[x:y]",
        "1:2:3",
        "@h",
        "h h",
        "lmtp+unix://relative",
        "smtp://h/path",
        "-h",
    ],
)
def test_not_understood(text: str) -> None:
    """Anything else is an error that says what is allowed."""
    with pytest.raises(RelayAddressError, match=r"host:port.*lmtp\+unix"):
        parse_relay(text)


def test_a_password_has_no_place_here() -> None:
    """A password in the URL is refused, and the error does not show it."""
    with pytest.raises(RelayAddressError) as caught:
        parse_relay("smtps://joe:hunter2@h")
    assert "hunter2" not in str(caught.value)
    assert "relaypass" in str(caught.value)


def test_shown_without_the_user() -> None:
    """In logs a relay is its place, not who logs in there."""
    assert str(parse_relay("smtps://joe@h")) == "smtps://h:465"
    assert str(parse_relay("[::1]:26")) == "[::1]:26"
    assert str(parse_relay("lmtp+unix:///run/x")) == "lmtp+unix:///run/x"
