"""picoqmail-sendmail: its flags, the lone dot, and what is not a mail."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from email import message_from_bytes
from email.header import decode_header, make_header
from email.utils import parseaddr
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.submission.flags import UsageError
from picoqmail.submission.inject import FROM_BOTH
from picoqmail.submission.sendmail import (
    ALIASES,
    DELIVER,
    LIST,
    RUN_QUEUE,
    SUBMISSION,
    stop_at_dot,
    understand,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rig.recording import RecordingRelay
    from trial import Trial

MAIL = b"From: a@f.test\nTo: t@t.test\nSubject: s\n\nbody\n"


def words(line: str) -> list[bytes]:
    """Return the arguments of a command line without quotes."""
    return [word.encode() for word in line.split()]


@pytest.mark.parametrize(
    "line",
    [
        "-i -FCronDaemon -B8BITMIME -oem user@h.test",  # cron of Debian
        "-FCronDaemon -i -odi -oem -oi -t -froot",  # Vixie cron
        "-t -i",  # PHP, cronie, monit
        "-oi -fwordpress@ex.test -t",  # PHPMailer
        "-oem -oi -- user@h.test",  # mutt
        "-i -- user@h.test",  # s-nail
        "-i user@h.test",  # bsd-mailx, git
        "-t -oi -oem",  # MIME::Lite
        "-oi -oem -f a@h.test user@h.test",
        "-r a@h.test user@h.test",
        "-ra@h.test -t",
        "-t -f a@h.test",  # fail2ban
        "-Am -t",
        "-Ac -oi user@h.test",
        "-G -i user@h.test",
        "-bm user@h.test",
        "-em -B 8BITMIME -N failure,delay -R hdrs -V id.1 user@h.test",
        "-N never -t",
        "-O IgnoreDots=true -O DeliveryMode=b -oQ/x user@h.test",
        "-L tag -X /dev/null -C /etc/x.cf -h 5 -p SMTP:h -d0.1 -D -S -U -n -c -x -m -v -Eabc -J -t",
        "--read-recipients --from=a@h.test",
        "-D user@h.test",  # dma
        "-S -f a@h.test user@h.test",  # OpenSMTPD
        "-N off -R off user@h.test",  # msmtp
    ],
)
def test_command_lines_of_the_world_are_understood(line: str) -> None:
    """Each is a mail with at least one recipient to come."""
    found = understand(b"sendmail", words(line))
    assert DELIVER == found.mode
    assert found.request.arguments or FROM_BOTH == found.request.recipients_from


@pytest.mark.parametrize(
    ("name", "line", "mode"),
    [
        ("sendmail", "-bs", SUBMISSION),
        ("sendmail", "-bp", LIST),
        ("mailq", "", LIST),
        ("mailq", "-v", LIST),
        ("sendmail", "-bi", ALIASES),
        ("sendmail", "-I", ALIASES),
        ("newaliases", "", ALIASES),
        ("sendmail", "-q", RUN_QUEUE),
        ("sendmail", "-q30m", RUN_QUEUE),
    ],
)
def test_other_things_than_a_mail_are_asked_for(name: str, line: str, mode: int) -> None:
    """By flag, or by the name of the program."""
    assert mode == understand(name.encode(), words(line)).mode


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-Z x@h.test", "illegal option -- Z"),
        ("-tZ", "illegal option -- Z"),
        ("-a x@h.test", "illegal option -- a"),
        ("-f", "requires an argument -- f"),
        ("-bd", "-bd: there is no daemon"),
        ("-bt", "-bt"),
        ("-bv x@h.test", "-bv"),
        ("-N sometimes x@h.test", "-N 'sometimes'"),
        ("-N never,delay x@h.test", "-N"),
        ("-R some x@h.test", "full or hdrs is wanted"),
        ("-O nothing x@h.test", "name=value"),
        ("", "no recipients"),
        ("-f a@h.test -L x@h.test", "no recipients"),
    ],
)
def test_what_cannot_be_understood_is_refused_in_one_line(line: str, said: str) -> None:
    """Nothing is guessed, and nothing is read."""
    with pytest.raises(UsageError, match=said):
        understand(b"sendmail", words(line))


def test_the_last_sender_wins_and_ends_the_name() -> None:
    """-f makes the author of a mail without From, and no name of the environment is its."""
    environ = {b"NAME": b"Joe", b"QMAILHOST": b"h.test"}
    understand(b"sendmail", words("-f a@x.test -f b@y.test -t")).adjust(environ)
    assert {b"QMAILUSER": b"b", b"QMAILHOST": b"y.test"} == environ


def test_wishes_for_notices_go_into_the_sidecar(mailer: Trial) -> None:
    """-N, -R and -V are kept with the message, for a relay that knows RFC 3461."""
    line = words("-N failure,Delay -R hdrs -V id-1 x@x.test")
    spooled = mailer.accepts("sendmail", *line, message=MAIL)
    expected = {"notify": "FAILURE,DELAY", "ret": "HDRS", "envid": "id-1"}
    assert expected == spooled.record["dsn"]


def test_no_wish_for_notices_is_none(mailer: Trial) -> None:
    """`off` takes a wish back."""
    line = words("-N never -R full -N off -R off x@x.test")
    assert "dsn" not in mailer.accepts("sendmail", *line, message=MAIL).record


def test_only_queue(mailer: Trial, relay: RecordingRelay) -> None:
    """-bq: the mail is accepted, and stays until something else starts a sender."""
    mailer.setting("relayip", f"{relay.address}\n")
    sending = {"PICOQMAIL_SEND": ""}
    mailer.accepts("sendmail", "-bq", "x@x.test", message=MAIL, environ=sending)
    assert not os.path.exists(f"{mailer.root}/spool/sender.lock")
    ran = mailer.run("sendmail", "y@x.test", message=MAIL, environ=sending)
    assert (0, b"", b"") == (ran.returncode, ran.stdout, ran.stderr)
    assert {("x@x.test",), ("y@x.test",)} == {one.recipients for one in relay.wait_for(2)}


def test_a_flag_that_is_not_known_is_exit_100(mailer: Trial) -> None:
    """With one clear line, and nothing in the spool."""
    said = mailer.refuses("sendmail", "-Z", "x@x.test", message=MAIL)
    assert "sendmail: illegal option -- Z\n" == said


@pytest.mark.parametrize("address", ["b@x..net", "a@.b"])
def test_an_empty_label_in_a_domain_is_refused(mailer: Trial, address: str) -> None:
    """No relay could be told such an address: 100, as recipient and as sender."""
    assert "empty label" in mailer.refuses("sendmail", address, message=MAIL)
    assert "empty label" in mailer.refuses("sendmail", f"-f{address}", "x@x.test", message=MAIL)


def test_the_name_of_cron_s_mail_and_its_eight_bits_arrive(mailer: Trial) -> None:
    """The line that breaks mailers: -i -FCronDaemon -B8BITMIME -oem user."""
    line = words("-i -FCronDaemon -B8BITMIME -oem root")
    mail = "To: root\nSubject: Cron <root@web1> true\n\n.\nerror: größe\n".encode()
    spooled = mailer.accepts("sendmail", *line, message=mail, environ={"USER": "root"})
    assert b'\nFrom: "CronDaemon" <root@me.test>\n' in spooled.message
    assert ["root@me.test"] == spooled.recipients
    assert spooled.message.endswith("\n\n.\nerror: größe\n".encode())


@pytest.mark.parametrize("flags", [["-t"], ["-t", "-oem"]])
def test_a_lone_dot_ends_the_input(mailer: Trial, flags: list[str]) -> None:
    """Unless told otherwise."""
    spooled = mailer.accepts("sendmail", *flags, message=MAIL + b".x\n..\n.\nafter\n")
    assert spooled.message.endswith(b"\nbody\n.x\n..\n")


@pytest.mark.parametrize(
    "flags", [["-i", "-t"], ["-ti"], ["-oi", "-t"], ["-O", "IgnoreDots=1", "-t"]]
)
def test_a_lone_dot_is_content_if_it_is_to_be(mailer: Trial, flags: list[str]) -> None:
    """With -i, -oi or -O IgnoreDots."""
    spooled = mailer.accepts("sendmail", *flags, message=MAIL + b".\nafter\n")
    assert spooled.message.endswith(b"\nbody\n.\nafter\n")


def test_after_the_dot_nobody_waits_for_the_end(mailer: Trial) -> None:
    """Who types the dot has not typed an end of file."""
    with subprocess.Popen(
        [mailer.installed.program("sendmail"), "x@x.test"],
        stdin=subprocess.PIPE,
        env=mailer.variables(),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(MAIL + b".\n")
        process.stdin.flush()
        assert 0 == process.wait(timeout=30)
    assert mailer.spooled()[0].message.endswith(b"\nbody\n")


def until_dot(pieces: Iterable[bytes]) -> bytes:
    """Return what comes before the lone dot of an input in these pieces."""
    rest = iter([piece for piece in pieces if piece])
    read = stop_at_dot(lambda: next(rest, b""))
    found = []
    while chunk := read():
        found.append(chunk)
    assert b"" == read()
    return b"".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", b""),
        (b".", b""),
        (b".\n", b""),
        (b".\nx", b""),
        (b"a\n.", b"a\n"),
        (b"a\n.\nb\n", b"a\n"),
        (b"a\n.b\n..\n \n. \nc.\n", b"a\n.b\n..\n \n. \nc.\n"),
        (b"a\n.\r\nb\n", b"a\n.\r\nb\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n"),
        (b"a\r\n.\nb\r\n", b"a\r\n"),
        (b"a\r\n.\r", b"a\r\n"),
        (b"\n\n.\n", b"\n\n"),
        (b"a\n.\r", b"a\n.\r"),
    ],
)
def test_a_dot_line_is_just_a_dot(text: bytes, expected: bytes) -> None:
    """Whole and byte by byte; with a CR only where the first line has one."""
    assert expected == until_dot([text])
    assert expected == until_dot(text[at : at + 1] for at in range(len(text)))


@given(st.lists(st.sampled_from([b"\n", b".", b"\r", b"a", b"\n.", b"\n.\n"]), max_size=12))
def test_pieces_do_not_matter_to_the_dot(pieces: list[bytes]) -> None:
    """However the bytes arrive, the input ends at the same place, and never later than its dot."""
    found = until_dot(pieces)
    assert until_dot([b"".join(pieces)]) == found
    assert b"".join(pieces).startswith(found)
    assert b"\n.\n" not in b"\n" + found


def test_mailq_lists_what_waits(mailer: Trial) -> None:
    """-bp names each message, and ends as Sendmail and Postfix do."""
    spooled = mailer.accepts("sendmail", "x@x.test", message=MAIL)
    ran = mailer.run("sendmail", "-bp")
    assert (0, b"") == (ran.returncode, ran.stderr)
    first, to, total, last = ran.stdout.decode().splitlines()
    assert re.fullmatch(
        rf"[0-9-]{{10}} [0-9:]{{8}} {spooled.record['size']} bytes from <joe@me.test>  "
        rf"{re.escape(spooled.record['id'])}",
        first,
    )
    assert ("    to <x@x.test>", "Total Requests: 1") == (to, total.strip())
    assert "-- 1 Kbytes in 1 Request." == last


def test_mailq_of_an_empty_queue(mailer: Trial) -> None:
    """Postfix's line ends it."""
    ran = mailer.run("sendmail", "-bp")
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert [b"Total Requests: 0", b"Mail queue is empty"] == [
        line.strip() for line in ran.stdout.splitlines()
    ]


