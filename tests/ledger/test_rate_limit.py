"""The rate limit holds in every window, over runs and processes, whatever the clock does."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.errors import SpoolError
from picoqmail.home.values import RateLimit
from picoqmail.ledger.rate_limit import SLICES, RateLimiter

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """A clock that is told the time."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time that was told."""
        return self.now


def test_burst_then_wait(tmp_path: Path) -> None:
    """Three at once if three are allowed; the fourth waits for a period and a slice at most."""
    clock = Clock()
    limiter = RateLimiter(f"{tmp_path}/rate", RateLimit(3, 60), clock)
    assert [0.0, 0.0, 0.0] == [limiter(), limiter(), limiter()]
    wait = limiter()
    assert 60 <= wait <= 60 + 60 / SLICES
    clock.now += wait
    assert limiter() == 0.0


@given(
    st.integers(1, 5),
    st.integers(1, 100),
    st.lists(st.floats(0, 50, allow_nan=False), min_size=1, max_size=60),
)
def test_no_window_has_more(messages: int, seconds: int, gaps: list[float]) -> None:
    """However the questions come, no period of that length sees more than the limit."""
    clock = Clock()
    path = f"rate-{os.getpid()}"
    given_at = []
    limiter = RateLimiter(path, RateLimit(messages, seconds), clock)
    try:
        for gap in gaps:
            clock.now += gap
            if limiter() == 0.0:
                given_at.append(clock.now)
    finally:
        os.unlink(path)
    assert given_at
    for first, last in itertools.pairwise(given_at[::messages]):
        assert last - first >= seconds


def test_over_runs(tmp_path: Path) -> None:
    """What one run has sent, the next one knows."""
    clock = Clock()
    path = f"{tmp_path}/rate"
    assert RateLimiter(path, RateLimit(1, 60), clock)() == 0.0
    assert RateLimiter(path, RateLimit(1, 60), clock)() > 59


def test_over_processes(tmp_path: Path) -> None:
    """Four processes at once get no more than one would."""
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            limiter = RateLimiter(f"{tmp_path}/rate", RateLimit(50, 3600))
            os._exit(sum(limiter() == 0.0 for _ in range(40)))
        children.append(child)
    counts = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sum(counts) == 50


def test_over_processes_that_share_one(tmp_path: Path) -> None:
    """Made and asked before the others were forked: they keep each other out all the same."""
    limiter = RateLimiter(f"{tmp_path}/rate", RateLimit(51, 3600))
    assert 0.0 == limiter()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(sum(limiter() == 0.0 for _ in range(40)))
        children.append(child)
    counts = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert 50 == sum(counts)


def test_clock_set_back(tmp_path: Path) -> None:
    """A clock that was years ahead does not stop the mail until then."""
    clock = Clock(time.time() + 1e8)
    limiter = RateLimiter(f"{tmp_path}/rate", RateLimit(1, 60), clock)
    assert limiter() == 0.0
    clock.now -= 1e8
    assert limiter() == 0.0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"seconds":60,"slices":[["x",1]]}', b"\xff"]
)
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    """A file that makes no sense is counted anew, and written well."""
    path = tmp_path / "rate"
    path.write_bytes(content)
    assert RateLimiter(str(path), RateLimit(1, 60))() == 0.0
    assert RateLimiter(str(path), RateLimit(1, 60))() > 0


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    """An error says which file."""
    with pytest.raises(SpoolError, match="rate"):
        RateLimiter(f"{tmp_path}/missing/rate", RateLimit(1, 60))()
