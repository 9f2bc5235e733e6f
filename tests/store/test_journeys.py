"""Journeys through a directory store as they stand in a file (journeys.py)."""

from __future__ import annotations

import pytest

from store.journeys import journeys, replayed

JOURNEYS = journeys()


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_goes_as_it_is_written(name: str) -> None:
    """What is done is repeated; each step on the disk and each answer follows from it."""
    assert JOURNEYS[name] == replayed(JOURNEYS[name])