@pytest.mark.parametrize("kind", ["postfix", "sendmail", "nullmailer"])
@pytest.mark.parametrize(("waiting", "state"), [(0, "OK"), (3, "WARNING"), (6, "CRITICAL")])
def test_monitoring_reads_mailq(
    mailer: Trial, tmp_path: Path, kind: str, waiting: int, state: str
) -> None:
    """Nagios's check_mailq, as Debian ships it, counts what waits."""
    plugins = "/usr/lib/nagios/plugins"
    if not os.path.exists(f"{plugins}/check_mailq"):
        pytest.skip("needs Debian's package monitoring-plugins-standard")
    for _ in range(waiting):
        mailer.accepts("sendmail", "x@x.test", message=MAIL)
    program = tmp_path / "mailq"
    program.write_text(f"#!/bin/sh\nexec '{mailer.installed.program('sendmail')}' -bp\n")
    program.chmod(0o755)
    for name in ("check_mailq", "utils.pm"):
        with open(f"{plugins}/{name}", encoding="utf-8") as file:
            text = file.read()
        text = text.replace("/usr/bin/mailq", str(program)).replace(plugins, str(tmp_path))
        (tmp_path / name).write_text(text)
    ran = subprocess.run(
        ["perl", str(tmp_path / "check_mailq"), "-M", kind, "-w", "2", "-c", "5"],
        capture_output=True,
        text=True,
        env=mailer.variables(),
        timeout=60,
        check=False,
    )
    assert f"{state}: {kind} mailq" in ran.stdout, ran.stdout + ran.stderr
    assert f"unsent={waiting};2;5;0" in ran.stdout


