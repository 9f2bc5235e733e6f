"""The rivals: Debian's packages in their own root directories, and PyPI's in an environment.

Nothing of them is installed; `tests/rig` fetches and unpacks them once, into its cache. The results
name the rivals that are missing.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import pytest
from measuring import Program

from rig import postfix
from rig.private_root import PrivateRoot, cache
from rig.programs import Daemon, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "USER": "root", "HOME": "/root"}
DRAIN_SECONDS = 120
# What pytest's skip raises: the rig reports in this way that something is missing.
Missing = (pytest.skip.Exception, pytest.fail.Exception, OSError, subprocess.SubprocessError)


class Rival:
    """What all rivals have in common."""

    def stop(self) -> None:
        """End what still runs; for most rivals nothing."""


class Nullmailer(Rival):
    """nullmailer: a daemon that sends one mail for each connection."""

    name = "nullmailer"

    def __init__(self, mail: bytes, port: int = 1) -> None:
        self.root = PrivateRoot(
            "nullmailer",
            ["nullmailer"],
            ["mail"],
            [
                "/usr/bin/nullmailer-inject",
                "/usr/sbin/nullmailer-queue",
                "/usr/sbin/nullmailer-send",
                "/usr/lib/nullmailer/smtp",
            ],
        )
        # It is set-id for a user with another number in this root; without set-id it runs as we do.
        os.chmod(self.root.inside("usr/sbin/nullmailer-queue"), 0o755)  # noqa: S103 - a program
        for part in ("queue", "tmp", "failed"):
            self.root.own(f"var/spool/nullmailer/{part}", "mail")
        self.root.write("etc/nullmailer/me", "bench.test\n")
        self.root.write("etc/nullmailer/remotes", f"127.0.0.1 smtp --port={port}\n")
        self.root.write("etc/mailname", "bench.test\n")
        subprocess.run(
            ["mkfifo", "-m", "666", self.root.inside("var/spool/nullmailer/trigger")], check=True
        )
        with open(self.root.inside("message"), "wb") as file:
            file.write(mail)
        self.queue = self.root.inside("var/spool/nullmailer/queue")

    def submit(self) -> Program:
        """Its qmail-inject."""
        argv = ("/usr/bin/nullmailer-inject", "-f", "a@example.org", "b@example.net")
        return Program(
            "nullmailer-inject", argv, ENVIRON, "/message", root=self.root.path, clean=self.empty
        )

    def empty(self) -> None:
        """Empty its queue."""
        _empty(self.queue)

    def drain(self) -> list[str]:
        """The command that sends all; it does not end by itself."""
        return self.root.command("/usr/sbin/nullmailer-send")

    def waiting(self) -> int:
        """Mails in the queue."""
        return len(os.listdir(self.queue))


class Dma(Rival):
    """DragonFly's mail agent: a process for each mail."""

    name = "dma"

    def __init__(self, mail: bytes, port: int = 1) -> None:
        self.root = PrivateRoot("dma", ["dma"], ["mail", "nobody"], ["/usr/sbin/dma"])
        self.root.own("var/spool/dma", "mail", 0o2775)
        self.root.write(
            "etc/dma/dma.conf",
            f"SMARTHOST 127.0.0.1\nPORT {port}\nMAILNAME bench.test\nDEFER\n",
        )
        with open(self.root.inside("message"), "wb") as file:
            file.write(mail)
        self.queue = self.root.inside("var/spool/dma")

    def submit(self) -> Program:
        """Its sendmail."""
        argv = ("/usr/sbin/dma", "-f", "a@example.org", "b@example.net")
        return Program("dma", argv, ENVIRON, "/message", root=self.root.path, clean=self.empty)

    def empty(self) -> None:
        """Empty its queue."""
        _empty(self.queue)

    def drain(self) -> list[str]:
        """The command that sends all, in processes of its own."""
        return self.root.command("/usr/sbin/dma", "-q")

    def waiting(self) -> int:
        """Mails in the queue."""
        return sum(name.startswith("M") for name in os.listdir(self.queue))


