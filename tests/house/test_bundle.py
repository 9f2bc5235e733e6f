"""Bundles: a quick start that runs nothing out of date, and writes nothing where it must not."""

from __future__ import annotations

import glob
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING

import pytest

import installation
from installation import Installation
from picoqmail import bundle, start
from rig.programs import find

if TYPE_CHECKING:
    from pathlib import Path
    from types import CodeType

NOBODY = 65534
SECONDS = 60
# Stands in for a module of the queue program: whoever runs it exits with the number.
CHANGED = "def main(argv: list[str]) -> int:\n    return {}\n"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def own(installed: Installation, tmp_path: Path) -> Installation:
    """An installation that a test may change, with its bundles."""
    directory = tmp_path / "environment"
    shutil.copytree(os.path.dirname(installed.bin), directory, symlinks=True)
    return Installation(str(directory / "bin"), str(directory / "bin" / "python3"))


def package_of(installed: Installation) -> str:
    """The directory of its modules."""
    (found,) = glob.glob(f"{installed.bin}/../lib/python3*/site-packages/picoqmail")
    return os.path.normpath(found)


def bundles(package: str) -> set[str]:
    """The programs, and the rest of the sending ones, that have a bundle, whatever it is worth."""
    found = set()
    for program in start.MODULES:
        path = start.path_of_bundle(package, program)
        if os.path.exists(path):
            with open(path, "rb") as file:
                if file.read().startswith(start.MAGIC):
                    found.add(program)
    return found


