"""Quick start: the modules of a program, loaded from compiled files by Python's own rule."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail import start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from installation import Installation

NAME = "picoqmail.quick_trial"
ARGUMENTS = {
    "queue": [],
    "inject": ["-fa@example.org", "b@example.net"],
    "sendmail": ["-i", "-fa@example.org", "b@example.net"],
    "send": [],
    "cron": [],
}


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    """A module that sets WHAT, in a directory that stands for the package's; not imported yet."""
    source = tmp_path / "quick_trial.py"
    source.write_text("WHAT = 1\n")
    yield source
    sys.modules.pop(NAME, None)


def compiled(source: Path) -> str:
    """Compile it as installers do, and return where."""
    path = py_compile.compile(str(source), doraise=True)
    assert path is not None
    return path


def test_a_compiled_module_is_loaded_as_import_would(module: Path) -> None:
    """It is known, it has its names, and it knows where it came from."""
    compiled(module)
    start.preload(str(module.parent), ["quick_trial"])
    loaded = sys.modules[NAME]
    assert (1, str(module), "picoqmail") == (loaded.WHAT, loaded.__file__, loaded.__package__)
    assert loaded.__spec__ is not None
    assert str(module) == loaded.__spec__.origin


def test_without_a_compiled_file_the_module_is_left_to_import(module: Path) -> None:
    """A source that nobody compiled is not touched."""
    start.preload(str(module.parent), ["quick_trial"])
    assert NAME not in sys.modules


def test_a_module_that_was_edited_since_is_left_to_import(module: Path) -> None:
    """Size or time of the source differ from what the compiled file says."""
    compiled(module)
    module.write_text("WHAT = 22\n")
    start.preload(str(module.parent), ["quick_trial"])
    assert NAME not in sys.modules
    compiled(module)
    os.utime(module, (1, 1))
    start.preload(str(module.parent), ["quick_trial"])
    assert NAME not in sys.modules


@pytest.mark.parametrize("place", [0, 5, 9, 13])
def test_a_compiled_file_of_another_python_is_left_to_import(module: Path, place: int) -> None:
    """Magic number, flags, time and size are all compared."""
    path = compiled(module)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[place] ^= 0xFF
        file.seek(0)
        file.write(data)
    start.preload(str(module.parent), ["quick_trial"])
    assert NAME not in sys.modules


def test_a_module_that_fails_is_not_left_half_made(module: Path) -> None:
    """What it raises comes through, and the next import starts anew."""
    module.write_text("WHAT = 1 / 0\n")
    compiled(module)
    with pytest.raises(ZeroDivisionError):
        start.preload(str(module.parent), ["quick_trial"])
    assert NAME not in sys.modules


@pytest.mark.parametrize("program", sorted(ARGUMENTS))
def test_each_program_imports_what_is_said_of_it(
    installed: Installation, tmp_path: Path, program: str
) -> None:
    """On its usual way a program needs the modules of the table, and no other of ours."""
    for name in ("control", "spool/tmp", "spool/new", "spool/cur", "spool/undelivered"):
        os.makedirs(tmp_path / name, mode=0o700)
    (tmp_path / "control" / "me").write_text("host.example\n")
    (packages,) = (tmp_path / installed.bin / ".." / "lib").glob("python3*/site-packages")
    # The names are given the ordinary way, so that it is the programs that ask for them.
    code = (
        "import sys; sys.path.append(sys.argv.pop(1))\n"
        f"from picoqmail.cli.{program} import main\n"
        "assert 0 == main(sys.argv[1:])\n"
        "found = [name for name in sys.modules if name.startswith('picoqmail.')]\n"
        "print(*found, file=sys.stderr)"
    )
    reading, writing = os.pipe()
    os.write(writing, b"Fa@example.org\0Tb@example.net\0\0")
    os.close(writing)
    with os.fdopen(reading, "rb") as envelope:
        ran = subprocess.run(
            [installed.python, "-I", "-S", "-c", code, str(packages), *ARGUMENTS[program]],
            input=b"Subject: x\n\nbody\n",
            stdout=envelope if program == "queue" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PICOQMAIL_HOME": str(tmp_path), "PICOQMAIL_SEND": "off"},
            check=True,
            timeout=30,
        )
    found = {name.removeprefix("picoqmail.") for name in ran.stderr.decode().split()}
    assert set(start.MODULES[program]) == found


def test_delivery_imports_what_is_said_of_it(installed: Installation, tmp_path: Path) -> None:
    """Once there is mail the table's modules, each behind those that it imports itself."""
    (packages,) = (tmp_path / installed.bin / ".." / "lib").glob("python3*/site-packages")
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import picoqmail.cli.cron, picoqmail.cli.send, picoqmail.delivery.sender\n"
        "before = set(sys.modules)\n"
        "from picoqmail import start\n"
        "for name in start.MODULES[start.DELIVERY]:\n"
        "    known = set(sys.modules)\n"
        "    __import__(f'picoqmail.{name}')\n"
        "    more = {one for one in set(sys.modules) - known if one.startswith('picoqmail.')}\n"
        "    print(name, sorted(more) == [f'picoqmail.{name}'])\n"
        "found = [one[10:] for one in sys.modules if one.startswith('picoqmail.')]\n"
        "print(len([one for one in found if f'picoqmail.{one}' not in before]))\n"
    )
    ran = subprocess.run(
        [installed.python, "-I", "-S", "-c", code, str(packages)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    )
    names = start.MODULES[start.DELIVERY]
    # One more is start itself.
    expected = [f"{name} True" for name in names] + [str(len(names) + 1)]
    assert expected == ran.stdout.decode().splitlines()
