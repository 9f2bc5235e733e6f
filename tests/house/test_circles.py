"""No circle between rooms, also none that hides behind TYPE_CHECKING or a name in a string.

import-linter knows the order of the rooms and checks what is imported by a statement. Here, where a
module calls `__import__` or importlib, each text in it that names a module of ours counts as an
import too. A program of ours that is started by its name is not imported.
"""

from __future__ import annotations

import ast
import glob
import graphlib
import itertools
import os
import re
from collections import defaultdict

import pytest

from installation import CHECKOUT

PACKAGE = "picoqmail"
_MODULE = re.compile(rf"{PACKAGE}\.([a-z_]+)(\.[a-z_]*)*")
_BY_TEXT = ("__import__", "import_module")
Graph = dict[str, dict[str, list[str]]]


def sources() -> dict[str, str]:
    """Return the modules of the package as it is installed: path below picoqmail/, and text."""
    found = {}
    for folder, below in ((PACKAGE, ""), ("cli", "cli/")):
        root = os.path.join(CHECKOUT, folder)
        for path in glob.glob(f"{root}/**/*.py", recursive=True):
            with open(path, encoding="utf-8") as file:
                found[below + os.path.relpath(path, root)] = file.read()
    return found


def room_of(module: str, names: set[str]) -> str | None:
    """Return the room that a dotted name leads to, None if it is none of ours."""
    first, *rest = module.split(".")
    if first != PACKAGE or not rest:
        return None
    return rest[0] if rest[0] in names else None


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Return all names that a module imports, by whatever means, with their lines."""
    found = []
    takes_texts = any(
        isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _BY_TEXT
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif takes_texts and isinstance(node, ast.Constant) and _MODULE.fullmatch(str(node.value)):
            found.append((node.lineno, str(node.value).rstrip(".")))
    return found


def rooms(modules: dict[str, str]) -> Graph:
    """Return for each room the rooms that it imports, and where."""
    names = {path.partition("/")[0].removesuffix(".py") for path in modules} - {"__init__"}
    graph: Graph = {name: defaultdict(list) for name in names}
    for path, text in modules.items():
        room = path.partition("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        for line, module in imports(ast.parse(text)):
            other = room_of(module, names)
            if other is not None and other != room:
                graph[room][other].append(f"{path}:{line}")
    return graph


def circle(graph: Graph) -> list[str]:
    """Return the places that make a circle, none if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as exc:
        # Each is imported by the next.
        names = exc.args[1]
        return [place for one, by in itertools.pairwise(names) for place in graph[by][one]]
    return []


def test_no_circle_between_rooms() -> None:
    """Whoever reads a room need not know who reads it."""
    graph = rooms(sources())
    assert {"delivery", "relay", "smtp", "spool"} <= graph.keys()
    assert graph["delivery"]["smtp"]
    assert [] == circle(graph)


@pytest.mark.parametrize(
    "planted",
    [
        "import picoqmail.delivery.run",
        "from picoqmail.delivery import run",
        "from picoqmail import delivery",
        "if TYPE_CHECKING:\n    from picoqmail.delivery.run import Run",
        "def later():\n    from picoqmail.delivery.run import Run",
        "__import__('picoqmail.delivery.run')",
        "importlib.import_module(f'picoqmail.delivery.{name}')",
    ],
)
def test_a_planted_circle_is_found(planted: str) -> None:
    """Spool, which delivery is made of, knows delivery, in whatever way."""
    modules = sources()
    modules["spool/planted.py"] = planted
    found = circle(rooms(modules))
    assert any(place.startswith("spool/planted.py:") for place in found), found
