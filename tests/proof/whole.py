"""Every sweep as a whole, with a progress bar, and the page of the figures."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mutation import scores
from proof import device, error_sweep, kill_sweep, power, races, tracing
from proof.kill_sweep import Stage
from proof.planted import PLANTS, plant
from proof.scenarios import BY_NAME, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAGE = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs", "proof.md"
)
POWER_SCENARIOS = (
    "queue",
    "inject",
    "enqueue_many",
    "enqueue_many, with keys",
    "enqueue_many, few",
    "send",
    "send, some refused",
    "cron",
    "requeue",
    "delete",
)
DEVICE_SCENARIOS = (
    "queue",
    "enqueue_many",
    "enqueue_many, with keys",
    "send",
    "send, some refused",
    "cron",
)
# Less than the queue's lifetime: a clock that jumps further would rightly expire messages.
JUMP_SECONDS = 300000.0


@define
class Section:
    """One part of the page."""

    title: str
    text: str
    rows: list[tuple[str, ...]] = field(factory=list)
    breaches: list[str] = field(factory=list)
    seconds: float = 0


@define
class Proof:
    """All parts. `scale` is 1 for everything, less for a sample."""

    root: str
    seed: int
    quick: bool
    progress: Progress
    sections: list[Section] = field(factory=list)

    def run(self, only: Sequence[str]) -> None:
        """Run all parts, or those that are named."""
        parts: dict[str, Callable[[], Iterator[Section]]] = {
            "planted": self._planted,
            "kill": self._kill,
            "errors": self._errors,
            "power": self._power,
            "device": self._device,
            "races": self._races,
        }
        for name, part in parts.items():
            if only and name not in only:
                continue
            begun = time.monotonic()
            for section in part():
                section.seconds = time.monotonic() - begun
                self.sections.append(section)
                begun = time.monotonic()

    def _bar(self, name: str) -> tuple[Callable[[int], None], Callable[[], None]]:
        task = self.progress.add_task(name, total=None)

        def announce(total: int) -> None:
            self.progress.update(task, total=total)

        return announce, lambda: self.progress.advance(task)

    def _stage(self, name: str) -> Stage:
        path = f"{self.root}/{name}"
        os.makedirs(path)
        return Stage(path)

    def _kill(self) -> Iterator[Section]:
        section = Section(
            "Killed at every call",
            "The program gets SIGKILL before each system call that concerns the home or the relay. "
            "One ordinary cron run recovers the spool. *Twice* counts recipients that got a mail "
            "twice; the log marks each of them as `in_doubt`.",
            [("Program", "Points", "Missed", "Twice", "Lost or altered")],
        )
        self._sweep("kill", section, kill_sweep.sweep, lambda report: report.duplicates)
        yield section

    def _errors(self) -> Iterator[Section]:
        section = Section(
            "An error at every call",
            f"Each call on the home fails once with each of {', '.join(error_sweep.ERRORS)}. "
            "Success requires three good fsyncs (message, sidecar, directory); a group may replace "
            "the first two by one syncfs. A failure leaves nothing behind, has the right exit "
            "code, and is explained in a line. The spool is usable afterwards.",
            [("Program", "Errors", "Missed", "Refused", "Breaches")],
        )
        self._sweep("errors", section, error_sweep.sweep, lambda report: report.refused)
        yield section

    def _sweep(
        self,
        kind: str,
        section: Section,
        sweep: Callable[..., Any],
        figure: Callable[[Any], int],
    ) -> None:
        """Fill a section with the figures of a sweep, one scenario after the other."""
        with self._stage(kind) as stage:
            for scenario in SCENARIOS:
                announce, step = self._bar(f"{kind}: {scenario.name}")
                report = sweep(
                    stage,
                    [scenario.name],
                    sample=15 if self.quick else 0,
                    seed=self.seed,
                    announce=announce,
                    step=step,
                )
                section.breaches += report.breaches
                figures = (report.total, report.missed, figure(report), len(report.breaches))
                section.rows.append(_row(scenario.name, *figures))

    def _power(self) -> Iterator[Section]:
        section = Section(
            "Power loss, modelled",
            "Tried are all states that a disk may be in after every operation of a recorded run. "
            "Data that were not fsynced may be missing, empty, cut or zeros. Directory entries "
            "that were not fsynced may be old or new, in any order. *Repeats* counts states in "
            "which a mail came twice because the run that delivered it had not ended. *False "
            "alarms* counts states in which a mail that was never accepted is put aside as "
            "damaged; they need a disk that reorders directory entries.",
            [("Program", "Operations", "States", "Repeats", "False alarms", "Lost")],
        )
        with self._stage("power") as stage:
            for name in POWER_SCENARIOS:
                announce, step = self._bar(f"power: {name}")
                report = power.sweep(
                    stage,
                    BY_NAME[name],
                    limit=64,
                    sample=60 if self.quick else 0,
                    seed=self.seed,
                    announce=announce,
                    step=step,
                )
                section.breaches += report.breaches
                section.rows.append(
                    _row(
                        name,
                        report.prefixes - 1,
                        report.states,
                        report.repeats,
                        report.false_alarms,
                        len(report.breaches),
                    )
                )
        yield section

    def _device(self) -> Iterator[Section]:
        section = Section(
            "Power loss, on real file systems",
            "A loop-mounted image is copied at the moment when the program dies before a call that "
            "writes or sends, and after success. Then the copy is mounted, its journal is "
            "replayed, and its spool is recovered.",
            [("File system", "Cuts", "Repeats", "Lost")],
        )
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else self.root
        for system in device.FILE_SYSTEMS:
            with tempfile.TemporaryDirectory(dir=memory) as root, Stage(root) as stage:
                reason = device.why_not(system, root)
                if reason:
                    section.rows.append(_row(system.name, f"skipped: {reason}", "", ""))
                    continue
                cutter = device.Cutter(stage, system, root)
                for name in DEVICE_SCENARIOS:
                    announce, step = self._bar(f"{system.name}: {name}")
                    cutter.sweep(
                        BY_NAME[name],
                        sample=4 if self.quick else 0,
                        seed=self.seed,
                        announce=announce,
                        step=step,
                    )
                report = cutter.report
                section.breaches += report.breaches
                section.rows.append(
                    _row(system.name, report.cuts, report.repeats, len(report.breaches))
                )
        yield section

    def _races(self) -> Iterator[Section]:
        section = Section(
            "Races",
            "Queue programs, senders and cron runs share one spool and are killed at random, while "
            "the relay fails at random. In the end all accepted mail must have arrived unaltered.",
            [("Crowd", "Programs", "Killed", "Accepted", "Delivered", "Twice, marked", "Breaches")],
        )
        seconds = 5 if self.quick else 45
        crowds: list[tuple[str, bool, tuple[float, ...]]] = [
            ("one host", False, ()),
            ("each process number 1 of its own PID namespace", True, ()),
            ("cron with a clock that jumps by days", False, (0, JUMP_SECONDS, -JUMP_SECONDS)),
        ]
        with self._stage("races") as stage:
            for name, namespaces, jumps in crowds:
                if namespaces and not races.namespaces_work():
                    section.rows.append(_row(name, "skipped: no PID namespaces here", *[""] * 5))
                    continue
                announce, step = self._bar(f"races: {name}")
                announce(1)
                report = races.race(
                    stage, seconds=seconds, seed=self.seed, namespaces=namespaces, jumps=jumps
                )
                step()
                section.breaches += report.breaches
                section.rows.append(
                    _row(
                        name,
                        report.programs,
                        report.killed,
                        report.accepted,
                        report.delivered,
                        report.duplicates,
                        len(report.breaches),
                    )
                )
        yield section

    def _planted(self) -> Iterator[Section]:
        section = Section(
            "Planted bugs",
            "Bugs are planted into a copy of the package; the trials must find each of them.",
            [("Planted bug", "Found by", "First breach")],
        )
        announce, step = self._bar("planted bugs")
        announce(len(PLANTS))
        for number, bug in enumerate(PLANTS):
            directory = f"{self.root}/planted{number}"
            with Stage(directory, plant(bug, f"{directory}/copy")) as stage:
                if bug.found_by == "power":
                    found = power.sweep(
                        stage, BY_NAME[bug.scenario], limit=32, sample=2000, first_only=True
                    ).breaches
                else:
                    found = kill_sweep.sweep(
                        stage, [bug.scenario], sample=2000, first_only=True
                    ).breaches
            if not found:
                section.breaches.append(f"the planted bug '{bug.name}' was not found")
            first = found[0].rpartition("/spool/")[2] if found else "NOTHING"
            section.rows.append(_row(bug.name, bug.found_by, _plain(first)))
            step()
        yield section


def _row(*cells: object) -> tuple[str, ...]:
    return tuple(str(cell) for cell in cells)


def _plain(text: str) -> str:
    """Return a breach without the names that differ from run to run."""
    import re

    text = re.sub(r"\d+\.M\d+P\d+Q\d+R[0-9a-f]+\.w\d+\.test", "ID", text)
    text = re.sub(r"\bw\d+\.test-", "message ", text)
    return re.sub(r"/[^ ']*/spool/", "", text).replace("|", "\\|")[:160]


def page(proof: Proof) -> str:
    """Return the report as a page."""
    breaches = sum(len(section.breaches) for section in proof.sections)
    version = subprocess.run(
        [sys.executable, "-c", "import picoqmail; print(picoqmail.__version__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout.strip()
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    where = f"picoqmail {version}, Python {platform.python_version()}, {kernel}"
    look = ", a quick sample" if proof.quick else ""
    lines = [
        "# Fault injection",
        "",
        "`python tests/proof` writes this page; do not edit it. `tests/proof/invariant.py` has the",
        "promise, and what each of these trials must leave behind.",
        "",
        f"{where}, seed {proof.seed}{look}: **{breaches} breaches**.",
    ]
    for section in proof.sections:
        lines += ["", f"## {section.title}", "", section.text, ""]
        head, *rows = section.rows
        lines += [_cells(head), _cells(["---"] * len(head))]
        lines += [_cells(row) for row in rows]
        lines += ["", f"{section.seconds:.0f} seconds."]
        if section.breaches:
            lines += ["", *(f"- {_plain(one)}" for one in section.breaches[:50])]
    lines += scores.section()
    return "\n".join(lines) + "\n"


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str]) -> int:
    """Run the trials; return 0 without breaches, 1 with breaches, 69 if strace cannot trace."""
    parser = argparse.ArgumentParser(prog="python tests/proof", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a seeded sample of everything")
    parser.add_argument("--seed", type=int, default=1, help="for what is chosen at random")
    parser.add_argument("--page", default=PAGE, help="where the report goes (default: %(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=("planted", "kill", "errors", "power", "device", "races"),
        help="only this part; may be repeated",
    )
    options = parser.parse_args(argv)
    console = Console()
    if not tracing.is_there():
        console.print("no strace that may trace here: apt-get install strace; nothing was tried")
        return 69
    name = TextColumn("{task.description}")
    columns = name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with (
        tempfile.TemporaryDirectory(prefix="picoqmail-proof-") as root,
        Progress(*columns, console=console) as progress,
    ):
        proof = Proof(root, options.seed, options.quick, progress)
        proof.run(options.only)
    with open(options.page, "w", encoding="utf-8") as file:
        file.write(page(proof))
    breaches = [one for section in proof.sections for one in section.breaches]
    for one in breaches[:20]:
        console.print(one, markup=False)
    console.print(f"{len(breaches)} breaches; the report is in {options.page}")
    return 1 if breaches else 0