@pytest.mark.parametrize("flag", ["-q", "-q30m", "-qRx.test"])
def test_the_queue_is_run_on_demand(mailer: Trial, relay: RecordingRelay, flag: str) -> None:
    """-q sends what waits, and returns when it is sent."""
    mailer.setting("relayip", f"{relay.address}\n")
    mailer.accepts("sendmail", "x@x.test", message=MAIL)
    ran = mailer.run("sendmail", flag)
    assert (0, b"") == (ran.returncode, ran.stdout)
    assert [("x@x.test",)] == [message.recipients for message in relay.messages]


def test_the_sender_starts_by_itself(mailer: Trial, relay: RecordingRelay) -> None:
    """Without PICOQMAIL_SEND=off the mail is at the relay soon, and nobody waited for it."""
    mailer.setting("relayip", f"{relay.address}\n")
    ran = mailer.run("sendmail", "-t", message=MAIL, environ={"PICOQMAIL_SEND": ""})
    assert (0, b"", b"") == (ran.returncode, ran.stdout, ran.stderr)
    (message,) = relay.wait_for(1)
    assert ("t@t.test",) == message.recipients


def test_newaliases_succeeds(mailer: Trial, tmp_path: Path) -> None:
    """Installation scripts run it and must not fail."""
    os.symlink(mailer.installed.program("sendmail"), tmp_path / "newaliases")
    ran = subprocess.run(
        [tmp_path / "newaliases"], capture_output=True, env=mailer.variables(), check=False
    )
    assert (0, b"", b"") == (ran.returncode, ran.stdout, ran.stderr)


