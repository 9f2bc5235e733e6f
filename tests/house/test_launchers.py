"""The launchers: they find the interpreter of their own installation, and let nothing else in."""

from __future__ import annotations

import filecmp
import glob
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import installation
from installation import CHECKOUT, PROGRAMS, Installation
from rig.programs import find

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.slow

ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"
# What a launcher itself exits with where it finds no interpreter: qmail's temporary failure for
# programs that speak its codes, EX_OSERR of sysexits.h for the others.
NO_INTERPRETER = {"queue": 71, "sendmail": 111, "inject": 111, "send": 71, "cron": 71}


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A home with a name and an empty spool."""
    root = tmp_path / "home"
    for name in ("control", "spool/tmp", "spool/new", "spool/cur", "spool/undelivered", "bin"):
        os.makedirs(root / name, mode=0o700)
    (root / "control" / "me").write_text("host.example\n")
    return str(root)


def run_queue(
    program: str,
    home: str,
    environ: Mapping[str, str] | None = None,
    *,
    before: tuple[str, ...] = (),
    **options: str,
) -> subprocess.CompletedProcess[bytes]:
    """Hand one message to the queue program as qmail's callers do."""
    reading, writing = os.pipe()
    os.write(writing, ENVELOPE)
    os.close(writing)
    envelope = os.fdopen(reading, "rb")
    message = subprocess.Popen(["printf", "Subject: x\\n\\nbody\\n"], stdout=subprocess.PIPE)
    with envelope, message:
        return subprocess.run(
            [*before, program],
            stdin=message.stdout,
            stdout=envelope,
            stderr=subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "PICOQMAIL_HOME": home,
                "PICOQMAIL_SEND": "off",
                **(environ or {}),
            },
            timeout=30,
            check=False,
            cwd=options.get("cwd", "/"),
        )


def spooled(home: str) -> int:
    """Count the messages that were accepted."""
    new = os.path.join(home, "spool", "new")
    return sum(name.endswith(".json") for name in os.listdir(new))


def assert_accepts(ran: subprocess.CompletedProcess[bytes], home: str) -> None:
    """The queue said yes, and nothing else, and the message is in the spool."""
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert 1 == spooled(home)


def test_runs_from_a_path_with_a_space(installed: Installation, home: str) -> None:
    """An environment in "an environment" works, and that is where the wheel is installed here."""
    assert " " in installed.bin
    assert_accepts(run_queue(installed.program("queue"), home), home)


def test_runs_through_a_link_of_another_name(installed: Installation, home: str) -> None:
    """`qmail-queue` in a home's bin/ is a link; no interpreter lies beside it."""
    link = os.path.join(home, "bin", "qmail-queue")
    os.symlink(installed.program("queue"), link)
    assert_accepts(run_queue(link, home), home)


