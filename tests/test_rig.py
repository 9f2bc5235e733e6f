"""The rig itself: a relay that the other tests trust must do what it says."""

from __future__ import annotations

import smtplib
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from rig import faults
from rig.hostile import EVERYTHING, HostileRelay
from rig.opensmtpd import OpenSMTPD
from rig.proxy import SlowLine
from rig.recording import RecordingRelay
from rig.sink import Sink
from rig.waiting import accepts_on, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rig.dovecot import DovecotLmtp
    from rig.exim import Exim
    from rig.received import Received

MAIL = b"Subject: a dot\n\n.leading\n..two\nlast\n"


def send(port: int, *recipients: str, mail: bytes = MAIL) -> dict[str, tuple[int, bytes]]:
    """Send with Python's own client, which somebody else wrote; return who was refused."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        return client.sendmail("a@example.org", recipients or ("b@example.net",), mail.decode())


def talk(port: int, *writes: bytes) -> bytes:
    """Write these one after another, each after some answer came; return all that came."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for data in writes:
            came += client.recv(65536)
            client.sendall(data)
        while data := client.recv(65536):
            came += data
    return came


@pytest.mark.parametrize("kind", [RecordingRelay, HostileRelay, Sink])
def test_every_relay_gives_back_what_it_was_sent(
    rig: Callable[[Any], Any], kind: type[RecordingRelay | HostileRelay | Sink]
) -> None:
    """Whoever receives, the record shows the same envelope and the same bytes."""
    relay = rig(kind())
    assert {} == send(relay.port, "b@example.net", "c@example.net")
    (message,) = relay.wait_for(1)
    assert "a@example.org" == message.sender
    assert ("b@example.net", "c@example.net") == message.recipients
    assert MAIL == message.unix


@pytest.mark.parametrize("kind", [RecordingRelay, HostileRelay])
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_tls_with_a_certificate_that_can_be_checked(
    rig: Callable[[Any], Any], kind: type[RecordingRelay | HostileRelay], tls: str
) -> None:
    """A client that trusts the rig's authority sees a valid certificate; the record says TLS."""
    relay = rig(kind(tls=tls))  # type: ignore[arg-type]
    context = relay.certificate.client_context()
    if tls == "implicit":
        client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", relay.port, context=context)
    else:
        client = smtplib.SMTP("localhost", relay.port)
        client.starttls(context=context)
    with client:
        client.sendmail("a@example.org", ["b@example.net"], MAIL.decode())
    (message,) = relay.wait_for(1)
    assert message.tls


def test_recording_relay_wants_a_login_where_it_has_users(rig: Callable[[Any], Any]) -> None:
    """Without AUTH 530, with a wrong password 535, with the right one the name is recorded."""
    relay = rig(RecordingRelay(users={"ann": "secret"}))
    with pytest.raises(smtplib.SMTPSenderRefused) as refused:
        send(relay.port)
    assert 530 == refused.value.smtp_code
    with smtplib.SMTP("127.0.0.1", relay.port) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "wrong")
        client.login("ann", "secret")
        client.sendmail("a@example.org", ["b@example.net"], MAIL.decode())
    assert ["ann"] == [message.user for message in relay.wait_for(1)]


def test_recording_relay_answers_as_laid_down_and_then_as_usual(rig: Callable[[Any], Any]) -> None:
    """Two deferrals, then acceptance; a recipient can be refused by name."""
    relay = rig(
        RecordingRelay(
            answers={
                "DATA": ["451 4.3.0 later", "451 4.3.0 later"],
                "RCPT <no@example.net>": ["550 5.1.1 no"] * 3,
            }
        )
    )
    for _ in range(2):
        with pytest.raises(smtplib.SMTPDataError):
            send(relay.port)
    refused = send(relay.port, "no@example.net", "yes@example.net")
    assert ["no@example.net"] == list(refused)
    assert [("yes@example.net",)] == [message.recipients for message in relay.wait_for(1)]


def test_strict_receiver_has_no_complaint_about_a_correct_client(
    strict_relay: HostileRelay,
) -> None:
    """Python's smtplib breaks no rule that the receiver checks."""
    send(strict_relay.port)
    send(strict_relay.port, mail=b"Subject: second\n\nx\n")
    assert 2 == strict_relay.connections


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([b"MAIL FROM:<a@b>\r\n"], "MAIL before EHLO"),
        ([b"EHLO x\r\n", b"MAIL FROM: <a@b>\r\n"], "malformed MAIL"),
        ([b"EHLO x\r\n", b"MAIL FROM:<a@b> RET=HDRS\r\n"], "DSN was not offered"),
        ([b"EHLO x\n"], "does not end with CRLF"),
        ([b"EHLO x\r\nNOOP\r\n"], "same breath after EHLO"),
        ([b"EHLO x\r\n", b"MAIL FROM:<\xc3\xa4@b>\r\n"], "without SMTPUTF8"),
    ],
)
def test_strict_receiver_complains_about_commands(lines: list[bytes], complaint: str) -> None:
    """Each broken rule of the envelope is noted."""
    with HostileRelay() as relay:
        talk(relay.port, *lines, b"QUIT\r\n")
    assert any(complaint in text for text in relay.complaints), relay.complaints


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a\nb\r\n", "bare LF"),
        (b"a\rb\r\n", "bare CR"),
        (b"a\0b\r\n", "NUL"),
        (b"x" * 999 + b"\r\n", "1001 octets"),
        (b"\xe4\r\n", "BODY did not declare"),
        (b"more than five\r\n", "SIZE=5 declared"),
    ],
)
def test_strict_receiver_complains_about_content(content: bytes, complaint: str) -> None:
    """Each broken rule of the data is noted."""
    with HostileRelay() as relay:
        talk(
            relay.port,
            b"EHLO x\r\n",
            b"MAIL FROM:<a@b> SIZE=5\r\n",
            b"RCPT TO:<c@d>\r\n",
            b"DATA\r\n",
            content + b".\r\n",
            b"QUIT\r\n",
        )
    assert any(complaint in text for text in relay.complaints), relay.complaints


