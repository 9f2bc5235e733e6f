"""The limits of acceptance: the quick reader and the settings must never disagree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import ConfigurationError
from picoqmail.home import settings
from picoqmail.home.limits import read_limits
from picoqmail.home.paths import Home

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("databytes", "minfree", "queuelifetime")
VALUES = ("0", "1", "604800", "007", "", "# none", "12x", "-1", "7d", "1e3", "315360001", "9" * 30)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that has only a name."""
    os.mkdir(tmp_path / "control")
    (tmp_path / "control" / "me").write_text("me.test\n")
    return Home(str(tmp_path))


def test_without_files_the_defaults_hold(home: Home) -> None:
    """No limit of size or space, and seven days."""
    limits = read_limits(home)
    assert ("me.test", 0, 0, 604800) == (
        limits.host,
        limits.databytes,
        limits.minfree,
        limits.queuelifetime,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", VALUES)
def test_acceptance_and_settings_agree(home: Home, name: str, text: str) -> None:
    """What `picoqmail config` shows is what the queue program obeys, or both refuse it."""
    with open(f"{home.control}/{name}", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    found: list[object] = []
    for read in (read_limits, settings.load):
        try:
            found.append(getattr(read(home), name))
        except ConfigurationError as exc:
            found.append(exc.where)
    assert found[0] == found[1]
