"""Mutation testing itself: which mutants there are, and what is said of survivors."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import installation
from mutation.driver import KILLED, SURVIVED, Knowledge, Reach, Result, complaints, explained
from mutation.mutants import Mutant, mutants_of
from mutation.swapping import functions_of, swap
from mutation.tables import MODULES, QUICK

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = '''"""A module."""
LIMIT = 3


def close(descriptors, wanted=0):
    """Close them."""
    for one in descriptors:
        if one > LIMIT and not is_busy(one):
            os.fsync(one)
            if wanted:
                return one
    raise OSError("none")
'''
NAMES = {
    "module: LIMIT = 3 => LIMIT = (3 + 1)",
    "module: LIMIT = 3 => LIMIT = (3 - 1)",
    "close: def close(descriptors, wanted=0): => def close(descriptors, wanted=(0 + 1)):",
    "close: if one > LIMIT and not is_busy(one): => if one >= LIMIT and not is_busy(one):",
    "close: if one > LIMIT and not is_busy(one): => if one > LIMIT or not is_busy(one):",
    "close: if one > LIMIT and not is_busy(one): => if one > LIMIT and (is_busy(one)):",
    "close: if one > LIMIT and not is_busy(one): => if not (one > LIMIT and not is_busy(one)):",
    "close: os.fsync(one) => pass",
    "close: if wanted: => if not (wanted):",
    "close: return one => return None",
    'close: raise OSError("none") => pass',
}


def test_mutants_are_one_mistake_each() -> None:
    """Comparisons, conditions, constants, calls, returns and raises; no text, no docstring."""
    found = mutants_of(SOURCE)
    assert NAMES == {one.name for one in found}
    for one in found:
        assert ast.dump(ast.parse(SOURCE)) != ast.dump(ast.parse(one.text))


def test_a_name_does_not_depend_on_other_lines() -> None:
    """So that an explanation stays where it belongs while the module grows."""
    grown = SOURCE.replace("LIMIT = 3", "OTHER = None\n\nLIMIT = 3")
    assert {one.name for one in mutants_of(SOURCE)} == {one.name for one in mutants_of(grown)}


def test_equal_lines_have_names_of_their_own() -> None:
    """The second of two equal mutants of a function has a number."""
    names = [one.name for one in mutants_of("def f():\n    go()\n    go()\n")]
    assert ["f: go() => pass", "f: go() => pass (2)"] == names


def test_a_mutant_has_the_lines_of_its_statement() -> None:
    """A test that runs the statement may notice a change in any of its lines."""
    source = "if (\n    a\n    and b\n):\n    go(\n        1\n    )\n"
    found = {(one.name.partition(" => ")[0], one.first, one.last) for one in mutants_of(source)}
    assert ("module: a and b", 1, 4) in found
    assert ("module: 1", 5, 7) in found


def test_tests_that_run_the_line_come_first() -> None:
    """Of these, the ones that noticed something lately, then the quick ones; time is limited.

    Then come those that start programs. A line of an import concerns all that use the module.
    """
    reach = Reach(
        {"slow": 5.0, "quick": 1.0, "lately": 7.0, "starting": 0.1, "idle": 0.1},
        {
            "slow": frozenset({3}),
            "quick": frozenset({3}),
            "lately": frozenset({3, 4}),
            "": frozenset({9}),
        },
        frozenset({"starting"}),
    )
    mutant = Mutant("f: x => y", "", 3, 3)
    assert ["lately", "quick", "slow", "starting"] == reach.choose(mutant, ["lately"], 60)
    assert ["lately", "quick"] == reach.choose(mutant, ["lately"], 8.5)
    assert ["lately", "starting"] == reach.choose(Mutant("", "", 4, 4), [], 60)
    assert ["quick", "slow", "lately", "starting"] == reach.choose(Mutant("", "", 9, 9), [], 60)


def swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> tuple[bool, Any]:
    """Exchange the code of a module in memory; return whether that did, and what f gives then."""
    path = str(tmp_path / "module.py")
    module = ModuleType("picoqmail.swapped")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = module.__dict__
    before, after = SWAPPED, SWAPPED.replace(old, new)
    assert before != after
    exec(compile(before, path, "exec"), names)  # noqa: S102 - a module of our own
    elsewhere = names["f"]
    did = swap(functions_of(path), path, before, after)
    return did, elsewhere(1)


SWAPPED = """
LIMIT = 3
class A:
    STEP = 10
    def go(self, one, two=5):
        if one > 0:
            raise_it = (
                one
            )
            return [x + self.STEP for x in (raise_it, two)]
        return []
