"""Several threads at one list."""

from __future__ import annotations

import threading

import pytest

from picoqmail.library.threads import abreast


def test_results_are_in_order_and_work_is_shared() -> None:
    """As many threads as asked for work at the same time, and each result is in its place."""
    together = threading.Barrier(4, timeout=20)

    def do(item: int) -> int:
        if item < 4:
            together.wait()
        return item * item

    assert [n * n for n in range(20)] == abreast(do, range(20), 4)
    assert [] == abreast(do, [], 4)
    assert [25] == abreast(do, [5], 4)


def test_the_first_error_is_raised_when_nothing_runs_any_more() -> None:
    """What others had begun has ended by then."""
    ended = []
    begun = threading.Event()

    def do(item: int) -> None:
        if item:
            begun.set()
            ended.append(item)
            return
        begun.wait(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        abreast(do, range(3), 3)
    assert ended
    assert not [one for one in threading.enumerate() if one.name == "picoqmail"]


def test_without_threads_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit of threads everything is done all the same."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread", self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert [1, 2, 3] == abreast(lambda item: item + 1, range(3), 8)
