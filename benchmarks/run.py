"""The benchmark suite: one command.

    python benchmarks/run.py [--quick] [--only SECTION ...] [--million] [--output DIRECTORY]

Needs `pip install '.[test]'`, and for the rivals Debian's apt-get and root (chroot): see README.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "tests")]

import backlog  # noqa: E402 - tests/ has to be found first
import compare  # noqa: E402
import database  # noqa: E402
import drain  # noqa: E402
import in_process  # noqa: E402
import machine  # noqa: E402
import ours as ours_module  # noqa: E402
import report  # noqa: E402
import sizes  # noqa: E402
from bench import Bench  # noqa: E402
from disk import scratch_directory, temporary_files_in  # noqa: E402

import submission  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from disk import Disk

SECTIONS = {
    "submission": submission.measure,
    "library": in_process.measure,
    "drain": drain.measure,
    "backlog": backlog.measure,
    "sizes": sizes.measure,
    "postgresql": database.measure,
}
VERSIONS = (
    "picoqmail",
    "attrs",
    "portalocker",
    "structlog",
    "postfix",
    "exim4-base",
    "nullmailer",
    "dma",
    "msmtp",
    "postgresql-15",
)


def main(arguments: Sequence[str]) -> int:
    """Measure the chosen sections, and write the results."""
    parser = argparse.ArgumentParser(description="Measure picoqmail beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="small numbers: under two minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--million", action="store_true", help="a backlog of 1,000,000, too")
    parser.add_argument("--output", default=os.path.join(HERE, "results"), help="directory")
    asked = parser.parse_args(arguments)
    # A signal ends the run as an error does: what was mounted is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    stored = report.read(os.path.join(HERE, "results"))
    with scratch_directory() as disk, temporary_files_in(disk.path):
        results = _measure(asked, disk)
    print(f"{asked.output}/results.md")
    for line in compare.worse(stored, results) or ["no figure is worse than the stored ones"]:
        print(line)
    return 0


def _measure(asked: argparse.Namespace, disk: Disk) -> dict[str, Any]:
    """Measure, and write the results after each section, so that a run that is cut leaves them."""
    results: dict[str, Any] = {
        "machine": machine.facts(disk),
        "versions": {},
        "quick": asked.quick,
        "missing": {},
        "sections": {},
    }

    def save(name: str, section: dict[str, Any]) -> None:
        results["sections"][name] = section
        report.write(asked.output, results)

    million = (1_000_000,) if asked.million else ()
    bench = Bench(
        disk.path,
        ours_module.install(disk.path),
        rounds=15 if asked.quick else 100,
        repeats=2 if asked.quick else 5,
        mails=300 if asked.quick else 1000,
        backlogs=(1000, 10_000, *million) if asked.quick else (1000, 10_000, 100_000, *million),
        sizes=(1 << 10, 1 << 20, 1 << 26)
        if asked.quick
        else (1 << 10, 1 << 20, 1 << 24, 1 << 28, 1 << 30),
        crowds=(1, 1000, 100_000) if asked.quick else (1, 100, 1000, 10_000, 100_000),
        save=save,
        missing=results["missing"],
    )
    results["versions"] = {name: machine.version(name) for name in VERSIONS}
    for name in asked.only or SECTIONS:
        print(f"{name} ...", file=sys.stderr)
        before = time.perf_counter()
        save(name, SECTIONS[name](bench))
        print(f"{name}: {time.perf_counter() - before:.0f} s", file=sys.stderr)
    results["machine"]["load after"] = os.getloadavg()[0]
    report.write(asked.output, results)
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