# --- Addresses of the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "recipients"),
    [
        ("a@x.test,b@x.test", ["a@x.test", "b@x.test"]),  # MAILTO of cron
        ("a@x.test, b@x.test", ["a@x.test", "b@x.test"]),
        ("a@x.test,,b@x.test,", ["a@x.test", "b@x.test"]),
        ("a@x.test b@x.test", ["a@x.test", "b@x.test"]),
        ("a@x.test;b@x.test", ["a@x.test", "b@x.test"]),
        ("root,joe", ["root@me.test", "joe@me.test"]),
        ("<a@x.test>", ["a@x.test"]),
        ("Joe Public <a@x.test>", ["a@x.test"]),
        ('"Public, Joe" <a@x.test>, b@x.test (comment)', ["a@x.test", "b@x.test"]),
        ('"a b"@x.test', ["a b@x.test"]),
        ('"a,b"@x.test', ["a,b@x.test"]),
        ("team: a@x.test, b@x.test;", ["a@x.test", "b@x.test"]),
        ("<@r.test,@s.test:a@x.test>", ["a@x.test"]),
        ("a@[192.0.2.1]", ["a@[192.0.2.1]"]),
        ("jörg@bücher.test", ["jörg@bücher.test"]),
    ],
)
def test_a_recipient_argument_is_text_of_a_header(
    mailer: Trial, argument: str, recipients: list[str]
) -> None:
    """Lists, names, brackets, comments and quotes mean what they mean in a header (RFC 5322)."""
    ran = mailer.run("sendmail", "-i", argument, message=MAIL)
    assert (0, b"") == (ran.returncode, ran.stderr)
    (one,) = mailer.spooled()
    assert recipients == one.recipients


@pytest.mark.parametrize(
    "argument",
    [
        "",
        ",",
        "<>",
        "a@x.test>",
        "<a@x.test",
        "Joe Public",
        "Joe a@x.test",
        "a@x.test, Joe Public",
        "b@ex ample.test",
        "<a b@x.test>",
        '"a@x.test',
        "a@b@x.test",
        "a@x.test\nb@x.test",
        "(nobody)",
        "undisclosed-recipients:;",
        "a@x..test",
        "a@.",
    ],
)
def test_a_recipient_argument_that_is_not_understood_is_refused(
    mailer: Trial, argument: str
) -> None:
    """Whole, with one line that names it; good recipients beside it get nothing either."""
    ran = mailer.run("sendmail", "-i", "good@x.test", argument, message=MAIL)
    assert 100 == ran.returncode
    assert 1 == ran.stderr.count(b"\n")
    assert b"environment" not in ran.stderr
    assert [] == mailer.everything()


