"""The spool behind smtplib's interface, beside smtplib itself with a relay."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail import smtplib_compat
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TemporaryHome:
    """A home that the environment names, from which nothing is sent."""
    home = TemporaryHome(str(tmp_path / "home")).make()
    monkeypatch.setenv("PICOQMAIL_HOME", home.root)
    monkeypatch.setenv("PICOQMAIL_SEND", "off")
    return home


def message() -> EmailMessage:
    """A message with everything that send_message looks at."""
    made = EmailMessage()
    made["From"] = "A <a@example.org>"
    made["Sender"] = "s@example.org"
    made["To"] = "b@example.net, C <c@example.net>"
    made["Bcc"] = "d@example.net"
    made.set_content("body\n.\n")
    return made


@pytest.mark.parametrize(
    "call",
    [
        lambda smtp: smtp.send_message(message()),
        lambda smtp: smtp.send_message(message(), "x@example.org", "y@example.net"),
        lambda smtp: smtp.sendmail("a@example.org", "b@example.net", "x\r\ny\rz\n.\n"),
        lambda smtp: smtp.sendmail("a@example.org", ["b@example.net", "C <c@d>"], b"\xff\r\n"),
        lambda smtp: smtp.sendmail("", ("b@example.net",), b"x\n"),
        lambda smtp: smtp.sendmail("<>", ("<b@example.net>",), b"x\n"),
    ],
)
def test_the_same_as_smtplib(home: TemporaryHome, relay: Any, call: Any) -> None:
    """The same call has the same result, and the same mail for the same people."""
    with smtplib.SMTP(relay.host, relay.port) as real:
        expected = call(real)
    (got,) = relay.wait_for(1)
    with smtplib_compat.SMTP(relay.host, relay.port, timeout=5) as ours:
        assert expected == call(ours)
    (stem,) = home.ids()
    assert list(got.recipients) == home.addresses(stem)
    assert got.sender.replace("<>", "") == home.sidecar(stem)["sender"]
    ours_body = home.message(stem).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert got.unix.replace(b"\r", b"\n").rstrip(b"\n") == ours_body.rstrip(b"\n")
    assert ours.receipt is not None
    assert stem == ours.receipt.id


def test_what_smtplib_code_calls_besides(home: TemporaryHome) -> None:
    """Connecting, TLS, login and the like succeed and change nothing."""
    with smtplib_compat.SMTP("mail.example.net", 587, "me", 10) as smtp:
        smtp.set_debuglevel(1)
        smtp.ehlo_or_helo_if_needed()
        assert smtp.has_extn("8BITMIME")
        assert not smtp.has_extn("vrfy")
        codes = [
            answer[0]
            for answer in (
                smtp.connect("mail.example.net", 25),
                smtp.ehlo(),
                smtp.helo("me"),
                smtp.starttls(context=None),
                smtp.login("user", "password"),
                smtp.noop(),
                smtp.rset(),
                smtp.quit(),
            )
        ]
    assert [220, 250, 250, 220, 235, 250, 250, 221] == codes
    assert [] == home.files()
    assert isinstance(smtplib_compat.SMTP_SSL(), smtplib_compat.SMTP)


def test_some_recipients_are_refused(home: TemporaryHome) -> None:
    """The good ones get the mail, the bad ones are returned; if none is good, that is an error."""
    smtp = smtplib_compat.SMTP()
    bad = "nobody@a> SIZE=1"
    refused = smtp.sendmail("a@example.org", ["b@example.net", bad], b"x")
    assert [bad] == list(refused)
    assert (553, True) == (refused[bad][0], b"no list of" in refused[bad][1])
    assert ["b@example.net"] == home.addresses(home.ids()[0])
    with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        smtp.sendmail("a@example.org", [bad, ""], b"x")
    assert {bad, ""} == set(caught.value.recipients)
    with pytest.raises(smtplib.SMTPSenderRefused):
        smtp.sendmail(bad, "b@example.net", b"x")
    with pytest.raises(UnicodeEncodeError):
        smtp.sendmail("a@example.org", "b@example.net", "\u00fc")
    assert 1 == len(home.ids())


def test_an_address_without_a_host_is_of_this_host(home: TemporaryHome) -> None:
    """The local user that a program on this host means gets the setting defaulthost, or me."""
    smtplib_compat.SMTP().sendmail("app", ["root"], b"x")
    assert ["root@me.test"] == home.addresses(home.ids()[0])
    home.setting("defaulthost", "mail.example")
    smtplib_compat.SMTP().sendmail("app", ["root"], b"x")
    assert ["root@mail.example"] == home.addresses(home.ids()[1])


def test_errors_are_those_of_smtplib(home: TemporaryHome) -> None:
    """Too large is 552; a home in trouble is a temporary error of the data."""
    home.setting("databytes", "300")
    smtp = smtplib_compat.SMTP()
    with pytest.raises(smtplib.SMTPDataError) as caught:
        smtp.sendmail("a@example.org", "b@example.net", b"x" * 400)
    assert 552 == caught.value.smtp_code
    elsewhere = smtplib_compat.SMTP(home=f"{home.root}/none")
    with pytest.raises(smtplib.SMTPDataError, match="picoqmail init") as caught:
        elsewhere.sendmail("a@example.org", "b@example.net", b"x")
    assert 451 == caught.value.smtp_code
    with pytest.raises(TypeError):
        smtp.send_message(b"x")  # type: ignore[arg-type] # as a user might
    with pytest.raises(ValueError, match="no sender"):
        smtp.send_message(EmailMessage())