def test_a_link_beside_another_python_uses_its_own(installed: Installation, home: str) -> None:
    """/usr/bin/qmail-queue must not be run by /usr/bin/python3, which knows nothing of us."""
    link = os.path.join(home, "bin", "qmail-queue")
    os.symlink(installed.program("queue"), link)
    trap = os.path.join(home, "bin", "python3")
    with open(trap, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\nexit 99\n")
    os.chmod(trap, 0o755)
    assert_accepts(run_queue(link, home), home)


def test_runs_through_a_link_to_a_link_by_a_relative_path(
    installed: Installation, home: str
) -> None:
    """Links may be chained and relative, and the program called by a relative path."""
    os.symlink(installed.program("queue"), os.path.join(home, "bin", "first"))
    os.symlink("first", os.path.join(home, "bin", "second"))
    assert_accepts(run_queue("bin/second", home, cwd=home), home)


@pytest.mark.parametrize("path", ["./picoqmail-queue", "../bin/picoqmail-queue"])
def test_runs_by_a_relative_path_without_reading_path_files(
    installed: Installation, home: str, tmp_path: Path, path: str
) -> None:
    """Called relatively it finds the modules beside it directly: `site` would cost milliseconds."""
    trace = tmp_path / "trace"
    strace = (find("strace", "strace"), "-f", "-e", "trace=open,openat", "-o", str(trace))
    assert_accepts(run_queue(path, home, before=strace, cwd=installed.bin), home)
    assert "shared.pth" not in trace.read_text()


def test_runs_through_a_linked_directory(
    installed: Installation, home: str, tmp_path: Path
) -> None:
    """Not the program but its directory may be the link, as /bin is in Debian."""
    os.symlink(installed.bin, tmp_path / "programs")
    assert_accepts(run_queue(str(tmp_path / "programs" / "picoqmail-queue"), home), home)


@pytest.mark.parametrize("name", ["qmail-queue", "picoqmail-queue.distrib"])
def test_runs_as_a_copy_whose_name_says_what_it_is(
    installed: Installation, home: str, name: str
) -> None:
    """A copy or a hard link in the same directory is as good as the original."""
    copy = shutil.copy(installed.program("queue"), os.path.join(installed.bin, name))
    assert_accepts(run_queue(copy, home), home)
    os.unlink(copy)


def test_a_name_that_is_no_program_s_is_refused(installed: Installation, home: str) -> None:
    """The launchers are one text, so a copy is what it is called: one clear line, no mail."""
    copy = shutil.copy(installed.program("queue"), os.path.join(installed.bin, "a-copy"))
    ran = run_queue(copy, home)
    os.unlink(copy)
    assert (111, 0) == (ran.returncode, spooled(home))
    assert 1 == ran.stderr.count(b"\n")
    assert b"a-copy: the name of no program of picoqmail" in ran.stderr


def test_runs_when_found_by_path(installed: Installation, home: str) -> None:
    """Called by its bare name, as from a crontab."""
    environ = {"PATH": f"{installed.bin}:{os.environ['PATH']}"}
    ran = run_queue("/usr/bin/env", home, environ, before=("/usr/bin/env", "picoqmail-queue"))
    assert_accepts(ran, home)


def test_runs_when_the_shell_is_given_the_bare_file_name(
    installed: Installation, home: str
) -> None:
    """`sh picoqmail-queue` in its own directory: no slash in the name."""
    ran = run_queue("picoqmail-queue", home, before=("/bin/sh",), cwd=installed.bin)
    assert_accepts(ran, home)


def test_nothing_of_the_caller_s_python_gets_in(
    installed: Installation, home: str, tmp_path: Path
) -> None:
    """Hostile PYTHON variables, start-up files and a working directory full of traps are deaf."""
    traps = tmp_path / "traps"
    traps.mkdir()
    trap = f"open({str(tmp_path / 'caught')!r}, 'a').close(); raise SystemExit(98)\n"
    for name in ("os", "sys", "site", "sitecustomize", "usercustomize", "picoqmail", "errno"):
        (traps / f"{name}.py").write_text(trap)
    environ = {
        "PYTHONPATH": str(traps),
        "PYTHONHOME": str(traps),
        "PYTHONSTARTUP": str(traps / "os.py"),
        "PYTHONUSERBASE": str(traps),
        "PYTHONINSPECT": "1",
        "PYTHONWARNINGS": "error",
        "PYTHONVERBOSE": "1",
        "PYTHONPROFILEIMPORTTIME": "1",
        "PYTHONIOENCODING": "no-such-encoding",
        "PYTHONMALLOC": "debug",
        "PYTHONPYCACHEPREFIX": str(traps),
        "PYTHONEXECUTABLE": "/bin/false",
        "ENV": str(traps / "os.py"),
        "BASH_ENV": str(traps / "os.py"),
    }
    assert_accepts(run_queue(installed.program("queue"), home, environ, cwd=str(traps)), home)
    assert not os.path.exists(tmp_path / "caught")


def test_a_link_does_not_trust_the_caller_s_path_for_readlink(
    installed: Installation, home: str
) -> None:
    """A `readlink` of the caller's, first in PATH, is not run where the system has one."""
    link = os.path.join(home, "bin", "qmail-queue")
    os.symlink(installed.program("queue"), link)
    fake = os.path.join(home, "bin", "readlink")
    with open(fake, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\necho /bin/false\n")
    os.chmod(fake, 0o755)
    environ = {"PATH": f"{home}/bin:{os.environ['PATH']}"}
    assert_accepts(run_queue(link, home, environ), home)


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_an_interpreter_it_says_what_to_do(
    installed: Installation, tmp_path: Path, program: str
) -> None:
    """A launcher copied somewhere by itself: one clear line and a temporary failure."""
    lonely = shutil.copy(installed.program(program), tmp_path)
    ran = subprocess.run([lonely], capture_output=True, text=True, check=False, timeout=30)
    assert NO_INTERPRETER[program] == ran.returncode
    assert 1 == ran.stderr.count("\n")
    assert f"picoqmail-{program}: cannot find Python" in ran.stderr
    assert "install picoqmail again" in ran.stderr


def test_an_environment_that_was_moved_still_runs(wheel: str, home: str, tmp_path: Path) -> None:
    """The first line of `picoqmail` is stale then; the interpreter beside the launcher is not."""
    old, moved = tmp_path / "old", tmp_path / "moved"
    environment = installation.make_environment(str(old))
    installation.install(wheel, environment.python)
    os.rename(old, moved)
    assert_accepts(run_queue(str(moved / "bin" / "picoqmail-queue"), home), home)


def test_runs_from_a_prefix_that_has_no_interpreter(wheel: str, home: str, tmp_path: Path) -> None:
    """`pip install --prefix` puts the programs where no python3 lies; `picoqmail` names it."""
    prefix = tmp_path / "a prefix"
    installation.install(wheel, sys.executable, "--prefix", str(prefix), "--ignore-installed")
    (program,) = prefix.glob("**/bin/picoqmail-queue")
    assert not (program.parent / "python3").exists()
    assert_accepts(run_queue(str(program), home), home)


def test_a_prefix_beside_another_python_runs_the_one_that_installed_it(
    wheel: str, home: str, tmp_path: Path
) -> None:
    """/usr/local/bin may hold a python3 of its own; ours is the one that pip was run for."""
    installation.install(wheel, sys.executable, "--prefix", str(tmp_path), "--ignore-installed")
    (program,) = tmp_path.glob("**/bin/picoqmail-queue")
    trap = program.parent / "python3"
    trap.write_text("#!/bin/sh\nexit 99\n")
    trap.chmod(0o755)
    assert_accepts(run_queue(str(program), home), home)


def test_runs_from_a_user_s_own_directory(wheel: str, home: str, tmp_path: Path) -> None:
    """`pip install --user`: programs in ~/.local/bin, modules in ~/.local/lib."""
    base = getattr(sys, "_base_executable", sys.executable)
    installation.install(
        wheel, base, "--user", "--ignore-installed", PYTHONUSERBASE=str(tmp_path / "local")
    )
    assert_accepts(run_queue(str(tmp_path / "local/bin/picoqmail-queue"), home), home)


def interpreters() -> dict[str, str]:
    """Interpreters that we run on, by version: on the path, or installed beside ours."""
    found = {}
    for minor in range(11, 15):
        name = f"python3.{minor}"
        beside = sorted(glob.glob(f"{os.path.dirname(sys.base_prefix)}/3.{minor}.*/bin/{name}"))
        path = beside[-1] if beside else shutil.which(name)
        if path:
            found[f"3.{minor}"] = path
    return found


def without_modules(packages: Path) -> None:
    """Take away what only a program without a merged file needs, so that it would be noticed."""
    (module,) = packages.glob("picoqmail/cli/queue.py")
    module.unlink()


@pytest.mark.parametrize(
    "version", [f"3.{minor}" for minor in range(11, 15) if minor != sys.version_info.minor]
)
def test_runs_on_each_python(wheel: str, home: str, tmp_path: Path, version: str) -> None:
    """In a virtual environment of each interpreter that is here, from the merged file."""
    if version not in (found := interpreters()):
        pytest.skip(f"no python{version} here")
    directory = tmp_path / "environment"
    subprocess.run([found[version], "-m", "venv", "--without-pip", directory], check=True)
    installation.install(wheel, str(directory / "bin" / "python3"))
    without_modules(directory / "lib" / f"python{version}" / "site-packages")
    assert_accepts(run_queue(str(directory / "bin" / "picoqmail-queue"), home), home)
    for program in PROGRAMS:
        assert_answers(str(directory / "bin" / f"picoqmail-{program}"), program, tmp_path)


def test_runs_from_a_target_directory(wheel: str, home: str, tmp_path: Path) -> None:
    """`pip install --target`: the package lies beside bin/, and no lib/ is there."""
    target = tmp_path / "the target"
    installation.install(wheel, sys.executable, "--target", str(target))
    without_modules(target)
    assert_accepts(run_queue(str(target / "bin" / "picoqmail-queue"), home), home)


@pytest.mark.parametrize("library", ["lib/python3", "lib/python{}.{}"])
def test_runs_from_a_distribution_s_packages(
    wheel: str, home: str, tmp_path: Path, library: str
) -> None:
    """Debian's packages and Debian's pip put modules into directories named dist-packages."""
    installation.install(wheel, sys.executable, "--target", str(tmp_path / "target"))
    packages = tmp_path / "usr" / library.format(*sys.version_info) / "dist-packages"
    packages.parent.mkdir(parents=True)
    (tmp_path / "target").rename(packages)
    (packages / "bin").rename(tmp_path / "usr" / "bin")
    without_modules(packages)
    assert_accepts(run_queue(str(tmp_path / "usr" / "bin" / "picoqmail-queue"), home), home)


def test_an_editable_install_runs_the_modules_as_they_are(home: str, tmp_path: Path) -> None:
    """There is no merged file, and an edit of a module counts with the next start."""
    pytest.importorskip("setuptools", "70.1", reason="the extra test has it")
    sources = installation.copy_sources(str(tmp_path / "sources"))
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, cwd=sources, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    environment = installation.make_environment(str(tmp_path / "environment"))
    installation.install(str(wheel), environment.python)
    installation.share_dependencies(environment.python)
    assert [] == list(tmp_path.glob("**/picoqmail_queue.py"))
    for program in PROGRAMS:
        assert_answers(environment.program(program), program, tmp_path)
    assert_accepts(run_queue(environment.program("queue"), home), home)
    with open(f"{sources}/cli/queue.py", "a", encoding="utf-8") as file:
        file.write("\n\ndef main(argv: list[str]) -> int:\n    return 78\n")
    assert 78 == run_queue(environment.program("queue"), home).returncode


@pytest.mark.parametrize(("linked", "forks"), [(False, 0), (True, 1)])
def test_the_common_case_costs_no_fork(
    installed: Installation, home: str, tmp_path: Path, *, linked: bool, forks: int
) -> None:
    """The shell replaces itself by Python; only a link costs one process, for readlink."""
    program = installed.program("queue")
    if linked:
        program = os.path.join(home, "bin", "qmail-queue")
        os.symlink(installed.program("queue"), program)
    trace = tmp_path / "trace"
    strace = (find("strace", "strace"), "-f", "-e", "trace=process", "-o", str(trace))
    assert_accepts(run_queue(program, home, before=strace), home)
    calls = re.findall(r"\b(?:clone3?|v?fork)\(", trace.read_text())
    assert forks == len(calls)


def test_the_launchers_are_one_text() -> None:
    """What the file is called tells them apart."""
    texts = set()
    for program in PROGRAMS:
        with open(os.path.join(CHECKOUT, "bin", f"picoqmail-{program}"), "rb") as file:
            texts.add(file.read())
    assert 1 == len(texts)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_installer_changes_no_launcher(installed: Installation, program: str) -> None:
    """The first line stays /bin/sh: pip rewrites lines that name python, and drops their flags."""
    source = os.path.join(CHECKOUT, "bin", f"picoqmail-{program}")
    assert filecmp.cmp(source, installed.program(program), shallow=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_starts_and_has_its_own_words_for_a_missing_home(
    installed: Installation, tmp_path: Path, program: str
) -> None:
    """Without a home each ends by a code of its own, with one line and no traceback."""
    assert_answers(installed.program(program), program, tmp_path)


def assert_answers(path: str, program: str, directory: Path) -> None:
    """A program that finds no home says so, and ends by its own code."""
    ran = subprocess.run(
        [path, *(["b@example.net"] if program == "sendmail" else [])],
        input=b"To: b@example.net\n\nx\n",
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PICOQMAIL_HOME": str(directory / "none")},
        timeout=30,
        check=False,
    )
    assert b"Traceback" not in ran.stderr
    codes = {"queue": 61, "sendmail": 111, "inject": 111, "send": 78, "cron": 78}
    assert codes[program] == ran.returncode, ran.stderr
