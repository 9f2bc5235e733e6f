"""Merged files: one a program, as the build makes it of the modules, and no class twice."""

from __future__ import annotations

import _imp
import ast
import glob
import importlib.util
import json
import marshal
import os
import re
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

import installation
from installation import CHECKOUT, PROGRAMS, Installation
from picoqmail.layout import NEW
from rig.programs import find
from rig.recording import RecordingRelay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trial import Trial

SECONDS = 60
ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"
MESSAGE = b"Subject: x\n\nbody\n"
# Where no home is: the queue's 61 and its like show that it was the program that answered.
WITHOUT_HOME = {"queue": 61, "inject": 111, "sendmail": 111, "send": 78, "cron": 78}
USUAL = {
    "inject": ["-fa@example.org", "b@example.net"],
    "sendmail": ["-i", "-fa@example.org", "b@example.net"],
}
# Begins as a launcher does; `main` is the program's. argv: -c, site-packages, arguments.
BEGIN = """
import sys
packages = sys.argv.pop(1)
sys.path.append(packages + "/picoqmail/merged")
import picoqmail_{program}
sys.path[-1] = packages
main = sys.modules["picoqmail.cli.{program}"].main
"""
# Prints the classes that were made once more, from a module that the merged file has.
TWICE = """
import gc, json
gc.unfreeze()
file = sys.modules["picoqmail_{program}"]
merged = [name for name in sys.modules if sys.modules[name] is file and name[9] == "."]
classes = [one for one in gc.get_objects() if isinstance(one, type)]
assert len(merged) > 10 and "{late}" not in merged
assert sum(one.__module__ == file.__name__ for one in classes) > 10
assert any(one.__module__ == "{late}" for one in classes)
print(json.dumps(sorted(one.__qualname__ for one in classes if one.__module__ in merged)))
"""


