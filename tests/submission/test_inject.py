"""picoqmail-inject into a spool: what it accepts, refuses, warns of and bounds."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.home.paths import Home
from picoqmail.message.completion import UnparsableError
from picoqmail.message.header import MessageReader, field_name
from picoqmail.submission.inject import Injection, InjectSettings, Request
from rig.waiting import wait_until

if TYPE_CHECKING:
    from trial import Trial

MAIL = b"From: a@f.test\nTo: t@t.test\nBcc: b@b.test\nSubject: s\n\nbody\n"
MEGABYTE = 1_000_000


def test_a_mail_goes_straight_into_the_spool(mailer: Trial) -> None:
    """Header completed, Bcc gone, envelope from the header, by one process."""
    spooled = mailer.accepts("inject", message=MAIL)
    assert "joe@me.test" == spooled.record["sender"]
    assert ["t@t.test", "b@b.test"] == spooled.recipients
    assert "inject" == spooled.record["origin"]["program"]
    head, _, body = spooled.message.partition(b"\n\n")
    names = [line.partition(b":")[0] for line in head.split(b"\n")]
    assert [b"Date", b"Message-ID", b"From", b"To", b"Subject"] == names
    assert b"body\n" == body


def test_no_two_messages_share_their_message_id(mailer: Trial) -> None:
    """Also in the same second, Message-IDs differ."""
    ids = set()
    for _ in range(3):
        spooled = mailer.accepts("inject", message=MAIL)
        ids.add(spooled.message.split(b"Message-ID: ")[1].split(b"\n")[0])
    assert 3 == len(ids)


def test_a_body_is_taken_byte_for_byte(mailer: Trial) -> None:
    """Every byte value, NUL and lone CR too; only a missing last newline is added."""
    body = bytes(range(256)) * 300
    spooled = mailer.accepts("inject", message=MAIL[:-5] + body)
    assert body + b"\n" == spooled.message.partition(b"\n\n")[2]


def test_a_mail_without_recipients_in_its_header_is_accepted_aloud(mailer: Trial) -> None:
    """As qmail: accepted with none by -h, and nothing is spooled; unlike qmail, it says so."""
    ran = mailer.run("inject", "-h", message=b"Subject: x\n\nbody\n")
    assert (0, []) == (ran.returncode, mailer.everything())
    assert b"no recipients" in ran.stderr


def test_no_arguments_where_they_are_to_be_the_recipients_is_refused(mailer: Trial) -> None:
    """-a without arguments is a mistake of the caller."""
    assert "no recipients" in mailer.refuses("inject", "-a", message=MAIL)


def test_recipients_that_are_lost_to_a_bad_field_are_named(mailer: Trial) -> None:
    """Qmail drops them silently; the outcome is the same here, but the line is shown."""
    ran = mailer.run("inject", message=b'To: good@g.test, "x\nCc: c@c.test\n\nb\n')
    assert 0 == ran.returncode
    assert b"unable to parse this line" in ran.stderr
    assert b'To: good@g.test, "x\n' in ran.stderr
    assert ["c@c.test"] == mailer.spooled()[0].recipients


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b'From: "x\nTo: t@t.test\n\nb\n', 'unable to parse this line:\nFrom: "x'),
        (b"To: @\n\nb\n", "it is empty"),
        (b"To: a@b\xff\n\nb\n", "it is not UTF-8"),
        (b"To: " + b"a" * 1100 + b"@b.test\n\nb\n", "longer than 1002"),
        (b"To: a@b.test, c@d\\ SIZE=1\n\nb\n", "a space"),
    ],
)
def test_what_can_never_be_sent_is_refused_for_good(
    mailer: Trial, message: bytes, said: str
) -> None:
    """Exit code 100, a reason, and nothing in the spool; one bad among good refuses all."""
    assert said in mailer.refuses("inject", message=message)


def test_a_message_over_the_limit_is_refused(mailer: Trial) -> None:
    """The setting databytes holds here too."""
    mailer.setting("databytes", "1000\n")
    assert "databytes" in mailer.refuses("inject", message=MAIL + b"x" * 2000)


@pytest.mark.parametrize(
    ("name", "text", "status", "said"),
    [
        ("me", "", 111, "does not say this host's name"),
        ("databytes", "many\n", 111, "databytes:1"),
        ("rewritefrom", "nonsense\n", 111, "rewritefrom:1"),
        ("adminaddr", "nobody\n", 111, "adminaddr:1"),
        ("defaultdomain", "a(b\n", 100, "defaultdomain"),
    ],
)
def test_a_wrong_setting_names_its_file(
    mailer: Trial, name: str, text: str, status: int, said: str
) -> None:
    """Nothing is accepted under settings that cannot be understood."""
    mailer.setting(name, text)
    assert said in mailer.refuses("inject", message=MAIL, status=status)


def test_a_home_that_is_not_there_is_a_temporary_error(mailer: Trial) -> None:
    """The caller keeps the mail, and learns how to make a home."""
    said = mailer.refuses(
        "inject", message=MAIL, status=111, environ={"PICOQMAIL_HOME": mailer.root + "/none"}
    )
    assert "picoqmail init" in said


def test_a_directory_as_input_is_a_read_error(mailer: Trial) -> None:
    """What cannot be read is a temporary error, and leaves nothing."""
    directory = os.open(mailer.root, os.O_RDONLY)
    ran = subprocess.run(
        [mailer.installed.program("inject"), "x@x.test"],
        stdin=directory,
        capture_output=True,
        env=mailer.variables(),
        timeout=30,
        check=False,
    )
    os.close(directory)
    assert 111 == ran.returncode
    assert b"read" in ran.stderr
    assert [] == mailer.everything()


def test_a_closed_input_is_a_read_error(mailer: Trial) -> None:
    """A caller without descriptor 0 is told, and the file of the spool does not take its place."""
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", mailer.installed.program("inject"), "x@x.test"],
        capture_output=True,
        env=mailer.variables(),
        timeout=30,
        check=False,
    )
    assert 111 == ran.returncode
    assert [] == mailer.everything()


def test_an_interrupted_message_leaves_nothing(mailer: Trial) -> None:
    """Control-C in the middle of a body: exit code 111, and its file is gone at once."""
    with subprocess.Popen(
        [mailer.installed.program("inject"), "x@x.test"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=mailer.variables(),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(MAIL)
        process.stdin.flush()
        wait_until(mailer.files, "a file in tmp/")
        process.send_signal(signal.SIGINT)
        assert 111 == process.wait(timeout=30)
    assert [] == mailer.everything()


def test_a_full_disk_is_a_temporary_error(mailer: Trial) -> None:
    """What cannot be written is not accepted, and leaves nothing."""
    ran = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -f 8; exec "$@"',
            "sh",
            mailer.installed.program("inject"),
            "x@x.test",
        ],
        input=MAIL + b"x" * MEGABYTE,
        capture_output=True,
        env=mailer.variables(),
        timeout=30,
        check=False,
    )
    assert 111 == ran.returncode
    assert b"cannot write the message: File too large" in ran.stderr
    assert [] == mailer.everything()


def test_output_that_cannot_be_written_is_a_temporary_error(mailer: Trial) -> None:
    """-n into a full device."""
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [mailer.installed.program("inject"), "-n"],
            input=MAIL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=mailer.variables(),
            timeout=30,
            check=False,
        )
    assert 111 == ran.returncode
    assert b"No space left" in ran.stderr


def test_printing_needs_no_spool(mailer: Trial) -> None:
    """-n shows the message with its sender and spools nothing."""
    ran = mailer.run("inject", "-n", message=MAIL)
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert ran.stdout.startswith(b"Return-Path: <joe@me.test>\nDate: ")
    assert [] == mailer.everything()


def test_a_sender_is_rewritten_in_envelope_and_header(mailer: Trial) -> None:
    """Rewritefrom changes the envelope sender, From and Sender; Reply-To and To stay."""
    mailer.setting("rewritefrom", "@:@example.org\n")
    message = b"From: Joe <joe@me.test>\nSender: joe@localhost\nReply-To: joe@me.test\n"
    spooled = mailer.accepts("inject", message=message + b"To: joe@me.test\n\nb\n")
    assert "joe@example.org" == spooled.record["sender"]
    assert ["joe@me.test"] == spooled.recipients
    assert b"\nFrom: Joe <joe@example.org>\n" in spooled.message
    assert b"\nSender: joe@example.org\n" in spooled.message
    assert b"\nReply-To: joe@me.test\n" in spooled.message


def test_an_added_from_is_rewritten_too(mailer: Trial) -> None:
    """A message without From gets the rewritten author, and the name of the environment."""
    mailer.setting("rewritefrom", "joe: Team@example.org\n")
    spooled = mailer.accepts("inject", message=b"To: t@t.test\n\nb\n", environ={"NAME": "Joe"})
    assert b'\nFrom: "Joe" <Team@example.org>\n' in spooled.message


def test_the_null_sender_is_never_rewritten(mailer: Trial) -> None:
    """A bounce stays a bounce."""
    mailer.setting("rewritefrom", "all@example.org\n")
    spooled = mailer.accepts("inject", "-f", "", message=MAIL)
    assert "" == spooled.record["sender"]
    assert b"\nFrom: all@example.org\n" in spooled.message


def test_mail_for_local_users_goes_to_the_admin(mailer: Trial) -> None:
    """Adminaddr takes bare names, me and localhost; other hosts stay; the header stays."""
    mailer.setting("adminaddr", "admin@example.org\n")
    spooled = mailer.accepts("inject", "root", "joe@localhost", "x@x.test", message=MAIL)
    assert ["admin@example.org", "x@x.test"] == spooled.recipients
    assert b"\nTo: t@t.test\n" in spooled.message


def test_a_name_adds_no_line_to_the_header(mailer: Trial) -> None:
    """Whoever chooses the name of an author chooses nothing else."""
    environ = {"NAME": "Joe\nX-Evil: yes\r\n\r\nbody"}
    spooled = mailer.accepts("inject", message=b"To: t@t.test\n\nb\n", environ=environ)
    assert b'\nFrom: "Joe X-Evil: yes    body" <joe@me.test>\n' in spooled.message


def test_settings_of_minivars_count(mailer: Trial) -> None:
    """Defaulthost may stand in minivars, in upper case."""
    mailer.setting("minivars", "DEFAULTHOST='mini.test'\n")
    assert ["bob@mini.test"] == mailer.accepts("inject", "bob", message=MAIL).recipients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "recipients"),
    [
        (b"To: a@b.test\nX: " + b"y" * (100 * MEGABYTE) + b"\n\nb\n", 1),
        (b"To: a@b.test\n" + (b"X: " + b"y" * 60 + b"\n") * 300_000 + b"\nb\n", 1),
        (b"To: a@b.test (" + b"(" * 10000 + b")" * 10000 + b")\n\nb\n", 1),
        (b"To: " + b", ".join(b"user%d@h.test" % one for one in range(100_000)) + b"\n\n", 100_000),
    ],
    ids=["100 MB in one field", "300,000 fields", "10,000 comments deep", "100,000 recipients"],
)
def test_large_headers_are_taken(mailer: Trial, message: bytes, recipients: int) -> None:
    """Their cost is bounded: the program that takes them has the time limit of every test."""
    ran = mailer.run("inject", message=message)
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert recipients == len(mailer.spooled()[0].recipients)


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"X: y\n", b" y\n"])
def test_a_header_of_short_lines_takes_little_more_than_its_size(
    mailer: Trial, line: bytes
) -> None:
    """Fields or folded lines, two million of them, in a program that may have 90 MB in all."""
    limit = 90 * MEGABYTE
    ran = subprocess.run(
        [mailer.installed.program("inject")],
        input=b"To: a@b.test\nX: y\n" + line * 2_000_000 + b"\nb\n",
        stderr=subprocess.PIPE,
        env=mailer.variables(),
        timeout=600,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert mailer.spooled()[0].message.count(line) == 2_000_001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("piece", "said"),
    [(b"a@example.org, ", "address fields hold more"), (b"a ", "more than 500000 recipients")],
)
def test_headers_that_would_cost_too_much_are_refused(
    mailer: Trial, piece: bytes, said: str
) -> None:
    """Too many bytes of addresses, or addresses made of next to none, are refused for good."""
    message = b"To: " + piece * (2 * MEGABYTE) + b"z\n\nb\n"
    assert said in mailer.refuses("inject", message=message)


def test_a_large_body_takes_no_memory(mailer: Trial) -> None:
    """A body of 100 MB passes through a program that may not have that much."""
    limit = 90 * MEGABYTE

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    with subprocess.Popen(
        [mailer.installed.program("inject")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=mailer.variables(),
        preexec_fn=bound,  # noqa: PLW1509 - no thread runs here
    ) as process:
        assert process.stdin is not None
        process.stdin.write(MAIL)
        for _ in range(100):
            process.stdin.write(b"x" * MEGABYTE)
        _, said = process.communicate(timeout=600)
    assert (0, b"") == (process.returncode, said)
    assert mailer.spooled()[0].record["size"] > 100 * MEGABYTE


@pytest.mark.parametrize("junk", [b"", b"\0", b"\n", b"\xff" * 70000, b"\r\n" * 10, b":\n", b"\t"])
def test_input_that_is_no_mail_is_a_body(mailer: Trial, junk: bytes) -> None:
    """Whatever comes in, with a recipient it is a mail; nothing crashes."""
    spooled = mailer.accepts("inject", "x@x.test", message=junk)
    assert spooled.message.startswith(b"Date: ")
    assert junk.strip(b"\n") in spooled.message


# Bytes that mean something in a header, often, and any others.
soup = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(b"To: ", b"From: ", b"Return-Path: ", b"Resent-To: ", b"Bcc: ", b"Cc:", b"\n"),
                *(b"<", b">", b"(", b")", b"@", b",", b";", b":", b".", b'"', b"[", b"]", b"\\"),
                *(b"a", b"b+", b" ", b"\n ", b"\r\n", b"\0", b"\xc3\xbc", b"From x\n", b"\n\n"),
            ]
        ),
        st.binary(max_size=3),
    ),
    max_size=40,
).map(b"".join)

# A caller whose user or host has a line end adds lines to its own header, as with qmail.
words = soup.map(lambda text: text.replace(b"\n", b""))


@given(
    message=soup,
    sender=st.none() | soup,
    recipients=st.lists(soup, max_size=3),
    letters=st.sampled_from([b"", b"c", b"r", b"m", b"sfi", b"csfirm"]),
    user=words,
    host=st.none() | words,
    rules=st.sampled_from([None, b"@:@x.test\n", b"all@x.test\n"]),
)
def test_any_input_is_accepted_or_refused(
    message: bytes,
    sender: bytes | None,
    recipients: list[bytes],
    letters: bytes,
    user: bytes,
    host: bytes | None,
    rules: bytes | None,
) -> None:
    """Whatever comes in from whomever: a message with its envelope, or one of our errors."""
    with tempfile.TemporaryDirectory(prefix="inject-") as root:
        os.mkdir(f"{root}/control")
        for name, text in (("me", b"me.test\n"), ("rewritefrom", rules)):
            if text is not None:
                with open(f"{root}/control/{name}", "wb") as file:
                    file.write(text)
        environ = {b"QMAILINJECT": letters, b"QMAILUSER": user}
        if host is not None:
            environ[b"QMAILHOST"] = host
        request = Request()
        request.sender = sender
        request.arguments = recipients
        pieces = iter([message])
        reader = MessageReader(lambda: next(pieces, b""))
        try:
            settings = InjectSettings(Home(root), environ)
            injection = Injection(request, settings, environ, now=1e9, pid=1)
            for field in reader.fields():
                injection.take(field)
            injection.finish()
            header = injection.header()
        except UnparsableError:
            return
        assert injection.sender is not None
        assert not any(b"\0" in address for address in (injection.sender, *injection.recipients))
        assert header.endswith(b"\n")
        assert not {b"bcc", b"return-path"} & {
            field_name(line) for line in header.split(b"\n")[:-1]
        }


@pytest.mark.parametrize(
    "name",
    [
        "QMAILIDHOST",
        "QMAILUSER",
        "MAILUSER",
        "USER",
        "LOGNAME",
        "QMAILHOST",
        "MAILHOST",
        "QMAILNAME",
        "MAILNAME",
        "NAME",
        "QMAILDEFAULTHOST",
        "QMAILDEFAULTDOMAIN",
        "QMAILPLUSDOMAIN",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_no_variable_adds_a_field(mailer: Trial, name: str, end: str) -> None:
    """A line end in a variable becomes a blank: no field, no line, no end of the header."""
    environ = {name: f"x{end}X-Evil: yes{end}{end}z"}
    message = b"To: t@t.test, u@host, v@plus+\nSubject: s\n\nbody\n"
    ran = mailer.run("inject", "-n", "-fa@f.test", message=message, environ=environ)
    if ran.returncode == 0:
        lines = ran.stdout.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        assert not [line for line in lines if line.startswith((b"X-Evil", b"z"))]
        assert 1 == lines[:-1].count(b"")
    else:
        assert b"unable to parse" in ran.stderr
    assert [] == mailer.everything()


ESCAPES = b"\x1b]0;gotcha\x07\x1b[31m\x9b5n\x7f"


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("inject", (), b"From: a@f.test\nTo: b@b.test, (" + ESCAPES + b"\n\nbody\n"),
        ("sendmail", ("-t",), b"Reply-To: <" + ESCAPES + b"\n\nbody\n"),
        ("sendmail", (b"<" + ESCAPES,), MAIL),
        ("sendmail", (b"-b" + ESCAPES,), MAIL),
        ("sendmail", (b"-\x1b",), MAIL),
        ("sendmail", ("-N", ESCAPES, "a@b.test"), MAIL),
        ("sendmail", ("-O", ESCAPES, "a@b.test"), MAIL),
        ("inject", ("-f", b"<" + ESCAPES, "a@b.test"), MAIL),
        ("sendmail", (b"a@b" + ESCAPES + b".test",), MAIL),
    ],
)
def test_nothing_that_is_quoted_steers_the_terminal(
    mailer: Trial, program: str, words: tuple[str | bytes, ...], message: bytes
) -> None:
    """Escape sequences of a header, an argument or an address are escaped in errors."""
    ran = mailer.run(program, *words, message=message)
    assert ran.stderr
    assert set(ran.stderr) <= {10, *range(32, 127)}
