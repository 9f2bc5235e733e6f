"""What relays say in words, as they were met: whom it concerns, and whether it passes."""

from __future__ import annotations

import pytest

from picoqmail.smtp import meaning
from picoqmail.smtp.reply import Reply, ReplyParser


def reply(text: str) -> Reply:
    """Return the reply of one or more lines."""
    parser = ReplyParser()
    parser.feed("".join(f"{line}\r\n" for line in text.split("\n")).encode())
    found = parser.next()
    assert found is not None
    return found


LOGIN = [
    "503 5.5.1 Authentication required",
    "503 AUTH first",
    "503 5.5.4 Error: send AUTH command first",
    "503 Error: need EHLO and AUTH first !",
    "503 You must authenticate first",
    "530 5.7.0 Authentication required",
    "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
    "535 5.7.8 Bad credentials",
    "538 5.7.11 Encryption required for requested authentication mechanism",
    "550 5.7.1 Authentication required",
    "550 5.7.1 access denied without login",
    "550 5.7.1 Please log in first",
    "550 You must login before sending mail",
    "550 5.7.1 Client was not authenticated",
    "550 5.7.1 Login required",
    "550 5.7.0 You are not logged in",
    "550 5.7.1 This server requires you to authenticate",
    "550 5.7.1 Unauthenticated senders not allowed",
    (
        "550-Please turn on SMTP Authentication in your mail client.\n"
        "550 host.example [192.0.2.1] is not permitted to relay here without authentication"
    ),
    "553 authentication is required,smtp8",
    "554 5.7.1 Authentication is required to relay",
]
NO_LOGIN = [
    "550 5.7.1 Sender not authorized",
    "550 5.7.1 Message rejected by policy",
    "550 5.7.1 Unable to relay",
    "554 5.7.1 <b@example.net>: Relay access denied",
    "550 5.1.1 <login-required@example.net>: no such user",
    "550 5.1.1 authentication required is no user here",
    "550 5.7.60 Client does not have permissions to send as this sender",
    "553 5.7.1 <a@example.org>: Sender address rejected: not logged in",
    (
        "550 5.7.26 This mail is blocked because the sender is unauthenticated. All senders must"
        " authenticate with either SPF or DKIM"
    ),
    "550 5.7.1 Unauthenticated email from example.org is not accepted due to its DMARC policy",
    "550 5.7.515 Access denied, the domain does not meet the required authentication level",
    "451 4.7.1 Please log in later",
    "250 2.1.0 no login is required",
]


@pytest.mark.parametrize("text", LOGIN)
def test_wants_login(text: str) -> None:
    """It serves nobody who has not logged in."""
    assert meaning.wants_login(reply(text))


@pytest.mark.parametrize("text", NO_LOGIN)
def test_wants_no_login(text: str) -> None:
    """A policy about one sender or recipient is that message's."""
    assert not meaning.wants_login(reply(text))


TLS = [
    "530 5.7.0 Must issue a STARTTLS command first",
    "530 TLS required",
    "554 5.7.1 Encryption required",
    "550 5.7.10 This server requires TLS",
]


@pytest.mark.parametrize("text", TLS)
def test_wants_tls(text: str) -> None:
    """It serves nobody without TLS."""
    assert meaning.wants_tls(reply(text))


HOST = [
    "504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
    "450 4.7.1 <vm>: Helo command rejected: Host not found",
    "550 Access denied - Invalid HELO name (See RFC2821 4.1.1.1)",
    "501 5.5.4 Invalid EHLO argument",
    "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]",
    "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using dnsbl.example",
    "550 5.7.25 The IP address sending this message does not have a PTR record",
    "550 5.7.1 Your reverse DNS is missing",
]
NO_HOST = [
    "550 5.1.1 <helo@example.net>: no such user",
    "504 5.5.2 <a@vm>: Sender address rejected: need fully-qualified address",
    "450 4.1.2 <b@x>: Recipient address rejected: Domain not found",
    "250 2.0.0 helo",
    "550 5.7.1 no",
]


@pytest.mark.parametrize("text", HOST)
def test_is_about_our_host(text: str) -> None:
    """Our HELO and our name in the DNS are no message's."""
    assert meaning.is_about_our_host(reply(text))


@pytest.mark.parametrize("text", NO_HOST)
def test_is_not_about_our_host(text: str) -> None:
    """Nor is an address that has the same words our host."""
    assert not meaning.is_about_our_host(reply(text))


LIMIT = [
    "550 5.4.5 Daily sending quota exceeded",
    (
        "550-5.4.5 Daily user sending limit exceeded. For more information on Gmail\n"
        "550-5.4.5 sending limits go to\n550 5.4.5  https://support.example - gsmtp"
    ),
    "554 5.4.5 congestion",
    "550 4.4.5 congestion",
    "550 Domain example.org has exceeded the max emails per hour (5/5 (100%)) allowed",
    "550 5.7.232 Your tenant has exceeded its external recipient rate limit",
    "554 5.7.1 You have exceeded your daily limit",
    "550 5.7.1 Too many messages",
    "552 5.2.0 sending quota exceeded",
    "550 5.5.3 Too many recipients",
]
NO_LIMIT = [
    "552 5.3.4 Message size exceeds the limit for sending",
    "552 5.2.2 Mailbox over quota",
    "550 5.2.2 user is over quota",
    "554 5.4.6 Too many hops, maximum exceeded",
    "550 5.7.1 no",
    "550 5.1.1 no such user",
]


@pytest.mark.parametrize("text", LIMIT)
def test_is_limit(text: str) -> None:
    """RFC 3463: x.4.5 passes, whatever the code; so does a quota in words."""
    assert meaning.is_limit(reply(text))


@pytest.mark.parametrize("text", NO_LIMIT)
def test_is_no_limit(text: str) -> None:
    """What will not be better tomorrow is none."""
    assert not meaning.is_limit(reply(text))


@pytest.mark.parametrize(
    ("text", "too_fast", "all_too_fast"),
    [
        ("421 4.7.0 slow down", True, True),
        ("452 4.3.1 Insufficient system storage", True, False),
        ("452 4.2.2 Mailbox full", False, False),
        ("454 4.7.0 Throttling failure: Maximum sending rate exceeded.", True, True),
        ("450 4.7.1 too fast", True, True),
        ("450 4.7.1 Service unavailable", True, False),
        ("451 4.7.1 Try again later", False, False),
        ("451 4.7.1 Greylisting in action", False, False),
        ('451 4.7.1 Ratelimit "from" exceeded: rate limited', True, True),
        ("450 4.2.0 Greylisted", False, False),
        ("550 5.4.5 Daily quota exceeded", True, False),
        ("550 5.7.1 no", False, False),
        ("250 2.0.0 too fast", False, False),
    ],
)
def test_pace(text: str, *, too_fast: bool, all_too_fast: bool) -> None:
    """What is about our pace in a reply that concerns all, and in one to RCPT."""
    assert (too_fast, all_too_fast) == (
        meaning.says_too_fast(reply(text)),
        meaning.says_all_too_fast(reply(text)),
    )


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("503 Bad sequence of commands - pipelined after end of DATA", True),
        ("554 SMTP synchronization error", True),
        ("550 5.5.1 Protocol error: improper pipelining", True),
        ("550 5.1.8 sender unknown", False),
        ("250 pipelining is fine", False),
    ],
)
def test_blames_pipelining(text: str, *, blamed: bool) -> None:
    """503, or words to that effect."""
    assert blamed == meaning.blames_pipelining(reply(text))
