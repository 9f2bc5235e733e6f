"""3: a spool drained into a relay that accepts everything, on this host and 50 ms away."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from attrs import evolve, frozen
from disk import neighbour
from measuring import Program, Starter, figure, progress, run_alone, run_here
from ours import make_home, message
from rivals import ENVIRON, all_with_a_queue, wait_until_empty

from rig.programs import find
from rig.proxy import SlowLine
from rig.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from bench import Bench

FAR_MAILS = 200
FAR_CONNECTIONS = 20
"""What the setting concurrencyremote allows by default."""

SECONDS_EACH_WAY = 0.025
# These need a connection and tens of milliseconds for each mail, so a tenth of the mails is enough.
SLOW = ("nullmailer", "Exim", "OpenSMTPD", "msmtpq")
OURS, RAW, SOURCE = "picoqmail-send", "a raw pipelined socket", "smtp-source, 20 sessions"
RATE, CPU = "mails/s (median)", "CPU ms a mail (median)"


@frozen
class Drained:
    """One run: the mails, the wall seconds, and where they are known processor time and memory."""

    mails: int
    wall: float
    cpu: float | None = None
    rss_mib: float = 0.0
    connections: int = 0

    @property
    def rate(self) -> float:
        """Mails a second."""
        return self.mails / self.wall


def measure(bench: Bench) -> dict[str, Any]:
    """Drain into the near relay, alone and beside a neighbour, then into the far one."""
    title = f"Draining {bench.mails} mails of 4 KiB into smtp-sink on this machine"
    section: dict[str, Any] = {"title": title, "rows": _near(bench), "chart": ("program", RATE)}
    bench.save("drain", section)
    beside = f"{title}, beside a neighbour that writes 20 MB/s to the same disk"
    with neighbour(bench.scratch):
        rows = _near(bench, has_neighbour=True)
    section["more"] = [{"title": beside, "rows": rows, "chart": ("program", RATE)}]
    bench.save("drain", section)
    far = f"Draining {FAR_MAILS} mails over a line of 50 ms round trip"
    rows = _far(bench)
    section["more"].append({"title": far, "rows": rows, "chart": ("program", "seconds (median)")})
    return section


def _near(bench: Bench, *, has_neighbour: bool = False) -> list[dict[str, Any]]:
    """Drain with every program in turn, in several rounds; the slow ones only alone."""
    found: dict[str, list[Drained]] = {}
    with Sink(keep=False) as sink:
        for number in range(bench.repeats):
            _add(found, OURS, _picoqmail(bench, sink.address, bench.mails))
            if not has_neighbour:
                _add(found, RAW, _raw(bench, sink.host, sink.port, bench.mails))
                _add(found, SOURCE, _smtp_source(bench, sink))
            for name, taken in _rivals(bench, sink.port, bench.mails, slow=not has_neighbour):
                _add(found, name, taken)
            progress("rounds", number + 1, bench.repeats)
    return _rows_of(found)


def _add(found: dict[str, list[Drained]], name: str, taken: Drained) -> None:
    found.setdefault(name, []).append(taken)


def _rows_of(found: dict[str, list[Drained]]) -> list[dict[str, Any]]:
    """Return a row for each program; ratios are medians of the pairs of a round."""
    rivals = {name: runs for name, runs in found.items() if name not in (OURS, RAW, SOURCE)}
    best = max(
        rivals, key=lambda name: statistics.median(one.rate for one in rivals[name]), default=""
    )
    rows = []
    for name, runs in found.items():
        row = {
            "program": name,
            "kind": "rival" if name in rivals else "ours" if name == OURS else "limit",
            "mails": runs[0].mails,
            **figure(RATE, [one.rate for one in runs]),
        }
        if best:
            row[f"times {best} (median of pairs)"] = _ratio(runs, found[best])
        if RAW in found:
            row["of the raw socket (median of pairs)"] = _ratio(runs, found[RAW])
        used = [1000 * one.cpu / one.mails for one in runs if one.cpu is not None]
        if used:
            row |= figure(CPU, used, 2)
        if name == OURS:
            row["MiB"] = round(max(one.rss_mib for one in runs))
        rows.append(row)
    return rows


def _ratio(runs: list[Drained], others: list[Drained]) -> float:
    # A rival whose queue did not get empty in a round has fewer.
    pairs = zip(runs, others, strict=False)
    return round(statistics.median(one.rate / other.rate for one, other in pairs), 2)


def _raw(bench: Bench, host: str, port: int, mails: int, connections: int = 1) -> Drained:
    """Measure prepared octets, sent by Python as fast as the relay takes them."""
    mail = f"{bench.scratch}/mail-raw"
    with open(mail, "wb") as file:
        file.write(message())
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pipelined.py")
    numbers = (str(port), mail, str(mails), str(connections))
    taken = run_here(
        Program("raw", (bench.ours.python, "-I", "-S", script, host, *numbers), ENVIRON)
    )
    if taken.status:
        raise RuntimeError(f"the raw sockets ended with {taken.status}")
    return Drained(mails, taken.wall, taken.cpu, connections=connections)


def _smtp_source(bench: Bench, sink: Sink) -> Drained:
    """Measure Postfix's load generator, which makes its own mail and reads no spool."""
    argv = (
        find("smtp-source", "postfix"),
        *("-d", "-s", "20", "-m", str(bench.mails), "-l", "4096"),
        *("-f", "a@example.org", "-t", "b@example.net", sink.address),
    )
    taken = run_here(Program("smtp-source", argv, ENVIRON))
    if taken.status:
        raise RuntimeError(f"smtp-source ended with {taken.status}")
    return Drained(bench.mails, taken.wall, taken.cpu)


