"""3: a spool drained into a relay that accepts everything, on this host and 50 ms away."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

from measuring import Program, run_alone, run_here
from ours import make_home, message
from rivals import ENVIRON, all_with_a_queue, wait_until_empty

from rig.programs import find
from rig.proxy import SlowLine
from rig.sink import Sink

if TYPE_CHECKING:
    from typing import Any

    from bench import Bench

FAR_MAILS = 200
SECONDS_EACH_WAY = 0.025
# These need a connection and tens of milliseconds for each mail, so a fifth of the mails is enough.
SLOW = ("nullmailer", "Exim", "OpenSMTPD", "msmtpq")


def measure(bench: Bench) -> dict[str, Any]:
    """Drain into the near relay, then into the far one."""
    near = _near(bench)
    far = _far(bench)
    best = max((r["mails/s"] for r in near if "rival" in r["kind"]), default=0)
    for row in near:
        row["of the best rival"] = round(row["mails/s"] / best, 2) if best else None
    return {
        "title": f"Draining {bench.mails} mails of 4 KiB into smtp-sink on this machine",
        "rows": near,
        "chart": ("program", "mails/s"),
        "more": [
            {
                "title": f"Draining {FAR_MAILS} mails over a line of 50 ms round trip",
                "rows": far,
                "chart": ("program", "seconds"),
            }
        ],
    }


def _near(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    with Sink(keep=False) as sink:
        best = None
        for _ in range(bench.repeats):
            row = _picoqmail(bench, sink.address, bench.mails)
            best = row if best is None or row["CPU s"] < best["CPU s"] else best
        assert best is not None
        rows.append(best)
        mail = f"{bench.scratch}/mail-raw"
        with open(mail, "wb") as file:
            file.write(message())
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pipelined.py")
        count = str(bench.mails)
        raw = min(
            (
                run_here(
                    Program(
                        "raw",
                        (bench.ours.python, "-I", script, sink.host, str(sink.port), mail, count),
                        ENVIRON,
                    )
                )
                for _ in range(bench.repeats)
            ),
            key=lambda one: one.wall,
        )
        rows.append(_row("a raw pipelined socket", "limit", bench.mails, raw.wall, raw.cpu))
        rows.append(_smtp_source(bench, sink))
        rows += _rivals(bench, sink.port, bench.mails, near=True)
    return rows


def _smtp_source(bench: Bench, sink: Sink) -> dict[str, Any]:
    """Measure Postfix's load generator, which makes its own mail and reads no spool."""
    argv = (
        find("smtp-source", "postfix"),
        *("-d", "-s", "20", "-m", str(bench.mails), "-l", "4096"),
        *("-f", "a@example.org", "-t", "b@example.net", sink.address),
    )
    taken = min(
        (run_here(Program("smtp-source", argv, ENVIRON)) for _ in range(bench.repeats)),
        key=lambda one: one.wall,
    )
    if taken.status:
        raise RuntimeError(f"smtp-source ended with {taken.status}")
    return _row("smtp-source, 20 sessions", "limit", bench.mails, taken.wall, taken.cpu)


def _far(bench: Bench) -> list[dict[str, Any]]:
    with Sink(keep=False) as sink:
        with SlowLine(sink.port, seconds_each_way=SECONDS_EACH_WAY) as line:
            rows = [_best_of(bench, line), *_rivals(bench, line.port, FAR_MAILS, near=False)]
        # The same over a line without delay for the handshake of TCP.
        with SlowLine(sink.port, seconds_each_way=SECONDS_EACH_WAY, handshake=False) as line:
            row = _best_of(bench, line)
            row["program"] += ", without the delay of TCP's handshake"
            rows.insert(1, row)
    return rows


def _best_of(bench: Bench, line: SlowLine) -> dict[str, Any]:
    rows = []
    for _ in range(bench.repeats):
        before = line.connections
        row = _picoqmail(bench, line.address, FAR_MAILS)
        row["connections"] = line.connections - before
        rows.append(row)
    return min(rows, key=lambda row: row["seconds"])


def _picoqmail(bench: Bench, relay: str, count: int) -> dict[str, Any]:
    home = make_home(bench.scratch, relay)
    home.fill(count)
    program = Program("picoqmail-send", (bench.ours.program("send"),), home.variables())
    taken = run_alone(program, f"{bench.scratch}/taken")
    if taken.status or home.count("new"):
        raise RuntimeError(f"picoqmail-send ended with {taken.status}, {home.count('new')} left")
    row = _row("picoqmail-send", "ours", count, taken.wall, taken.cpu)
    row["MiB"] = round(taken.rss_mib)
    return row


def _row(name: str, kind: str, count: int, wall: float, cpu: float | None) -> dict[str, Any]:
    return {
        "program": name,
        "kind": kind,
        "mails": count,
        "seconds": round(wall, 3),
        "mails/s": round(count / wall),
        "CPU s": None if cpu is None else round(cpu, 3),
        "mails per CPU second": None if cpu is None else round(count / cpu),
    }


def _rivals(bench: Bench, port: int, mails: int, *, near: bool) -> list[dict[str, Any]]:
    rows = []
    for rival in all_with_a_queue(message(), bench.scratch, bench.missing, port):
        name = rival.name
        count = max(mails // (5 if near else 20), 10) if name in SLOW else mails
        for _ in range(count):
            if run_in(rival.submit()):
                raise RuntimeError(f"{name} does not take mail")
        if rival.waiting() < count:
            raise RuntimeError(f"{name} has {rival.waiting()} mails, {count} were submitted")
        before = time.perf_counter()
        process = subprocess.Popen(
            rival.drain(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRON,
        )
        try:
            done = wait_until_empty(rival.waiting)
            seconds = time.perf_counter() - before
        finally:
            rival.stop()
            process.terminate()
            process.wait(30)
        if not done:
            bench.missing[f"{name}, {'near' if near else 'far'}"] = "its queue did not get empty"
            continue
        rows.append(_row(name, "rival", count, seconds, None))
    return rows


def run_in(program: Program) -> int:
    """Run a program in its root once; returns its exit code."""
    command = ["chroot", program.root, *program.argv] if program.root else list(program.argv)
    path = program.root + program.stdin
    with open(path, "rb") as mail:
        return subprocess.run(
            command,
            stdin=mail,
            env=dict(program.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        ).returncode
