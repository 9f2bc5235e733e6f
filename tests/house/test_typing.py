"""What a user's type checker sees of the installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from installation import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

    from installation import Installation

PROGRAM = os.path.join(CHECKOUT, "tests", "typed_user.py")
WRONG = """
import picoqmail
picoqmail.enqueue(3)
picoqmail.enqueue(b"", recipients=[3])
picoqmail.enqueue(b"").identifier
picoqmail.enqueue(b"", nonsense=True)
picoqmail.nonsense
"""
# Values are frozen and their constructors are typed: a line from 5 on must be refused.
CHANGED = """
from picoqmail.smtp.reply import Reply
from picoqmail.spool.message import Message
message = Message.from_sidecar(b"", "")
message.attempts = 1
Reply(250, "", ()).code = 251
Reply("250", "", ())
Reply(250, "")
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_program(tmp_path: Path, installed: Installation, checker: str) -> None:
    """A right program passes in strict mode; in a wrong one each error is found."""
    shutil.copy(PROGRAM, tmp_path / "right.py")
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "changed.py").write_text(CHANGED)
    command = _command(checker, tmp_path, installed.python)
    assert (0, "") == _run([*command, "right.py"], tmp_path)
    status, said = _run([*command, "wrong.py"], tmp_path)
    assert 1 == status
    for line in range(3, 8):
        assert f"wrong.py:{line}" in said, said
    status, said = _run([*command, "changed.py"], tmp_path)
    assert 1 == status
    for line in range(5, 9):
        assert f"changed.py:{line}" in said, said


def _command(checker: str, directory: Path, python: str) -> list[str]:
    if checker == "mypy":
        pytest.importorskip("mypy", reason="needs mypy (extra lint)")
        cache = str(directory / "cache")
        mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache]
        return [*mypy, "--python-executable", python]
    program = shutil.which("pyright", path=os.path.dirname(sys.executable)) or shutil.which(
        "pyright"
    )
    if program is None:
        pytest.skip("needs pyright: pip install pyright")
    (directory / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    return [program, "--pythonpath", python]


def _run(command: list[str], directory: Path) -> tuple[int, str]:
    ran = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=110
    )
    return ran.returncode, "" if ran.returncode == 0 else ran.stdout + ran.stderr
