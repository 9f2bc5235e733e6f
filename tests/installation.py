"""The package as a user installs it: a wheel in a fresh environment, far from the sources."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv

from attrs import frozen

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = (
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "picoqmail",
    "cli",
    "bin",
    "man",
)
PROGRAMS = ("queue", "sendmail", "inject", "send", "cron")
PIP_SECONDS = 600


@frozen
class Installation:
    """An environment that has the wheel: `bin` holds the programs, `python` is its interpreter."""

    bin: str
    python: str

    def program(self, name: str) -> str:
        """Return the path of picoqmail-NAME."""
        return os.path.join(self.bin, f"picoqmail-{name}")


def pip(*arguments: str, python: str = sys.executable, **environ: str) -> None:
    """Run our pip for that interpreter's environment.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    ran = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=PIP_SECONDS,
        check=False,
        env={**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1", **environ},
    )
    if ran.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)}: {ran.stdout}{ran.stderr}")


def copy_sources(copy: str) -> str:
    """Make a directory with what is needed to build the package, and return its path."""
    os.mkdir(copy)
    for name in SOURCES:
        source, target = os.path.join(CHECKOUT, name), os.path.join(copy, name)
        if os.path.isdir(source):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return copy


def build_wheel(directory: str) -> str:
    """Build the wheel from a copy of the sources, and return its path.

    A copy, for the build leaves files behind, and so that nothing but `SOURCES` can be needed.
    """
    copy = copy_sources(os.path.join(directory, "sources"))
    # Where setuptools is here it serves; else pip fetches it into an environment for the build.
    # From 70.1 on it makes wheels itself.
    here = importlib.util.find_spec("setuptools") and (
        importlib.util.find_spec("wheel")
        or importlib.util.find_spec("setuptools.command.bdist_wheel")
    )
    isolation = ["--no-build-isolation"] if here else []
    pip("wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", directory, copy)
    (wheel,) = glob.glob(os.path.join(directory, "*.whl"))
    shutil.rmtree(copy)
    return wheel


def make_environment(directory: str) -> Installation:
    """Make an empty virtual environment there, which has no pip."""
    venv.create(directory, symlinks=True, with_pip=False)
    bin_ = os.path.join(directory, "bin")
    return Installation(bin_, os.path.join(bin_, "python3"))


def install(wheel: str, python: str, *options: str, **environ: str) -> None:
    """Install the wheel, and nothing that it depends on, for this interpreter."""
    pip("install", "--quiet", "--no-deps", "--no-index", *options, wheel, python=python, **environ)


def share_dependencies(python: str) -> None:
    """Let that environment import what we depend on from where it lies here, by a .pth file.

    What lies beside that goes with it, but for the picoqmail of the environment of the tests: an
    environment that is to have another one, or an editable one, would import that.
    """
    homes = {
        str(importlib.metadata.distribution(name).locate_file(""))
        for name in ("attrs", "idna", "portalocker", "structlog", "aiosmtpd", "rich")
    }
    (site_packages,) = glob.glob(
        os.path.join(os.path.dirname(os.path.dirname(python)), "lib", "python3*", "site-packages")
    )
    shared = os.path.join(os.path.dirname(site_packages), "shared")
    os.mkdir(shared)
    for home in sorted(homes):
        for name in os.listdir(home):
            if "picoqmail" not in name and not os.path.lexists(os.path.join(shared, name)):
                os.symlink(os.path.join(home, name), os.path.join(shared, name))
    with open(os.path.join(site_packages, "shared.pth"), "w", encoding="utf-8") as file:
        file.write(f"{shared}\n")
