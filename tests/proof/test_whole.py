"""The whole run: its parts are kept, skipped when they have passed, and named on the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from proof import tracing
from proof.parts import Size, kinds
from proof.state import CHECKOUT
from rig.programs import missing

if TYPE_CHECKING:
    from pathlib import Path

PART = "kill: delete"


def run(directory: Path, *words: str) -> str:
    """Run one part in its quick size, and return what was printed."""
    if not tracing.is_there():
        missing("no strace that may trace here: apt-get install strace")
    command = [sys.executable, f"{CHECKOUT}/tests/proof", "--quick", "--only", PART]
    options = ["--state", f"{directory}/state", "--page", f"{directory}/page.md", *words]
    ran = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert (0, "") == (ran.returncode, ran.stderr), ran.stdout
    return ran.stdout


@pytest.mark.slow
def test_a_part_that_has_passed_is_not_run_again(tmp_path: Path) -> None:
    """It is run again for other sources or if it found something, and its page says what ran."""
    assert "skipped" not in run(tmp_path)
    (name,) = os.listdir(tmp_path / "state")
    path = tmp_path / "state" / name
    page = (tmp_path / "page.md").read_text()
    assert "| delete | 15 | 0 | 0 | 0 |" in page
    assert "| hold | not run |" in page
    kept = path.read_text()
    assert "has passed, skipped" in run(tmp_path)
    assert kept == path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"sources": "others", "commit": "old"}))
    assert "has passed, skipped" in run(tmp_path, "--keep")
    assert "Commit old" in (tmp_path / "page.md").read_text()
    assert "skipped" not in run(tmp_path)
    path.write_text(json.dumps(json.loads(kept) | {"breaches": ["a breach"]}))
    assert "skipped" not in run(tmp_path)


def test_no_two_parts_share_a_name() -> None:
    """Each part has a name of its own, and so a file of its own."""
    names = [
        f"{kind.name} {part.name}"
        for kind in kinds(Size(quick=True, seed=1, soak_seconds=1))
        for part in kind.parts
    ]
    plain = ["".join(filter(str.isalnum, name)) for name in names]
    assert len(plain) == len(set(plain))