def f(one):
    def inner(two):
        return two * LIMIT
    return A().go(inner(one))
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("one > 0", "one > 9", []),
        ("LIMIT = 3", "LIMIT = 4", [14, 15]),
        ("two=5", "two=6", [13, 16]),
        ("x + self", "x - self", [-7, -5]),
        ("two * LIMIT", "two + LIMIT", [14, 15]),
        ("raise_it = (\n                one\n            )", "raise_it = 7", [17, 15]),
    ],
)
def test_the_code_of_functions_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, expected: list[int]
) -> None:
    """Also in what others have of the module, and where later lines move."""
    assert (True, expected) == swapped(tmp_path, monkeypatch, old, new)


@pytest.mark.parametrize(
    ("old", "new"), [("STEP = 10", "STEP = 11"), ("class A:", "class A(dict):")]
)
def test_what_an_import_runs_is_beyond_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """The bodies of classes, for example: then nothing is exchanged."""
    assert (False, [13, 15]) == swapped(tmp_path, monkeypatch, old, new)


def test_survivors_must_be_explained_and_explanations_true() -> None:
    """A survivor without a reason, a reason for a killed mutant, a reason for none at all."""

    def result(name: str, what: str) -> Result:
        return Result("durable", name, "", "", what, "a test", 1)

    results = {
        ("durable", name): result(name, what)
        for name, what in (("a", SURVIVED), ("b", SURVIVED), ("c", KILLED), ("d", KILLED))
    }
    reasons = {("durable", name): "equivalent" for name in ("b", "c", "gone")}
    existing = {"durable": frozenset("abcd")}
    assert [
        "survived, and is not explained: durable a",
        "explained as a survivor, and killed by a test: durable c",
        "explained, and there is no such mutant: durable gone",
    ] == complaints(results, reasons, existing)


def test_what_is_known_holds_until_the_module_or_its_tests_change(tmp_path: Path) -> None:
    """A killed mutant stays killed by new tests; a survivor is tried again. Cut lines are none."""
    killed = Result("durable", "a", "source", "tests", KILLED, "a test", 1)
    survived = Result("durable", "b", "source", "tests", SURVIVED, "", 1)
    known = Knowledge.load(str(tmp_path))
    known.add(killed)
    known.add(survived)
    with open(known.path, "a", encoding="utf-8") as file:
        file.write('{"module": "dur')
    assert known.found == Knowledge.load(str(tmp_path)).found
    assert killed.counts("source", "other tests")
    assert not killed.counts("other source", "tests")
    assert survived.counts("source", "tests")
    assert not survived.counts("source", "other tests")


def test_the_tables_name_what_there_is() -> None:
    """Every module and every file of tests exists, and every explained mutant."""
    tests = os.path.join(installation.CHECKOUT, "tests")
    for module, files in MODULES.items():
        for one in files:
            assert os.path.exists(f"{tests}/{one}"), (module, one)
    assert set(QUICK) <= set(MODULES)
    names = {}
    for module in MODULES:
        path = os.path.join(installation.CHECKOUT, "picoqmail", f"{module}.py")
        with open(path, encoding="utf-8") as file:
            names[module] = frozenset(one.name for one in mutants_of(file.read()))
    assert [] == complaints({}, explained(), names)


@pytest.mark.slow
def test_a_mutant_is_noticed_by_the_tests_of_its_module(tmp_path: Path) -> None:
    """The whole way: a wheel, an installation with one mistake, its tests, and the report."""
    pytest.importorskip("coverage", reason="no coverage here: pip install 'picoqmail[lint]'")
    command = [sys.executable, os.path.join(installation.CHECKOUT, "tests", "mutation")]
    options = ["relay/breaker", "--results", str(tmp_path), "--only", "=> return None"]
    ran = subprocess.run(
        [*command, *options, "--sample", "2"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (0, 2) == (ran.returncode, ran.stdout.count(" killed (")), ran.stdout + ran.stderr
    assert "| relay/breaker | 2 | 2 |" in ran.stdout
