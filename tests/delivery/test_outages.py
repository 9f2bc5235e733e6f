"""Which routes are down: what a run leaves to the next, and what it takes from the one before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from picoqmail.delivery.outages import Outages
from picoqmail.layout import BREAKER
from picoqmail.ledger.routes import DirectoryRoutes
from picoqmail.log.choice import LogChoice
from picoqmail.log.logger import open_log
from picoqmail.relay import breaker
from picoqmail.relay.lane_options import LaneSummary
from picoqmail.smtp.transaction import RelayFault

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000
REFUSED = RelayFault("connect", "connection refused")


class Spool:
    """An empty spool with a log, at a time that is told."""

    def __init__(self, path: str) -> None:
        os.mkdir(f"{path}/tmp")
        self.path = path
        self.now = NOW
        self.log = open_log(LogChoice("file", f"{path}/log", "info"), path)

    def run(self, *, forced: bool = False) -> Outages:
        """Begin a run over two routes."""
        return Outages(
            DirectoryRoutes(self.path, ["a", "b"]), self.log, lambda: self.now, forced=forced
        )

    def events(self) -> list[str]:
        """What was logged: event and route."""
        if not os.path.exists(f"{self.path}/log"):
            return []
        with open(f"{self.path}/log", encoding="utf-8") as file:
            lines = [line.split() for line in file]
        return [
            f"{words[2]} {word}" for words in lines for word in words if word.startswith("relay=")
        ]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool in which nothing was sent yet."""
    return Spool(str(tmp_path))


def ended(name: str, fault: RelayFault | None = None, throttled: str = "") -> LaneSummary:
    """The summary of a lane that served its route, or gave up for a fault."""
    return LaneSummary(
        name,
        reached=fault is None,
        gave_up=fault is not None,
        fault=fault,
        connections=1,
        too_fast=bool(throttled),
        throttled=throttled,
    )


def test_a_route_that_failed_is_closed_for_this_run_and_the_next(spool: Spool) -> None:
    """Until it is time to try it again; the other route is not touched."""
    run = spool.run()
    assert {"a": "connection refused"} == run.note([ended("a", REFUSED), ended("b")])
    assert {"a"} == run.closed == spool.run().closed
    spool.now += breaker.FIRST_DELAY_SECONDS
    assert set() == spool.run().closed
    assert ["relay_down relay=a"] == spool.events()


def test_one_run_tries_and_others_keep_away(spool: Spool) -> None:
    """A probe is announced in the file; what failed again is a second failure."""
    spool.run().note([ended("a", REFUSED)])
    spool.now += breaker.FIRST_DELAY_SECONDS
    run, other = spool.run(), spool.run()
    assert {"a"} == run.probe(["a", "b"]).keys()
    assert {"a"} == spool.run().closed
    run.note([ended("a", REFUSED)])
    assert 2 == DirectoryRoutes(spool.path).read()["a"].failures
    # The other run began before that, and found the relay down by itself: the same failure.
    other.note([ended("a", REFUSED)])
    assert 2 == DirectoryRoutes(spool.path).read()["a"].failures


def test_of_several_runs_one_probes(spool: Spool) -> None:
    """Two find that it is time at the same moment: the second one leaves the route alone."""
    spool.run().note([ended("a", REFUSED)])
    spool.now += breaker.FIRST_DELAY_SECONDS
    first, second = spool.run(), spool.run()
    assert set() == first.closed == second.closed
    assert {"a"} == first.probe(["a"]).keys()
    assert {} == second.probe(["a"])
    assert {"a"} == second.closed
    # The first goes on in further rounds.
    assert {"a"} == first.probe(["a"]).keys()
    assert set() == first.closed


def test_a_route_that_serves_again_is_forgotten(spool: Spool) -> None:
    """The file goes with the last outage."""
    spool.run().note([ended("a", REFUSED)])
    spool.now += 60
    run = spool.run()
    run.probe(["a"])
    assert {} == run.note([ended("a")])
    assert not os.path.exists(f"{spool.path}/{BREAKER}")
    assert ["relay_down relay=a", "relay_up relay=a"] == spool.events()


def test_a_forced_run_heeds_no_outage_and_announces_nothing(spool: Spool) -> None:
    """It still knows that the relay was down, and tries it with one connection."""
    spool.run().note([ended("a", REFUSED)])
    before = DirectoryRoutes(spool.path).read()
    run = spool.run(forced=True)
    assert set() == run.closed
    assert before == run.probe(["a"])
    assert before == DirectoryRoutes(spool.path).read()


def test_too_fast_is_an_outage_with_a_stage_of_its_own(spool: Spool) -> None:
    """The relay serves us, but the rest is left to a later run."""
    spool.run().note([ended("a", throttled="450 4.7.1 slower")])
    outage = DirectoryRoutes(spool.path).read()["a"]
    assert ("pace", "450 4.7.1 slower") == (outage.stage, outage.reason)
