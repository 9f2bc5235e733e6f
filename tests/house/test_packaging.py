"""What the wheel holds, and that the tests run what is installed."""

from __future__ import annotations

import configparser
import glob
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile

import pytest

import picoqmail
from installation import CHECKOUT, PROGRAMS, Installation


@pytest.fixture(scope="module")
def names(wheel: str) -> list[str]:
    """The names of all files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_nothing_but_picoqmail_reaches_site_packages(names: list[str]) -> None:
    """Nothing named cli, bin, tests or benchmarks: one package and its metadata."""
    tops = {name.partition("/")[0].partition("-")[0] for name in names}
    assert {"picoqmail"} == tops


def test_every_module_is_in_the_wheel(names: list[str]) -> None:
    """A new directory that setup.cfg does not name would be missing on everybody else's machine."""
    modules = {
        os.path.relpath(path, CHECKOUT)
        for top in ("picoqmail", "cli")
        for path in glob.glob(os.path.join(CHECKOUT, top, "**", "*.py"), recursive=True)
    }
    wanted = {f"picoqmail/{name}" if name.startswith("cli/") else name for name in modules}
    assert set() == wanted - set(names)
    assert "picoqmail/py.typed" in names


def test_no_program_without_our_prefix_is_put_on_path(wheel: str, names: list[str]) -> None:
    """The five launchers and the console script; sendmail, mailq and the like are init's links."""
    scripts = {os.path.basename(name) for name in names if ".data/scripts/" in name}
    assert {f"picoqmail-{program}" for program in PROGRAMS} == scripts
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in names if name.endswith("entry_points.txt"))
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(path).decode())
    assert ["console_scripts", "pytest11"] == entries.sections()
    assert ["picoqmail"] == entries.options("console_scripts")


def test_the_licence_travels_with_the_wheel(names: list[str]) -> None:
    """BSD asks for its text with every binary copy."""
    assert any(name.endswith("LICENSE") for name in names)


def test_the_installed_package_is_the_one_under_test() -> None:
    """The import comes from where the distribution says it is, not from the working directory."""
    distribution = importlib.metadata.distribution("picoqmail")
    where = json.loads(distribution.read_text("direct_url.json") or "{}")
    if where.get("dir_info", {}).get("editable"):
        home = where["url"].removeprefix("file://")
    else:
        home = str(distribution.locate_file(""))
    assert os.path.join(home, "picoqmail") == os.path.dirname(picoqmail.__file__)


def test_command_line_modules_import_from_the_wheel(installed: Installation) -> None:
    """`picoqmail.cli` exists without the sources, and `cli` does not."""
    script = "import importlib.util, picoqmail.cli; print(importlib.util.find_spec('cli'))"
    ran = subprocess.run(
        [installed.python, "-I", "-c", script], cwd="/", capture_output=True, text=True, check=True
    )
    assert "None\n" == ran.stdout


def test_importing_the_package_costs_nothing(installed: Installation) -> None:
    """`import picoqmail` loads nothing else: what it has is loaded when it is used."""
    script = (
        "import sys; before = set(sys.modules); import picoqmail;"
        "new = sorted(set(sys.modules) - before); import json; print(json.dumps(new))"
    )
    ran = subprocess.run(
        [installed.python, "-I", "-c", script], cwd="/", capture_output=True, text=True, check=True
    )
    assert {"__future__", "picoqmail"} >= set(json.loads(ran.stdout))


def test_version_is_the_same_everywhere() -> None:
    """The metadata's version is the package's own."""
    assert importlib.metadata.version("picoqmail") == _version(sys.executable)


def _version(python: str) -> str:
    script = "import picoqmail; print(picoqmail.__version__)"
    ran = subprocess.run(
        [python, "-I", "-c", script], cwd="/", capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()
