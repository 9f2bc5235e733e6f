"""The floors of the house: imports go down only, and the hot ones stay on plain stdlib."""

from __future__ import annotations

import ast
import glob
import importlib.util
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from installation import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

# Floors 0 and 1, which run once a mail.
HOT = [
    "durable",
    "errors",
    "home/control",
    "home/limits",
    "home/paths",
    "layout",
    "message/completion",
    "message/dates",
    "message/envelope",
    "message/header",
    "message/tokens",
    "spool/incoming",
    "spool/locks",
    "spool/relay_down",
    "spool/sidecar",
    "submission/flags",
    "submission/handover",
    "submission/inject",
    "submission/start_sender",
]
# What they may import of the standard library, and nothing from elsewhere.
ALLOWED = {
    "__future__",
    "_json",
    "binascii",
    "errno",
    "fcntl",
    "itertools",
    "os",
    "picoqmail",
    "posix",
    "pwd",
    "signal",
    "stat",
    "sys",
    "time",
    "zlib",
}
# The only module that may make, move or remove a name on disk, and what counts as that.
DURABLE = "durable"
EFFECTS = {"fsync", "fdatasync", "link", "rename", "replace", "unlink", "remove"}


def imported_at_start(tree: ast.Module) -> set[str]:
    """Return the top names of the modules that importing this one imports."""
    names: set[str] = set()
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add((statement.module or "").partition(".")[0])
        elif isinstance(statement, ast.If):
            if isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING":
                waiting += statement.orelse
            else:
                waiting += statement.body + statement.orelse
        elif isinstance(statement, ast.Try):
            waiting += statement.body + statement.orelse + statement.finalbody
            for handler in statement.handlers:
                waiting += handler.body
    return names


def parse(name: str) -> ast.Module:
    """Return the syntax tree of a module of the library."""
    with open(os.path.join(CHECKOUT, "picoqmail", f"{name}.py"), encoding="utf-8") as file:
        return ast.parse(file.read())


@pytest.mark.parametrize("name", HOT)
def test_hot_modules_import_what_is_cheap(name: str) -> None:
    """Whatever a hot module needs beyond these, it imports when it needs it."""
    assert set() == imported_at_start(parse(name)) - ALLOWED


def test_one_module_makes_moves_and_removes_files() -> None:
    """Only `durable` calls what changes a directory: one place to read, and to break in tests."""
    offenders = []
    for path in glob.glob(os.path.join(CHECKOUT, "picoqmail", "**", "*.py"), recursive=True):
        name = os.path.basename(path).removesuffix(".py")
        if name == DURABLE:
            continue
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        offenders += [
            f"{os.path.relpath(path, CHECKOUT)}:{node.lineno} os.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in EFFECTS
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ]
    assert [] == offenders


def test_imports_go_down_the_floors_only(tmp_path: Path) -> None:
    """The contracts of pyproject.toml hold for the package put together as it is installed."""
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("no import-linter here (extra lint); .ci/lint runs it too")
    package = tmp_path / "picoqmail"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(os.path.join(CHECKOUT, "picoqmail"), package, ignore=ignore)
    shutil.copytree(os.path.join(CHECKOUT, "cli"), package / "cli", ignore=ignore)
    ran = subprocess.run(
        [
            os.path.join(os.path.dirname(sys.executable), "lint-imports"),
            "--no-cache",
            "--config",
            os.path.join(CHECKOUT, "pyproject.toml"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 0 == ran.returncode, ran.stdout + ran.stderr