@pytest.mark.parametrize(
    ("argument", "sender"),
    [
        ("<>", ""),  # vacation, cronie
        ("", ""),
        ("Joe <a@x.test>", "a@x.test"),
        ("<a@x.test>", "a@x.test"),
        ('"a b"@x.test', "a b@x.test"),  # Ruby's mail library
        ("a@x.test (Joe)", "a@x.test"),
        ("root", "root@me.test"),
        ("#@[]", "#@[]"),
        ("list-@x.test-@[]", "list-@x.test-@[]"),
    ],
)
@pytest.mark.parametrize("flag", ["-f", "-r"])
def test_a_sender_argument_is_text_of_a_header(
    mailer: Trial, flag: str, argument: str, sender: str
) -> None:
    """One address, or the null sender."""
    ran = mailer.run("sendmail", "-i", flag, argument, "a@x.test", message=b"To: a@x.test\n\nx\n")
    assert (0, b"") == (ran.returncode, ran.stderr)
    (one,) = mailer.spooled()
    assert sender == one.record["sender"]
    assert b'""' not in one.message


@pytest.mark.parametrize("argument", ["a b", "a@x.test, b@x.test", "<a", "(x)", ","])
def test_a_sender_argument_that_is_none_is_refused(mailer: Trial, argument: str) -> None:
    """Two addresses, or something else, is no sender."""
    ran = mailer.run("sendmail", "-i", "-f", argument, "a@x.test", message=MAIL)
    assert 100 == ran.returncode
    assert argument.encode() in ran.stderr
    assert [] == mailer.everything()


@pytest.mark.parametrize(
    "line",
    [
        "to@x.test -f root",
        "to@x.test -froot",
        "-f root to@x.test -i",
        "to@x.test --from=root",
        "-i to@x.test -f root --",
    ],
)
def test_flags_count_wherever_they_stand(mailer: Trial, line: str) -> None:
    """Before and behind a recipient, as in the sendmail of GNU and others."""
    assert 0 == mailer.run("sendmail", *line.split(), message=MAIL).returncode
    (one,) = mailer.spooled()
    assert ("root@me.test", ["to@x.test"]) == (one.record["sender"], one.recipients)


def test_behind_two_hyphens_are_recipients(mailer: Trial) -> None:
    """Also what looks like a flag."""
    assert 0 == mailer.run("sendmail", "-i", "--", "-f@x.test", message=MAIL).returncode
    (one,) = mailer.spooled()
    assert ["-f@x.test"] == one.recipients


@pytest.mark.parametrize("flag", ["-Z", "--help", "--wrong=x"])
def test_an_unknown_flag_is_refused_wherever_it_stands(mailer: Trial, flag: str) -> None:
    """With one line, and nothing in the spool."""
    ran = mailer.run("sendmail", "to@x.test", flag, message=MAIL)
    assert (100, 1) == (ran.returncode, ran.stderr.count(b"\n"))
    assert [] == mailer.everything()


# --- Nothing vanishes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"Subject: s\n",
        b"To: undisclosed-recipients:;\n",
        b"To:\n",
        b"To: <a@x.test\nCc: b@x.test\n",
        b"To: b@ex ample.test\n",
        b'To: "a@x.test\n',
    ],
)
def test_without_a_recipient_a_mail_is_refused(mailer: Trial, header: bytes) -> None:
    """-t: 100, with the reason; a field that is not understood is a recipient that would vanish."""
    ran = mailer.run("sendmail", "-t", "-i", message=header + b"\nx\n")
    assert 100 == ran.returncode
    assert b"recipient" in ran.stderr
    assert [] == mailer.everything()


# --- Who writes ----------------------------------------------------------------------------------


def test_without_variables_the_account_writes(mailer: Trial) -> None:
    """Cron and systemd set neither USER nor LOGNAME."""
    account = pwd.getpwuid(os.getuid())
    mailer.environ.clear()
    assert 0 == mailer.run("sendmail", "-i", "a@x.test", message=b"To: a@x.test\n\nx\n").returncode
    (one,) = mailer.spooled()
    assert f"{account.pw_name}@me.test" == one.record["sender"]
    assert f"{account.pw_name}@me.test".encode() in one.message
    assert b"anonymous" not in one.message


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Jörg", b"From: =?utf-8?B?SsO2cmc=?= <joe@me.test>\n"),
        ("", b"From: joe@me.test\n"),
        (" ", b"From: joe@me.test\n"),
        ("Joe Q. Public", b'From: "Joe Q. Public" <joe@me.test>\n'),
    ],
)
def test_a_name_is_written_in_seven_bits(mailer: Trial, name: str, field: bytes) -> None:
    """-F: beyond ASCII an encoded word (RFC 2047), and nothing for an empty name."""
    mail = b"To: a@x.test\n\nx\n"
    assert 0 == mailer.run("sendmail", "-i", "-F", name, "a@x.test", message=mail).returncode
    (one,) = mailer.spooled()
    assert b"\n" + field in b"\n" + one.message