def exit_code(installed: Installation, program: str, home: Path) -> int:
    """Run a program on no home at all; returns its exit code, for the queue's 61 if it is ours."""
    ran = subprocess.run(
        [installed.program(program)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PICOQMAIL_HOME": str(home / "none")},
        check=False,
        timeout=SECONDS,
    )
    return ran.returncode


@pytest.fixture
def package(tmp_path: Path) -> str:
    """A copy of the package as it is installed, its sources an hour old, without bundles."""
    sources = importlib.util.find_spec("picoqmail")
    commands = importlib.util.find_spec("picoqmail.cli")
    assert sources is not None
    assert commands is not None
    target = tmp_path / "picoqmail"
    ignore = shutil.ignore_patterns("__pycache__")
    for spec, place in ((sources, target), (commands, target / "cli")):
        shutil.copytree(os.path.dirname(str(spec.origin)), place, ignore=ignore, dirs_exist_ok=True)
    hour_ago = time.time() - 3600
    for path in target.rglob("*.py"):
        os.utime(path, (hour_ago, hour_ago))
    return str(target)


def test_all_modules_come_from_one_file(installed: Installation, tmp_path: Path) -> None:
    """With a bundle, of all our files one is opened, and no directory is searched."""
    trace = tmp_path / "trace"
    strace = [find("strace", "strace"), "-f", "-e", "trace=open,openat", "-o", str(trace)]
    subprocess.run(
        [*strace, installed.program("queue")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PICOQMAIL_HOME": str(tmp_path / "none")},
        check=False,
        timeout=SECONDS,
    )
    opened = re.findall(r'"([^"]*/site-packages[^"]*)"', trace.read_text())
    bundle_of_queue = start.path_of_bundle(package_of(installed), "queue")
    assert [bundle_of_queue] == [os.path.normpath(path) for path in opened]


@pytest.mark.parametrize("name", ["cli.queue", "start"])
def test_a_source_of_another_size_is_run_as_it_is(
    own: Installation, tmp_path: Path, name: str
) -> None:
    """An edit within the second in which the file was installed is seen, and not undone later."""
    assert 61 == exit_code(own, "queue", tmp_path)
    source = os.path.join(package_of(own), start.path_in_package(name))
    before = os.stat(source)
    with open(source, "a", encoding="utf-8") as file:
        file.write(CHANGED.format(77) if name == "cli.queue" else "posix._exit(77)\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert 77 == exit_code(own, "queue", tmp_path)


def test_a_source_of_another_time_is_run_as_it_is(own: Installation, tmp_path: Path) -> None:
    """An edit that keeps the size is seen by the file's time, to the second, as Python sees it."""
    source = os.path.join(package_of(own), "cli", "queue.py")
    with open(source, encoding="utf-8") as file:
        text = file.read()
    line = "    del argv\n"
    assert line in text
    with open(source, "w", encoding="utf-8") as file:
        file.write(text.replace(line, "    return 7\n"))
    assert len(line) == len("    return 7\n")
    os.utime(source, (1, 1))
    assert 7 == exit_code(own, "queue", tmp_path)


def test_an_upgrade_in_place_is_run_at_once(own: Installation, wheel: str, tmp_path: Path) -> None:
    """What pip puts over the old version counts from that moment, whatever bundles lie there."""
    newer = str(tmp_path / os.path.basename(wheel))
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(newer, "w") as new:
        for entry in old.infolist():
            is_queue = entry.filename == "picoqmail/cli/queue.py"
            new.writestr(entry, CHANGED.format(78) if is_queue else old.read(entry))
    installation.install(newer, own.python, "--force-reinstall")
    assert 78 == exit_code(own, "queue", tmp_path)


@pytest.mark.parametrize("octets", [b"", b"\0" * 40000, start.MAGIC[:10]])
def test_what_is_no_bundle_is_passed_over(own: Installation, tmp_path: Path, octets: bytes) -> None:
    """An empty file, one of zeros, or one of another Python, stands in nobody's way."""
    path = start.path_of_bundle(package_of(own), "queue")
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(octets)
    assert 61 == exit_code(own, "queue", tmp_path)


@pytest.mark.parametrize("program", ["queue", "cron"])
def test_a_bundle_that_was_cut_is_made_anew(
    own: Installation, tmp_path: Path, program: str
) -> None:
    """Its program starts without it, and others look after it as if it were out of date."""
    package = package_of(own)
    path = start.path_of_bundle(package, program)
    os.truncate(path, os.path.getsize(path) // 2)
    assert 61 == exit_code(own, "queue", tmp_path)
    # The maker's own is out of date, too, by another time of what only it has.
    cron = os.path.join(package, "cli/cron.py")
    os.utime(cron, (os.path.getmtime(cron) - 10, os.path.getmtime(cron) - 10))
    ran = subprocess.run(
        [own.program("cron")],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PICOQMAIL_HOME": str(tmp_path / "none")},
        check=False,
        timeout=SECONDS,
    )
    assert b"Traceback" not in ran.stderr
    # Nothing is left to be made.
    assert [] == bundle.refresh(package, time.time())


def test_a_module_that_is_gone_is_missed(own: Installation, tmp_path: Path) -> None:
    """No bundle speaks for a source that was removed."""
    os.unlink(os.path.join(package_of(own), "accept.py"))
    assert 1 == exit_code(own, "queue", tmp_path)


def test_nothing_is_left_by_an_uninstall(own: Installation) -> None:
    """Installers know nothing of bundles, and yet they remove them."""
    package = package_of(own)
    assert set(start.MODULES) == bundles(package)
    installation.pip("uninstall", "--yes", "picoqmail", python=own.python)
    assert not os.path.exists(package)


@pytest.mark.parametrize(("program", "makes"), [("cron", True), ("send", True), ("queue", False)])
def test_cron_and_the_sender_make_bundles_and_nobody_else(
    own: Installation, tmp_path: Path, program: str, *, makes: bool
) -> None:
    """The programs that a caller waits for never write into the installation."""
    package = package_of(own)
    old = time.time() - 3600
    for path in glob.glob(f"{package}/**/*.py", recursive=True):
        os.utime(path, (old, old))
    for path in glob.glob(f"{package}/starting/__pycache__/*"):
        os.unlink(path)
    exit_code(own, program, tmp_path)
    assert (set(start.MODULES) if makes else set()) == bundles(package)


def test_init_makes_bundles(own: Installation, tmp_path: Path) -> None:
    """The first thing that anybody runs, and often the only thing that root runs."""
    package = package_of(own)
    for path in glob.glob(f"{package}/starting/__pycache__/*"):
        os.unlink(path)
    old = time.time() - 3600
    for path in glob.glob(f"{package}/**/*.py", recursive=True):
        os.utime(path, (old, old))
    command = [
        "-m",
        "picoqmail.cli.main",
        "init",
        "--me",
        "host.example",
        "--relay",
        "relay.example",
    ]
    subprocess.run(
        [own.python, "-I", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PICOQMAIL_HOME": str(tmp_path / "home")},
        check=True,
        timeout=SECONDS,
    )
    assert set(start.MODULES) == bundles(package)


def test_bundles_are_made_once(package: str) -> None:
    """What is up to date is left alone; what is not is made anew."""
    assert list(start.MODULES) == bundle.refresh(package, time.time())
    assert [] == bundle.refresh(package, time.time())
    os.utime(os.path.join(package, "handover.py"), (1, 1))
    assert ["inject", "sendmail"] == bundle.refresh(package, time.time())


def test_a_bundle_is_readable_to_who_may_read_the_source(package: str) -> None:
    """Whatever the umask of the cron job that made it."""
    before = os.umask(0o077)
    try:
        bundle.refresh(package, time.time())
    finally:
        os.umask(before)
    mode = os.stat(os.path.join(package, "start.py")).st_mode & 0o644
    for program in start.MODULES:
        assert mode == os.stat(start.path_of_bundle(package, program)).st_mode & 0o777


def test_a_source_that_may_still_change_is_in_no_bundle(package: str) -> None:
    """Two edits within a second would look the same; so a young file has to wait."""
    os.utime(os.path.join(package, "home.py"))
    assert [] == bundle.refresh(package, time.time())
    assert set() == bundles(package)


def test_an_editable_install_gets_none(package: str) -> None:
    """Its cli/ lies elsewhere; nothing is written into the sources."""
    shutil.rmtree(os.path.join(package, "cli"))
    assert [] == bundle.refresh(package, time.time())
    assert not os.path.exists(os.path.join(package, "starting", "__pycache__"))


@as_root
@pytest.mark.parametrize(
    ("owner", "real", "effective", "makes"),
    [(0, 0, 0, True), (NOBODY, 0, 0, False), (0, NOBODY, 0, False), (NOBODY, 0, NOBODY, False)],
)
def test_only_the_owner_makes_bundles(
    package: str, owner: int, real: int, effective: int, *, makes: bool
) -> None:
    """Root writes nothing into a user's installation, nor does a set-id program into any."""
    for directory, _, files in os.walk(package):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            os.chown(path, owner, -1)
    child = os.fork()
    if not child:
        os.setresuid(real, effective, effective)
        made = bundle.refresh(package, time.time())
        os._exit(len(made))
    assert (len(start.MODULES) if makes else 0) == os.waitstatus_to_exitcode(
        os.waitpid(child, 0)[1]
    )


def test_modules_of_a_bundle_are_as_import_makes_them(package: str) -> None:
    """Names, places, and the numbers of lines that a traceback shows."""
    bundle.refresh(package, time.time())
    code = (
        "import sys; sys.path.append(sys.argv[1].rpartition('/')[0])\n"
        "from picoqmail import start\n"
        "for name in list(sys.modules):\n"
        "    if name.startswith('picoqmail'): del sys.modules[name]\n"
        "data = open(start.path_of_bundle(sys.argv[1], 'queue'), 'rb').read()\n"
        "assert start._enter_bundle(sys.argv[1], data)\n"
        "import gc, fcntl, importlib.util, picoqmail.errors, picoqmail.cli.queue as queue\n"
        "assert gc.isenabled()\n"
        "for one in picoqmail.errors, queue, picoqmail:\n"
        "    found = importlib.util.spec_from_file_location(one.__name__, one.__file__)\n"
        "    assert one.__spec__.origin == found.origin == one.__file__\n"
        "    assert importlib.util.find_spec(one.__name__) is one.__spec__\n"
        "there = importlib.util.find_spec('fcntl')\n"
        "assert there is fcntl.__spec__\n"
        "del sys.modules['fcntl']\n"
        "assert importlib.util.find_spec('fcntl').origin == there.origin\n"
        "assert picoqmail.Home is picoqmail.home.paths.Home\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, package], check=True, timeout=SECONDS, cwd="/"
    )


def test_delivery_comes_from_its_bundle_unless_that_is_out_of_date(package: str) -> None:
    """All of it or nothing; and what an application has imported already stays as it is."""
    bundle.refresh(package, time.time())
    code = (
        "import sys; sys.path.append(sys.argv[1].rpartition('/')[0])\n"
        "import picoqmail.spool.message\n"
        "before = picoqmail.spool.message\n"
        "from picoqmail import start\n"
        "start.enter_delivery()\n"
        "assert picoqmail.spool.message is before\n"
        "import picoqmail.delivery.run\n"
        # A bundle has no docstrings.
        "print(picoqmail.delivery.run.__doc__ is None, picoqmail.smtp.reply.__doc__ is None)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, package]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert "True True\n" == ran.stdout
    os.utime(os.path.join(package, "throttle.py"), (1, 1))
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert "False False\n" == ran.stdout


@pytest.mark.parametrize("name", sorted({name for all_ in start.MODULES.values() for name in all_}))
def test_lines_are_those_of_the_source(package: str, name: str) -> None:
    """A traceback names the line, as it does without a bundle; less is read for it."""
    path = os.path.join(package, start.path_in_package(name))
    with open(path, encoding="utf-8") as file:
        source = file.read()
    lean, whole = bundle._compile(source, path), compile(source, path, "exec", optimize=2)
    ours, theirs = functions(lean), functions(whole)
    assert {key: theirs[key] for key in ours} == ours
    assert size(lean) <= size(whole)


def functions(code: CodeType) -> dict[tuple[str, int], tuple[int | None, ...]]:
    """The lines of each function in a module, in the order of its instructions."""
    found: dict[tuple[str, int], tuple[int | None, ...]] = {}
    for one in code.co_consts:
        if type(one) is type(code):
            if one.co_flags & 2:  # CO_NEWLOCALS: a function, and no class
                found[one.co_qualname, one.co_firstlineno] = tuple(
                    line for line, _ in itertools.groupby(bundle._lines(one))
                )
            found |= functions(one)
    return found


def size(code: CodeType) -> int:
    """The octets of all its tables of lines."""
    inner = (one for one in code.co_consts if type(one) is type(code))
    return len(code.co_linetable) + sum(size(one) for one in inner)
