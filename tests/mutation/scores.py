"""The scores by module: as a table, in scores.json, and on the page of the proof."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

from attrs import define

import installation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scores.json")
PAGE = os.path.join(installation.CHECKOUT, "docs", "proof.md")
TITLE = "## Mutants"
_ABOUT = (
    "Each mutant is a module with one small mistake: a comparison, a constant, a condition, a call "
    "or a raise that is gone. It is *noticed* if a test of its module fails, or does not end. "
    "`tests/mutation/survivors.toml` gives the reason for each one that is not: most are "
    "equivalent, or only make something slower. `python tests/mutation` tries them all."
)


@define
class Score:
    """How many mutants of a module there are, and what became of them."""

    mutants: int = 0
    killed: int = 0
    timed_out: int = 0
    explained: int = 0

    @property
    def percent(self) -> str:
        """The part that was noticed, of those that are not explained."""
        rest = self.mutants - self.explained
        return f"{(self.killed + self.timed_out) / rest:.1%}" if rest else ""


def scores_of(results: Iterable[tuple[str, str, bool]]) -> dict[str, Score]:
    """Return the scores; each result: module, what became of a mutant, is it explained."""
    found: dict[str, Score] = {}
    for module, result, has_reason in results:
        score = found.setdefault(module, Score())
        score.mutants += 1
        score.killed += result == "killed"
        score.timed_out += result == "timed out"
        score.explained += result == "survived" and has_reason
    return found


def lines_of(table: Mapping[str, Score]) -> list[str]:
    """Return the rows of the table in Markdown."""
    rows = [
        "| Module | Mutants | Noticed | of these endless | Explained | Not noticed | Score |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for module, one in table.items():
        noticed = one.killed + one.timed_out
        missed = one.mutants - noticed - one.explained
        rows.append(
            f"| {module} | {one.mutants} | {noticed} | {one.timed_out} | {one.explained} "
            f"| {missed} | {one.percent} |"
        )
    return rows


def load() -> dict[str, Score]:
    """Return the scores that were saved, if any."""
    if not os.path.exists(PATH):
        return {}
    with open(PATH, encoding="utf-8") as file:
        return {module: Score(**one) for module, one in json.load(file).items()}


def section() -> list[str]:
    """Return the section of the page; nothing before there are scores."""
    found = load()
    return ["", TITLE, "", _ABOUT, "", *lines_of(found)] if found else []


def save(table: Mapping[str, Score], modules: Sequence[str]) -> None:
    """Save the scores of modules that were tried whole, and put them on the page."""
    saved = load() | {module: table[module] for module in modules if module in table}
    fields = ("mutants", "killed", "timed_out", "explained")
    plain = {module: {name: getattr(one, name) for name in fields} for module, one in saved.items()}
    with open(PATH, "w", encoding="utf-8") as file:
        json.dump(plain, file, indent=1)
        file.write("\n")
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    page = re.sub(rf"\n{TITLE}\n.*?(?=\n## |\Z)", "", page, flags=re.DOTALL).rstrip("\n")
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write("\n".join([page, *section()]) + "\n")
