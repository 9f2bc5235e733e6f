"""2: enqueue() in one process, one by one and in groups, beside rivals that are not all durable."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
from typing import TYPE_CHECKING

from attrs import frozen
from disk import neighbour
from measuring import figure, progress
from ours import make_home, message
from rivals import Missing, python_environment

from rig.programs import find

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    "DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', "
    "'NAME': sys.argv[3] + '/database'}}, "
    "DEFAULT_AUTO_FIELD='django.db.models.AutoField', USE_TZ=True)\n"
    "django.setup()\nfrom django.core.management import call_command\n"
    "call_command('migrate', verbosity=0)\nfrom django.core.mail import EmailMessage\n"
    "text = mail.decode().partition('\\n\\n')[2]",
    work="for _ in range(count):\n"
    "    EmailMessage('measured', text, 'a@example.org', ['b@example.net']).send()",
)


# The calls of one acceptance, in their order, and nothing else: no program in Python can do less.
BARE = _CLOCK.format(
    prepare="import fcntl, os, posix\nspool = os.environ['PICOQMAIL_HOME'] + '/spool'\n"
    "sidecar = b'x' * 420\nmake = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW\n"
    "def bare():\n"
    "    name = posix.urandom(8).hex()\n"
    "    a = posix.open(f'{spool}/tmp/{name}.eml', make, 0o600)\n"
    "    fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    "    posix.write(a, mail)\n"
    "    b = posix.open(f'{spool}/tmp/{name}.json', make, 0o600)\n"
    "    posix.write(b, sidecar)\n"
    "    posix.posix_fadvise(b, 0, 0, posix.POSIX_FADV_DONTNEED)\n"
    "    posix.fsync(a)\n"
    "    posix.fsync(b)\n"
    "    posix.close(b)\n"
    "    posix.link(f'{spool}/tmp/{name}.eml', f'{spool}/new/{name}.eml')\n"
    "    posix.rename(f'{spool}/tmp/{name}.json', f'{spool}/new/{name}.json')\n"
    "    c = posix.open(f'{spool}/new', os.O_RDONLY | os.O_DIRECTORY)\n"
    "    posix.fsync(c)\n"
    "    posix.close(c)\n"
    "    posix.unlink(f'{spool}/tmp/{name}.eml')\n"
    "    fcntl.flock(a, fcntl.LOCK_UN)\n"
    "    posix.close(a)\n"
    "bare()",
    work="for _ in range(count): bare()",
)
_NO_SYNCFS = "import sys; sys.modules['_ctypes'] = None\n"
ONE, MANY, LEAST = (
    "enqueue(), one by one",
    "enqueue_many(), 100 at once",
    "its calls alone, in Python",
)
ALONE = "enqueue_many(), where syncfs is not trusted"
RIVAL = "repoze.sendmail"


@frozen
class Contender:
    """A way to submit in a process: its code gets a mail, a number, and a new directory."""

    python: str
    code: str

    def start(self, bench: Bench, mail: str, count: int) -> tuple[list[str], dict[str, str]]:
        """Return the command that submits this many mails, and its environment.

        It prints the mails a second. Each has a directory of its own: nothing is deleted.
        """
        where = tempfile.mkdtemp(prefix="queue-", dir=bench.scratch)
        for part in ("cur", "new", "tmp"):
            os.mkdir(f"{where}/{part}")
        home = make_home(bench.scratch)
        return [self.python, "-I", "-c", self.code, mail, str(count), where], home.variables()


def measure(bench: Bench) -> dict[str, Any]:
    """Time each in turn, in several rounds, alone and beside a neighbour; then count fsyncs."""
    mail = f"{bench.scratch}/mail-4k"
    with open(mail, "wb") as file:
        file.write(message())
    contenders = {
        ONE: Contender(bench.ours.python, ONE_BY_ONE),
        LEAST: Contender(bench.ours.python, BARE),
        MANY: Contender(bench.ours.python, GROUPS),
        ALONE: Contender(bench.ours.python, _NO_SYNCFS + GROUPS),
    }
    try:
        python = python_environment()
        contenders[RIVAL] = Contender(python, REPOZE)
        contenders["django-mailer (SQLite)"] = Contender(python, DJANGO)
    except Missing as exc:
        bench.missing["repoze.sendmail, django-mailer"] = str(exc)
    title = "In-process submission of 4 KiB mails"
    chart = ("how", "mails/s (median)")
    section: dict[str, Any] = {"title": title, "rows": _rows(bench, contenders, mail)}
    section["chart"] = chart
    bench.save("library", section)
    with neighbour(bench.scratch):
        rows = _rows(bench, contenders, mail)
    beside = {"title": f"{title}, beside a neighbour that writes 20 MB/s to the same disk"}
    section["more"] = [{**beside, "rows": rows, "chart": chart}]
    bench.save("library", section)
    for row in section["rows"]:
        contender = contenders[row["how"]]
        # The difference of two runs, so that the start does not count.
        few, many = (_fsyncs(bench, *contender.start(bench, mail, n)) for n in (100, 300))
        row["fsyncs a mail"] = round((many - few) / 200, 2)
    return section


def _rows(bench: Bench, contenders: dict[str, Contender], mail: str) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(bench.repeats):
        for name, contender in contenders.items():
            rates[name].append(_rate(*contender.start(bench, mail, bench.mails)))
        progress("rounds", number + 1, bench.repeats)
    rows = []
    for name, found in rates.items():
        row = {
            "how": name,
            **figure("mails/s (median)", found),
            "mails/s (best)": round(max(found)),
        }
        if RIVAL in rates:
            row["times repoze.sendmail (median of pairs)"] = _ratio(found, rates[RIVAL])
        if name == ONE:
            row["its time, of its calls alone (median of pairs)"] = _ratio(rates[LEAST], found)
        rows.append(row)
    return rows


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    pairs = zip(one, other, strict=True)
    return round(statistics.median(a / b for a, b in pairs), 2)


def _rate(command: list[str], environ: dict[str, str]) -> float:
    # Otherwise this contender would wait for the unwritten data of the one before.
    os.sync()
    ran = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=600
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-2000:])
    return float(ran.stdout)


def _fsyncs(bench: Bench, command: list[str], environ: dict[str, str]) -> int:
    trace = f"{bench.scratch}/trace"
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
