"""Mistakes with a database: each trial finds its mistake, and nothing without it.

A sample. `python tests/proof --only database` makes all of these trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proof.database_mistakes import MISTAKES, DatabaseMistake, lazy_server, notice
from proof.planted import plant
from proof.shared import Hall
from proof.world import Programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rig.postgresql import PrivatePostgreSQL

SAMPLE = [
    one
    for one in MISTAKES
    if one.name.startswith(("no fencing: the mark", "no ledger", "asynchronous commit"))
]


@pytest.fixture(scope="module")
def lazy() -> Iterator[PrivatePostgreSQL]:
    """A server that may be crashed, and writes down late what it may."""
    with lazy_server() as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("mistake", SAMPLE, ids=lambda one: one.name)
def test_the_trial_finds_the_mistake_and_nothing_else(
    mistake: DatabaseMistake,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """With the mistake in a copy of the package a trial reports a breach, and none without it."""
    server = request.getfixturevalue("lazy" if mistake.crashes else "postgresql")
    with Hall(str(tmp_path), Programs(), server) as hall:
        assert [] == mistake.trial(hall)
    copy = plant(mistake.plant, str(tmp_path / "copy"), compiled=False)
    with Hall(str(tmp_path / "copy"), copy, server) as hall:
        assert notice(mistake, hall)
