"""How long a Python program waits for the submission of a mail: our library beside its rivals.

    python benchmarks/python_enqueue.py [MAILS]

Rivals that are not installed are left out: pip install repoze.sendmail django-mailer Django. The
relay is aiosmtpd on loopback, behind a line that delays each direction by 25 ms.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import smtplib
import statistics
import subprocess
import sys
import tempfile
import time
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))

import picoqmail
from picoqmail.testing import TemporarySpool
from rig.proxy import SlowLine
from rig.recording import RecordingRelay

if TYPE_CHECKING:
    from collections.abc import Callable


def make_message() -> EmailMessage:
    """Return a mail of 4 KB, as programs build it."""
    message = EmailMessage()
    message["From"] = "a@example.org"
    message["To"] = "b@example.net"
    message["Subject"] = "Your order"
    message["Date"] = localtime()
    message["Message-ID"] = make_msgid(domain="example.org")
    message.set_content(("x" * 71 + "\n") * 55)
    return message


def report(name: str, send: Callable[[], None], mails: int) -> None:
    """Print the median of single calls, and the calls a second."""
    send()
    times = []
    for _ in range(mails):
        started = time.perf_counter()
        send()
        times.append(time.perf_counter() - started)
    middle = statistics.median(times)
    print(f"{name:44} {middle * 1000:9.2f} ms {1 / middle:9.0f}/s")


def ours(mails: int) -> None:
    """Measure our calls."""
    message = make_message()
    octets = message.as_bytes()
    with TemporarySpool() as home:
        spool = home.spool
        report("picoqmail enqueue, bytes", lambda: _drop(spool.enqueue(octets)), mails)
        report("picoqmail enqueue, EmailMessage", lambda: _drop(spool.enqueue(message)), mails)
        keys = iter(range(10**9))
        report(
            "picoqmail enqueue, with a key",
            lambda: _drop(spool.enqueue(octets, idempotency_key=str(next(keys)))),
            mails,
        )
        os.sync()
        times = []
        for _ in range(5):
            started = time.perf_counter()
            results = spool.enqueue_many([octets] * mails)
            times.append((time.perf_counter() - started) / mails)
            assert all(isinstance(one, picoqmail.Receipt) for one in results)
        each = statistics.median(times)
        print(f"{'picoqmail enqueue_many':44} {each * 1000:9.2f} ms {1 / each:9.0f}/s")


def over_smtp(mails: int) -> None:
    """Measure smtplib, to a relay 50 ms away."""
    message = make_message()
    with RecordingRelay() as relay, SlowLine(relay.port) as line:

        def connect_and_send() -> None:
            with smtplib.SMTP(line.host, line.port) as smtp:
                smtp.send_message(message)

        report("smtplib, a connection each, 50 ms", connect_and_send, min(mails, 10))
        with smtplib.SMTP(line.host, line.port) as smtp:
            report("smtplib, one connection, 50 ms", lambda: _drop(smtp.send_message(message)), 10)


def repoze(mails: int) -> None:
    """Measure repoze.sendmail's queue, which syncs nothing."""
    # Imported by name, because neither the packages nor their types are installed for type checks.
    transaction = importlib.import_module("transaction")
    queued_mail_delivery = importlib.import_module("repoze.sendmail.delivery").QueuedMailDelivery

    directory = tempfile.mkdtemp()
    delivery = queued_mail_delivery(os.path.join(directory, "queue"))
    message = make_message()

    def send() -> None:
        delivery.send("a@example.org", ["b@example.net"], message)
        transaction.commit()

    report("repoze.sendmail, no fsync", send, mails)
    shutil.rmtree(directory)


def django_mailer(mails: int) -> None:
    """Measure django-mailer with SQLite."""
    import django
    from django.conf import settings

    directory = tempfile.mkdtemp()
    settings.configure(
        INSTALLED_APPS=["mailer"],
        EMAIL_BACKEND="mailer.backend.DbBackend",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": os.path.join(directory, "database"),
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    from django.core.mail import EmailMessage as DjangoMessage
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    message = DjangoMessage("s", "x" * 4000, "a@example.org", ["b@example.net"])
    report("django-mailer, sqlite", lambda: _drop(message.send()), mails)
    shutil.rmtree(directory)


def imports() -> None:
    """Measure the import, before and after the first use."""
    code = (
        "import sys, time; a = time.perf_counter(); import picoqmail; "
        "b = time.perf_counter(); picoqmail.enqueue; c = time.perf_counter(); "
        "print(f'{(b - a) * 1000:.2f} {(c - b) * 1000:.2f}')"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(10)
    ]
    pairs = [tuple(map(float, one.stdout.split())) for one in runs]
    first, use = (min(one[n] for one in pairs) for n in (0, 1))
    print(f"import picoqmail {first:.2f} ms; its first use {use:.2f} ms more")


def _drop(_: object) -> None:
    """Ignore a result."""


def main() -> None:
    """Measure all that is installed."""
    mails = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    imports()
    ours(mails)
    over_smtp(mails)
    for rival in (repoze, django_mailer):
        with contextlib.suppress(ImportError):
            rival(mails)


if __name__ == "__main__":
    main()