def _far(bench: Bench) -> list[dict[str, Any]]:
    found: dict[str, list[Drained]] = {}
    quick = f"{OURS}, without the delay of TCP's handshake"
    with (
        Sink(keep=False) as sink,
        SlowLine(sink.port, seconds_each_way=SECONDS_EACH_WAY) as line,
        SlowLine(sink.port, seconds_each_way=SECONDS_EACH_WAY, handshake=False) as quick_line,
    ):
        for number in range(bench.repeats):
            for name, way in ((OURS, line), (quick, quick_line)):
                before = way.connections
                taken = _picoqmail(bench, way.address, FAR_MAILS)
                _add(found, name, evolve(taken, connections=way.connections - before))
            taken = _raw(bench, line.host, line.port, FAR_MAILS, FAR_CONNECTIONS)
            _add(found, f"{FAR_CONNECTIONS} raw pipelined sockets", taken)
            for name, taken in _rivals(bench, line.port, FAR_MAILS):
                _add(found, name, taken)
            progress("far rounds", number + 1, bench.repeats)
    return [
        {
            "program": name,
            "mails": runs[0].mails,
            **figure("seconds (median)", [one.wall for one in runs], 3),
            "seconds (best)": round(min(one.wall for one in runs), 3),
            "connections": runs[0].connections or None,
        }
        for name, runs in found.items()
    ]


def _picoqmail(bench: Bench, relay: str, count: int) -> Drained:
    home = make_home(bench.scratch, relay)
    home.fill(count)
    program = Program(OURS, (bench.ours.program("send"),), home.variables())
    taken = run_alone(program, f"{bench.scratch}/taken")
    if taken.status or home.count("new"):
        raise RuntimeError(f"picoqmail-send ended with {taken.status}, {home.count('new')} left")
    return Drained(count, taken.wall, taken.cpu, taken.rss_mib)


def _rivals(
    bench: Bench, port: int, mails: int, *, slow: bool = True
) -> Iterator[tuple[str, Drained]]:
    """Fill and drain each rival once, each in new directories."""
    scratch = tempfile.mkdtemp(prefix="rivals-", dir=bench.scratch)
    os.chmod(scratch, 0o755)  # noqa: S103 - rivals with users of their own must get in
    for rival in all_with_a_queue(message(), scratch, bench.missing, port, slow=slow):
        name = rival.name
        count = max(mails // 10, 10) if name in SLOW else mails
        with Starter(rival.submit()) as starter:
            starter.run(count)
        if rival.waiting() < count:
            raise RuntimeError(f"{name} has {rival.waiting()} mails, {count} were submitted")
        os.sync()
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
        if done:
            yield name, Drained(count, seconds)
        else:
            bench.missing[f"{name}, drain"] = "its queue did not get empty"
