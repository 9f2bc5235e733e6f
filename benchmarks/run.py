"""The benchmark suite: one command.

    python benchmarks/run.py [--quick] [--only SECTION ...] [--million] [--output DIRECTORY]

Needs `pip install '.[test]'`, and for the rivals Debian's apt-get and root (chroot): see README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "tests")]

import backlog  # noqa: E402 - tests/ has to be found first
import drain  # noqa: E402
import in_process  # noqa: E402
import machine  # noqa: E402
import ours as ours_module  # noqa: E402
import report  # noqa: E402
import sizes  # noqa: E402
from bench import Bench  # noqa: E402

import submission  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


SECTIONS = {
    "submission": submission.measure,
    "library": in_process.measure,
    "drain": drain.measure,
    "backlog": backlog.measure,
    "sizes": sizes.measure,
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
)


def main(arguments: Sequence[str]) -> int:
    """Measure the chosen sections, and write the results."""
    parser = argparse.ArgumentParser(description="Measure picoqmail beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="small numbers: under two minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--million", action="store_true", help="a backlog of 1,000,000, too")
    parser.add_argument("--output", default=os.path.join(HERE, "results"), help="directory")
    asked = parser.parse_args(arguments)
    with ours_module.scratch_directory() as scratch:
        results = _measure(asked, scratch)
    report.write(asked.output, results)
    print(f"{asked.output}/results.md")
    return 0


def _measure(asked: argparse.Namespace, scratch: str) -> dict[str, Any]:
    results: dict[str, Any] = {
        "machine": machine.facts(scratch),
        "quick": asked.quick,
        "sections": {},
    }
    million = (1_000_000,) if asked.million else ()
    bench = Bench(
        scratch,
        ours_module.install(scratch),
        rounds=15 if asked.quick else 100,
        repeats=2 if asked.quick else 5,
        mails=300 if asked.quick else 1000,
        backlogs=(1000, 10_000) if asked.quick else (1000, 10_000, 100_000, *million),
        sizes=(1 << 10, 1 << 20, 1 << 26)
        if asked.quick
        else (1 << 10, 1 << 20, 1 << 24, 1 << 28, 1 << 30),
        crowds=(1, 1000, 100_000) if asked.quick else (1, 100, 1000, 10_000, 100_000),
    )
    for name in asked.only or SECTIONS:
        print(f"{name} ...", file=sys.stderr)
        before = time.perf_counter()
        results["sections"][name] = SECTIONS[name](bench)
        print(f"{name}: {time.perf_counter() - before:.0f} s", file=sys.stderr)
    results["versions"] = {name: machine.version(name) for name in VERSIONS}
    results["missing"] = bench.missing
    results["machine"]["load after"] = os.getloadavg()[0]
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
