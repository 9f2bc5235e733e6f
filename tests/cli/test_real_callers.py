"""Programs of Debian that hand in mail, each with ours as its sendmail, up to the relay.

What a program gave us is kept by a script in between, and compared with what the relay got.
"""

from __future__ import annotations

import os
import subprocess
from email.utils import getaddresses
from typing import TYPE_CHECKING

import pytest
from attrs import frozen

from rig.programs import find, missing
from trial import Trial, make_trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from installation import Installation
    from rig.received import Received
    from rig.recording import RecordingRelay
    from rig.sink import Sink

SECONDS = 60
BETWEEN = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done >'{directory}/arguments'
tee '{directory}/given' | '{program}' "$@"
"""
GIT_SEND_EMAIL = ("/usr/lib/git-core/git-send-email", "/usr/share/perl5/Mail/Address.pm")
# These are written anew from their tokens, so that blanks and folds may differ.
REWRITTEN = frozenset(("to", "cc", "from", "sender", "reply-to"))
PATCH = b"""From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001
From: Ann <ann@example.org>
Date: Mon, 1 Jan 2024 10:00:00 +0100
Subject: [PATCH] Fix it

It was broken.
---
 a | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/a b/a
--- a/a
+++ b/a
@@ -1 +1 @@
-x
+.
--\x20
2.39.5

"""


@frozen
class Caller:
    """A home with its relay, a sendmail to be called, and what was given to it."""

    mailer: Trial
    directory: Path
    relay: RecordingRelay | Sink

    @property
    def sendmail(self) -> str:
        """The path to call; without a blank, for some callers cannot quote."""
        return str(self.directory / "sendmail")

    def call(self, *command: str, given: bytes = b"", **environ: str) -> None:
        """Run a program that sends a mail."""
        ran = subprocess.run(
            command,
            input=given,
            capture_output=True,
            cwd=self.directory,
            env=self.mailer.variables(
                HOME=str(self.directory), LOGNAME="joe", LC_ALL="C.UTF-8", **environ
            ),
            timeout=SECONDS,
            check=False,
        )
        assert 0 == ran.returncode, ran.stderr.decode() + ran.stdout.decode()

    def deliver(self) -> Received:
        """Send what is in the spool and return the one message that the relay got."""
        ran = self.mailer.run("send")
        assert 0 == ran.returncode, ran.stderr.decode()
        (message,) = self.relay.wait_for(1)
        return message

    def given(self) -> bytes:
        """What the program wrote to our standard input."""
        return (self.directory / "given").read_bytes()

    def arguments(self) -> list[str]:
        """The words that it called us with."""
        return (self.directory / "arguments").read_text().splitlines()


@pytest.fixture
def caller(tmp_path: Path, installed: Installation, relay: RecordingRelay) -> Caller:
    """Everything between a program that sends mail and the relay."""
    return make_caller(tmp_path, installed, relay)


def make_caller(directory: Path, installed: Installation, relay: RecordingRelay | Sink) -> Caller:
    """Make a home that sends to this relay, and the script in between."""
    mailer = make_trial(str(directory / "home"), installed, environ={"USER": "joe"})
    mailer.setting("relayip", f"{relay.address}\n")
    path = directory / "sendmail"
    path.write_text(BETWEEN.format(directory=directory, program=installed.program("sendmail")))
    path.chmod(0o755)
    return Caller(mailer, directory, relay)


def split(message: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """Return the fields, unfolded names in lower case, and the body."""
    head, _, body = message.partition(b"\n\n")
    fields: list[tuple[str, bytes]] = []
    for line in head.split(b"\n"):
        if line[:1] in (b" ", b"\t"):
            name, value = fields.pop()
            fields.append((name, value + b"\n" + line))
        else:
            key, _, value = line.partition(b":")
            fields.append((key.decode("ascii").lower(), value))
    return fields, body


def addresses(value: bytes) -> list[tuple[str, str]]:
    """Return names and addresses of a field."""
    return getaddresses([" ".join(value.decode().split())])


def assert_arrived(given: bytes, got: Received) -> None:
    """All that was given arrived: body, every field in order, the meaning of rewritten ones."""
    fields, body = split(given)
    came, came_body = split(got.unix)
    assert body == came_body
    names = [name for name, _ in came]
    assert "received" == names[0]
    assert {"date", "message-id", "from"} <= set(names)
    wanted = [(name, value) for name, value in fields if name != "bcc"]
    rest = came[len(came) - len(wanted) :]
    assert [name for name, _ in wanted] == [name for name, _ in rest]
    for (name, value), (_, value_there) in zip(wanted, rest, strict=True):
        if name in REWRITTEN:
            assert addresses(value) == addresses(value_there)
        else:
            assert value == value_there


def test_cron(caller: Caller) -> None:
    """The command line and the message of Debian's cron, for a user without a domain."""
    mail = (
        b"From: root@web1.example (Cron Daemon)\nTo: root@web1.example\n"
        b"Subject: Cron <root@web1> test -x /usr/sbin/anacron || run-parts /etc/cron.daily\n"
        b"MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\n"
        b"Content-Transfer-Encoding: 8bit\nX-Cron-Env: <SHELL=/bin/sh>\n\n"
        b"/etc/cron.daily/logrotate:\n.\nerror: gr\xc3\xb6\xc3\x9fe\n"
    )
    line = ["-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root"]
    caller.call(caller.sendmail, *line, given=mail, USER="root")
    got = caller.deliver()
    assert_arrived(mail, got)
    assert ("root@me.test", ("root@me.test",)) == (got.sender, got.recipients)


