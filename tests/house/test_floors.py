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
    from collections.abc import Iterator, Mapping
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
    "ledger/relay_down",
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
    "_signal",
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
DURABLE = "picoqmail/durable.py"
_NAMES = "link mkdir mkfifo mknod remove rename replace rmdir symlink truncate unlink"
EFFECTS = {
    "os": {*_NAMES.split(), "fdatasync", "fsync", "makedirs", "removedirs", "renames", "sync"},
    "posix": {*_NAMES.split(), "fdatasync", "fsync", "sync"},
    "shutil": {
        *("copy", "copy2", "copyfile", "copytree", "make_archive", "move", "rmtree"),
        "unpack_archive",
    },
    "tempfile": {
        *("NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "TemporaryFile"),
        *("mkdtemp", "mkstemp", "mktemp"),
    },
    # Its paths are values: what they do to a disk cannot be told from where it stands.
    "pathlib": {"Path", "PosixPath"},
}
# What is done elsewhere, and why that is right.
EXCEPT = {
    # Directories that nobody promised anything about: they go with the call that made them.
    "picoqmail/admin/demo.py": {"tempfile.TemporaryDirectory"},
    "picoqmail/home/make_system.py": {"tempfile.TemporaryDirectory"},
    # A home for an application's tests, which would only wait for its syncs.
    "picoqmail/testing.py": {"os.makedirs", "shutil.rmtree", "tempfile.mkdtemp"},
}


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


def disk_effects(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of each mention of a function that changes a directory.

    Whatever the module or the function was called when it was imported.
    """
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [one for one in node.names if one.name in EFFECTS]
            modules |= {one.asname or one.name: one.name for one in names}
        elif isinstance(node, ast.ImportFrom) and node.module in EFFECTS:
            for one in node.names:
                if one.name in {*EFFECTS[node.module], "*"}:
                    yield node.lineno, f"{node.module}.{one.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            if node.attr in EFFECTS.get(module, ()):
                yield node.lineno, f"{module}.{node.attr}"


def offenders(root: str, *, excepted: Mapping[str, set[str]]) -> list[str]:
    """What a checkout's modules do to directories by themselves, as `path:line function`."""
    found = []
    for package in ("picoqmail", "cli"):
        for path in glob.glob(os.path.join(root, package, "**", "*.py"), recursive=True):
            name = os.path.relpath(path, root)
            if name == DURABLE:
                continue
            with open(path, encoding="utf-8") as file:
                tree = ast.parse(file.read())
            found += [
                f"{name}:{line} {effect}"
                for line, effect in disk_effects(tree)
                if effect not in excepted.get(name, ())
            ]
    return found


def test_one_module_makes_moves_and_removes_files() -> None:
    """Only `durable` calls what changes a directory: one place to read, and to break in tests."""
    assert [] == offenders(CHECKOUT, excepted=EXCEPT)


def test_no_exception_has_outlived_its_reason() -> None:
    """Every exception is still made use of."""
    seen = {
        one.partition(":")[0] + " " + one.split()[-1] for one in offenders(CHECKOUT, excepted={})
    }
    assert {f"{name} {effect}" for name, effects in EXCEPT.items() for effect in effects} == seen


@pytest.mark.parametrize(
    "plant",
    [
        "posix.unlink(path)",
        "import os; os.replace(path, path)",
        "import os as system; gone = system.rmdir",
        "from posix import rename as moved",
        "from os import *",
        "import shutil; shutil.rmtree(path)",
        "import tempfile; tempfile.mkstemp()",
        "from pathlib import Path",
    ],
)
def test_a_planted_effect_is_found(tmp_path: Path, plant: str) -> None:
    """Whatever is planted into a module is named with its line, by whichever name it goes."""
    module = "picoqmail/spool/scan.py"
    target = tmp_path / module
    target.parent.mkdir(parents=True)
    with open(os.path.join(CHECKOUT, module), encoding="utf-8") as file:
        text = file.read()
    head, rest = text.split("def is_old", 1)
    target.write_text(f"{head}def planted(path):\n    {plant}\n\n\ndef is_old{rest}")
    (found,) = offenders(str(tmp_path), excepted=EXCEPT)
    assert found.startswith(f"{module}:{head.count(chr(10)) + 2} ")


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
