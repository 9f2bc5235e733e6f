"""What a user's type checker sees of the installed package."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
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


BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _examples(page: str) -> list[str]:
    """The examples of a page: one program, or several where each is for another framework."""
    with open(os.path.join(CHECKOUT, "docs", page), encoding="utf-8") as file:
        blocks = [one[1] for one in BLOCK.finditer(file.read())]
    return ["\n".join(blocks)] if page == "python.md" else blocks


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("page", ["python.md", "python-frameworks.md"])
def test_the_examples_of_the_manual(
    tmp_path: Path, installed: Installation, page: str, checker: str
) -> None:
    """They pass mypy in strict mode, and pyright, as a user who copies them has it."""
    python = str(tmp_path / "environment" / "bin" / "python3")
    subprocess.run(
        [installed.python, "-m", "venv", "--without-pip", tmp_path / "environment"], check=True
    )
    _share(installed.python, python)
    typed: list[str] = []
    untyped: list[str] = []
    for number, code in enumerate(_examples(page)):
        path = tmp_path / f"example_{number}.py"
        path.write_text(code)
        missing = [
            name
            for name in re.findall(r"^(?:from|import) (flask|fastapi|celery)", code, re.MULTILINE)
            if importlib.util.find_spec(name) is None
        ]
        if not missing:
            (untyped if "celery" in code else typed).append(path.name)
    assert typed
    command = _command(checker, tmp_path, python, mode="standard")
    assert (0, "") == _run([*command, *typed], tmp_path)
    if checker == "mypy":
        # Celery has no types.
        command += ["--disable-error-code=import-untyped", "--disable-error-code=untyped-decorator"]
    if untyped:
        assert (0, "") == _run([*command, *untyped], tmp_path)


def _share(installed: str, python: str) -> None:
    """Let an environment see the installed package, and what else is here."""
    here = {str(pathlib.Path(one).resolve()) for one in sys.path if one.endswith("site-packages")}
    code = "import picoqmail, os; print(os.path.dirname(picoqmail.__path__[0]))"
    package = subprocess.check_output([installed, "-c", code], text=True).strip()
    (site_packages,) = pathlib.Path(python).parents[1].glob("lib/python3*/site-packages")
    (site_packages / "shared.pth").write_text("\n".join([package, *sorted(here)]) + "\n")


def _command(checker: str, directory: Path, python: str, mode: str = "strict") -> list[str]:
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
    (directory / "pyrightconfig.json").write_text(f'{{"typeCheckingMode": "{mode}"}}')
    return [program, "--pythonpath", python]


def _run(command: list[str], directory: Path) -> tuple[int, str]:
    ran = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=600
    )
    return ran.returncode, "" if ran.returncode == 0 else ran.stdout + ran.stderr
