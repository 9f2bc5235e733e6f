"""Record examples.md: real programs, a real relay (`picoqmail sink`), a home of its own.

Needs the extra demo, root for the full disk (a small tmpfs), and faketime for the hour.
Run it with the interpreter of an environment that has picoqmail: `python docs/record.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.dirname(sys.executable)
MAIL = b"From: me@example.org\nSubject: hello\n\nHello.\n"
START_SECONDS = 20


class Home:
    """A home below a directory, and the commands and their output, as a reader sees them."""

    def __init__(self, directory: str) -> None:
        self.root = f"{directory}/home"
        self.lines: list[str] = []
        self.environ = {
            "PATH": f"{BIN}:{self.root}/bin:/usr/bin:/bin",
            "PICOQMAIL_HOME": self.root,
            "NO_COLOR": "1",
        }
        self.quiet("picoqmail init --me host.example.org --relay 127.0.0.1:9")
        # With senders in the background the order of events would be random.
        self.environ["PICOQMAIL_SEND"] = "off"

    def setting(self, name: str, text: str) -> None:
        """Write a control file."""
        path = f"{self.root}/control/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
        os.chmod(path, 0o600)

    def quiet(self, command: str, mail: bytes = b"", later: str = "") -> str:
        """Run a command line, and return what it printed."""
        words = ["faketime", "-f", later, "sh", "-c", command] if later else ["sh", "-c", command]
        ran = subprocess.run(
            words, input=mail, env=self.environ, capture_output=True, check=False, timeout=120
        )
        ended = f"[exit {ran.returncode}]\n" if ran.returncode else ""
        return (ran.stdout + ran.stderr).decode() + ended

    def shows(self, command: str, mail: bytes = b"", later: str = "") -> str:
        """Run a command line and record it."""
        said = self.quiet(command, mail, later)
        clock = f"({later[1:]} later) " if later else ""
        self.lines += [f"{clock}$ {command}", *said.splitlines(), ""]
        return said

    def ids(self) -> str:
        """The IDs in the spool."""
        return self.quiet("picoqmail list --ids").strip()


class Sink:
    """`picoqmail sink` on a free port; a context manager."""

    def __init__(self, home: Home, *options: str, port: int = 0) -> None:
        command = [f"{BIN}/picoqmail", "sink", "--json", "--port", str(port)]
        maildir = f"{home.root}/../kept"
        self._process = subprocess.Popen(
            [*command, "--maildir", maildir, *options], env=home.environ, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        self.port = int(json.loads(self._process.stdout.readline())["port"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(START_SECONDS)


def relay_down(home: Home) -> None:
    """The relay is down for an hour."""
    with Sink(home) as sink:
        home.setting("relayip", f"127.0.0.1:{sink.port}")
    home.shows("sendmail -i -f me@example.org you@example.net", MAIL)
    home.shows("picoqmail-cron")
    home.shows("picoqmail status")
    home.shows("picoqmail-cron", later="+1h")
    home.shows(f"picoqmail explain {home.ids()}", later="+1h")
    with Sink(home, port=sink.port):
        home.shows("picoqmail-cron", later="+62m")
        home.shows("picoqmail list", later="+62m")
        home.shows("picoqmail status | grep -v free", later="+62m")


def wrong_password(home: Home) -> None:
    """The login is refused: no mail bounces, and check shows the reason."""
    sys.path.insert(0, f"{HERE}/../tests")
    from rig.recording import RecordingRelay

    with RecordingRelay(tls="starttls", users={"joe": "right"}) as relay:
        home.setting("relayip", f"smtp+starttls://joe@{relay.address}")
        home.setting("tlsca", relay.certificate.trusted)
        home.setting("relaypass", "wrong")
        home.shows("sendmail -i -f me@example.org you@example.net", MAIL)
        home.shows("picoqmail-cron")
        home.shows("picoqmail check | head -1")
        home.shows("picoqmail list")
        home.setting("relaypass", "right")
        home.lines.append("(the password is corrected)")
        home.shows(f"picoqmail retry {home.ids()}")


def one_refused(home: Home) -> None:
    """One of two recipients is refused: the sender gets a report."""
    with Sink(home, "--recipient-answer", "bad@example.net=550 5.1.1 no such user") as sink:
        home.setting("relayip", f"127.0.0.1:{sink.port}")
        home.shows("sendmail -i -f me@example.org bad@example.net you@example.net", MAIL)
        home.shows("picoqmail-send")
        home.shows("picoqmail list")
        home.shows(f"picoqmail explain {home.ids()}")
        home.shows(f"cat {home.root}/spool/log | grep -o 'bounced .*'")


def full_disk(home: Home) -> None:
    """The disk is full: the caller gets an error, and nothing of the mail is left."""
    spool = f"{home.root}/spool"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", spool], check=True)
    try:
        home.quiet("picoqmail init --me host.example.org")
        big = MAIL + b"x" * 300_000
        home.shows("sendmail -i -f me@example.org you@example.net", big)
        home.shows("picoqmail check --no-relay | grep -v OK")
        home.shows(f"find {spool} -name '*.eml' -o -name '*.json'")
        home.shows("sendmail -i -f me@example.org you@example.net", MAIL)
        home.shows("picoqmail list | tail -1")
    finally:
        subprocess.run(["umount", spool], check=True)


def stuck(home: Home) -> None:
    """A failed mail is explained, the cause is corrected, and the mail is requeued."""
    with Sink(home, "--answer", "mail=550 5.7.1 relaying denied") as sink:
        home.setting("relayip", f"127.0.0.1:{sink.port}")
        home.setting("bounces", "off")
        home.shows("sendmail -i -f me@example.org you@example.net", MAIL)
        home.shows("picoqmail-send")
        home.shows(f"picoqmail explain {home.ids()}")
    with Sink(home, port=sink.port):
        home.lines.append("(the relay now lets this host relay)")
        home.shows("picoqmail requeue --error 'relaying denied'")
        home.shows("picoqmail-cron")
        home.shows("picoqmail list")


SESSIONS = (relay_down, wrong_password, one_refused, full_disk, stuck)


def record() -> Iterator[str]:
    """The page, piece by piece."""
    yield (
        "# Examples\n\nThe programs printed this on "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}; `docs/record.py` recorded it.\n"
    )
    for session in SESSIONS:
        with tempfile.TemporaryDirectory() as directory:
            home = Home(directory)
            session(home)
            title = (session.__doc__ or "").removesuffix(".")
            text = "\n".join(home.lines).replace(directory, "/srv")
            text = re.sub(r"127\.0\.0\.1:\d{4,5}", "127.0.0.1:2525", text)
            indented = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
            yield f"## {title}\n\n{indented}\n"


def main() -> None:
    """Write the page."""
    page = "\n".join(record())
    with open(f"{HERE}/examples.md", "w", encoding="utf-8") as file:
        file.write(page)


if __name__ == "__main__":
    main()
