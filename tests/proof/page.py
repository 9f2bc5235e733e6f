"""The page docs/proof.md: what was run, on what, how long it took, and what was found."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from mutation import scores
from proof.state import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proof.parts import Kind
    from proof.state import Result, State

_SHOWN = 50


def write_page(kinds: Sequence[Kind], state: State, *, sources: str, size: str) -> str:
    """Return the page. `sources` and `size` are those of this run; others are named in the rows."""
    found = [(part.name, state.read(kind.name, part.name)) for kind in kinds for part in kind.parts]
    results = [one for _, one in found if one is not None]
    breaches = sum(len(one.breaches) for one in results)
    missing = len(found) - len(results)
    lines = [
        "# Fault injection",
        "",
        "`python tests/proof` writes this page; do not edit it. `tests/proof/invariant.py` has the",
        "promise, and what each of these trials must leave behind. `tests/proof/README.md` says",
        "how to run them.",
        "",
        f"picoqmail {_version()}: {len(results)} of {len(found)} parts, **{_counted(breaches)}**."
        + (f" {missing} parts were not run." if missing else ""),
        "",
        *_runs(results, sources),
        "",
        *machine(),
        *_loads(results),
    ]
    for kind in kinds:
        lines += _section(kind, state, size)
    lines += scores.section()
    return "\n".join(lines) + "\n"


def _runs(results: Sequence[Result], sources: str) -> list[str]:
    """Return a sentence for each state of the sources that something ran on."""
    runs: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        runs.setdefault((one.commit, one.sources), []).append(one)
    lines = []
    for (commit, hashed), some in sorted(runs.items(), key=lambda item: item[1][0].begun):
        last = "" if hashed == sources else ", not the last ones"
        begun = min(one.begun for one in some)
        seconds = sum(one.seconds for one in some)
        lines.append(
            f"Commit {commit} (sources {hashed}{last}): {len(some)} parts from {begun} on, "
            f"{_minutes(seconds)}."
        )
    return lines


def _loads(results: Sequence[Result]) -> list[str]:
    loads = sorted(load for one in results for load in one.load)
    if not loads:
        return []
    middle = loads[len(loads) // 2]
    span = f"{loads[0]:.1f} to {loads[-1]:.1f}, in the middle {middle:.1f}"
    return [f"The load average was {span}: times are those of this machine under that load."]


def _section(kind: Kind, state: State, size: str) -> list[str]:
    results = {part.name: state.read(kind.name, part.name) for part in kind.parts}
    there = [one for one in results.values() if one is not None]
    commits = {one.commit for one in there}
    sizes = {one.size for one in there} | {kind.parts[0].size or size}
    more = ["Seconds"] + (["Commit"] if len(commits) > 1 else [])
    more += ["Sample"] if len(sizes) > 1 else []
    lines = ["", f"## {kind.title}", "", kind.text, ""]
    if sizes == {size} and size != "all":  # a sample, and of the same seed
        lines += [f"Only a sample was tried: {size}.", ""]
    lines += [_cells([*kind.head, *more]), _cells(["---"] * (len(kind.head) + len(more)))]
    for name, one in results.items():
        if one is None:
            lines.append(_cells([name, "not run", *[""] * (len(kind.head) + len(more) - 2)]))
            continue
        facts = {"Seconds": f"{one.seconds:.0f}", "Commit": one.commit, "Sample": one.size}
        row = (one.row + [""] * len(kind.head))[: len(kind.head)]
        lines.append(_cells([*row, *(facts[name] for name in more)]))
    lines += ["", f"{_minutes(sum(one.seconds for one in there))} in all."]
    breaches = [one for result in there for one in result.breaches]
    if breaches:
        lines += ["", *(f"- {plain(one)}" for one in breaches[:_SHOWN])]
    return lines


def _counted(breaches: int) -> str:
    return "1 breach" if breaches == 1 else f"{breaches} breaches"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 180 else f"{seconds / 60:.0f} minutes"


def plain(text: str) -> str:
    """Return a breach without the names that differ from run to run."""
    text = re.sub(r"\d+\.M\d+P\d+Q\d+R[0-9a-f]+\.[a-z0-9.]*w\d+\.test", "ID", text)
    text = re.sub(r"\b[a-z0-9.]*w\d+\.test-", "message ", text)
    return re.sub(r"/[^ ']*/spool/", "", text).replace("|", "\\|")[:160]


def _version() -> str:
    return subprocess.run(
        [sys.executable, "-c", "import picoqmail; print(picoqmail.__version__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout.strip()


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