EXIM = """\
primary_hostname = bench.test
log_file_path = /var/log/exim4/%slog
keep_environment =
queue_only = true
never_users =
remote_max_parallel = 20
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = relay
begin transports
relay:
  driver = smtp
  port = {port}
  allow_localhost
begin retry
* * F,1h,1m
"""


class Exim(Rival):
    """Exim, which queues, and then delivers by queue runs."""

    name = "Exim"

    def __init__(self, mail: bytes, port: int = 1) -> None:
        self.root = PrivateRoot(
            "exim",
            ["exim4-base", "exim4-daemon-light"],
            ["Debian-exim", "mail", "nobody"],
            ["/usr/sbin/exim4"],
        )
        self.root.write("etc/exim4/exim4.conf", EXIM.format(port=port))
        for directory in ("var/spool/exim4", "var/log/exim4", "run/exim4"):
            self.root.own(directory, "Debian-exim", 0o750)
        with open(self.root.inside("message"), "wb") as file:
            file.write(mail)
        self.queue = self.root.inside("var/spool/exim4/input")

    def submit(self) -> Program:
        """Its sendmail, which only queues."""
        argv = ("/usr/sbin/exim4", "-odq", "-i", "-f", "a@example.org", "b@example.net")
        return Program(
            "Exim -odq", argv, ENVIRON, "/message", root=self.root.path, clean=self.empty
        )

    def empty(self) -> None:
        """Empty its queue."""
        _empty(self.queue)

    def drain(self) -> list[str]:
        """One queue run."""
        return self.root.command("/usr/sbin/exim4", "-q")

    def waiting(self) -> int:
        """Mails in the queue."""
        return sum(name.endswith("-H") for name in os.listdir(self.queue))


MASTER = f"""\
pickup unix n - n 1 1 pickup
{postfix.DAEMONS}smtp unix - - n - - smtp
scache unix - - n - 1 scache
"""


