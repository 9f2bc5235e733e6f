"""The spool behind smtplib's interface, beside smtplib itself with a relay."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail import smtplib_compat

if TYPE_CHECKING:
    from temporary_home import TemporaryHome


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
    assert (553, True) == (refused[bad][0], b"not a list of" in refused[bad][1])
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


def test_single_commands(home: TemporaryHome) -> None:
    """A session said command by command, as smtplib's own methods say it."""
    smtp = smtplib_compat.SMTP("mail.example.net")
    assert (250, True) == (smtp.ehlo()[0], smtp.has_extn("smtputf8"))
    assert 503 == smtp.rcpt("b@example.net")[0]
    assert 503 == smtp.docmd("DATA")[0]
    assert 250 == smtp.mail("A <a@example.org>", ["SIZE=10", "BODY=8BITMIME"])[0]
    assert 503 == smtp.mail("a@example.org")[0]
    assert 250 == smtp.rcpt("b@example.net")[0]
    assert 250 == smtp.rcpt('"c d"@example.net', ["NOTIFY=NEVER"])[0]
    assert 553 == smtp.rcpt("b@x..net")[0]
    code, text = smtp.data("Subject: x\r\n\r\n.dot\n..\n.\nend")
    assert smtp.receipt is not None
    assert (250, True) == (code, smtp.receipt.id.encode() in text)
    (stem,) = home.ids()
    assert ["b@example.net", "c d@example.net"] == home.addresses(stem)
    assert b"Subject: x\n\n.dot\n..\n.\nend\n" == home.message(stem)
    assert 250 == smtp.mail("")[0]
    assert 250 == smtp.rset()[0]
    assert [252, 502, 214, 250] == [
        reply[0] for reply in (smtp.vrfy("b"), smtp.expn("l"), smtp.docmd("HELP"), smtp.noop())
    ]
    assert [235, 235, 500, 501] == [
        smtp.auth("PLAIN", lambda: "x")[0],
        smtp.docmd("AUTH", "PLAIN x")[0],
        smtp.docmd("BDAT", "3")[0],
        smtp.docmd("MAIL", "a@example.org")[0],
    ]
    # By hand, in pieces.
    assert 250 == smtp.docmd("mail", "from:<a@example.org>")[0]
    assert 250 == smtp.docmd("rcpt", "to:b@example.net")[0]
    smtp.putcmd("data")
    assert 354 == smtp.getreply()[0]
    for piece in (b"one\r", b"\n.", b"\r", b"\n"):
        smtp.send(piece)
    assert 250 == smtp.getreply()[0]
    assert b"one\n" == home.message(smtp.receipt.id)
    assert 221 == smtp.quit()[0]
    with pytest.raises(smtplib.SMTPServerDisconnected):
        smtp.noop()
    smtp.connect()
    assert 250 == smtp.noop()[0]


def test_trouble_in_single_commands(home: TemporaryHome) -> None:
    """Too large, or a home that is not there: the reply of the data says so."""
    home.setting("databytes", "300")
    for where, expected in ((home.root, 552), (f"{home.root}/none", 451)):
        with smtplib_compat.SMTP("host", home=where) as smtp:
            smtp.mail("a@example.org")
            smtp.rcpt("b@example.net")
            code, text = smtp.data(b"x" * 400)
            assert (expected, b"5" if code == 552 else b"4") == (code, text[:1])
    assert [] == home.everything()


def test_every_public_name_of_smtplib() -> None:
    """The module stands in for smtplib, the class for its class."""
    assert issubclass(smtplib_compat.SMTP, smtplib.SMTP)
    public = {one for one in vars(smtplib.SMTP) if not one.startswith("_")}
    assert set() == public - set(dir(smtplib_compat.SMTP))
    named = {
        *smtplib.__all__,
        "SMTP_SSL",
        "LMTP",
        "SMTP_PORT",
        "SMTP_SSL_PORT",
        "LMTP_PORT",
        "CRLF",
    }
    assert set() == named - set(smtplib_compat.__all__)
    assert [] == [one for one in smtplib_compat.__all__ if not hasattr(smtplib_compat, one)]


def test_debugging_shows_the_conversation(
    home: TemporaryHome, capsys: pytest.CaptureFixture[str]
) -> None:
    """As smtplib shows it."""
    assert home.root
    smtp = smtplib_compat.SMTP()
    smtp.set_debuglevel(1)
    smtp.connect("host", 25)
    smtp.noop()
    said = capsys.readouterr().err
    assert "connect: to ('host', 25)" in said
    assert "send: 'noop\\r\\n'" in said
    assert "reply: retcode (250)" in said