def test_strict_receiver_counts_no_stuffed_dot_and_allows_998_characters() -> None:
    """The longest line that the RFC allows, beginning with a dot, is no complaint."""
    with HostileRelay() as relay:
        send(relay.port, mail=b"." + b"x" * 997 + b"\n")
    assert [] == relay.complaints


def test_hostile_relay_takes_chunks() -> None:
    """BDAT in two pieces is one message, dots and all."""
    with HostileRelay(offers=EVERYTHING) as relay:
        talk(
            relay.port,
            b"EHLO x\r\n",
            b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\n.a\rBDAT 3 LAST\r\n\n.\r",
            b"QUIT\r\n",
        )
        (message,) = relay.messages
    assert b".a\r\n.\r" == message.content


def test_lmtp_answers_once_a_recipient() -> None:
    """Two recipients, two answers; one of them may be a refusal."""
    with HostileRelay({". <no@d>": faults.reply("552 5.2.2 full")}, lmtp=True) as relay:
        came = talk(
            relay.port,
            b"LHLO x\r\n",
            b"MAIL FROM:<a@b>\r\n",
            b"RCPT TO:<no@d>\r\n",
            b"RCPT TO:<yes@d>\r\n",
            b"DATA\r\n",
            b"x\r\n.\r\n",
            b"QUIT\r\n",
        )
    assert b"552 5.2.2 full\r\n250 2.0.0 Kept\r\n" in came


@pytest.mark.parametrize(
    ("step", "fault", "error"),
    [
        ("banner", faults.reply("554 5.3.2 away"), smtplib.SMTPConnectError),
        ("banner", faults.drop(), smtplib.SMTPServerDisconnected),
        ("MAIL", faults.reply("451 4.3.0 later"), smtplib.SMTPSenderRefused),
        ("RCPT <b@example.net>", faults.reply("550 5.1.1 no"), smtplib.SMTPRecipientsRefused),
        ("DATA", faults.answer_then_reset(), (smtplib.SMTPServerDisconnected, OSError)),
        (".", faults.reply("554 5.6.0 no"), smtplib.SMTPDataError),
        (".", faults.drop(), smtplib.SMTPServerDisconnected),
        ("MAIL", faults.reset(), (smtplib.SMTPServerDisconnected, OSError)),
        ("MAIL", faults.flood(), smtplib.SMTPResponseException),
    ],
)
def test_faults_show_at_their_step(step: str, fault: faults.Fault, error: type[Exception]) -> None:
    """A well-behaved client sees each fault as the error that it is."""
    with HostileRelay({step: fault}) as relay, pytest.raises(error):
        send(relay.port)


def test_a_content_without_a_good_answer_is_recorded_with_what_was_said() -> None:
    """In doubt: the relay has the message, and the client cannot know."""
    with HostileRelay({".": [faults.drop(), None]}) as relay:
        with pytest.raises(smtplib.SMTPServerDisconnected):
            send(relay.port)
        send(relay.port)
        assert [None, "250 2.0.0 Kept"] == [message.reply for message in relay.wait_for(2)]


def test_drip_sends_the_same_answer_byte_by_byte() -> None:
    """A slow answer is still an answer."""
    with HostileRelay({"EHLO": faults.drip(), ".": faults.drip()}) as relay:
        assert {} == send(relay.port)


def test_after_counts_over_all_connections() -> None:
    """The third MAIL, on whichever connection, gets 421 and the connection ends."""
    with HostileRelay({"MAIL": faults.after(2, faults.final("421 4.7.0 enough"))}) as relay:
        send(relay.port)
        send(relay.port)
        with pytest.raises(smtplib.SMTPException):
            send(relay.port)


def test_stall_holds_the_client_until_the_relay_stops() -> None:
    """A stalled client gets nothing, and stopping the relay takes no time."""
    with (
        HostileRelay({"EHLO": faults.stall()}) as relay,
        socket.create_connection(("127.0.0.1", relay.port), timeout=60) as client,
    ):
        assert client.recv(100).startswith(b"220 ")
        client.settimeout(0.2)
        client.sendall(b"EHLO x\r\n")
        with pytest.raises(TimeoutError):
            client.recv(100)


