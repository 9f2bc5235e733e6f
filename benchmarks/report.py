"""Results as JSON, as Markdown tables, and as plots (SVG, drawn here: a bar is a rectangle)."""

from __future__ import annotations

import json
import os
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

BAR_HEIGHT = 22
LABEL_WIDTH = 240
WIDTH = 720


def write(directory: str, results: Mapping[str, Any]) -> None:
    """Write results.json, results.md and a plot for each table that names one."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/results.json", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    with open(f"{directory}/results.md", "w", encoding="utf-8") as file:
        file.write(markdown(directory, results))


def read(directory: str) -> dict[str, Any]:
    """Return the results that were written there; an empty dictionary if there are none."""
    try:
        with open(f"{directory}/results.json", encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {}
    return found


def markdown(directory: str, results: Mapping[str, Any]) -> str:
    """Return the Markdown page; plots are written beside it."""
    lines = [
        "# Results",
        "",
        "`benchmarks/run.py` made this page. The figures are those of one run on this machine:",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in results["versions"].items())]
    lines += ["", "Not measured:", ""]
    lines += [f"- {name}: {' '.join(str(why).split())}" for name, why in results["missing"].items()]
    if not results["missing"]:
        lines.append("- nothing: no rival was missing")
    for key, section in results["sections"].items():
        for number, part in enumerate([section, *section.get("more", [])]):
            lines += ["", f"## {part['title']}", "", *_table(part["rows"])]
            if part.get("chart") and part["rows"]:
                name = f"{key}-{number}.svg"
                with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
                    file.write(bars(part["title"], part["rows"], *part["chart"]))
                lines += ["", f"![{part['title']}]({name})"]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = ["" if row.get(name) is None else str(row[name]) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def bars(title: str, rows: Sequence[Mapping[str, Any]], label: str, value: str) -> str:
    """Return a bar chart of one column."""
    most = max(float(row[value]) for row in rows) or 1.0
    room = WIDTH - LABEL_WIDTH - 80
    height = 40 + BAR_HEIGHT * len(rows)
    size = f'width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        f'<text x="4" y="18" font-weight="bold">{escape(title)}: {escape(value)}</text>',
    ]
    for number, row in enumerate(rows):
        y = 32 + BAR_HEIGHT * number
        name = str(row[label])
        width = max(room * float(row[value]) / most, 1)
        colour = "#2a7" if "picoqmail" in name or "enqueue" in name else "#889"
        parts += [
            f'<text x="{LABEL_WIDTH - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>',
            f'<text x="{LABEL_WIDTH + width + 6:.1f}" y="{y + 13}">{row[value]}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
