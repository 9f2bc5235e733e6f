"""Relays of ASCII alone: mail is converted, domains get their xn-- form, reports go through."""

from __future__ import annotations

from email import message_from_bytes
from email.policy import default
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.layout import UNDELIVERED
from rig import faults
from rig.hostile import HostileRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from trial import Trial

PLAIN = ("PIPELINING", "SIZE 50000000", "ENHANCEDSTATUSCODES")
MAIL = "From: a@x.test\nTo: b@x.test\nSubject: Grüße\n\nschön\n".encode()


@pytest.fixture
def plain(trial: Trial, rig: Callable[..., Any]) -> HostileRelay:
    """A relay that offers neither 8BITMIME nor SMTPUTF8."""
    relay: HostileRelay = rig(
        HostileRelay({"RCPT <no@x.test>": faults.reply("550 nö")}, offers=PLAIN)
    )
    trial.setting("relayip", relay.address)
    trial.setting("bounces", "on")
    return relay


def test_text_is_converted(trial: Trial, plain: HostileRelay) -> None:
    """Delivered in 7 bits, undeclared; a reader sees what was sent. The spool keeps the octets."""
    trial.accepted("a@x.test", ["b@x.test"], MAIL)
    assert 0 == trial.send()
    (got,) = plain.messages
    assert got.content.isascii()
    found = message_from_bytes(got.content, policy=default)
    assert "Grüße" == found["Subject"]
    assert "schön" == found.get_content().strip()
    assert [] == plain.complaints


def test_what_is_signed_fails(trial: Trial, plain: HostileRelay) -> None:
    """5.6.3 with the reason; never sent undeclared."""
    mail = 'Content-Type: multipart/signed; boundary="b"\n\n--b\n\nü\n--b--\n'.encode()
    message_id = trial.accepted("", ["b@x.test"], mail)
    assert 69 == trial.send()
    assert UNDELIVERED == trial.state(message_id)
    (recipient,) = trial.sidecar(message_id)["recipients"]
    assert recipient["reply"].startswith("5.6.3 ")
    assert "signed" in recipient["reply"]
    assert [] == plain.messages


@pytest.mark.parametrize(
    "body",
    [
        "schön\n",
        "x\n",
    ],
)
@pytest.mark.parametrize("kind", ["text/plain", 'multipart/signed; boundary="b"'])
def test_a_report_goes_through(trial: Trial, plain: HostileRelay, kind: str, body: str) -> None:
    """Whatever the refused mail holds, or the relay says in octets over 127."""
    mail = f"Content-Type: {kind}\nSubject: Grüße\n\n--b\n\n{body}--b--\n".encode()
    trial.accepted("a@x.test", ["no@x.test"], mail)
    trial.send()
    trial.cron()
    (report,) = [one for one in plain.messages if ("a@x.test",) == one.recipients]
    assert report.content.isascii()
    assert b"multipart/report" in report.content


@pytest.mark.parametrize(
    ("address", "offered"),
    [
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
        ("a@faß.example", "a@xn--fa-hia.example"),  # IDNA 2008
        ("a@例え.テスト", "a@xn--r8jz45g.xn--zckzah"),
    ],
)
def test_a_domain_goes_in_ascii(
    trial: Trial, plain: HostileRelay, address: str, offered: str
) -> None:
    """As recipient and as sender; the spool keeps what was given."""
    message_id = trial.accepted(address, [address], b"Subject: x\n\nx\n")
    assert address == trial.sidecar(message_id)["sender"]
    assert 0 == trial.send()
    (got,) = plain.messages
    assert (offered, (offered,)) == (got.sender, got.recipients)


def test_a_local_part_needs_smtputf8(trial: Trial, plain: HostileRelay) -> None:
    """It has no form in ASCII."""
    message_id = trial.accepted("", ["jörg@bücher.example"], b"Subject: x\n\nx\n")
    assert 69 == trial.send()
    (recipient,) = trial.sidecar(message_id)["recipients"]
    assert "5.6.7" in recipient["reply"]
    assert [] == plain.messages


def test_a_report_to_an_address_of_such_a_domain(trial: Trial, plain: HostileRelay) -> None:
    """Its envelope and its own header are ASCII."""
    trial.accepted("a@bücher.example", ["no@x.test"], b"Subject: x\n\nx\n")
    trial.send()
    trial.cron()
    (report,) = [one for one in plain.messages if "" == one.sender]
    assert ("a@xn--bcher-kva.example",) == report.recipients
    assert b"To: <a@xn--bcher-kva.example>" in report.content
    assert report.content.isascii()
