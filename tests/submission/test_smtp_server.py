"""sendmail -bs: SMTP on standard input and output, from a client that may be hostile."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.submission.smtp_server import (
    MAX_ERRORS,
    MAX_IDLE_COMMANDS,
    MAX_RECIPIENTS,
    Data,
    Stream,
    _RefusedError,
    path_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trial import Trial

HEADER = b"From: a@f.test\r\nTo: t@t.test\r\n\r\n"
ENVELOPE = b"EHLO x\r\nMAIL FROM:<s@s.test>\r\nRCPT TO:<r@r.test>\r\nDATA\r\n"


def talk(mailer: Trial, wire: bytes, status: int = 0) -> list[str]:
    """Send all at once, as PIPELINING allows; return the codes of the replies."""
    ran = mailer.run("sendmail", "-bs", message=wire)
    assert (status, b"") == (ran.returncode, ran.stderr)
    assert ran.stdout.endswith(b"\r\n")
    return [line[:3] for line in ran.stdout.decode().splitlines() if line[3:4] != "-"]


def test_two_messages_are_submitted_in_one_session(mailer: Trial) -> None:
    """Envelope as told, header completed, line ends stored as LF, dots unstuffed."""
    wire = ENVELOPE + HEADER + b"one\r\n..dot\r\n.\r\n"
    wire += b'MAIL FROM:<> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<"b c"@r.test>\r\nRCPT TO:<joe>\r\n'
    wire += b"DATA\r\n" + HEADER + b"two\r\n.\r\nQUIT\r\n"
    codes = ["220", "250", "250", "250", "354", "250", "250", "250", "250", "354", "250", "221"]
    assert codes == talk(mailer, wire)
    one, two = mailer.spooled()
    assert ("s@s.test", ["r@r.test"]) == (one.record["sender"], one.recipients)
    assert one.message.endswith(b"\nFrom: a@f.test\nTo: t@t.test\n\none\n.dot\n")
    assert one.message.startswith(b"Date: ")
    assert ("", ["b c@r.test", "joe@me.test"]) == (two.record["sender"], two.recipients)


def test_what_is_offered_is_told(mailer: Trial) -> None:
    """PIPELINING, SIZE with the limit, 8BITMIME."""
    mailer.setting("databytes", "1000\n")
    ran = mailer.run("sendmail", "-bs", message=b"EHLO x\r\nQUIT\r\n")
    lines = ran.stdout.decode().splitlines()
    assert lines[0].startswith("220 me.test ESMTP")
    assert {"250-PIPELINING", "250-SIZE 1000", "250-8BITMIME"} <= set(lines)


def test_too_large_a_message_is_refused_and_the_session_goes_on(mailer: Trial) -> None:
    """By its announced size, and by its real one; both leave nothing."""
    mailer.setting("databytes", "1000\n")
    wire = b"EHLO x\r\nMAIL FROM:<s@s.test> SIZE=99999999999999999999\r\n"
    wire += ENVELOPE + HEADER + b"x" * 5000 + b"\r\n.\r\nNOOP\r\nQUIT\r\n"
    codes = ["220", "250", "552", "250", "250", "250", "354", "554", "250", "221"]
    assert codes == talk(mailer, wire)
    assert [] == mailer.everything()


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r\n\0.\r\n"]
)
def test_only_crlf_dot_crlf_ends_a_message(mailer: Trial, end: bytes) -> None:
    """Nothing else does: what follows it is content, and no second transaction."""
    smuggled = b"MAIL FROM:<evil@e.test>\r\nRCPT TO:<v@v.test>\r\nDATA\r\n"
    wire = ENVELOPE + HEADER + b"x" + end + smuggled + HEADER + b"y\r\n.\r\nQUIT\r\n"
    assert ["220", "250", "250", "250", "354", "250", "221"] == talk(mailer, wire)
    (spooled,) = mailer.spooled()
    assert ["r@r.test"] == spooled.recipients
    assert b"MAIL FROM:<evil@e.test>\n" in spooled.message


def test_a_message_cut_short_is_not_accepted(mailer: Trial) -> None:
    """The end of the input within the content leaves nothing; there is no reply, and no success."""
    cut = ENVELOPE + HEADER + b"x\r\n.\r"
    assert ["220", "250", "250", "250", "354"] == talk(mailer, cut, status=111)
    assert [] == mailer.everything()


@pytest.mark.parametrize("rest", [b"QUIT\n", b""])
def test_a_client_of_bare_line_feeds_is_one_throughout(mailer: Trial, rest: bytes) -> None:
    """As a script that prints its commands: its first line says so, and its data follow."""
    wire = (ENVELOPE + HEADER + b"one\r\n..dot\r\n.\r\n").replace(b"\r\n", b"\n") + rest
    codes = ["220", "250", "250", "250", "354", "250", *(["221"] if rest else [])]
    assert codes == talk(mailer, wire)
    (one,) = mailer.spooled()
    assert one.message.endswith(b"\n\none\n.dot\n")


def test_a_client_of_crlf_stays_strict(mailer: Trial) -> None:
    """No line of bare line feeds ends its data, or is a command."""
    smuggled = b"x\n.\nMAIL FROM:<e@e.test>\nRCPT TO:<v@v.test>\nDATA\n\ny\n.\n"
    wire = b"EHLO c.test\r\n" + ENVELOPE + HEADER + smuggled + b"\r\n.\r\nQUIT\r\n"
    talk(mailer, wire)
    (one,) = mailer.spooled()
    assert b"\n.\nMAIL FROM:<e@e.test>\n" in one.message


def test_smtputf8_is_offered_and_taken(mailer: Trial) -> None:
    """RFC 6531: the parameter of MAIL, and addresses beyond ASCII."""
    wire = "EHLO c\r\nMAIL FROM:<jörg@s.test> SMTPUTF8\r\nRCPT TO:<bü@r.test>\r\n".encode()
    wire += b"DATA\r\n" + HEADER + b"x\r\n.\r\nQUIT\r\n"
    ran = mailer.run("sendmail", "-bs", message=wire)
    assert b"250-SMTPUTF8\r\n" in ran.stdout
    (one,) = mailer.spooled()
    assert ("jörg@s.test", ["bü@r.test"]) == (one.record["sender"], one.recipients)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"DATA", "503"),
        (b"RCPT TO:<a@b.test>", "503"),
        (b"MAIL FROM:<a@b.test", "501"),
        (b"MAIL FROM:", "501"),
        (b"MAIL TO:<a@b.test>", "501"),
        (b"MAIL FROM:<a@b.test> RET=FULL", "555"),
        (b"MAIL FROM:<a(b>", "501"),
        (b"MAIL FROM:<a, b>", "501"),
        (b"MAIL FROM:<a b@c.test>", "501"),
        (b"MAIL FROM:<a@b c.test>", "501"),
        (b"MAIL FROM:<a@b\\ SIZE=1>", "501"),
        (b'MAIL FROM:<a@"b> SIZE=1">', "501"),
        (b"STARTTLS", "500"),
        (b"GET / HTTP/1.1", "500"),
        (b"", "500"),
        (b"\xff\0\x80", "500"),
        (b"x" * 100_000, "500"),
        (b"VRFY root", "252"),
        (b"HELP", "214"),
        (b"NOOP x", "250"),
        (b"RSET", "250"),
        (b"HELO", "250"),
        (b"mail from:<a@b.test>", "250"),
        (b"MAIL FROM: a@b.test", "250"),
        (b"MAIL FROM:<@x.test,@y.test:a@b.test>", "250"),
    ],
)
def test_each_command_is_answered(mailer: Trial, line: bytes, code: str) -> None:
    """One reply for one line, whatever is in it, and the session goes on."""
    assert ["220", code, "221"] == talk(mailer, line + b"\r\nQUIT\r\n")


def test_rset_and_ehlo_forget_the_envelope(mailer: Trial) -> None:
    """No recipient of a transaction given up gets the next message."""
    wire = b"MAIL FROM:<s@s.test>\r\nRCPT TO:<old@r.test>\r\nRSET\r\n"
    wire += (
        b"MAIL FROM:<s@s.test>\r\nRCPT TO:<old@r.test>\r\n" + ENVELOPE + HEADER + b".\r\nQUIT\r\n"
    )
    talk(mailer, wire)
    assert ["r@r.test"] == mailer.spooled()[0].recipients


def test_a_bad_recipient_refuses_the_message_at_its_end(mailer: Trial) -> None:
    """What the spool would not take is a permanent error, one line of ASCII."""
    wire = b"MAIL FROM:<s@s.test>\r\nRCPT TO:<a\xff@b.test>\r\nDATA\r\n" + HEADER + b".\r\nQUIT\r\n"
    assert ["220", "250", "250", "354", "554", "221"] == talk(mailer, wire)
    assert [] == mailer.everything()


def test_errors_are_counted(mailer: Trial) -> None:
    """A client that makes nothing but errors is hung up on."""
    codes = talk(mailer, b"X\r\n" * 1000)
    assert ["220", *["500"] * MAX_ERRORS, "421"] == codes


def test_idling_is_bounded(mailer: Trial) -> None:
    """So is one that does nothing."""
    codes = talk(mailer, b"NOOP\r\n" * 5000)
    assert MAX_IDLE_COMMANDS + 2 == len(codes)
    assert "421" == codes[-1]


def test_recipients_are_bounded(mailer: Trial) -> None:
    """More than the limit get a temporary answer each, and those before are served."""
    rcpt = b"".join(b"RCPT TO:<u%d@r.test>\r\n" % one for one in range(MAX_RECIPIENTS + 2))
    wire = b"MAIL FROM:<s@s.test>\r\n" + rcpt + b"DATA\r\n" + HEADER + b".\r\nQUIT\r\n"
    codes = talk(mailer, wire)
    assert 2 == codes.count("452")
    assert MAX_RECIPIENTS == len(mailer.spooled()[0].recipients)


def test_without_settings_the_client_is_told(mailer: Trial) -> None:
    """421 with the reason, and exit code 111."""
    mailer.setting("me", "")
    ran = mailer.run("sendmail", "-bs", message=ENVELOPE)
    assert 111 == ran.returncode
    assert ran.stdout.startswith(b"421 4.3.0 ")
    assert b"picoqmail init" in ran.stdout


def test_replies_come_without_waiting_for_more(mailer: Trial) -> None:
    """A client that waits for each reply before it goes on gets each one."""
    with subprocess.Popen(
        [mailer.installed.program("sendmail"), "-bs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=mailer.variables(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"220 ")
        for line, code in (
            (b"HELO x", b"250"),
            (b"MAIL FROM:<a@b.test>", b"250"),
            (b"QUIT", b"221"),
        ):
            process.stdin.write(line + b"\r\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(code)
        assert 0 == process.wait(timeout=30)


@pytest.mark.parametrize(
    ("argument", "address"),
    [
        (b"FROM:<>", b""),
        (b"FROM:<a@b>", b"a@b"),
        (b'FROM:<"a>b"@c> X=y', b"a>b@c"),
        (b'FROM:<"a\\"b"@c>', b'a"b@c'),
        (b"from: <a@b>", b"a@b"),
        (b"FROM:<a@[1.2.3.4]>", b"a@[1.2.3.4]"),
        (b"FROM:<#@[]>", b"#@[]"),
    ],
)
def test_a_path_is_read_as_an_address(argument: bytes, address: bytes) -> None:
    """Quotes are the wire's; the address is raw."""
    assert address == path_of(argument, b"FROM:")[0]


@given(st.binary(max_size=40))
def test_any_path_is_read_or_refused(argument: bytes) -> None:
    """No bytes crash it."""
    try:
        address, _ = path_of(b"TO:" + argument, b"TO:")
    except _RefusedError:
        return
    assert isinstance(address, bytes)


def stored(pieces: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Return the stored content, and what follows it, of data that arrive in these pieces."""
    rest = iter([piece for piece in pieces if piece])
    stream = Stream(lambda: next(rest, b""))
    data = Data(stream)
    found = []
    while chunk := data.read():
        found.append(chunk)
    after = stream._buffer + b"".join(rest)
    return b"".join(found), after


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n."]), max_size=15))
def test_pieces_do_not_matter_to_the_content(pieces: list[bytes]) -> None:
    """However the bytes arrive, content and rest are the same, and nothing is lost between."""
    wire = b"".join(pieces) + b"\r\n.\r\nrest"
    whole = stored([wire])
    assert whole == stored(wire[at : at + 1] for at in range(len(wire)))
    assert whole[1].endswith(b"rest")
    end = (b"\r\n" + wire).index(b"\r\n.\r\n")
    assert wire[end + 3 :] == whole[1]
