"""Samples of the search for lost mail where a database keeps it.

`python tests/proof --only database` makes all of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from proof import statements
from proof.database import search
from proof.database_mistakes import lazy_server
from proof.forwarder import forward_and_kill
from proof.shared import Hall
from proof.world import Programs

if TYPE_CHECKING:
    from pathlib import Path

    from rig.postgresql import PrivatePostgreSQL

SEED = int(os.environ.get("PROOF_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fleet_loses_nothing() -> None:
    """Workers die, lines go silent, the server crashes, callers roll back: the books balance."""
    books, breaches = search(6, SEED, patience=2)
    assert [] == breaches
    assert books.acknowledged
    assert min(books.befell[one] for one in ("kill_worker", "cut_line", "crash_server")) > 0


@pytest.mark.slow
def test_killed_or_cut_off_at_a_statement(postgresql: PrivatePostgreSQL, tmp_path: Path) -> None:
    """At some of all statements that acceptance, delivery, forwarding and moving make."""
    with Hall(str(tmp_path), Programs(), postgresql) as hall:
        report = statements.sweep(hall, ["accept", "send", "forward"], sample=8, seed=SEED)
    assert [] == report.breaches
    assert report.missed < report.points


@pytest.mark.slow
def test_a_forwarder_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """While the server is restarted, and another host delivers: none is missing, none twice."""
    with lazy_server() as server, Hall(str(tmp_path), Programs(), server) as hall:
        report = forward_and_kill(hall, kills=8, restarts=1, seed=SEED)
    assert [] == report.breaches
    assert (8, 1) == (report.kills, report.restarts)
