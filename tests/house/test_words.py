"""One word, one meaning: what of it a program can check."""

from __future__ import annotations

import ast
import glob
import os
import re
from collections import defaultdict

import pytest

from installation import CHECKOUT

PATHS = [
    *glob.glob(os.path.join(CHECKOUT, "picoqmail", "**", "*.py"), recursive=True),
    *glob.glob(os.path.join(CHECKOUT, "cli", "*.py")),
]
LOCKING = re.compile(r"\b(flock|lockf)\(|\b(import|from) portalocker|\bLOCK_(EX|SH|UN)\b")
# The class that Django looks for in a module of a command has this name.
GIVEN_BY_DJANGO = "Command"
# Public names that picoqmail.aio shares with picoqmail, as its manual promises.
OF_BOTH_LIBRARIES = ("Pending", "Spool")
# Words that had several meanings, and the words for them.
AMBIGUOUS = {
    "Answer": "Reply (RFC 5321), or what it is",
    "Outcome": "the result of what",
    "Record": "Value, or what is recorded",
}
# Words that a reader has to read twice, and the plain ones.
PLAIN = {"mend": "repair", "mended": "repaired"}
PAGES = [*PATHS, *glob.glob(os.path.join(CHECKOUT, "docs", "*.md"))]


def classes() -> dict[str, list[str]]:
    """Return the places of all classes by name, without the underscore of a private one."""
    found = defaultdict(list)
    for path in PATHS:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                place = f"{os.path.relpath(path, CHECKOUT)}:{node.lineno}"
                found[node.name.lstrip("_")].append(place)
    return found


CLASSES = classes()


def test_a_class_name_is_unique() -> None:
    """Whoever reads a name anywhere knows which class it is, a private one included."""
    assert len(CLASSES) > 150
    several = {name: places for name, places in CLASSES.items() if len(places) > 1}
    django = several.pop(GIVEN_BY_DJANGO)
    assert all("django/management/commands/" in place for place in django)
    for name in OF_BOTH_LIBRARIES:
        modules = [place.partition(":")[0] for place in sorted(several.pop(name))]
        assert ["picoqmail/aio.py", "picoqmail/library/api.py"] == modules
    assert {} == several


@pytest.mark.parametrize("word", AMBIGUOUS)
def test_no_class_has_a_word_of_many_meanings(word: str) -> None:
    """By itself; with another word it may be clear."""
    assert [] == CLASSES.get(word, []), f"say {AMBIGUOUS[word]}"


@pytest.mark.parametrize("word", PLAIN)
def test_a_plain_word_stands_where_there_is_one(word: str) -> None:
    """In the sources and in the manual."""
    offenders = []
    for path in PAGES:
        with open(path, encoding="utf-8") as file:
            if re.search(rf"\b{word}\b", file.read(), re.IGNORECASE):
                offenders.append(os.path.relpath(path, CHECKOUT))
    assert [] == offenders, f"say {PLAIN[word]!r}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: os.path.relpath(path, CHECKOUT))
def test_exceptions_are_exc(path: str) -> None:
    """One name for the exception in hand, everywhere."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    assert [] == [f"{one.lineno}: {one.name}" for one in handlers if one.name not in (None, "exc")]


def test_locks_are_made_in_one_module() -> None:
    """Only spool/locks.py calls flock, and only it imports portalocker."""
    offenders = []
    for path in PATHS:
        name = os.path.relpath(path, CHECKOUT)
        if name == "picoqmail/spool/locks.py":
            continue
        with open(path, encoding="utf-8") as file:
            offenders += [
                f"{name}:{number}"
                for number, line in enumerate(file, 1)
                if LOCKING.search(line) and not line.lstrip().startswith("#")
            ]
    assert [] == offenders