def test_bsd_mailx(caller: Caller) -> None:
    """bsd-mailx with a blind copy, and a text with dots and no ASCII."""
    program = find("bsd-mailx", "bsd-mailx")
    (caller.directory / "mailrc").write_text(f"set sendmail={caller.sendmail}\n")
    caller.call(
        *(program, "-s", "größe", "-b", "blind@example.net", "bob@example.net"),
        given="eins\n.zwei\n..\ndrei ä\n".encode(),
        MAILRC=str(caller.directory / "mailrc"),
    )
    got = caller.deliver()
    assert_arrived(caller.given(), got)
    assert "joe@me.test" == got.sender
    assert {"bob@example.net", "blind@example.net"} == set(got.recipients)
    assert b"blind" not in got.content


def test_s_nail(caller: Caller) -> None:
    """s-nail, with an attachment and its own idea of the sender."""
    program = find("s-nail", "s-nail")
    (caller.directory / "attached.bin").write_bytes(bytes(range(256)))
    caller.call(
        *(program, "-:/", "-S", f"mta={caller.sendmail}", "-s", "hallo"),
        *("-r", "ann@example.org", "-a", str(caller.directory / "attached.bin")),
        *("-c", "cc@example.net", "bob@example.net"),
        given="Grüße\n".encode(),
    )
    got = caller.deliver()
    assert_arrived(caller.given(), got)
    assert "ann@example.org" == got.sender
    assert {"bob@example.net", "cc@example.net"} == set(got.recipients)


def test_mutt(caller: Caller) -> None:
    """Mutt with an envelope sender of its own."""
    program = find("mutt", "mutt")
    rc = caller.directory / "muttrc"
    rc.write_text(
        f'set sendmail="{caller.sendmail} -oem -oi"\nset use_envelope_from=yes\nset copy=no\n'
        'set from="Ann <ann@example.org>"\nset realname="Ann"\nset use_domain=no\n'
    )
    caller.call(
        *(program, "-n", "-F", str(rc), "-s", "Betreff äöü", "-b", "blind@example.net"),
        *("--", "bob@example.net"),
        given=b"Text\n.\nmit Punkt\n",
        TERM="dumb",
    )
    got = caller.deliver()
    assert_arrived(caller.given(), got)
    assert "ann@example.org" == got.sender
    assert {"bob@example.net", "blind@example.net"} == set(got.recipients)
    assert b"\r\n..\r\nmit Punkt" not in got.content  # unstuffed again by the relay


