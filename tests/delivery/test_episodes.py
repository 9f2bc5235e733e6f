"""Episodes of delivery as they stand in a file: offers, events, records (episodes.py)."""

from __future__ import annotations

import pytest

from delivery.episodes import episodes, replayed

EPISODES = episodes()


@pytest.mark.parametrize("name", EPISODES)
def test_an_episode_goes_as_it_is_written(name: str) -> None:
    """Its messages and its relays are as they are; everything else follows from that."""
    assert EPISODES[name] == replayed(EPISODES[name])
