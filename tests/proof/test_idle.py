"""The note of an idle run: no change hides behind it, and mail is never late, whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from attrs import define
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from picoqmail.admin.change import Admin
from picoqmail.layout import CUR, HELD_UNTIL, IDLE
from picoqmail.spool import idle, scan
from picoqmail.store.directory import DirectoryStore
from proof import idling
from proof.steps import DIED, start
from rig.programs import find, missing
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60
_MEMORY = "/dev/shm"


def test_no_change_hides_here(tmp_path: Path) -> None:
    """On the file system of the tests: every change behind a note makes it void."""
    report = idling.race(str(tmp_path / "race"), SECONDS)
    assert [] == report.breaches
    assert report.void > 20


def test_no_change_hides_where_time_has_long_steps(tmp_path: Path) -> None:
    """Where two changes have the same time, if one comes some milliseconds behind the other."""
    where = str(tmp_path / "ramfs")
    if reason := idling.why_not(where):
        missing(reason)
    with idling.long_steps(where):
        report = idling.race(f"{where}/race", SECONDS)
    assert [] == report.breaches
    assert report.void > 20


@define
class Planned:
    """What the model knows of a message: when it is due, and whether it is held."""

    due: int
    held: bool = False


class IdleMachine(RuleBasedStateMachine):
    """Changes, clocks, copies and deaths around idle runs; every due message is seen at once.

    The clock of the runs is ahead of that of the file system by `self.ahead` seconds. It never
    falls behind: there the look itself believes no time (scan.py).
    """

    def __init__(self) -> None:
        """Start with an empty home."""
        super().__init__()
        # In memory if there is some: no sync is on trial here.
        self.base = tempfile.mkdtemp(dir=_MEMORY if os.path.isdir(_MEMORY) else None)
        self.home = TemporaryHome(f"{self.base}/home").make("proof.test", "127.0.0.1:9")
        self.ahead = 60.0
        self.known: dict[str, Planned] = {}
        self.copies = 0

    @property
    def now(self) -> float:
        """The time of the runs."""
        return time.time() + self.ahead

    def teardown(self) -> None:
        """Remove the home."""
        shutil.rmtree(self.base)

    @initialize(count=st.integers(0, 3))
    def begin(self, count: int) -> None:
        """Begin with some messages."""
        for _ in range(count):
            self.defer(1800)

    @rule(seconds=st.sampled_from([1, 30, 90, 400, 500, 1800, 7200]))
    def defer(self, seconds: int) -> None:
        """Put off a message, as delivery does: by a rename."""
        message_id = self.home.accepted()
        due = int(self.now) + seconds
        store = DirectoryStore(self.home.spool, clock=lambda: self.now)
        claim = store.claim(message_id)
        assert claim is not None
        store.change(claim, "deferred", "for the trial", next_attempt=due)
        claim.release()
        store.flush()
        self.known[message_id] = Planned(due)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), verb=st.sampled_from(["hold", "release", "retry", "delete"]))
    def administer(self, data: st.DataObject, verb: str) -> None:
        """Apply an administrator's verb."""
        message_id = data.draw(st.sampled_from(sorted(self.known)))
        admin = Admin(DirectoryStore(self.home.spool, clock=lambda: self.now), 100_000)
        getattr(admin, verb)(message_id)
        admin.finish()
        if verb == "delete":
            del self.known[message_id]
            return
        due = int(os.stat(self.home.path(CUR, message_id)).st_mtime)
        held = due == HELD_UNTIL
        assert held == (verb == "hold" or (self.known[message_id].held and verb == "retry"))
        self.known[message_id] = Planned(due, held)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), seconds=st.integers(-100, 3600))
    def correct(self, data: st.DataObject, seconds: int) -> None:
        """Change the time of a sidecar alone, as delivery does now and then."""
        message_id = data.draw(st.sampled_from(sorted(self.known)))
        when = int(self.now) + seconds
        DirectoryStore(self.home.spool).put_off(message_id, when)
        self.known[message_id] = Planned(when)

    @rule(seconds=st.sampled_from([1, 30, 60, 60, 400, 550, 700, 4000, 90_000]))
    def later(self, seconds: int) -> None:
        """Let time pass, or set the clock forward."""
        self.ahead += seconds

    @rule(seconds=st.sampled_from([1, 30, 500, 4000]))
    def earlier(self, seconds: int) -> None:
        """Set the clock back, as far as the file system's at most."""
        self.ahead = max(self.ahead - seconds, 0.0)

    @rule(how=st.sampled_from(["cp -a", "rsync -a", "old note", "old note into the same place"]))
    def copy(self, how: str) -> None:
        """Copy the spool, or put a note of some time before into it."""
        spool = self.home.spool
        self.copies += 1
        aside = f"{self.base}/aside{self.copies}"
        if how.startswith("old note"):
            try:
                shutil.copy2(f"{spool}/{IDLE}", aside)
            except FileNotFoundError:
                return
            self.defer(60)
            self.nothing_is_late()
            if how == "old note":
                os.replace(aside, f"{spool}/{IDLE}")
            else:
                shutil.copyfile(aside, f"{spool}/{IDLE}")
            return
        os.rename(spool, aside)
        if how == "cp -a":
            subprocess.run(["cp", "-a", aside, spool], check=True)
        else:
            subprocess.run([find("rsync", "rsync"), "-a", f"{aside}/", f"{spool}/"], check=True)

    @rule(
        changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=3),
        kept=st.one_of(st.just(1.0), st.floats(0, 1)),
    )
    def damage(self, changes: list[tuple[float, int]], kept: float) -> None:
        """Cut the note, or change some of its octets."""
        path = f"{self.home.spool}/{IDLE}"
        try:
            with open(path, "rb") as file:
                octets = bytearray(file.read())
        except FileNotFoundError:
            return
        for place, octet in changes if octets else ():
            octets[int(place * len(octets))] = octet
        with open(path, "wb") as file:
            file.write(octets[: int(kept * len(octets))])

    @rule(death=st.integers(1, 14))
    def die(self, death: int) -> None:
        """Run cron's look, which dies somewhere."""
        spool, now = self.home.spool, self.now
        code, _ = start(lambda: cron(spool, now), death).wait()
        assert code in (0, DIED)

    @invariant()
    def nothing_is_late(self) -> None:
        """A run of cron after every step finds all that is due, note or no note."""
        now = self.now
        due = {one for one, plan in self.known.items() if not plan.held and plan.due <= now}
        found = cron(self.home.spool, now)
        assert due <= set(found), f"late: {due - set(found)}"


def cron(spool: str, now: float) -> list[str]:
    """Do what a run of cron does with new/ and cur/; return what it found due."""
    if idle.is_idle(spool, now):
        return []
    idling.await_step(spool)
    before = idle.observe(spool)
    sights = [scan.look(spool, state, now) for state in ("new", CUR)]
    due = [one for sight in sights for one in (*sight.due, *sight.sidecars)]
    if not due:
        idle.note_idle(spool, now, before, sights[1].next_due)
    return due


TestIdleMachine = IdleMachine.TestCase
TestIdleMachine.settings = settings(
    max_examples=int(os.environ.get("PROOF_EXAMPLES", "25")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    database=None,
)