@pytest.mark.slow
def test_slow_line_delays_a_burst_once(relay: RecordingRelay) -> None:
    """Twenty commands in one write take one round trip; the content is unharmed."""
    with SlowLine(relay.port, seconds_each_way=0.1) as line:
        with socket.create_connection(("127.0.0.1", line.port), timeout=60) as client:
            answers = client.makefile("rb")
            assert answers.readline().startswith(b"220 ")
            started = time.monotonic()
            client.sendall(b"NOOP\r\n" * 20)
            for _ in range(20):
                assert answers.readline().startswith(b"250 ")
            took = time.monotonic() - started
            answers.close()
        send(line.port, mail=b"Subject: big\n\n" + b"0123456789\n" * 100_000)
    assert 0.2 <= took
    assert line.trips[0] == 1
    assert b"Subject: big\n\n" + b"0123456789\n" * 100_000 == relay.messages[0].unix


def test_smtp_sink_refuses_what_it_is_told_to(rig: Callable[[Any], Any]) -> None:
    """`-r RCPT` answers 4xx to each recipient."""
    relay = rig(Sink(["-r", "RCPT"]))
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        send(relay.port)
    assert 450 == refused.value.recipients["b@example.net"][0]


@pytest.mark.parametrize("name", ["postfix", "exim", "opensmtpd"])
def test_servers_deliver_the_bytes_that_they_were_given(
    request: pytest.FixtureRequest, name: str
) -> None:
    """What lies in the Maildir, less the fields that the server put in front, is what was sent."""
    server = request.getfixturevalue(name)
    mail = (
        b"Received: from elsewhere\n\tby here\nDate: Thu, 01 Jan 2026 00:00:00 +0000\n"
        b"Message-ID: <1@rig.example>\nFrom: a@example.org\n" + MAIL
    )
    send(server.port, "one@rig.example", "two@rig.example", mail=mail)

    def mine() -> list[Received]:
        return [each for each in server.messages if "@rig.example" in each.recipients[0]]

    wait_until(lambda: len(mine()) == 2, "two deliveries")
    assert {("one@rig.example",), ("two@rig.example",)} == {each.recipients for each in mine()}
    assert {"a@example.org"} == {each.sender for each in mine()}
    assert [mail, mail] == [each.unix for each in mine()]


@pytest.mark.parametrize("name", ["postfix", "exim"])
def test_servers_show_the_rig_s_certificate(request: pytest.FixtureRequest, name: str) -> None:
    """STARTTLS of a real server is valid for a client that trusts the rig's authority."""
    server = request.getfixturevalue(name)
    with smtplib.SMTP("localhost", server.port, timeout=60) as client:
        client.starttls(context=server.certificate.client_context())
        client.sendmail("a@example.org", ["tls@tls.example"], MAIL.decode())
    wait_until(lambda: any("tls@tls.example" in m.recipients for m in server.messages), "a mail")
    assert [True] == [m.tls for m in server.messages if "tls@tls.example" in m.recipients]


def test_exim_knows_ann_and_nobody_else(exim: Exim) -> None:
    """AUTH with the right password succeeds, with a wrong one it is refused with 535."""
    with smtplib.SMTP("localhost", exim.port, timeout=60) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client.login("ann", "wrong")
        client.login("ann", "secret")
    assert 535 == refused.value.smtp_code


def test_opensmtpd_can_offer_a_tls_that_fails(rig: Callable[[Any], Any]) -> None:
    """STARTTLS is announced, and the handshake ends with an alert of the server's."""
    server = rig(OpenSMTPD(broken_tls=True))
    client = smtplib.SMTP("localhost", server.port, timeout=60)
    with pytest.raises(ssl.SSLError):
        client.starttls(context=server.certificate.client_context())
    client.close()


def test_dovecot_takes_mail_by_lmtp_over_tcp_and_over_a_socket(dovecot: DovecotLmtp) -> None:
    """Each recipient gets what was sent, from either side."""
    for host, port in ((dovecot.host, dovecot.port), (dovecot.socket, 0)):
        assert accepts_on(dovecot.socket), dovecot.said()
        with smtplib.LMTP(host, port, timeout=60) as client:
            # One at a time: smtplib reads one answer to the content, however many there are.
            client.sendmail("a@example.org", ["rig-b@example.net"], MAIL.decode())
            client.sendmail("a@example.org", ["rig-c@example.net"], MAIL.decode())

    def ours() -> list[Received]:
        # Other tests of this session deliver to the same server.
        return [one for one in dovecot.messages if one.recipients[0].startswith("rig-")]

    wait_until(lambda: len(ours()) == 4, "four deliveries")
    reached = sorted(message.recipients for message in ours())
    assert [("rig-b@example.net",)] * 2 + [("rig-c@example.net",)] * 2 == reached
    assert {MAIL} == {message.unix for message in ours()}
