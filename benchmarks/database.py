"""6: mail in PostgreSQL, beside two queues of Python that keep mail there, and our directory.

The server is Debian's, on the disk that is measured, with fsync on.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from attrs import frozen
from in_process import GROUPS, ONE_BY_ONE
from measuring import Program, figure, progress, run_alone
from ours import make_home, message
from rivals import Missing, database_environment

from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.migration import migrate
from picoqmail.postgresql.opening import open_postgresql
from rig import faults
from rig.hostile import HostileRelay
from rig.postgresql import PrivatePostgreSQL
from rig.sink import Sink
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bench import Bench
    from ours import MeasuredHome

    from rig.faults import Line

WORKERS = (1, 4, 16)
LEASE_SECONDS = 5
LOOKS = 100
DIRECTORY, TABLES = "picoqmail, directory", "picoqmail, PostgreSQL"
RATE = "mails/s (median)"

_DJANGO = """
import sys, time, django
from django.conf import settings
name, host = sys.argv[3], sys.argv[4]
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "post_office"], USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": name, "HOST": host,
                           "USER": "postgres"}},
    DEFAULT_AUTO_FIELD="django.db.models.AutoField", EMAIL_HOST="127.0.0.1",
    EMAIL_PORT=int(sys.argv[5]), EMAIL_BACKEND="post_office.EmailBackend",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    POST_OFFICE={"BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"}},
)
django.setup()
from django.core.management import call_command
from django.db import connection, transaction
from post_office import mail as post_office
text = open(sys.argv[1]).read().partition("\\n\\n")[2]
count = int(sys.argv[2])
say = dict(recipients=["b@example.net"], sender="a@example.org", subject="measured", message=text)
"""
_PROCRASTINATE = """
import sys, time, smtplib, procrastinate
text = open(sys.argv[1]).read()
count = int(sys.argv[2])
conninfo = f"dbname={sys.argv[3]} host={sys.argv[4]} user=postgres"
port = int(sys.argv[5])
def app_of(connector):
    app = procrastinate.App(connector=connector)
    @app.task(name="send")
    def send(text):
        with smtplib.SMTP("127.0.0.1", port) as smtp:
            smtp.sendmail("a@example.org", ["b@example.net"], text)
    return app, send
"""
_SYNC = (
    _PROCRASTINATE
    + """
app, send = app_of(procrastinate.SyncPsycopgConnector(conninfo=conninfo))
app.open()
"""
)
_CLOCK = "before = time.perf_counter()\n{}\nprint(count / (time.perf_counter() - before))\n"
_MIGRATE = _DJANGO + "call_command('migrate', verbosity=0)\npost_office.send(**say)\n"
_APPLY = _SYNC + "app.schema_manager.apply_schema()\nsend.defer(text=text)\n"
_FILL_DJANGO = "for _ in range(count // 100): post_office.send_many([say] * 100)\n"
_FILL_SYNC = (
    "for _ in range(count // 100): send.batch_defer(*[dict(text=text) for _ in range(100)])\n"
)
_DRAIN_DJANGO = _DJANGO + "call_command('send_queued_mail', processes=int(sys.argv[6]))\n"
_DRAIN_SYNC = (
    _PROCRASTINATE
    + """
app, send = app_of(procrastinate.PsycopgConnector(conninfo=conninfo))
with app.open():
    pass
app.run_worker(concurrency=int(sys.argv[6]), wait=False, install_signal_handlers=False)
"""
)

# A shop that commits an order, with or without a mail.
_SHOP = """
import sys, time, psycopg, picoqmail
mail = open(sys.argv[1], "rb").read()
count = int(sys.argv[2])
say = dict(sender="a@example.org", recipients=["b@example.net"])
def order(connection, enqueues):
    connection.execute("INSERT INTO shop VALUES (1)")
    if enqueues:
        picoqmail.enqueue(mail, connection=connection, **say)
    connection.commit()
with psycopg.connect(sys.argv[3]) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS shop (number integer)")
    order(connection, True)
    taken = [0, 0]
    for _ in range(count):
        for enqueues in (0, 1):
            before = time.perf_counter()
            order(connection, enqueues)
            taken[enqueues] += time.perf_counter() - before
