"""The manual: pages made from code are fresh, and pages name only what exists."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

from installation import CHECKOUT, PROGRAMS
from picoqmail.cli import command_table
from picoqmail.cli.commands import COMMANDS
from picoqmail.home import page as settings_page
from picoqmail.home import settings
from picoqmail.log import events

DOCS = f"{CHECKOUT}/docs"
MAN = f"{CHECKOUT}/man"


def page(name: str) -> str:
    """One page of the manual."""
    with open(f"{DOCS}/{name}", encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("settings.md", settings_page.document),
        ("log.md", events.document),
        ("commands.md", command_table.markdown),
    ],
)
def test_generated_pages_are_fresh(name: str, made: object) -> None:
    """The pages are those that docs/generate.py writes."""
    assert callable(made)
    assert made() == page(name)


def test_man_pages_are_fresh() -> None:
    """Those in man/ say what docs/generate.py would write; how they are laid out is Sphinx's."""
    pytest.importorskip("sphinx", reason="needs Sphinx (the extra docs), to make the man pages")
    code = "import generate, json; print(json.dumps(generate.man_pages()))"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=DOCS, capture_output=True, text=True, check=True)
    made = json.loads(ran.stdout)
    assert sorted(made) == sorted(os.listdir(MAN))
    for name, text in made.items():
        with open(f"{MAN}/{name}", encoding="utf-8") as file:
            assert said(text) == said(file.read()), f"{name}: run docs/generate.py"


def said(page: str) -> list[str]:
    """The words of a man page: no macros, no spacing."""
    lines = [line for line in page.splitlines() if not line.startswith((".", "'"))]
    return re.findall(
        r"[A-Za-z0-9]+", re.sub(r"\\f[A-Z]|\\\(?[a-z]{2}|\\[&-]", "", " ".join(lines))
    )


def test_man_pages_are_installed(wheel: str) -> None:
    """The wheel brings them to share/man, where man(1) looks beside the programs on the PATH."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in os.listdir(MAN):
        section = name[-1]
        assert any(one.endswith(f".data/data/share/man/man{section}/{name}") for one in names)
    units = f"{CHECKOUT}/picoqmail/home/units.py"
    with open(units, encoding="utf-8") as file:
        named = set(re.findall(r"man:([a-z-]+)\((\d)\)", file.read()))
    assert named
    assert {f"{name}.{section}" for name, section in named} <= set(os.listdir(MAN))


def test_every_program_has_a_man_page() -> None:
    """conf.py names a page for each, and the page is there."""
    listed = dict(re.findall(r"\(\"(\w+)\", \"(picoqmail[a-z-]*)\"", page("conf.py")))
    assert {"picoqmail", *(f"picoqmail-{name}" for name in PROGRAMS)} < set(listed.values())
    for source in listed:
        assert os.path.exists(f"{DOCS}/{source}.md")


def test_internals_lists_the_rooms_of_the_contract() -> None:
    """Each room of the contract has one row, in its order, with what it may import."""
    with open(f"{CHECKOUT}/INTERNALS.md", encoding="utf-8") as file:
        table = file.read().partition("<!-- rooms -->")[2].partition("<!-- /rooms -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    with open(f"{CHECKOUT}/pyproject.toml", "rb") as file:
        contract = tomllib.load(file)["tool"]["importlinter"]["contracts"][0]
    floors = [floor.split(" | ") for floor in contract["layers"]]
    expected = []
    for floor, below in itertools.zip_longest(floors, floors[1:]):
        names = ", ".join(f"`{room}`" for room in below or ())
        further = "" if below in (None, floors[-1]) else " and below"
        expected += [[f"`{room}`", names + further or "none"] for room in floor]
    assert expected == [[row[0], row[2]] for row in rows]


def contributing() -> str:
    """CONTRIBUTING.md."""
    with open(f"{CHECKOUT}/CONTRIBUTING.md", encoding="utf-8") as file:
        return file.read()


def test_newcomers_find_each_place() -> None:
    """Each answer of the table names files that are there, and names that stand in them."""
    rows = re.findall(r"^\| [^|]+\? \| (.+) \|$", contributing(), re.MULTILINE)
    assert len(rows) >= 10
    for row in rows:
        places = re.findall(r"`(picoqmail/[a-z_/]+\.py)`([^;]*)", row)
        assert places, row
        for path, rest in places:
            with open(f"{CHECKOUT}/{path}", encoding="utf-8") as file:
                text = file.read()
            for name in re.findall(r"`(\w+)`", rest):
                assert re.search(rf"\b{name}\b", text), (path, name)


def test_newcomers_are_told_of_each_room() -> None:
    """Every room is in the list, and everything that the list calls a folder is one."""
    (listed,) = re.findall(r"## Where things live\n(.*?)\n## ", contributing(), re.DOTALL)
    named = set(re.findall(r"`([a-z]+)/`", listed))
    rooms = {
        name
        for name in os.listdir(f"{CHECKOUT}/picoqmail")
        if os.path.exists(f"{CHECKOUT}/picoqmail/{name}/__init__.py")
    }
    assert rooms - {"merged"} <= named
    for name in named:
        assert any(os.path.isdir(f"{CHECKOUT}/{one}{name}") for one in ("", "picoqmail/")), name


def test_what_the_manual_names_exists() -> None:
    """Every `picoqmail COMMAND` of the manual is a command, every control/FILE a setting."""
    for name in sorted(os.listdir(DOCS)):
        if name.endswith(".md"):
            text = page(name)
            called = re.findall(r"(?:^    |`)(?:\S*/)?picoqmail ([a-z-]+)", text, re.MULTILINE)
            for command in called:
                assert command in COMMANDS, (name, command)
            for setting in re.findall(r"control/([a-z]+)", text):
                assert setting in settings.SPECS or setting == "minivars", (name, setting)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("myst_parser") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path: os.PathLike[str]) -> None:
    """HTML and man pages."""
    for builder in ("html", "man"):
        out = os.path.join(tmp_path, builder)
        doctrees = os.path.join(tmp_path, "doctrees")
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", builder, "-d", doctrees]
        ran = subprocess.run(
            [*sphinx, DOCS, out], capture_output=True, text=True, check=False, timeout=110
        )
        assert (0, "") == (ran.returncode, ran.stderr)
    assert "picoqmail-queue.8" in os.listdir(os.path.join(tmp_path, "man"))
