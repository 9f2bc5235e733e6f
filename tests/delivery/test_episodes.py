"""Episodes of delivery as they stand in a file: offers, events, records (episodes.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from delivery.episodes import episodes, replayed
from picoqmail.delivery.deliver import Summary, _Work
from picoqmail.spool.files import RESULT_LIMIT_OCTETS

EPISODES = episodes()


@pytest.mark.parametrize("name", EPISODES)
def test_an_episode_goes_as_it_is_written(name: str) -> None:
    """Its messages and its relays are as they are; everything else follows from that."""
    assert EPISODES[name] == replayed(EPISODES[name])


def test_a_summary_says_what_it_counts() -> None:
    """All of it, from nothing on."""
    counts = "delivered=0, deferred=0, failed=0, damaged=0, bounced=0, left=0, errors=0"
    assert f"Summary({counts})" == repr(Summary())
    assert Summary() != counts


def test_what_relays_say_fills_no_memory() -> None:
    """As much is kept as is written; what was said first goes first."""
    claim: Any = SimpleNamespace(message=SimpleNamespace(recipients=()))
    work = _Work(claim)
    work.add_transcript(["first", "x" * (RESULT_LIMIT_OCTETS - 5)])
    assert 2 == len(work.transcript)
    work.add_transcript(["y"])
    assert ["x", "y"] == [one[0] for one in work.transcript]
    work.add_transcript(["z" * 5])
    assert ["y", "z"] == [one[0] for one in work.transcript]