print(*(1000 * one / count for one in taken))
"""
_SHOP_DJANGO = f"""{_MIGRATE}
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE shop (number integer)")
def order(enqueues):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop VALUES (1)")
        if enqueues:
            post_office.send(**say)
taken = [0, 0]
for _ in range(count):
    for enqueues in (0, 1):
        before = time.perf_counter()
        order(enqueues)
        taken[enqueues] += time.perf_counter() - before
print(*(1000 * one / count for one in taken))
"""  # noqa: S608 - ours


@frozen
class Stage:
    """A server on the disk that is measured, a mail, and Pythons."""

    bench: Bench
    server: PrivatePostgreSQL
    sink: Sink
    mail: str
    rivals: str

    def rival(self, code: str, count: int, database: str, *words: str) -> str:
        """Run the code of a rival; return what it prints."""
        arguments = [self.mail, str(count), database, self.server.directory, str(self.sink.port)]
        return _output([self.rivals, "-I", "-c", code, *arguments, *words], {})

    def home(self, *, tables: bool, lease: int = 60) -> MeasuredHome:
        """A new home; with `tables` its mail is in a new database."""
        home = make_home(self.bench.scratch, self.sink.address)
        if tables:
            url = self.server.url(self.server.make_database(), lease=lease)
            migrate(read_url(url))
            home.setting("spool", url)
        return home

    def url(self, home: MeasuredHome) -> str:
        """The URL of a home's database."""
        with open(f"{home.root}/control/spool", encoding="utf-8") as file:
            return file.read().strip()


def _output(command: list[str], environ: Mapping[str, str]) -> str:
    ran = subprocess.run(
        command, env=dict(environ), capture_output=True, text=True, check=False, timeout=600
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-2000:])
    return ran.stdout


def measure(bench: Bench) -> dict[str, Any]:
    """Measure acceptance, the mail of a transaction, delivery, a backlog, and a takeover."""
    mail = f"{bench.scratch}/mail-4k"
    with open(mail, "wb") as file:
        file.write(message())
    subprocess.run([bench.ours.python, "-m", "pip", "-q", "install", "psycopg[binary]"], check=True)
    rivals = ""
    try:
        rivals = database_environment()
    except Missing as exc:
        bench.missing["django-post-office, Procrastinate"] = str(exc)
    with (
        PrivatePostgreSQL(durable=True, within=bench.scratch, autovacuum="on") as server,
        Sink(keep=False) as sink,
    ):
        stage = Stage(bench, server, sink, mail, rivals)
        section = _enqueued(stage)
        section["more"] = []
        for part in (_within, _delivered, _backlog, _takeover):
            bench.save("postgresql", section)
            section["more"].append(part(stage))
    return section


# --- Acceptance ----------------------------------------------------------------------------------


def _enqueued(stage: Stage) -> dict[str, Any]:
    bench = stage.bench
    ways = {"one by one": ONE_BY_ONE, "100 at once": GROUPS}
    found: dict[str, list[float]] = {}
    for number in range(bench.repeats):
        for way, code in ways.items():
            for name, tables in ((DIRECTORY, False), (TABLES, True)):
                home = stage.home(tables=tables)
                command = [bench.ours.python, "-I", "-c", code, stage.mail, str(bench.mails)]
                rate = float(_output(command, home.variables()))
                found.setdefault(f"{name}, {way}", []).append(rate)
        if stage.rivals:
            for name, code in (
                (
                    "django-post-office, one by one",
                    _MIGRATE + _CLOCK.format("for _ in range(count): post_office.send(**say)"),
                ),
                ("django-post-office, 100 at once", _MIGRATE + _CLOCK.format(_FILL_DJANGO)),
                (
                    "Procrastinate, one by one",
                    _APPLY + _CLOCK.format("for _ in range(count): send.defer(text=text)"),
                ),
                ("Procrastinate, 100 at once", _APPLY + _CLOCK.format(_FILL_SYNC)),
            ):
                database = stage.server.make_database()
                rate = float(stage.rival(code, bench.mails, database))
                found.setdefault(name, []).append(rate)
        progress("rounds", number + 1, bench.repeats)
    rows = []
    for name, rates in found.items():
        base = found[f"{DIRECTORY}, {name.rpartition(', ')[2]}"]
        rows.append(
            {
                "how": name,
                **figure(RATE, rates),
                "times our directory (median of pairs)": _ratio(rates, base),
            }
        )
    title = "PostgreSQL: in-process submission of 4 KiB mails"
    return {"title": title, "rows": rows, "chart": ("how", RATE)}


