"""1: one mail by one process, and mails a second from four submitters at once."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from measuring import Program, Starter, median_ratio, paired
from ours import ENVELOPE, make_home, message
from rivals import ENVIRON, all_with_a_queue, available, msmtp

from rig.sink import Sink

if TYPE_CHECKING:
    from typing import Any

    from bench import Bench
    from ours import MeasuredHome, Ours

SUBMITTERS = 4


def programs_of_ours(ours: Ours, home: MeasuredHome, mail: str, envelope: str) -> list[Program]:
    """Return the submitters; bare Python comes first, because it is the unit."""
    ask = ("-i", "-fa@example.org", "b@example.net")
    return [
        Program("bare Python", (ours.python, "-I", "-S", "-c", "pass"), home.variables()),
        Program(
            "picoqmail-queue",
            (ours.program("queue"),),
            home.variables(),
            mail,
            envelope,
            clean=home.renew,
        ),
        Program("picoqmail-sendmail", (ours.program("sendmail"), *ask), home.variables(), mail),
        Program("picoqmail-cron, idle", (ours.program("cron"),), home.variables()),
    ]


def measure(bench: Bench) -> dict[str, Any]:
    """Run all submitters in turn, then four of each at once."""
    with ExitStack() as daemons:
        return _measure(bench, daemons)


def _measure(bench: Bench, daemons: ExitStack) -> dict[str, Any]:
    home = make_home(bench.scratch)
    # Cron is idle only without mail, so it has another home.
    idle = make_home(bench.scratch)
    mail, envelope = f"{bench.scratch}/mail", f"{bench.scratch}/envelope"
    with open(mail, "wb") as file:
        file.write(message())
    with open(envelope, "wb") as file:
        file.write(ENVELOPE)
    programs = programs_of_ours(bench.ours, home, mail, envelope)
    programs[3] = Program("picoqmail-cron, idle", programs[3].argv, idle.variables())
    for rival in all_with_a_queue(message(), bench.scratch, bench.missing):
        daemons.callback(rival.stop)
        programs.append(rival.submit())
    programs.append(
        Program(
            "Python that imports smtplib",
            (bench.ours.python, "-I", "-c", "import smtplib"),
            ENVIRON,
        )
    )
    with Sink(keep=False) as sink:
        direct: Any = available(lambda: msmtp(bench.scratch, sink.port), "msmtp", bench.missing)
        taken = paired([*programs, direct] if direct else programs, bench.rounds)
    bare = taken["bare Python"]
    rows = []
    for name, runs in taken.items():
        rows.append(
            {
                "program": name,
                "wall ms (median)": round(1000 * statistics.median(r.wall for r in runs), 2),
                "wall ms (fastest)": round(1000 * min(r.wall for r in runs), 2),
                "CPU ms (median)": round(1000 * statistics.median(r.cpu for r in runs), 2),
                "CPU ms (least)": round(1000 * min(r.cpu for r in runs), 2),
                "wall / bare (median of pairs)": round(median_ratio(runs, bare, "wall"), 2),
                "CPU / bare (median of pairs)": round(median_ratio(runs, bare, "cpu"), 2),
                "CPU / bare (least)": round(min(r.cpu for r in runs) / min(r.cpu for r in bare), 2),
            }
        )
    submitters = [one for one in programs if "idle" not in one.name and "smtplib" not in one.name]
    return {
        "title": "Submission of one 4 KiB mail by one process",
        "rows": rows,
        "chart": ("program", "wall / bare (median of pairs)"),
        "more": [
            {
                "title": f"Mails a second from {SUBMITTERS} submitters at once",
                "rows": [_at_once(program, bench.rounds) for program in submitters],
            }
        ],
    }


def _at_once(program: Program, rounds: int) -> dict[str, object]:
    starters = [Starter(program) for _ in range(SUBMITTERS)]
    before = time.perf_counter()
    for starter in starters:
        starter.begin(rounds)
    for starter in starters:
        starter.end()
    seconds = time.perf_counter() - before
    for starter in starters:
        starter.__exit__()
    program.clean()
    return {"program": program.name, "mails/s": round(SUBMITTERS * rounds / seconds)}
