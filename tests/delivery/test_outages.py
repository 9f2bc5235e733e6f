"""Which routes are down: what a run leaves to the next, and what it takes from the one before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from delivery.episodes import Recorder
from picoqmail.delivery.outages import Outages
from picoqmail.errors import SpoolError
from picoqmail.layout import BREAKER
from picoqmail.ledger.routes import DirectoryRoutes, Outage
from picoqmail.log.choice import LogChoice
from picoqmail.log.logger import open_log
from picoqmail.relay import breaker
from picoqmail.relay.lane_options import LaneSummary
from picoqmail.smtp.transaction import RelayFault

if TYPE_CHECKING:
    from collections.abc import Callable
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


class Notes:
    """What is noted of routes, in memory; `trouble` is raised by each change."""

    def __init__(self) -> None:
        self.outages: dict[str, Outage] = {}
        self.changed: list[str] = []
        self.trouble: SpoolError | None = None
        self.said: list[str] = []
        self.now = NOW

    def read(self) -> dict[str, Outage]:
        """Return the routes that are down."""
        return dict(self.outages)

    def change(self, name: str, how: Callable[[Outage | None], Outage | None]) -> Outage | None:
        """Change what is noted of one."""
        if self.trouble is not None:
            raise self.trouble
        self.changed.append(name)
        found = how(self.outages.pop(name, None))
        if found is not None:
            self.outages[name] = found
        return found

    def run(self, *, forced: bool = False) -> Outages:
        """Begin a run; what it logs is in `said`."""
        log: Any = Recorder(self.said)
        return Outages(self, log, lambda: self.now, forced=forced)

    def failed(self, fault: RelayFault | None, *, later: int = 0) -> None:
        """Let time pass, and let a run find the route down for this."""
        self.now += later
        run = self.run()
        run.probe(["a"])
        run.note([ended("a", fault)])


DELAY = breaker.FIRST_DELAY_SECONDS


def down(level: str, stage: str, failures: int, again: int, since: int = 0) -> str:
    """What is logged of a route that is down."""
    return (
        f"! relay_down {level}: relay='a' stage={stage!r} reason='no' failures={failures} "
        f"look_again={NOW + since + again}"
    )


def test_what_is_said_of_an_outage() -> None:
    """Each failure is a warning, with when to look again; and how long it was in the end."""
    notes = Notes()
    notes.failed(RelayFault("connect", "no"))
    notes.failed(RelayFault("tls", "no"), later=DELAY)
    notes.failed(None, later=2 * DELAY)
    expected = [
        down("warning", "connect", 1, DELAY),
        down("warning", "tls", 2, 2 * DELAY, DELAY),
        f"! relay_up info: relay='a' down_seconds={3 * DELAY}",
    ]
    assert expected == notes.said


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        (RelayFault("auth", "no"), "auth"),
        (RelayFault("mail", "no", is_session=True), "session"),
    ],
)
def test_what_an_administrator_must_do_is_an_error_once(fault: RelayFault, stage: str) -> None:
    """And again only after the relay was down for another reason."""
    notes = Notes()
    notes.failed(fault)
    notes.failed(fault, later=DELAY)
    notes.failed(RelayFault("connect", "no"), later=2 * DELAY)
    notes.failed(fault, later=4 * DELAY)
    expected = [
        down("error", stage, 1, DELAY),
        down("info", stage, 2, 2 * DELAY, DELAY),
        down("warning", "connect", 3, 4 * DELAY, 3 * DELAY),
        down("error", stage, 4, 8 * DELAY, 7 * DELAY),
    ]
    assert expected == notes.said


@pytest.mark.parametrize(
    ("reached", "gave_up", "fault", "is_closed"),
    [
        (True, True, None, True),
        (True, True, REFUSED, True),
        (False, False, REFUSED, True),
        (True, False, REFUSED, False),
        (False, False, None, False),
    ],
)
def test_when_a_route_is_down(
    reached: bool,  # noqa: FBT001 - a table
    gave_up: bool,  # noqa: FBT001
    fault: RelayFault | None,
    is_closed: bool,  # noqa: FBT001
) -> None:
    """It gave up, or nobody let us in; noted is only what has a reason."""
    notes = Notes()
    run = notes.run()
    summary = LaneSummary(
        "a", reached=reached, gave_up=gave_up, fault=fault, connections=1, too_fast=False
    )
    reasons = {"a": REFUSED.text} if is_closed and fault else {}
    assert reasons == run.note([summary])
    assert ({"a"} if is_closed else set()) == run.closed
    assert reasons.keys() == notes.outages.keys()
    assert list(reasons) == notes.changed, "and nothing is locked for one that nobody has noted"


def test_an_outage_that_is_over_meanwhile_is_a_new_one() -> None:
    """Another run found the relay up between our look and our probe."""
    notes = Notes()
    notes.failed(REFUSED)
    notes.now += DELAY
    run = notes.run()
    notes.outages.clear()
    assert {"a"} == run.probe(["a"]).keys()
    assert {} == notes.outages
    run.note([ended("a", REFUSED)])
    assert 1 == notes.outages["a"].failures


def test_the_probe_tells_what_was_noted_last() -> None:
    """What a run knows of a route is what stands there after its announcement."""
    notes = Notes()
    notes.failed(REFUSED)
    notes.now += DELAY
    run = notes.run()
    notes.outages["a"] = breaker.failed(notes.outages["a"], now=NOW, stage="x", reason="y")
    notes.now += DELAY
    run.probe(["a"])
    assert 2 * breaker.LONGEST_DELAY_SECONDS == run.tried_seconds("a")
    assert (True, False) == (run.knows("a"), run.knows("b"))
    assert 0 == run.tried_seconds("b")


def test_a_route_that_another_run_has_noted_is_forgotten_too() -> None:
    """It serves us, so what was noted since we began is over."""
    notes = Notes()
    run = notes.run()
    notes.failed(REFUSED)
    run.note([ended("a")])
    assert {} == notes.outages
    assert "! relay_up info: relay='a' down_seconds=0" == notes.said[-1]


def test_trouble_with_the_notes_stops_no_run() -> None:
    """It is logged; the run goes by what it knows itself."""
    notes = Notes()
    run = notes.run()
    notes.trouble = SpoolError("write", "relay-down", OSError(28, "No space left on device"))
    trouble = f"! error error: error={str(notes.trouble)!r}"
    assert {"a": "no"} == run.note([ended("a", RelayFault("connect", "no"))])
    assert [trouble, down("warning", "connect", 1, DELAY)] == notes.said
    assert {"a"} == run.closed
    notes.said.clear()
    notes.now += 1
    assert {"a"} == run.probe(["a"]).keys()
    assert {"a"} == run.closed, "as before"
    run.note([ended("a")])
    assert [trouble, trouble, "! relay_up info: relay='a' down_seconds=1"] == notes.said
    assert not run.knows("a")
