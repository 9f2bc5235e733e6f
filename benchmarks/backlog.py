"""4: the cost of many deferred mails: for idle runs, for runs with a few due ones, for `list`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from measuring import Program, progress, run_alone
from ours import make_home

from picoqmail.spool import idle as idle_file
from rig.sink import Sink

if TYPE_CHECKING:
    from typing import Any

    from bench import Bench
    from ours import MeasuredHome

DUE = 100
HOUR = 3600
LARGE = 300_000
"""From so many messages on a run takes seconds, so two of each are enough."""


def measure(bench: Bench) -> dict[str, Any]:
    """Measure one row for each size of the backlog."""
    rows = []
    with Sink(keep=False) as sink:
        for number, size in enumerate((0, *bench.backlogs)):
            home = make_home(bench.scratch, sink.address)
            if size:
                home.defer(size, due_in_seconds=HOUR)
            rows.append(_row(bench, home, size))
            # A run that is cut leaves what it had.
            bench.save("backlog", _section(rows))
            progress("backlogs", number + 1, len(bench.backlogs) + 1)
    return _section(rows)


def _section(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": "A backlog of deferred messages: seconds (and MiB) for one run",
        "rows": rows,
        "chart": ("deferred", "idle cron, s"),
    }


def _row(bench: Bench, home: MeasuredHome, size: int) -> dict[str, Any]:
    program = bench.ours.program
    picoqmail = f"{bench.ours.directory}/bin/picoqmail"
    # The first run comes too soon after a change to note what it found. The second one notes it,
    # and the third finds the note.
    look = _best(bench, home, program("cron"), times=1)
    time.sleep(idle_file.STEP_SECONDS + 1)
    idle = _best(bench, home, program("cron"), times=2 if size >= LARGE else 0)
    page = _best(bench, home, picoqmail, "list", "--limit", "100", times=1)
    # All of a million takes minutes, which say nothing that those of 100,000 do not say.
    listed = _best(bench, home, picoqmail, "list", times=1) if size < LARGE else None
    status = _best(bench, home, picoqmail, "status", times=1)
    row: dict[str, Any] = {
        "deferred": size,
        "idle cron, s": round(idle.wall, 3),
        "cron that looks, s": round(look.wall, 3),
        "its MiB": round(look.rss_mib),
        "list, 100, s": round(page.wall, 2),
        "list, s": round(listed.wall, 2) if listed else None,
        "list's MiB": round(listed.rss_mib) if listed else None,
        "status, s": round(status.wall, 2),
    }
    home.defer(DUE, due_in_seconds=-1)
    before = home.count("cur")
    due = _best(bench, home, program("cron"), times=1)
    row[f"cron, {DUE} due, s"] = round(due.wall, 3)
    if before - home.count("cur") != DUE:
        raise RuntimeError(f"{before - home.count('cur')} mails went, {DUE} were due")
    # The relay goes away: the first run opens the breaker, and later runs find it open.
    home.setting("relayip", "127.0.0.1:1")
    home.defer(1, due_in_seconds=-2)
    _best(bench, home, program("cron"), times=1)
    row["breaker open, s"] = round(_best(bench, home, program("cron"), times=1).wall, 3)
    return row


def _best(bench: Bench, home: MeasuredHome, *argv: str, times: int = 0) -> Any:  # noqa: ANN401
    program = Program(argv[0], argv, home.variables(), ok=(0, 1, 2))
    return min(
        (run_alone(program, f"{bench.scratch}/taken") for _ in range(times or bench.repeats)),
        key=lambda one: one.wall,
    )
