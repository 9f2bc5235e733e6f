"""Mails by programs that nobody here wrote, byte for byte from their mouth to the relay's ear.

Each program is given a `sendmail` that keeps what it is handed before it hands it on.
"""

from __future__ import annotations

import email
import email.policy
import os
import pwd
import shlex
import smtplib
import subprocess
from email.message import EmailMessage
from typing import TYPE_CHECKING

import pytest
from attrs import frozen

from picoqmail.layout import NEW
from rig.programs import find, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rig.received import Received
    from rig.recording import RecordingRelay
    from rig.sink import Sink
    from trial import Trial

SECONDS = 60


@frozen
class Handed:
    """What the program handed to sendmail."""

    arguments: list[str]
    message: bytes


@frozen
class Desk:
    """A home with a sendmail that keeps a copy of what it gets."""

    trial: Trial
    sendmail: str
    copy: str

    def handed(self) -> Handed:
        """What was handed in, by the one program that ran."""
        with open(f"{self.copy}.arguments", encoding="utf-8") as file:
            arguments = file.read().split("\n")[:-1]
        with open(self.copy, "rb") as file:
            return Handed(arguments, file.read())

    def run(
        self, command: list[str], given: bytes = b"", environ: Mapping[str, str] | None = None
    ) -> None:
        """Run the program; it must be content."""
        home = f"{self.trial.root}/user"
        os.makedirs(home, exist_ok=True)
        variables = {**self.trial.variables(), "HOME": home, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        ran = subprocess.run(
            command,
            input=given,
            capture_output=True,
            cwd=home,
            env={**variables, "USER": "joe", "LOGNAME": "joe", **(environ or {})},
            timeout=SECONDS,
            check=False,
        )
        assert 0 == ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def desk(trial: Trial) -> Desk:
    """A home, and the sendmail that programs are pointed to."""
    copy = f"{trial.root}/copy"
    sendmail = f"{trial.root}/sendmail"
    real = shlex.quote(trial.installed.program("sendmail"))
    with open(sendmail, "w", encoding="utf-8") as file:
        file.write(
            f"#!/bin/sh\nfor one; do printf '%s\\n' \"$one\"; done >{copy}.arguments\n"
            f"cat >{copy}\n"
            f'exec {real} "$@" <{copy}\n'
        )
    os.chmod(sendmail, 0o700)
    return Desk(trial, sendmail, copy)


def write_by_python(desk: Desk) -> None:
    """Python's email with text, HTML, an attachment and names that are not ASCII."""
    message = EmailMessage()
    message["From"] = "Jörg <joe@example.org>"
    message["To"] = "Bea <b@example.net>"
    message["Cc"] = "c@example.net"
    message["Subject"] = "Grüße aus Köln, and a subject that is long enough to be folded " * 2
    message["Date"] = "Fri, 21 Nov 2025 10:00:00 +0000"
    message["Message-ID"] = "<1@example.org>"
    message.set_content("Grüße\n.\n..\nFrom the start\n" + "long " * 300 + "\n")
    message.add_alternative("<p>Grüße</p>\n", subtype="html")
    message.add_attachment(os.urandom(30_000), maintype="application", subtype="octet-stream")
    desk.run([desk.sendmail, "-t", "-i", "-f", "joe@example.org"], message.as_bytes())


def write_by_git(desk: Desk) -> None:
    """`git send-email` of a patch with a diff and a name that is not ASCII."""
    git = find("git", "git")
    if not os.path.exists("/usr/lib/git-core/git-send-email"):
        missing("no git send-email here: apt-get install git-email")
    home = f"{desk.trial.root}/user"
    desk.run([git, "init", "-q", "-b", "main", "."])
    for name, value in {
        "user.name": "Jörg",
        "user.email": "joe@example.org",
        "sendemail.sendmailCmd": desk.sendmail,
        "sendemail.confirm": "never",
        "sendemail.suppresscc": "all",
    }.items():
        desk.run([git, "config", name, value])
    with open(f"{home}/file", "w", encoding="utf-8") as file:
        file.write("Grüße\n.\n\ttab and trailing blank \nFrom here\n")
    desk.run([git, "add", "file"])
    desk.run([git, "commit", "-q", "-m", "A commit\n\nwith a body: Grüße\n.\n"])
    desk.run([git, "format-patch", "-1", "-o", "out", "--root", "HEAD"])
    (patch,) = os.listdir(f"{home}/out")
    desk.run([git, "send-email", "--to=b@example.net", "--quiet", f"out/{patch}"])


def write_by_mailx(desk: Desk) -> None:
    """Debian's bsd-mailx."""
    mail = find("bsd-mailx", "bsd-mailx")
    with open(f"{desk.trial.root}/mailrc", "w", encoding="utf-8") as file:
        file.write(f"set sendmail={desk.sendmail}\n")
    environ = {"MAILRC": f"{desk.trial.root}/mailrc"}
    desk.run(
        [mail, "-s", "Gruesse", "-c", "c@example.net", "b@example.net"],
        b"one\n.two\n\nFrom three\n",
        environ,
    )


def whoami() -> str:
    """The name of our user, which some programs compare with the environment's."""
    return pwd.getpwuid(os.getuid()).pw_name


def write_by_s_nail(desk: Desk) -> None:
    """s-nail, which encodes and attaches."""
    nail = find("s-nail", "s-nail")
    attached = f"{desk.trial.root}/attached"
    with open(attached, "wb") as file:
        file.write(os.urandom(5000))
    desk.run(
        [nail, "-:/", "-S", f"mta={desk.sendmail}", "-S", "from=joe@example.org",
         "-S", "ttycharset=utf-8", "-a", attached, "-s", "Grüße", "b@example.net"],
        "Grüße\n.\n..\n".encode(),
        {"USER": whoami(), "LOGNAME": whoami()},
    )  # fmt: skip


def write_by_mutt(desk: Desk) -> None:
    """Mutt, with an attachment."""
    mutt = find("mutt", "mutt")
    attached = f"{desk.trial.root}/attached.bin"
    with open(attached, "wb") as file:
        file.write(os.urandom(5000))
    settings = [
        f"set sendmail='{desk.sendmail} -oem -oi'",
        "set copy=no",
        "set from=joe@example.org",
        "set hostname=example.org",
        "set use_envelope_from=yes",
    ]
    options = [word for setting in settings for word in ("-e", setting)]
    desk.run(
        [mutt, "-n", "-F", "/dev/null", *options, "-s", "Grüße", "-a", attached, "--",
         "b@example.net"],
        "Grüße\n.\nFrom\n".encode(),
    )  # fmt: skip


def write_as_cron(desk: Desk) -> None:
    """The mail that Debian's cron makes of a job's output, and the arguments that it uses.

    From cron's do_command.c: the daemon itself would be the machine's own.
    """
    message = (
        "From: root (Cron Daemon)\nTo: joe@example.net\nSubject: Cron <joe@host> backup\n"
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\n"
        "Content-Transfer-Encoding: 8bit\nX-Cron-Env: <SHELL=/bin/sh>\n"
        "X-Cron-Env: <HOME=/home/joe>\nX-Cron-Env: <PATH=/usr/bin:/bin>\n\n"
        "out: Grüße\n.\nerr\n"
    )
    command = [desk.sendmail, "-i", "-FCronDaemon", "-B8BITMIME", "-oem", "joe@example.net"]
    desk.run(command, message.encode())


WRITERS: dict[str, Callable[[Desk], None]] = {
    "python": write_by_python,
    "git send-email": write_by_git,
    "bsd-mailx": write_by_mailx,
    "s-nail": write_by_s_nail,
    "mutt": write_by_mutt,
    "cron": write_as_cron,
}


def split(message: bytes) -> tuple[list[bytes], bytes]:
    """Header fields, unfolded lines kept together, and the body."""
    header, _, body = message.partition(b"\n\n")
    fields: list[bytes] = []
    for line in header.split(b"\n"):
        if line[:1] in (b" ", b"\t"):
            fields[-1] += b"\n" + line
        else:
            fields.append(line)
    return fields, body


def check(handed: Handed, spooled: bytes, received: Received) -> None:
    """The relay has what the spool has; the spool has what was handed in, and what we owe it.

    We put a Received field in front and add Date, Message-ID and From where they are missing;
    nothing else may differ by an octet.
    """
    assert spooled == received.unix
    fields, body = split(spooled)
    given, given_body = split(handed.message.removeprefix(b"\n"))
    assert given_body.rstrip(b"\n") == body.rstrip(b"\n")
    assert fields[0].startswith(b"Received: by me.test (picoqmail ")
    # An address without a domain gets ours, as from qmail-inject.
    plain = [field.replace(b"@me.test", b"") for field in fields[1:]]
    added = {field.split(b":")[0].lower() for field in plain if field not in given}
    assert added <= {b"date", b"message-id", b"from", b"received"}
    assert given == [field for field in plain if field in given]
    parsed = email.message_from_bytes(spooled, policy=email.policy.default)
    for name in ("From", "Date", "Message-ID"):
        assert 1 == len(parsed.get_all(name, [])), name


@pytest.mark.parametrize("writer", WRITERS)
def test_into_smtp_sink(desk: Desk, sink: Sink, writer: str) -> None:
    """Postfix's smtp-sink has it octet for octet."""
    desk.trial.setting("relayip", sink.address)
    WRITERS[writer](desk)
    (message_id,) = desk.trial.ids(NEW)
    spooled = desk.trial.body(message_id)
    addresses = [one["address"] for one in desk.trial.sidecar(message_id)["recipients"]]
    assert 0 == desk.trial.send()
    (received,) = sink.wait_for(1)
    assert addresses == list(received.recipients)
    check(desk.handed(), spooled, received)


@pytest.mark.parametrize("writer", WRITERS)
def test_into_aiosmtpd(desk: Desk, relay: RecordingRelay, writer: str) -> None:
    """So has aiosmtpd, and the sender and recipients are those that the program meant."""
    desk.trial.setting("relayip", relay.address)
    WRITERS[writer](desk)
    (message_id,) = desk.trial.ids(NEW)
    spooled = desk.trial.body(message_id)
    assert 0 == desk.trial.send()
    (received,) = relay.messages
    check(desk.handed(), spooled, received)
    assert received.recipients[0] in ("b@example.net", "joe@example.net")
    if writer in ("python", "mutt"):
        assert "joe@example.org" == received.sender


def test_a_relay_sees_no_difference_to_smtplib(desk: Desk, relay: RecordingRelay) -> None:
    """What Python's own client would have sent of the same message, but for our Received field."""
    desk.trial.setting("relayip", relay.address)
    write_by_python(desk)
    assert 0 == desk.trial.send()
    handed = desk.handed().message
    with smtplib.SMTP(relay.host, relay.port) as client:
        client.sendmail("joe@example.org", ["b@example.net"], handed.replace(b"\n", b"\r\n"))
    ours, theirs = relay.messages
    assert theirs.content == ours.content.partition(b"\r\n")[2]
