"""2: enqueue() in one process, one by one and in groups, beside rivals that are not all durable."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from typing import TYPE_CHECKING

from attrs import frozen
from ours import make_home, message
from rivals import Missing, python_environment

from rig.programs import find

if TYPE_CHECKING:
    from typing import Any

    from bench import Bench

_CLOCK = """
import sys, time
mail = open(sys.argv[1], "rb").read()
count = int(sys.argv[2])
{prepare}
before = time.perf_counter()
{work}
print(count / (time.perf_counter() - before))
"""
ONE_BY_ONE = _CLOCK.format(
    prepare="import picoqmail\nspool = picoqmail.Spool()\nsay = dict(sender='a@example.org', "
    "recipients=['b@example.net'])\npicoqmail.enqueue(mail, **say)",
    work="for _ in range(count): picoqmail.enqueue(mail, **say)",
)
GROUPS = _CLOCK.format(
    prepare="import picoqmail\nfrom picoqmail import Mail\n"
    "mails = [Mail(mail, sender='a@example.org', "
    "recipients=['b@example.net']) for _ in range(100)]\n"
    "picoqmail.enqueue_many(mails)",
    work="for _ in range(count // 100): picoqmail.enqueue_many(mails)",
)
REPOZE = _CLOCK.format(
    prepare="import email, os, transaction\n"
    "from repoze.sendmail.delivery import QueuedMailDelivery\n"
    "delivery = QueuedMailDelivery(sys.argv[3])\nparsed = email.message_from_bytes(mail)",
    work="for number in range(count):\n"
    "    parsed.replace_header('Message-ID', f'<{number}@example.org>')\n"
    "    delivery.send('a@example.org', ['b@example.net'], parsed)\n    transaction.commit()",
)
DJANGO = _CLOCK.format(
    prepare="import django\nfrom django.conf import settings\n"
    "settings.configure(INSTALLED_APPS=['mailer'], EMAIL_BACKEND='mailer.backend.DbBackend', "
    "DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': sys.argv[3]}}, "
    "DEFAULT_AUTO_FIELD='django.db.models.AutoField', USE_TZ=True)\n"
    "django.setup()\nfrom django.core.management import call_command\n"
    "call_command('migrate', verbosity=0)\nfrom django.core.mail import EmailMessage\n"
    "text = mail.decode().partition('\\n\\n')[2]",
    work="for _ in range(count):\n"
    "    EmailMessage('measured', text, 'a@example.org', ['b@example.net']).send()",
)


@frozen
class Contender:
    """A way to submit in a process: its code gets a mail, a number, and `where`."""

    python: str
    code: str
    where: str = ""

    def command(self, mail: str, count: int) -> list[str]:
        """Return the command that submits this many mails, and prints the mails a second."""
        return [self.python, "-I", "-c", self.code, mail, str(count), self.where]


def measure(bench: Bench) -> dict[str, Any]:
    """Time each in turn, in several rounds; a separate run counts the fsyncs."""
    mail = f"{bench.scratch}/mail-4k"
    with open(mail, "wb") as file:
        file.write(message())
    home = make_home(bench.scratch)
    contenders = {
        "enqueue(), one by one": Contender(bench.ours.python, ONE_BY_ONE),
        "enqueue_many(), 100 at once": Contender(bench.ours.python, GROUPS),
    }
    try:
        python = python_environment()
        queue = f"{bench.scratch}/repoze"
        for part in ("cur", "new", "tmp"):
            os.makedirs(f"{queue}/{part}")
        contenders["repoze.sendmail"] = Contender(python, REPOZE, queue)
        contenders["django-mailer (SQLite)"] = Contender(
            python, DJANGO, f"{bench.scratch}/django.sqlite"
        )
    except Missing as exc:
        bench.missing["repoze.sendmail, django-mailer"] = str(exc)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(bench.repeats):
        for name, contender in contenders.items():
            rates[name].append(_rate(contender.command(mail, bench.mails), home.variables()))
            home.empty()
    rows = []
    for name, contender in contenders.items():
        # The difference of two runs, so that the start does not count.
        counts = [
            _fsyncs(contender.command(mail, count), home.variables(), f"{bench.scratch}/trace")
            for count in (100, 300)
        ]
        home.empty()
        rows.append(
            {
                "how": name,
                "mails/s (best)": round(max(rates[name])),
                "mails/s (median)": round(statistics.median(rates[name])),
                "fsyncs a mail": round((counts[1] - counts[0]) / 200, 2),
            }
        )
    return {
        "title": "In-process submission of 4 KiB mails",
        "rows": rows,
        "chart": ("how", "mails/s (median)"),
    }


def _rate(command: list[str], environ: dict[str, str]) -> float:
    # Otherwise this contender would wait for the unwritten data of the one before.
    os.sync()
    ran = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=600
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-2000:])
    return float(ran.stdout)


def _fsyncs(command: list[str], environ: dict[str, str], trace: str) -> int:
    strace = [find("strace", "strace"), "-f", "-qq", "-e", "trace=fsync,fdatasync,syncfs"]
    subprocess.run(
        [*strace, "-o", trace, *command],
        env=environ,
        capture_output=True,
        check=True,
        timeout=600,
    )
    with open(trace, encoding="utf-8") as file:
        return len(re.findall(r"\b(?:fsync|fdatasync|syncfs)\(", file.read()))
