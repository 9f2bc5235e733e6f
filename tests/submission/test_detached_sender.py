"""The sender of an application: found wherever Python is, started without a child that stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail.submission import detached_sender
from rig.programs import find

if TYPE_CHECKING:
    from pathlib import Path

    from installation import Installation
    from rig.recording import RecordingRelay
    from trial import Trial

SECONDS = 60
# Accepts mails, and says what children it has when the relay has them all.
APPLICATION = """
import os, sys, time, warnings
import picoqmail
for number in range(int(sys.argv[1])):
    picoqmail.enqueue(b"Subject: %d\\n\\nx\\n" % number, "a@example.org", ["b@example.net"])
sys.stdin.readline()
children = []
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    children = []
    for one in os.listdir("/proc"):
        try:
            with open(f"/proc/{one}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if one.isdigit() and fields[1] == str(os.getpid()):
            children.append((one, fields[0]))
    if not children:
        break
    time.sleep(0.05)
print("children", children)
"""


def run(
    trial: Trial, relay: RecordingRelay | None, command: list[str], count: int = 1, **environ: str
) -> str:
    """Run the application; what it prints once the relay has its mail."""
    variables = {"PATH": "/usr/bin:/bin", "PICOQMAIL_HOME": trial.root, **environ}
    with subprocess.Popen(
        [*command, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
    ) as process:
        if relay is not None:
            relay.wait_for(count, SECONDS)
        said, errors = process.communicate("\n", timeout=SECONDS)
    assert 0 == process.returncode, errors
    return said + errors


def application(tmp_path: Path) -> str:
    """The application as a file."""
    path = tmp_path / "application.py"
    path.write_text(APPLICATION)
    return str(path)


def test_an_interpreter_of_another_name(
    trial: Trial, relay: RecordingRelay, tmp_path: Path, installed: Installation
) -> None:
    """Where `sys.executable` is a server, that is not run; the program beside our modules is."""
    trial.setting("relayip", relay.address)
    server = tmp_path / "server"
    server.write_text('#!/bin/sh\necho "run again: $*" >&2\nexit 1\n')
    server.chmod(0o755)
    code = f"import sys; sys.executable = {str(server)!r}\n" + APPLICATION
    assert "children []\n" == run(trial, relay, [installed.python, "-c", code])
    # Python started under another name, as an embedding server has it.
    embedded = os.path.join(os.path.dirname(installed.python), "embedding")
    os.symlink(os.path.realpath(installed.python), embedded)
    try:
        command = [embedded, application(tmp_path)]
        assert "children []\n" == run(trial, relay, command, 2)
    finally:
        os.unlink(embedded)


FROZEN = """
import sys
sys.frozen = True
sys.prefix = sys.exec_prefix = sys.base_prefix = sys.argv[2]
sys.executable = sys.argv[2] + "/application"
sys._base_executable = sys.executable
"""


def test_a_frozen_program_does_not_run_itself(
    trial: Trial, relay: RecordingRelay, tmp_path: Path, installed: Installation
) -> None:
    """It takes the program of the home, else one on PATH; else it says once that there is none."""
    trial.setting("relayip", relay.address)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    itself = bundle / "application"
    itself.write_text(f"#!/bin/sh\necho again >>{tmp_path}/again\n")
    itself.chmod(0o755)
    # As PyInstaller lays it: the modules lie in the bundle.
    site_packages = subprocess.check_output(
        [installed.python, "-c", "import picoqmail; print(picoqmail.__path__[0])"], text=True
    ).strip()
    shutil.copytree(site_packages, bundle / "picoqmail")
    path = f"import sys; sys.path.insert(0, {str(bundle)!r})\n"
    command = [installed.python, "-c", path + FROZEN + APPLICATION.replace("[1]", "[-1]"), "x"]
    command += [str(bundle)]

    said = run(trial, None, command, 3)
    assert 1 == said.count("no sender can be started"), said
    assert "RuntimeWarning" in said
    assert "children []" in said
    assert 3 == len(trial.ids("new"))
    assert not os.path.exists(f"{trial.spool}/relay-down")
    said = run(trial, None, [*command[:1], "-W", "error", *command[1:]])
    assert "children []" in said, "accepted, whatever the filter"

    assert "children []\n" == run(trial, relay, command, 1, PATH=f"{installed.bin}:/usr/bin:/bin")
    os.makedirs(trial.home.bin, exist_ok=True)
    os.symlink(installed.program("send"), f"{trial.home.bin}/minismtpsend")
    assert "children []\n" == run(trial, relay, command, 1)
    assert not os.path.exists(f"{tmp_path}/again")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts over /bin/sh, which takes root")
@pytest.mark.parametrize("is_init", [False, True])
def test_without_a_shell(
    trial: Trial, relay: RecordingRelay, tmp_path: Path, installed: Installation, *, is_init: bool
) -> None:
    """In an image without /bin/sh the interpreter is started, and leaves no child either."""
    unshare = find("unshare", "util-linux")
    trial.setting("relayip", relay.address)
    command = [unshare, "--mount", sys.executable, "-c", WITHOUT_SHELL, *(["init"] * is_init)]
    command += [installed.python, application(tmp_path)]
    assert "children []\n" == run(trial, relay, command, 3)


WITHOUT_SHELL = """
import os, subprocess, sys
shell = os.path.realpath("/bin/sh")
subprocess.run(["mount", "--bind", "/dev/null", shell], check=True)
assert not os.access("/bin/sh", os.X_OK)
command = sys.argv[1:]
if command[0] == "init":
    command[:1] = ["unshare", "--pid", "--fork", "--mount-proc"]
os.execvp(command[0], command)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace, which takes root")
def test_process_1_has_no_zombies(
    trial: Trial, relay: RecordingRelay, tmp_path: Path, installed: Installation
) -> None:
    """A service that is init in its container waits for the senders that it started."""
    unshare = find("unshare", "util-linux")
    trial.setting("relayip", relay.address)
    namespace = [unshare, "--pid", "--fork", "--mount-proc"]
    command = [*namespace, installed.python, application(tmp_path)]
    for count in (1, 20):
        assert "children []\n" == run(trial, relay, command, count)


def test_only_programs_of_ours_or_roots_are_run(tmp_path: Path) -> None:
    """What anybody could have written is not started, wherever it lies."""
    program = tmp_path / "picoqmail-send"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert detached_sender._may_run(str(program))
    program.chmod(0o757)
    assert not detached_sender._may_run(str(program))
    program.chmod(0o644)
    assert not detached_sender._may_run(str(program))
    assert not detached_sender._may_run(str(tmp_path))
    assert not detached_sender._may_run(str(tmp_path / "none"))
    if not os.geteuid():
        program.chmod(0o755)
        os.chown(program, 12345, -1)
        assert not detached_sender._may_run(str(program))
