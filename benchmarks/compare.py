"""Which figures are worse than the stored ones by more than their spread. Pure.

A figure is a column that has a companion, `NAME, spread`, with the middle half of its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

SPREAD = ", spread"
TO = " to "
# Figures are compared only between runs on such machines, and of the same size.
SAME = ("processor", "processors", "disk")


def worse(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure that got worse by more than the larger of both spreads.

    Where the two runs cannot be compared, one line says why.
    """
    if not before:
        return []
    for name in SAME:
        was, now = before["machine"].get(name), after["machine"].get(name)
        if was != now:
            return [f"not compared with the stored results: their {name} is {was}, this is {now}"]
    if before.get("quick") != after.get("quick"):
        return ["not compared with the stored results: only one of the two runs was quick"]
    stored = dict(_figures(before))
    lines = []
    for key, (value, spread) in _figures(after):
        was, its_spread = stored.get(key, (value, 0.0))
        loss = was - value if is_rate(key[-1]) else value - was
        if loss > max(spread, its_spread):
            lines.append(f"{': '.join(key)}: {was} before, {value} now")
    return lines


def is_rate(name: str) -> bool:
    """Say whether a figure is better if it is larger."""
    return "/s" in name or name.startswith(("of ", "times "))


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], tuple[float, float]]]:
    for section in results["sections"].values():
        for part in (section, *section.get("more", [])):
            for row in part["rows"]:
                label = str(next(iter(row.values())))
                for name, value in row.items():
                    spread = row.get(name + SPREAD)
                    if spread is not None and value is not None:
                        low, high = map(float, spread.split(TO))
                        yield (part["title"], label, name), (float(value), high - low)