class Postfix(Rival):
    """Postfix of this machine, with its own directories."""

    name = "Postfix"

    def __init__(self, mail: bytes, scratch: str, port: int = 1) -> None:
        find("postfix", "postfix")
        directory = f"{scratch}/postfix-{port}"
        for part in ("etc", "queue", "data"):
            os.makedirs(f"{directory}/{part}")
        owner = pwd.getpwnam("postfix")
        os.chown(f"{directory}/data", owner.pw_uid, owner.pw_gid)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": f"{directory}/queue",
            "data_directory": f"{directory}/data",
            "maillog_file": f"{directory}/log",
            "maillog_file_prefixes": directory,
            "myhostname": "bench.test",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "relayhost": f"[127.0.0.1]:{port}",
            "alias_maps": "",
            "default_destination_concurrency_limit": "25",
            "initial_destination_concurrency": "25",
            "local_header_rewrite_clients": "",
        }
        with open(f"{directory}/etc/main.cf", "w", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        with open(f"{directory}/etc/master.cf", "w", encoding="utf-8") as file:
            file.write(MASTER)
        self._postfix = [find("postfix", "postfix"), "-c", f"{directory}/etc"]
        subprocess.run([*self._postfix, "check"], check=True, capture_output=True, timeout=60)
        self._etc = f"{directory}/etc"
        self._queue = f"{directory}/queue"
        self._message = f"{directory}/message"
        with open(self._message, "wb") as file:
            file.write(mail)

    def submit(self) -> Program:
        """Its sendmail, which leaves the mail in maildrop/ while the daemons are down."""
        sendmail = os.path.join(os.path.dirname(self._postfix[0]), "sendmail")
        argv = (sendmail, "-C", self._etc, "-i", "-f", "a@example.org", "b@example.net")
        return Program("Postfix sendmail", argv, ENVIRON, self._message, clean=self.empty)

    def empty(self) -> None:
        """Empty its queues."""
        _empty(f"{self._queue}/maildrop")

    def drain(self) -> list[str]:
        """Its daemons, in the foreground."""
        return [*self._postfix, "start-fg"]

    def stop(self) -> None:
        """End its daemons, which outlive the command that started them."""
        postfix.stop(self._etc)

    def waiting(self) -> int:
        """Mails in any of its queues."""
        found = 0
        for queue in ("maildrop", "incoming", "active", "deferred"):
            for _, _, names in os.walk(f"{self._queue}/{queue}"):
                found += len(names)
        return found


OPENSMTPD = """\
listen on socket
action "out" relay host "smtp://127.0.0.1:{port}"
match from any for any action "out"
"""


class OpenSMTPD(Rival):
    """OpenSMTPD: its sendmail hands the mail to its daemon, which must be running."""

    name = "OpenSMTPD"

    def __init__(self, mail: bytes, port: int = 1) -> None:
        self.root = PrivateRoot(
            "opensmtpd",
            ["opensmtpd"],
            ["opensmtpd", "opensmtpq", "nobody"],
            ["/usr/sbin/smtpd", "/usr/sbin/smtpctl"],
        )
        self.root.write("etc/smtpd.conf", OPENSMTPD.format(port=port))
        self.root.write("etc/mailname", "bench.test\n")
        for directory in ("var/spool", "var/lib/opensmtpd/empty"):
            os.makedirs(self.root.inside(directory), exist_ok=True)
        # It refuses to run unless it is set-gid, as its package makes it.
        control = self.root.inside("usr/sbin/smtpctl")
        os.chown(control, 0, self.root.uids["opensmtpq"])
        os.chmod(control, 0o2755)  # noqa: S103 - a program
        with open(self.root.inside("message"), "wb") as file:
            file.write(mail)
        self.queue = self.root.inside("var/spool/smtpd/queue")
        self._daemon = Daemon(
            self.root.command("/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"),
            lambda: self._ask("pause", "mta"),
            self.root.inside("output"),
        )
        self._daemon.__enter__()

    def _ask(self, *words: str) -> bool:
        command = self.root.command("/usr/sbin/smtpctl", *words)
        return not subprocess.run(command, capture_output=True, check=False, timeout=60).returncode

    def submit(self) -> Program:
        """Its sendmail; the daemon keeps what it gets."""
        argv = ("/usr/sbin/sendmail", "-f", "a@example.org", "b@example.net")
        return Program(
            "OpenSMTPD sendmail", argv, ENVIRON, "/message", root=self.root.path, clean=self.empty
        )

    def empty(self) -> None:
        """Empty its queue."""
        self._ask("remove", "all")

    def drain(self) -> list[str]:
        """Have the daemon send all."""
        return self.root.command("/usr/sbin/smtpctl", "resume", "mta")

    def stop(self) -> None:
        """End the daemon."""
        self._daemon.__exit__()

    def waiting(self) -> int:
        """Mails in the queue."""
        return sum("message" in names for _, _, names in os.walk(self.queue))


MSMTPQ = "/usr/libexec/msmtp/msmtpq/msmtpq"
OFFLINE = """\
#!/bin/sh
[ "$1" = --version ] || exit 75
"""


class Msmtpq(Rival):
    """msmtpq: a shell script that queues what msmtp could not send, and retries on request."""

    name = "msmtpq"

    def __init__(self, mail: bytes, scratch: str, port: int = 1) -> None:
        find("msmtp", "msmtp")
        if not os.path.exists(MSMTPQ):
            raise FileNotFoundError(f"Debian's msmtp has no {MSMTPQ}")
        directory = f"{scratch}/msmtpq-{port}"
        self.queue = f"{directory}/queue"
        os.makedirs(self.queue)
        self._message = f"{directory}/message"
        with open(self._message, "wb") as file:
            file.write(mail)
        # With the relay up it would send at once.
        offline = f"{directory}/msmtp"
        with open(offline, "w", encoding="utf-8") as file:
            file.write(OFFLINE)
        os.chmod(offline, 0o755)  # noqa: S103 - a program
        self._ask = ("--host=127.0.0.1", f"--port={port}", "--from=a@example.org", "b@example.net")
        self._environ = {
            **ENVIRON,
            "HOME": directory,
            "MSMTPQ_Q": self.queue,
            "MSMTPQ_LOG": f"{directory}/log",
            "EMAIL_CONN_TEST": "x",
            "EMAIL_QUEUE_QUIET": "t",
        }
        self._offline = {**self._environ, "MSMTP": offline} if port > 1 else self._environ

    def submit(self) -> Program:
        """A mail while the relay is down."""
        return Program(
            "msmtpq, relay down",
            (MSMTPQ, *self._ask),
            self._offline,
            self._message,
            clean=self.empty,
        )

    def empty(self) -> None:
        """Empty its queue."""
        _empty(self.queue)

    def drain(self) -> list[str]:
        """Run the queue."""
        variables = [f"{name}={value}" for name, value in self._environ.items()]
        return ["/usr/bin/env", *variables, MSMTPQ, "--q-mgmt", "-r"]

    def waiting(self) -> int:
        """Mails in the queue."""
        return sum(name.endswith(".mail") for name in os.listdir(self.queue))


def msmtp(scratch: str, port: int) -> Program:
    """msmtp, straight to the relay: it has no queue, so it fails while the relay is down."""
    argv = (
        find("msmtp", "msmtp"),
        "--host=127.0.0.1",
        f"--port={port}",
        "--from=a@example.org",
        "b@example.net",
    )
    return Program("msmtp, to the relay", argv, ENVIRON, f"{scratch}/mail")


def _empty(directory: str) -> None:
    """Put a queue aside, and make an empty one like it; nothing is deleted (ours.renew)."""
    was = os.stat(directory)
    os.rename(directory, tempfile.mkdtemp(prefix="used-", dir=os.path.dirname(directory)))
    os.mkdir(directory)
    os.chown(directory, was.st_uid, was.st_gid)
    os.chmod(directory, stat.S_IMODE(was.st_mode))


def python_environment() -> str:
    """Return the Python of an environment with the Python rivals, made once in the cache."""
    return _environment(
        "python-rivals", ["repoze.sendmail", "django-mailer", "django", "transaction"]
    )


def database_environment() -> str:
    """Return the Python of an environment with the rivals that keep mail in PostgreSQL."""
    return _environment(
        "database-rivals", ["django-post-office", "procrastinate", "django", "psycopg[binary]"]
    )


def _environment(name: str, wanted: list[str]) -> str:
    directory = os.path.join(cache(), name)
    python = f"{directory}/bin/python3"
    if not os.path.exists(f"{directory}/complete"):
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([python, "-m", "pip", "-q", "install", *wanted], check=True, timeout=300)
        with open(f"{directory}/complete", "w", encoding="utf-8"):
            pass
    return python


def available(make: Callable[[], object], name: str, missing: dict[str, str]) -> object | None:
    """Make a rival, or note why it is missing."""
    try:
        return make()
    except Missing as exc:
        missing[name] = str(exc)
        return None


def all_with_a_queue(
    mail: bytes, scratch: str, missing: dict[str, str], port: int = 1, *, slow: bool = True
) -> Iterator[Any]:
    """Make one rival after the other, relaying to `port`; `missing` gets the reasons of others.

    Without `slow` only the two that send hundreds of mails a second.
    """
    quick: dict[str, Callable[[], Rival]] = {
        "Postfix": lambda: Postfix(mail, scratch, port),
        "dma": lambda: Dma(mail, port),
    }
    others: dict[str, Callable[[], Rival]] = {
        "Exim": lambda: Exim(mail, port),
        "nullmailer": lambda: Nullmailer(mail, port),
        "OpenSMTPD": lambda: OpenSMTPD(mail, port),
        "msmtpq": lambda: Msmtpq(mail, scratch, port),
    }
    for name, make in (quick | others if slow else quick).items():
        rival = available(make, name, missing)
        if rival is not None:
            yield rival


def wait_until_empty(waiting: Callable[[], int], seconds: float = DRAIN_SECONDS) -> bool:
    """Poll a queue until it is empty; False if it is not empty within `seconds`."""
    deadline = time.monotonic() + seconds
    while waiting():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