@pytest.fixture(scope="module")
def build() -> Any:
    """The module of the build, setup.py."""
    pytest.importorskip("setuptools", reason="the extra test has it")
    spec = importlib.util.spec_from_file_location("build_of_picoqmail", f"{CHECKOUT}/setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(installed: Installation, tmp_path: Path) -> Installation:
    """An installation that a test may change."""
    directory = tmp_path / "environment"
    shutil.copytree(os.path.dirname(installed.bin), directory, symlinks=True)
    return Installation(str(directory / "bin"), str(directory / "bin" / "python3"))


@pytest.fixture
def modules(tmp_path: Path) -> Callable[..., str]:
    """Write modules of a small package; returns the directory that holds it."""

    def write(**texts: str) -> str:
        package = tmp_path / "root" / "picoqmail"
        (package / "room").mkdir(parents=True)
        for name, text in texts.items():
            (package / "room" / f"{name}.py").write_text(text)
        return str(package.parent)

    return write


def site_packages(installed: Installation) -> str:
    """The directory of the installed package."""
    (found,) = glob.glob(f"{installed.bin}/../lib/python3*/site-packages")
    return os.path.normpath(found)


def merged_file(installed: Installation, program: str) -> str:
    """The merged file of a program."""
    return f"{site_packages(installed)}/picoqmail/merged/picoqmail_{program}.py"


def code_file(installed: Installation, program: str) -> str:
    """Its code with a checksum, which a program executes."""
    return merged_file(installed, program).removesuffix("py") + "code"


def compiled_file(installed: Installation, program: str) -> str:
    """What the installer compiled of it."""
    directory = os.path.dirname(merged_file(installed, program))
    (found,) = glob.glob(f"{directory}/__pycache__/picoqmail_{program}.*.pyc")
    return found


def without_home(
    installed: Installation, program: str, tmp_path: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program where there is no home."""
    return subprocess.run(
        [installed.program(program), *USUAL.get(program, [])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PICOQMAIL_HOME": str(tmp_path / "none")},
        check=False,
        timeout=SECONDS,
    )


def python(
    installed: Installation, code: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run code as the launchers do, with site-packages as its first argument."""
    ran = subprocess.run(
        [installed.python, "-I", "-S", "-c", code, site_packages(installed), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environ,
        check=False,
        timeout=SECONDS,
    )
    assert "" == ran.stderr
    return ran


def test_the_installed_files_are_what_the_build_makes_of_the_modules(
    installed: Installation, build: Any
) -> None:
    """Merging the installed modules once more gives the same texts, and compiling them the code."""
    texts = build.merge_all(site_packages(installed))
    assert {*PROGRAMS, "sender"} == set(texts)
    for program, text in texts.items():
        with open(merged_file(installed, program), encoding="utf-8") as file:
            assert text == file.read()
        with open(code_file(installed, program), "rb") as file:
            code = file.read()
        assert code[:8] == importlib.util.source_hash(code[8:])
        built = marshal.loads(code[8:])  # noqa: S302 - its checksum is right
        assert compile(text, "", "exec", dont_inherit=True) == built


@pytest.mark.parametrize("program", PROGRAMS)
def test_of_all_our_files_one_is_opened(
    installed: Installation, trial: Trial, tmp_path: Path, program: str
) -> None:
    """On its usual way a program needs its code, and not even the package."""
    trace = tmp_path / "trace"
    strace = [find("strace", "strace"), "-f", "-e", "trace=open,openat", "-o", str(trace)]
    reading, writing = os.pipe()
    os.write(writing, b"Fa@example.org\0Tb@example.net\0\0")
    os.close(writing)
    with os.fdopen(reading, "rb") as envelope:
        ran = subprocess.run(
            [*strace, installed.program(program), *USUAL.get(program, [])],
            input=b"Subject: x\n\nbody\n",
            stdout=envelope if program == "queue" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=trial.variables(),
            check=False,
            timeout=SECONDS,
        )
    assert (0, b"") == (ran.returncode, ran.stderr)
    opened = re.findall(r'"([^"]*/picoqmail/[^"]*\.(?:pyc?|code))"', trace.read_text())
    assert [code_file(installed, program)] == [os.path.normpath(path) for path in opened]


@pytest.mark.parametrize(
    ("arguments", "settings", "environ"),
    [
        (["-i", "-t"], {}, {}),
        (["-i", "-t"], {"rewritefrom": "joe:sales@f.test", "adminaddr": "admin@f.test"}, {}),
        (["-i", "-t"], {"minivars": "DEFAULTHOST=f.test"}, {}),
        (["-i", "-t"], {}, {"QMAILQUEUE": "QUEUE"}),
        (["-bs"], {}, {}),
    ],
    ids=["usual", "mapping", "minivars", "QMAILQUEUE", "-bs"],
)
def test_nothing_of_ours_is_imported_once_something_was_read(
    trial: Trial,
    tmp_path: Path,
    arguments: list[str],
    settings: dict[str, str],
    environ: dict[str, str],
) -> None:
    """An upgrade while a message arrives cannot mix two versions, on no way of a message."""
    for name, text in settings.items():
        trial.setting(name, text)
    if environ:
        program = trial.installed.program("queue")
        environ = {"QMAILQUEUE": program}
    trace = tmp_path / "trace"
    strace = [find("strace", "strace"), "-e", "trace=open,openat,read", "-o", str(trace)]
    said = b"Subject: x\nTo: b@example.net\n\nbody\n"
    if arguments == ["-bs"]:
        said = b"HELO x\nMAIL FROM:<a@f.test>\nRCPT TO:<b@f.test>\nDATA\n\nx\n.\nQUIT\n"
        said = said.replace(b"\n", b"\r\n")
    ran = subprocess.run(
        [*strace, trial.installed.program("sendmail"), *arguments],
        input=said,
        capture_output=True,
        env={**trial.variables(), **environ},
        check=False,
        timeout=SECONDS,
    )
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert 1 == len(trial.ids(NEW))
    # Python's own reads of descriptor 0 are none: it is given by -c.
    _, began, after = trace.read_text().partition("\nread(0, ")
    assert began
    assert [] == re.findall(r'"([^"]*/picoqmail/[^"]*\.(?:pyc?|code))"', after)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_class_exists_twice_whatever_is_imported_later(
    installed: Installation, program: str
) -> None:
    """Each module of the package is imported into the process of a program: none brings a copy."""
    everything = (
        "import pkgutil, picoqmail\n"
        "sys.path += sys.path[-1:]; import site; site.addsitedir(packages)\n"
        "for one in pkgutil.walk_packages(picoqmail.__path__, 'picoqmail.'):\n"
        "    if not one.name.startswith(('picoqmail.django', 'picoqmail.pytest_plugin')):\n"
        "        __import__(one.name)\n"
    )
    ran = python(
        installed,
        BEGIN.format(program=program)
        + everything
        + TWICE.format(program=program, late="picoqmail.library.api"),
    )
    assert [] == json.loads(ran.stdout)


@pytest.mark.parametrize("program", ["queue", "inject", "sendmail"])
def test_no_class_exists_twice_in_a_program_that_becomes_the_sender(
    installed: Installation, program: str
) -> None:
    """The sender's modules come to those that a program has, and what they import later, too."""
    ran = python(
        installed,
        BEGIN.format(program=program)
        + "sys.path.insert(0, packages + '/picoqmail/merged')\n"
        + "import picoqmail_sender, picoqmail.relay.tls\n"
        + "assert sys.modules['picoqmail.cli.send'] is picoqmail_sender\n"
        + f"assert picoqmail_sender.SpoolError is picoqmail_{program}.SpoolError\n"
        + TWICE.format(program=program, late="picoqmail.relay.tls")
        + TWICE.format(program="sender", late="picoqmail.relay.tls"),
    )
    assert ["[]", "[]"] == ran.stdout.splitlines()


def test_the_build_refuses_a_sender_that_programs_share_unequally(
    build: Any, modules: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that the sender needs, one program has and another has not, would exist twice."""
    root = modules(one=ONE, two="LIMIT = 1\n", three="from picoqmail.room.one import first\n")
    monkeypatch.setattr(build, "FORKING", ("two", "three"))
    monkeypatch.setattr(build, "SENDER", ("picoqmail.room.one",))
    programs = {name: (f"picoqmail.room.{name}",) for name in ("two", "three")}
    monkeypatch.setattr(build, "PROGRAMS", programs)
    with pytest.raises(build.MergeError, match=r"picoqmail\.room\.one: not in all of"):
        build.merge_all(root)


def test_no_class_exists_twice_where_the_sender_imports_late(
    rig: Callable[[RecordingRelay], RecordingRelay], trial: Trial
) -> None:
    """A run with TLS, a login and a report, whose modules are imported in its middle."""
    answers = {"RCPT <bad@example.net>": ["550 5.1.1 no such user"]}
    relay = rig(RecordingRelay(tls="starttls", users={"alice": "hunter2"}, answers=answers))
    trial.setting("relayip", f"alice@{relay.address}")
    trial.setting("relaypass", "hunter2")
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    trial.setting("tls", "require")
    trial.setting("tlsca", relay.certificate.trusted)
    trial.setting("bounces", "on")
    trial.accepted("joe@example.org", ["b@example.net", "bad@example.net"])
    late = ("delivery.report_text", "ledger.report_limit", "relay.tls", "smtp.sasl")
    ran = python(
        trial.installed,
        BEGIN.format(program="send")
        + f"late = {late!r}\n"
        + "assert not any(f'picoqmail.{one}' in sys.modules for one in late)\n"
        + "sys.meta_path.append(picoqmail_send)\n"
        + "status = main([])\n"
        + "assert all(f'picoqmail.{one}' in sys.modules for one in late), sys.modules\n"
        + TWICE.format(program="send", late="picoqmail.relay.tls")
        + "print(status)",
        **trial.variables(),
    )
    twice, status = ran.stdout.splitlines()
    assert ([], 69) == (json.loads(twice), int(status))
    mail, report = relay.messages
    assert (("b@example.net",), ("joe@example.org",)) == (mail.recipients, report.recipients)


def test_extension_modules_are_as_import_makes_them(installed: Installation) -> None:
    """What a merged file loads by path is what an import would find."""
    code = (
        BEGIN.format(program="queue")
        + "import fcntl, importlib.util, zlib\n"
        + "for name in 'fcntl', 'zlib':\n"
        + "    ours = sys.modules.pop(name)\n"
        + "    found = importlib.util.find_spec(name)\n"
        + "    ours = ours.__spec__\n"
        + "    assert (ours.name, ours.origin) == (found.name, found.origin)\n"
        + "    assert (type(ours.loader), ours.cached) == (type(found.loader), found.cached)\n"
        + "    assert ours.has_location == found.has_location\n"
        + "assert 3421780262 == zlib.crc32(b'123456789')\n"
    )
    python(installed, code)


def test_a_traceback_names_the_file_and_the_line(installed: Installation) -> None:
    """An error in a merged file can be found: the line is there to be read."""
    code = (
        BEGIN.format(program="queue")
        + "import traceback\n"
        + "try: sys.modules['picoqmail.spool.incoming'].Incoming.write(None, b'')\n"
        + "except AttributeError as exc: traceback.print_exc(file=sys.stdout)\n"
    )
    lines = python(installed, code).stdout.splitlines()
    assert any("picoqmail/merged/picoqmail_queue.py" in line for line in lines)
    assert any("in write" in line for line in lines)


def test_programs_write_nothing_into_the_installation(own: Installation, tmp_path: Path) -> None:
    """What the installer left is what is there after a run of each program and some commands."""
    environ = {"PATH": os.environ["PATH"], "PICOQMAIL_HOME": f"{tmp_path}/home"}
    before = snapshot(own)
    init = ["picoqmail", "init", "--me", "me.test", "--relay", "127.0.0.1:1"]
    commands = [init, ["picoqmail", "check"], ["picoqmail", "list"], ["picoqmail-sendmail", "-bp"]]
    for name, *arguments in [*commands, *([f"picoqmail-{one}"] for one in PROGRAMS)]:
        subprocess.run(
            [f"{own.bin}/{name}", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
    assert (tmp_path / "home" / "control" / "me").exists()
    assert before == snapshot(own)


def snapshot(installed: Installation) -> dict[str, tuple[int, int, int]]:
    """Each file and directory of an installation, with what a change would change."""
    found = {}
    for directory, _, names in os.walk(os.path.dirname(installed.bin)):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            status = os.lstat(path)
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.slow
def test_an_upgrade_in_place_is_run_at_once(
    own: Installation, wheel: str, build: Any, tmp_path: Path
) -> None:
    """What pip puts over the old version counts from that moment."""
    text = "def run_program(name, load):\n    raise SystemExit(78)\n"
    newer = str(tmp_path / os.path.basename(wheel))
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(newer, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/picoqmail_queue.py"):
                data = text.encode()
            elif entry.filename.endswith("/picoqmail_queue.code"):
                data = build.checked_code(text, "merged")
            new.writestr(entry, data)
    installation.install(newer, own.python, "--force-reinstall")
    assert 78 == without_home(own, "queue", tmp_path).returncode


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.0002, 0.5, 0.999])
@pytest.mark.parametrize("lost", [(), ("code",), ("code", "compiled")])
def test_a_file_that_was_cut_is_passed_over(
    own: Installation, tmp_path: Path, program: str, kept: float, lost: tuple[str, ...]
) -> None:
    """As by a disk that was full. Without the two others, a program starts from the modules."""
    paths = {
        "code": code_file(own, program),
        "compiled": compiled_file(own, program),
        "text": merged_file(own, program),
    }
    for name in lost:
        os.unlink(paths.pop(name))
    path = next(iter(paths.values()))
    os.truncate(path, int(os.path.getsize(path) * kept))
    assert_answers(without_home(own, program, tmp_path), program)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_code_of_another_python_is_passed_over(
    own: Installation, build: Any, tmp_path: Path, program: str
) -> None:
    """Its key differs, as does its code; what the installer compiled is there."""
    path = code_file(own, program)
    with open(path, "wb") as file:
        code = build.checked_code("raise SystemExit(99)\n", "merged")[8:]
        file.write(_imp.source_hash(3000, code) + code)
    assert_answers(without_home(own, program, tmp_path), program)


@pytest.mark.parametrize("program", PROGRAMS)
def test_where_nothing_can_be_loaded_it_says_so(
    own: Installation, tmp_path: Path, program: str
) -> None:
    """The merged file is gone, and the module is damaged: one line, and a temporary failure."""
    os.unlink(merged_file(own, program))
    os.unlink(code_file(own, program))
    with open(f"{site_packages(own)}/picoqmail/cli/{program}.py", "w", encoding="utf-8") as file:
        file.write("(")
    ran = without_home(own, program, tmp_path)
    code = {"inject": 111, "sendmail": 111}.get(program, 71)
    assert (code, 1) == (ran.returncode, ran.stderr.count("\n"))
    assert ran.stderr.startswith(f"picoqmail-{program}: cannot be loaded: SyntaxError(")
    assert "install picoqmail again" in ran.stderr


@pytest.mark.parametrize("lost", [(), ("merged",), ("merged", "cli")])
def test_the_set_id_program_starts_from_what_there_is(
    own: Installation, trial: Trial, lost: tuple[str, ...]
) -> None:
    """Its few lines of Python: the merged file, else the modules, else one line and code 71."""
    with open(f"{site_packages(own)}/picoqmail/home/qmail_queue_setid.c", encoding="utf-8") as file:
        _, _, lines = file.read().partition("program[] =\n")
    code = ast.literal_eval("(" + lines.partition('";')[0] + '")')
    for name in lost:
        shutil.rmtree(f"{site_packages(own)}/picoqmail/{name}")
    command = [own.python, "-I", "-S", "-c", code, "", site_packages(own), "qmail-queue"]
    status, said = queue(command, trial)
    if "cli" not in lost:
        assert (0, b"") == (status, said)
        assert 1 == len(trial.ids(NEW))
    else:
        assert (71, 1, []) == (status, said.count(b"\n"), trial.ids(NEW))
        assert said.startswith(b"qmail-queue: cannot be loaded: ModuleNotFoundError(")


def assert_answers(ran: subprocess.CompletedProcess[str], program: str) -> None:
    """The program itself said that there is no home."""
    assert WITHOUT_HOME[program] == ran.returncode, ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", range(16))
def test_a_flipped_bit_in_the_header_of_a_compiled_file_changes_nothing(
    own: Installation, tmp_path: Path, place: int
) -> None:
    """Version, kind, time and size of the source: Python compiles anew, or takes it as it is."""
    os.unlink(code_file(own, "queue"))
    path = compiled_file(own, "queue")
    with open(path, "rb") as file:
        whole = file.read()
    for bit in range(8):
        with open(path, "wb") as file:
            file.write(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        assert_answers(without_home(own, "queue", tmp_path), "queue")


def queue(command: list[str], trial: Trial) -> tuple[int, bytes]:
    """Hand a message to the queue program: its exit code, -1 if it had to be killed, and words."""
    reading, writing = os.pipe()
    os.write(writing, ENVELOPE)
    os.close(writing)
    with os.fdopen(reading, "rb") as envelope:
        try:
            ran = subprocess.run(
                command,
                input=MESSAGE,
                stdout=envelope,
                stderr=subprocess.PIPE,
                env=trial.variables(),
                check=False,
                timeout=10,
            )
        except subprocess.TimeoutExpired:
            return -1, b""
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 7, 8, 11])
def test_few_descriptors_are_no_wrong_yes(
    installed: Installation, trial: Trial, limit: int
) -> None:
    """With `ulimit -n` that low a message is accepted whole, or refused with a code and a line."""
    limited = ["sh", "-c", 'ulimit -n "$0"; exec "$@"', str(limit), installed.program("queue")]
    status, said = queue(limited, trial)
    assert (0 == status) == (1 == len(trial.ids(NEW)))
    assert (0 == status) == (b"" == said)
    assert limit < 11 or 0 == status, said


ONE = "def first():\n    return 1\n"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            {"one": ONE, "two": f"from picoqmail.room.one import first as it\n{ONE}"},
            "picoqmail.room.two: first is .* in picoqmail.room.one",
        ),
        (
            {"one": "import time\n", "two": "from picoqmail.room import one\ntime = 1\n"},
            "picoqmail.room.two: time is .*'import time' in picoqmail.room.one",
        ),
        (
            {"one": ONE, "two": "from picoqmail.room import one\nfrom a import first\n"},
            "picoqmail.room.two: first is 'from a import first'",
        ),
        ({"two": "def open():\n    pass\n"}, "picoqmail.room.two: open is Python's own"),
        ({"two": "from picoqmail import room\n"}, "picoqmail is no module"),
    ],
)
def test_the_build_refuses_what_one_file_cannot_say(
    build: Any, modules: Callable[..., str], texts: dict[str, str], words: str
) -> None:
    """A name with two meanings, or one that hides a builtin: the error names it and where."""
    with pytest.raises(build.MergeError, match=words):
        build.merge(modules(**texts), ("picoqmail.room.two",))


def test_a_merged_module_is_as_the_modules_are(build: Any, modules: Callable[..., str]) -> None:
    """Each module behind those that it imports, each under its own name, imports only once."""
    root = modules(
        one='"""Text."""\nimport time\nLIMIT: int = 3\n'
        'def f() -> int:\n    "Text."\n    return LIMIT\n',
        two="from __future__ import annotations\nimport time\n"
        "from picoqmail.room import one\nfrom picoqmail.room.one import f as g\n"
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from typing import Any\n"
        "def late() -> Any:\n    from picoqmail.room.one import LIMIT\n    return LIMIT\n"
        "ANSWER = one.f() + g()\n",
    )
    text = build.merge(root, ("picoqmail.room.two",))
    assert 1 == text.count("import time")
    assert "Any" not in text
    assert "Text" not in text
    code = (
        "import sys; sys.path.append(sys.argv[1]); import merged\n"
        "from picoqmail.room.two import late, ANSWER\n"
        "from picoqmail.room.one import f\n"
        "assert (late(), ANSWER, f) == (3, 6, merged.f)\n"
        "assert 'picoqmail' not in sys.modules\n"
    )
    with open(os.path.join(root, "merged.py"), "w", encoding="utf-8") as file:
        file.write(text)
    subprocess.run([sys.executable, "-I", "-c", code, root], check=True, timeout=SECONDS)
