"""The share of one worker of what is due: it grows while nobody else takes part in it."""

from __future__ import annotations

from picoqmail.delivery.fleet import BATCH_MESSAGES, FIRST_SHARE_MESSAGES, WorkerShare

DUE = [str(number) for number in range(BATCH_MESSAGES)]


def test_a_share_are_neighbours() -> None:
    """All of what is little; else some from a place that is drawn, in their order."""
    share = WorkerShare()
    assert DUE[:FIRST_SHARE_MESSAGES] == share.of(DUE[:FIRST_SHARE_MESSAGES])
    places = set()
    for _ in range(50):
        taken = share.of(DUE)
        assert FIRST_SHARE_MESSAGES == len(taken)
        first = DUE.index(taken[0])
        assert taken == DUE[first : first + FIRST_SHARE_MESSAGES]
        places.add(first)
    assert len(places) > 10


def test_a_worker_alone_takes_all() -> None:
    """Soon; and again less as soon as others have what it took."""
    share = WorkerShare()
    for _ in range(4):
        share.learn(len(share.of(DUE)), 0)
    assert DUE == share.of(DUE)
    share.learn(BATCH_MESSAGES, 5)
    assert DUE == share.of(DUE)
    for _ in range(9):
        share.learn(100, 50)
    assert 0 < len(share.of(DUE)) < FIRST_SHARE_MESSAGES
