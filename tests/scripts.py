"""Files of scripts that are replayed: `== NAME`, then what was said and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_scripts(path: str) -> dict[str, list[str]]:
    """Return the lines of each script by its name, without empty ones."""
    found: dict[str, list[str]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file.read().splitlines():
            if line.startswith("== "):
                found[line[3:]] = lines = []
            elif line:
                lines.append(line)
    return found


def write_scripts(path: str, scripts: Mapping[str, list[str]]) -> None:
    """Write the file anew."""
    texts = [f"== {name}\n" + "\n".join(lines) for name, lines in scripts.items()]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n\n".join(texts) + "\n")