def test_a_long_name_is_several_words(mailer: Trial) -> None:
    """None is over 75 octets, no character is split, and a reader gets the name back."""
    name = "Jörg Ü " * 30
    mail = b"To: a@x.test\n\nx\n"
    mailer.run("sendmail", "-i", "-F", name, "a@x.test", message=mail)
    (one,) = mailer.spooled()
    field = message_from_bytes(one.message)["From"]
    assert name.strip() == parseaddr(str(make_header(decode_header(field))))[0]
    assert all(len(word) <= 75 for word in one.message.split() if word.startswith(b"=?"))
    assert one.message.isascii()


# --- Octet for octet -----------------------------------------------------------------------------

UNTOUCHED = [
    b'From: "Shop (Support)" <shop@x.test>\n',
    b'From: "[Acme] Shop" <shop@x.test>\n',
    b"From: Joe Q. Public <joe@x.test>\n",
    b"From: joe@x.test (Joe)\n",
    b"From:joe@x.test\n",
    b"From:  Joe  <joe@x.test>\n",
    "From: Jörg <joe@x.test>\n".encode(),
    b"From: joe@x.test\nReply-To: a@x.test,b@x.test\n",
    b"From: joe@x.test\nReply-To: a@x.test,\n\tb@x.test\n",
    b"From: joe@x.test\nSender: <joe@x.test>\n",
    b"FROM : joe@x.test\n",
    b'From: "joe"@x.test\n',
]


@pytest.mark.parametrize("field", UNTOUCHED)
@pytest.mark.parametrize("to", [b"To: undisclosed-recipients:;\n", b"To: a@x.test,b@x.test\n"])
@pytest.mark.parametrize("way", ["arguments", "session"])
def test_what_needs_nothing_keeps_its_octets(
    mailer: Trial, field: bytes, to: bytes, way: str
) -> None:
    """A signature that the application made (DKIM) covers the octets of the header."""
    mail = field + to + b"Date: Thu, 26 Nov 2026 10:00:00 +0000\nMessage-ID: <1@x.test>\n\nx\n"
    if way == "arguments":
        ran = mailer.run("sendmail", "-i", "a@x.test", message=mail)
    else:
        wire = b"EHLO c\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<a@x.test>\r\nDATA\r\n"
        wire += mail.replace(b"\n", b"\r\n") + b".\r\nQUIT\r\n"
        ran = mailer.run("sendmail", "-bs", message=wire)
    assert 0 == ran.returncode
    (one,) = mailer.spooled()
    assert mail == one.message


@pytest.mark.parametrize(
    ("field", "written"),
    [
        (b"Reply-To: joe\n", b"Reply-To: joe@me.test\n"),
        (b"Reply-To: a@x.test b@x.test\n", b"Reply-To: a@x.test, b@x.test\n"),
    ],
)
def test_what_needs_something_is_written_anew(mailer: Trial, field: bytes, written: bytes) -> None:
    """An address that lacks its host, or a list without commas."""
    mail = b"From: a@x.test\nTo: t@t.test\n" + field + b"\nx\n"
    assert 0 == mailer.run("sendmail", "-i", "a@x.test", message=mail).returncode
    (one,) = mailer.spooled()
    assert written in one.message


@pytest.mark.parametrize("line", [b"From joe Thu Nov 26 10:00:00 2026\n", b">From joe x\n"])
def test_an_mbox_line_ends_no_header(mailer: Trial, line: bytes) -> None:
    """Quoted or not, the first line of an mbox is none of the body."""
    assert 0 == mailer.run("sendmail", "-t", message=line + MAIL).returncode
    (one,) = mailer.spooled()
    assert ["t@t.test"] == one.recipients
    assert b"\nMBOX-Line: " + line in b"\n" + one.message
