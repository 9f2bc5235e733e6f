"""A sample of the search for lost mail where a database keeps it (database.py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from proof.database import search

if TYPE_CHECKING:
    from installation import Installation


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fleet_loses_nothing(installed: Installation) -> None:
    """Workers are killed and stopped, the server crashes, callers roll back: the books balance."""
    tool = f"{os.path.dirname(installed.program('send'))}/picoqmail"
    seed = int(os.environ.get("PROOF_SEED", "1"))
    books, breaches = search(10, seed, [tool, "worker"])
    assert [] == breaches
    assert books.acknowledged
    assert min(books.kills, books.stops, books.crashes) > 0
