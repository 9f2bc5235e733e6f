"""The breaker: how long to keep away from a relay that failed, in a file that people can read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from picoqmail.delivery import processes
from picoqmail.errors import SpoolError
from picoqmail.layout import BREAKER
from picoqmail.ledger.relay_down import BREAKER_LIMIT_SECONDS, relay_is_down
from picoqmail.ledger.routes import DirectoryRoutes, Outage
from picoqmail.relay import breaker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NOW = 1_700_000_000


@pytest.fixture
def spool(tmp_path: Path) -> str:
    """A spool without messages."""
    os.mkdir(tmp_path / "tmp")
    return str(tmp_path)


def test_the_delay_doubles_up_to_five_minutes() -> None:
    """3, 6, 12 ... 300, 300; since when it is down is kept."""
    outage, delays = None, []
    for _ in range(10):
        outage = breaker.failed(outage, now=NOW, stage="connect", reason="refused")
        delays.append(outage.until - NOW)
    assert [3, 6, 12, 24, 48, 96, 192, 300, 300, 300] == delays
    assert outage is not None
    assert (NOW, 10) == (outage.since, outage.failures)
    later = breaker.failed(outage, now=NOW + 1000, stage="banner", reason="closed")
    assert (NOW, "banner") == (later.since, later.stage)


def test_one_run_looks_and_others_keep_away() -> None:
    """While it does the time is moved on a little; the count of failures is not."""
    outage = breaker.failed(None, now=NOW, stage="connect", reason="refused")
    probing = breaker.probing(outage, now=NOW + 10)
    assert breaker.is_open(probing, NOW + 11)
    assert not breaker.is_open(probing, NOW + 14)
    assert outage.failures == probing.failures


def test_a_time_too_far_off_is_a_jumped_clock() -> None:
    """Then the relay is looked at."""
    outage = Outage(NOW, NOW + 200, 3, "connect", "refused")
    assert breaker.is_open(outage, NOW)
    assert not breaker.is_open(outage, NOW - 7200)
    assert breaker.is_open(outage, outage.until - BREAKER_LIMIT_SECONDS)
    assert not breaker.is_open(outage, outage.until - BREAKER_LIMIT_SECONDS - 1)
    assert not breaker.is_open(outage, NOW + 200)
    assert not breaker.is_open(None, NOW)


def note(spool: str, outages: Mapping[str, Outage | None], names: list[str]) -> None:
    """Note that these routes are down, or up (None); `names` are all that there are."""
    routes = DirectoryRoutes(spool, names)
    for name, outage in outages.items():
        assert outage == routes.change(name, lambda _, outage=outage: outage)  # type: ignore[misc]


def test_what_is_written_is_read(spool: str) -> None:
    """The file's own time says when to look again, so that nobody need read it for that."""
    outages = {"a": Outage(NOW, NOW + 200, 3, "connect", 'a "reason"\nof ü two lines')}
    note(spool, outages, ["a"])
    assert outages == DirectoryRoutes(spool).read()
    assert relay_is_down(spool, NOW)
    assert not relay_is_down(spool, NOW + 200)
    with open(f"{spool}/{BREAKER}", encoding="utf-8") as file:
        assert "a" in json.load(file)["routes"]
    note(spool, {"a": None}, ["a"])
    assert {} == DirectoryRoutes(spool).read()
    assert [] == os.listdir(f"{spool}/tmp")
    assert not os.path.exists(f"{spool}/{BREAKER}")


def test_mail_for_other_routes_goes_on(spool: str) -> None:
    """Only when every route is down does a run stop at the one stat."""
    one = Outage(NOW, NOW + 200, 1, "connect", "refused")
    two = Outage(NOW, NOW + 100, 1, "connect", "refused")
    note(spool, {"a": one}, ["a", "b"])
    assert not relay_is_down(spool, NOW)
    note(spool, {"b": two}, ["a", "b"])
    assert relay_is_down(spool, NOW)
    # The first of them to be looked at again counts.
    assert not relay_is_down(spool, NOW + 100)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b'{"routes": []}', b'{"routes": {"a": 1}}', b'{"routes": {"a": {}}}',
     b'{"routes": {"a": {"since": "x"}}}', b"\xff", b"[" * 100000,
     b'{"routes": {"a": {"since": 1e999, "until": 1, "failures": 1, "stage": "", "reason": ""}}}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_says_that_nothing_is_down(spool: str, text: bytes) -> None:
    """To look at the relay again is always right."""
    with open(f"{spool}/{BREAKER}", "wb") as file:
        file.write(text)
    assert {} == DirectoryRoutes(spool).read()


def test_trouble_with_the_disk_is_told(spool: str) -> None:
    """It is not taken for a relay that is up."""
    os.mkdir(f"{spool}/{BREAKER}")
    with pytest.raises(SpoolError):
        DirectoryRoutes(spool).read()
    with pytest.raises(SpoolError):
        note(spool, {"a": Outage(NOW, NOW, 1, "", "")}, ["a"])
    os.rmdir(f"{spool}/{BREAKER}")
    os.rmdir(f"{spool}/tmp")
    with pytest.raises(SpoolError, match="write"):
        DirectoryRoutes(spool).change("a", lambda _before: Outage(NOW, NOW, 1, "", ""))


def test_no_process_overwrites_what_another_has_noted(spool: str) -> None:
    """Each changes its own route, and both count the failures of a third one."""

    def fail(own: str) -> str:
        routes = DirectoryRoutes(spool, ["a", "b", "c"])
        for number in range(200):
            routes.change(own, lambda _: Outage(NOW, NOW + number, 1, "connect", "refused"))  # noqa: B023
            routes.change("c", lambda o: breaker.failed(o, now=NOW, stage="banner", reason="421"))
        return "done"

    both = [processes.start_worker(lambda _, own=own: fail(own)) for own in ("a", "b")]  # type: ignore[misc]
    assert ["done", "done"] == [one.wait() for one in both]
    noted = DirectoryRoutes(spool).read()
    assert {"a": 1, "b": 1, "c": 400} == {name: one.failures for name, one in noted.items()}
    assert [] == os.listdir(f"{spool}/tmp")


def test_nothing_is_written_that_is_noted_already(spool: str) -> None:
    """A run that finds a route as it was noted leaves the file alone."""
    note(spool, {"a": Outage(NOW, NOW + 200, 3, "connect", "refused")}, ["a"])
    before = os.stat(f"{spool}/{BREAKER}").st_ino
    DirectoryRoutes(spool, ["a"]).change("a", lambda outage: outage)
    assert before == os.stat(f"{spool}/{BREAKER}").st_ino
