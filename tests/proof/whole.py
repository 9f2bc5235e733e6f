"""Every sweep as a whole, in parts that can be resumed, and the page of the figures."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from proof import state, tracing
from proof.page import write_page
from proof.parts import Bar, Size, kinds
from proof.state import CHECKOUT, Result, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proof.parts import Kind, Part

PAGE = os.path.join(CHECKOUT, "docs", "proof.md")
QUICK_SOAK_SECONDS = 20
SOAK_SECONDS = 3600
KINDS = ("planted", "kill", "errors", "power", "device", "races", "idle", "soak", "database")


def main(argv: Sequence[str]) -> int:
    """Run the trials; return 0 without breaches, 1 with breaches, 69 if strace cannot trace."""
    options = _parser().parse_args(argv)
    console = Console()
    if not tracing.is_there():
        console.print("no strace that may trace here: apt-get install strace; nothing was tried")
        return 69
    seconds = options.soak or (QUICK_SOAK_SECONDS if options.quick else SOAK_SECONDS)
    size = Size(options.quick, options.seed, seconds)
    every = kinds(size)
    kept = State(options.state)
    sources, commit = state.sources(), state.commit()
    for kind in every:
        for part in kind.parts:
            if not _is_chosen(options.only, kind, part):
                continue
            known = kept.read(kind.name, part.name)
            wanted = part.size or str(size)
            if known and known.passed and _stands(known, sources, wanted, keep=options.keep):
                console.print(f"{kind.name}: {part.name}: has passed, skipped", markup=False)
                continue
            result = _run(kind, part, console, (commit, sources, wanted))
            kept.write(result)
            _report(console, result)
    if options.state or not options.only:
        with open(options.page, "w", encoding="utf-8") as file:
            file.write(write_page(every, kept, sources=sources, size=str(size)))
        console.print(f"the page is {options.page}", markup=False)
    found = [kept.read(kind.name, part.name) for kind in every for part in kind.parts]
    breaches = sum(len(one.breaches) for one in found if one is not None)
    console.print(f"{breaches} breaches")
    return 1 if breaches else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/proof", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a seeded sample of everything")
    parser.add_argument("--seed", type=int, default=1, help="for what is chosen at random")
    parser.add_argument("--page", default=PAGE, help="where the report goes (default: %(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PART",
        help=f"only this part; may be repeated: one of {', '.join(KINDS)}, or such as 'kill: send'",
    )
    parser.add_argument(
        "--state",
        default="",
        metavar="DIRECTORY",
        help="keep there what each part found, and skip parts that have passed on the same "
        "sources; the page shows all parts that are kept there",
    )
    parser.add_argument(
        "--keep", action="store_true", help="also skip parts that have passed on other sources"
    )
    parser.add_argument(
        "--soak", type=int, default=0, metavar="SECONDS", help="for how long (default: an hour)"
    )
    return parser


def _is_chosen(only: Sequence[str], kind: Kind, part: Part) -> bool:
    return not only or kind.name in only or f"{kind.name}: {part.name}" in only


def _stands(known: Result, sources: str, size: str, *, keep: bool) -> bool:
    return (keep or known.sources == sources) and known.size in (size, "all")


def _run(kind: Kind, part: Part, console: Console, run_on: tuple[str, str, str]) -> Result:
    """Run one part in a directory of its own."""
    name = TextColumn("{task.description}")
    columns = name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    begun, load = time.time(), os.getloadavg()[0]
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="picoqmail-proof-") as root,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(f"{kind.name}: {part.name}", total=None)

        def announce(total: int) -> None:
            progress.update(task, total=total)

        try:
            row, breaches = part.run(root, Bar(announce, lambda: progress.advance(task)))
        except Exception as exc:  # noqa: BLE001 - it is a breach, and the other parts go on
            console.print_exception()
            row, breaches = [part.name, "ended early"], [f"{part.name} ended early: {exc!r}"]
    commit, sources, size = run_on
    return Result(
        kind.name,
        part.name,
        row,
        breaches,
        round(time.monotonic() - started, 1),
        [round(load, 1), round(os.getloadavg()[0], 1)],
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begun)),
        commit,
        sources,
        size,
    )


def _report(console: Console, result: Result) -> None:
    words = ", ".join(result.row[1:])
    console.print(
        f"{result.kind}: {result.name}: {words}; {result.seconds:.0f} s, load {result.load[1]}",
        markup=False,
        soft_wrap=True,
    )
    for one in result.breaches[:10]:
        console.print(f"    {one[:600]}", markup=False, soft_wrap=True)