def test_git_send_email(caller: Caller) -> None:
    """Git send-email --sendmail-cmd, a patch with the line that ends a mail."""
    find("git", "git")
    if not all(os.path.exists(path) for path in GIT_SEND_EMAIL):
        missing("no git send-email here: apt-get install git-email libmailtools-perl")
    (caller.directory / "0001-fix.patch").write_bytes(PATCH)
    caller.call(
        *("git", "send-email", f"--sendmail-cmd={caller.sendmail} -i", "--confirm=never"),
        *("--quiet", "--no-validate", "--from=Ann <ann@example.org>", "--to=list@example.net"),
        *("--cc=Jürgen Müller <jm@example.net>", "--suppress-cc=all", "0001-fix.patch"),
        GIT_CONFIG_GLOBAL="/dev/null",
        GIT_CONFIG_NOSYSTEM="1",
        GIT_AUTHOR_NAME="Ann",
        GIT_AUTHOR_EMAIL="ann@example.org",
        GIT_COMMITTER_NAME="Ann",
        GIT_COMMITTER_EMAIL="ann@example.org",
    )
    got = caller.deliver()
    assert_arrived(caller.given(), got)
    assert {"list@example.net", "jm@example.net"} == set(got.recipients)


def test_php_mail(caller: Caller) -> None:
    """PHP's mail() with its usual sendmail_path and a fifth argument."""
    program = find("php", "php-cli")
    script = (
        "exit(mail('bob@example.net', 'Betreff', \"eins\\n.\\nzwei\\n\","
        '"From: Ann <ann@example.org>\\r\\nBcc: blind@example.net",'
        "'-fann@example.org') ? 0 : 1);"
    )
    path = f"{caller.sendmail} -t -i"
    caller.call(program, "-n", "-d", f"sendmail_path={path}", "-r", script)
    got = caller.deliver()
    assert "-fann@example.org" in caller.arguments()
    # PHP ends header lines with CRLF, and the blank line after them too, but not the text.
    assert_arrived(caller.given().replace(b"\r\n", b"\n"), got)
    assert "ann@example.org" == got.sender
    assert ("bob@example.net", "blind@example.net") == got.recipients
    assert b"blind" not in got.content


def test_php_learns_of_a_refusal(caller: Caller) -> None:
    """mail() is false when nothing was accepted: no exit code of ours means success to PHP."""
    program = find("php", "php-cli")
    caller.mailer.setting("me", "")
    script = "exit(mail('bob@example.net', 's', 'b') ? 1 : 0);"
    caller.call(program, "-n", "-d", f"sendmail_path={caller.sendmail} -t", "-r", script)
    assert [] == caller.mailer.everything()


@pytest.mark.parametrize("size", [0, 5_000_000])
def test_smtp_sink_gets_it_byte_for_byte(
    tmp_path: Path, installed: Installation, sink: Sink, size: int
) -> None:
    """Into Postfix's smtp-sink, an attachment of some size included."""
    caller = make_caller(tmp_path, installed, sink)
    line = b"QUJD" * 19 + b"\n"
    mail = b"From: a@example.org\nTo: b@example.net\nSubject: s\n\n" + line * (
        1 + size // len(line)
    )
    caller.call(caller.sendmail, "-t", "-i", given=mail)
    assert_arrived(mail, caller.deliver())


def test_symfony_s_way(caller: Caller) -> None:
    """Sendmail -bs, as Symfony and Swift speak to it: one reply for each command."""
    talk: list[Callable[[bytes], bytes]] = []
    with subprocess.Popen(
        [caller.mailer.installed.program("sendmail"), "-bs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=caller.mailer.variables(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def answer(line: bytes) -> bytes:
            stdin.write(line)
            stdin.flush()
            reply = stdout.readline()
            while reply[3:4] == b"-":
                reply = stdout.readline()
            return reply[:3]

        talk.append(answer)
        assert b"220" == answer(b"")
        mail = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: s\r\n\r\n.dot\r\n"
        for line, code in (
            (b"EHLO [127.0.0.1]\r\n", b"250"),
            (b"MAIL FROM:<a@example.org>\r\n", b"250"),
            (b"RCPT TO:<b@example.net>\r\n", b"250"),
            (b"DATA\r\n", b"354"),
            (mail.replace(b"\r\n.", b"\r\n..") + b".\r\n", b"250"),
            (b"QUIT\r\n", b"221"),
        ):
            assert code == answer(line)
        assert 0 == process.wait(timeout=SECONDS)
    assert_arrived(mail.replace(b"\r\n", b"\n"), caller.deliver())