def _ratio(one: list[float], other: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 2)


def _within(stage: Stage) -> dict[str, Any]:
    bench = stage.bench
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(bench.repeats):
        home = stage.home(tables=True)
        url = stage.url(home).replace("&lease=60", "")
        code = [bench.ours.python, "-I", "-c", _SHOP, stage.mail, str(bench.mails // 4), url]
        said = _output(code, home.variables())
        found.setdefault("picoqmail, connection=", []).append(_two(said))
        if stage.rivals:
            said = stage.rival(_SHOP_DJANGO, bench.mails // 4, stage.server.make_database())
            found.setdefault("django-post-office, atomic()", []).append(_two(said))
    rows = [
        {
            "how": name,
            **figure("ms without the mail (median)", [without for without, _ in pairs], 2),
            **figure("ms with it (median)", [with_it for _, with_it in pairs], 2),
            **figure("the mail's cost, ms (median)", [b - a for a, b in pairs], 2),
        }
        for name, pairs in found.items()
    ]
    return {"title": "PostgreSQL: a mail in a transaction that commits anyway", "rows": rows}


def _two(said: str) -> tuple[float, float]:
    first, second = map(float, said.split())
    return first, second


# --- Delivery ------------------------------------------------------------------------------------


def _delivered(stage: Stage) -> dict[str, Any]:
    bench = stage.bench
    found: dict[str, list[float]] = {}
    for number in range(bench.repeats):
        found.setdefault(f"{DIRECTORY}, picoqmail-send", []).append(_drain_directory(stage))
        for workers in WORKERS:
            name = f"{TABLES}, {workers} workers"
            found.setdefault(name, []).append(_drain_tables(stage, workers))
            for rival, fill, drain, left in (
                (
                    "django-post-office",
                    _MIGRATE + _FILL_DJANGO,
                    _DRAIN_DJANGO,
                    "SELECT count(*) FROM post_office_email WHERE status <> 0 OR status IS NULL",
                ),
                (
                    "Procrastinate",
                    _APPLY + _FILL_SYNC,
                    _DRAIN_SYNC,
                    "SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'",
                ),
            ):
                if stage.rivals:
                    rate = _drain_rival(stage, fill, drain, left, workers)
                    found.setdefault(f"{rival}, {workers} workers", []).append(rate)
        progress("rounds", number + 1, bench.repeats)
    base = found[f"{DIRECTORY}, picoqmail-send"]
    rows = [
        {
            "how": name,
            **figure(RATE, rates),
            "times our directory (median of pairs)": _ratio(rates, base),
        }
        for name, rates in found.items()
    ]
    title = f"PostgreSQL: delivering {bench.mails} mails of 4 KiB into smtp-sink on this machine"
    return {"title": title, "rows": rows, "chart": ("how", RATE)}


def _fill(stage: Stage, *, tables: bool) -> MeasuredHome:
    home = stage.home(tables=tables)
    command = [stage.bench.ours.python, "-I", "-c", GROUPS, stage.mail, str(stage.bench.mails)]
    _output(command, home.variables())
    return home


def _drain_directory(stage: Stage) -> float:
    home = _fill(stage, tables=False)
    waiting = home.count("new")
    before = time.perf_counter()
    _output([stage.bench.ours.program("send")], home.variables())
    return waiting / (time.perf_counter() - before)


def _drain_tables(stage: Stage, workers: int) -> float:
    home = _fill(stage, tables=True)
    store = open_postgresql(stage.url(home))
    waiting = len(store.names())
    before = time.perf_counter()
    started = [
        subprocess.Popen(
            [f"{stage.bench.ours.directory}/bin/picoqmail", "worker"], env=home.variables()
        )
        for _ in range(workers)
    ]
    try:
        wait_until(lambda: not store.select(most=1), "all mails went", 300)
        return waiting / (time.perf_counter() - before)
    finally:
        for one in started:
            one.send_signal(signal.SIGTERM)
        for one in started:
            one.wait(60)
        store.close()


def _drain_rival(stage: Stage, fill: str, drain: str, left: str, workers: int) -> float:
    database = stage.server.make_database()
    stage.rival(fill, stage.bench.mails, database)
    before = time.perf_counter()
    stage.rival(drain, stage.bench.mails, database, str(workers))
    taken = time.perf_counter() - before
    ((count,),) = stage.server.execute(left, database)
    if count:
        raise RuntimeError(f"{count} mails of the rival were left")
    # One was handed in to warm up.
    return (stage.bench.mails + 1) / taken


# --- A backlog, and a takeover -------------------------------------------------------------------


def _backlog(stage: Stage) -> dict[str, Any]:
    rows = []
    for size in (0, *stage.bench.backlogs):
        home = stage.home(tables=True)
        store = open_postgresql(stage.url(home))
        _defer(stage, home, size)
        looks = []
        for _ in range(LOOKS):
            before = time.perf_counter()
            assert not store.due(500)
            store.next_due()
            looks.append(1000 * (time.perf_counter() - before))
        program = Program(
            "cron", (stage.bench.ours.program("cron"),), home.variables(), ok=(0, 1, 2)
        )
        crons = [
            run_alone(program, f"{stage.bench.scratch}/taken").wall
            for _ in range(stage.bench.repeats)
        ]
        rows.append(
            {
                "deferred": size,
                **figure("idle look, ms (median)", looks, 2),
                **figure("idle cron, s (median)", crons, 3),
            }
        )
        store.close()
    return {"title": "PostgreSQL: with many deferred messages beside", "rows": rows}


def _defer(stage: Stage, home: MeasuredHome, count: int) -> None:
    """Make rows of messages that were tried before and are due tomorrow; their bodies are short."""
    database = stage.url(home).rpartition("@/")[2].partition("?")[0]
    code = [stage.bench.ours.python, "-I", "-c", ONE_BY_ONE, stage.mail, "0"]
    if not count:
        return
    _output(code, home.variables())
    stage.server.execute(
        "INSERT INTO picoqmail.message (id, state, due, sidecar, entered, octets)"  # noqa: S608 - ours
        " SELECT m.id || '.' || n, 'cur', m.due + 86400,"
        "  convert_to(replace(convert_from(m.sidecar, 'UTF8'), m.id, m.id || '.' || n), 'UTF8'),"
        f"  m.entered, m.octets FROM picoqmail.message AS m, generate_series(1, {count}) AS n",
        database,
    )
    stage.server.execute(
        "INSERT INTO picoqmail.chunk (message, number, octets)"
        " SELECT m.id, 0, substring(c.octets FOR 100)"
        " FROM picoqmail.message AS m, picoqmail.chunk AS c WHERE m.state = 'cur'",
        database,
    )
    stage.server.execute("DELETE FROM picoqmail.message WHERE state = 'new'", database)
    stage.server.execute("VACUUM ANALYZE", database)


def _takeover(stage: Stage) -> dict[str, Any]:
    taken = [_take_over(stage) for _ in range(stage.bench.repeats)]
    row = {"lease, s": LEASE_SECONDS, **figure("from kill -9 to delivery, s (median)", taken, 1)}
    return {"title": "PostgreSQL: another worker takes over", "rows": [row]}


def _take_over(stage: Stage) -> float:
    """Kill a worker whose message has begun; return after how many seconds another sent it."""
    begun, go = threading.Event(), threading.Event()

    def hang(line: Line, ordinary: bytes) -> bool:
        begun.set()
        go.wait(60)
        return faults.drop()(line, ordinary)

    with HostileRelay({"DATA": [hang]}) as relay:
        home = stage.home(tables=True, lease=LEASE_SECONDS)
        home.setting("relayip", relay.address)
        command = [f"{stage.bench.ours.directory}/bin/picoqmail", "worker"]
        first = subprocess.Popen(command, env=home.variables())
        code = [stage.bench.ours.python, "-I", "-c", ONE_BY_ONE, stage.mail, "0"]
        _output(code, home.variables())
        if not begun.wait(60):
            raise RuntimeError("the first worker sent nothing")
        second = subprocess.Popen(command, env=home.variables())
        first.kill()
        before = time.perf_counter()
        first.wait()
        relay.wait_for(1)
        seconds = time.perf_counter() - before
        go.set()
        second.send_signal(signal.SIGTERM)
        second.wait(60)
    return seconds
