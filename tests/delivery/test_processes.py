"""A long run shared among processes: all of it delivered once, and no way to end it loses any."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from picoqmail.delivery import processes
from picoqmail.layout import NEW
from rig import faults
from rig.hostile import HostileRelay
from rig.waiting import wait_until
from trial import kill

if TYPE_CHECKING:
    from collections.abc import Callable

    from rig.faults import Line
    from rig.recording import RecordingRelay
    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

pytestmark = pytest.mark.slow

MESSAGES = 2 * processes.MESSAGES_WORTH_A_PROCESS + 10
needs_processors = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a run is shared only where there are two processors"
)


def fill(trial: Trial) -> set[str]:
    """Accept as many as two processes are worth, each for a recipient of its own."""
    return {
        trial.accepted(recipients=[f"b{number}@example.net"]) and f"b{number}@example.net"
        for number in range(MESSAGES)
    }


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The children of a run that are still there."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def slow(rig: Rig, trial: Trial) -> HostileRelay:
    """A relay that needs a moment for each message, reached by four connections."""
    relay = rig(HostileRelay({".": faults.delayed(0.1)}))
    trial.setting("relayip", relay.address)
    trial.setting("concurrencyremote", "4")
    return relay


def shared_run(
    trial: Trial, rig: Rig
) -> tuple[set[str], HostileRelay, subprocess.Popen[bytes], int]:
    """Start a run of several processes, and come back as soon as some mail is delivered.

    Returns the recipients, the relay, the run and its other process.
    """
    wanted = fill(trial)
    relay = slow(rig, trial)
    process = trial.start("send")
    wait_until(lambda: workers(process), "the run is shared")
    wait_until(lambda: len(relay.messages) >= 8, "mail is delivered")
    (worker,) = workers(process)
    return wanted, relay, process, worker


def check_the_books(
    trial: Trial, relay: HostileRelay, next_relay: HostileRelay, wanted: set[str]
) -> None:
    """The next run delivers what is left; what came twice was said to be in doubt."""
    before = relay.messages
    assert MESSAGES - len(before) <= len(trial.ids(NEW)) < MESSAGES
    trial.setting("relayip", next_relay.address)
    assert 0 == trial.send()
    assert [] == trial.ids(NEW)
    came = Counter(one.recipients[0] for one in (*before, *next_relay.messages))
    assert wanted == set(came)
    doubtful = {one["id"] for one in trial.events("in_doubt")}
    assert sum(came.values()) - len(came) <= len(doubtful)


@needs_processors
def test_a_long_run_is_shared(trial: Trial, relay: RecordingRelay) -> None:
    """Everything comes once, by no more connections than the setting allows."""
    trial.setting("relayip", relay.address)
    trial.setting("concurrencyremote", "3")
    wanted = fill(trial)
    process = trial.start("send")
    wait_until(lambda: workers(process), "the run is shared")
    assert 0 == process.wait(120)
    assert [] == trial.files()
    came = Counter(one.recipients[0] for one in relay.messages)
    assert dict.fromkeys(wanted, 1) == dict(came)
    assert 2 <= relay.connections <= 3
    assert MESSAGES == len(trial.events("delivered"))


@needs_processors
def test_a_process_that_dies_costs_nothing_but_time(
    trial: Trial, rig: Rig, strict_relay: HostileRelay
) -> None:
    """The run says so, and the next one delivers what was left."""
    wanted, relay, process, worker = shared_run(trial, rig)
    kill(worker)
    process.send_signal(signal.SIGTERM)
    assert 74 == process.wait(120)
    (error,) = [one["error"] for one in trial.events("error")]
    assert f"a process of this run, {worker}, was killed by signal 9" == error
    check_the_books(trial, relay, strict_relay, wanted)


@needs_processors
def test_a_signal_ends_all_of_the_run(trial: Trial, rig: Rig, strict_relay: HostileRelay) -> None:
    """What is under way is finished and recorded: nothing comes twice."""
    wanted, relay, process, _ = shared_run(trial, rig)
    process.send_signal(signal.SIGTERM)
    assert 75 == process.wait(120)
    assert MESSAGES == len(relay.messages) + len(trial.ids(NEW))
    check_the_books(trial, relay, strict_relay, wanted)
    assert MESSAGES == len(relay.messages) + len(strict_relay.messages)


@needs_processors
def test_no_process_outlives_a_run_that_was_killed(
    trial: Trial, rig: Rig, strict_relay: HostileRelay
) -> None:
    """It finishes what it has under way and ends."""
    wanted, relay, process, worker = shared_run(trial, rig)
    process.kill()
    process.wait(120)
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"), "the other process ends")
    assert len(trial.ids(NEW)) > MESSAGES // 2
    check_the_books(trial, relay, strict_relay, wanted)


@needs_processors
def test_one_outage_is_counted_once(trial: Trial, rig: Rig) -> None:
    """Both processes find the relay down, each before the other has noted it."""
    both = threading.Barrier(2)

    def down(line: Line, _ordinary: bytes) -> bool:
        # A process that came late could take the outage for an old one, and rightly count it anew.
        both.wait(60)
        line.send(b"421 4.3.2 down\r\n")
        return False

    relay = rig(HostileRelay({"banner": [down, down, *[faults.final("421 4.3.2 down")] * 20]}))
    trial.setting("relayip", relay.address)
    fill(trial)
    assert 75 == trial.send()
    assert relay.connections >= 2
    assert {1} == {one["failures"] for one in trial.events("relay_down")}
    assert MESSAGES == len(trial.ids(NEW))


class OneAtATime:
    """A banner of a relay that refuses a connection while it serves another."""

    def __init__(self) -> None:
        self.relay: HostileRelay | None = None
        self.refused = 0
        self._served = 0
        self._lock = threading.Lock()

    def __call__(self, line: Line, ordinary: bytes) -> bool:
        """Greet, or refuse and close."""
        assert self.relay is not None
        with self._lock:
            ended = sum(word.startswith(b"QUIT") for _, word in list(self.relay.commands))
            if self._served > ended:
                self.refused += 1
                line.send(b"421 4.7.0 too many connections\r\n")
                return False
            self._served += 1
        line.send(ordinary)
        return True


@needs_processors
def test_a_relay_may_turn_processes_away(trial: Trial, rig: Rig) -> None:
    """It serves one of them, and so it is not down: that one's run delivers all of it."""
    banner = OneAtATime()
    relay = banner.relay = rig(HostileRelay({"banner": banner}))
    trial.setting("relayip", relay.address)
    wanted = fill(trial)
    assert 0 == trial.send()
    assert [] == trial.files()
    came = Counter(one.recipients[0] for one in relay.messages)
    assert dict.fromkeys(wanted, 1) == dict(came)
    assert banner.refused > 0


ENDS = """
import os, sys
from picoqmail.delivery import processes

def work(is_orphan):
    sys.stderr.write("more than this disk takes")
    return "worked"

with open("/dev/full", "w") as full:
    sys.stderr = full
    try:
        told = processes.start_worker(work).wait()
        os.write(1, f"parent {told}\\n".encode())
    except BaseException as exc:
        os.write(1, f"escaped {exc!r}\\n".encode())
    os._exit(0)
"""


def test_a_process_ends_where_its_work_does(trial: Trial) -> None:
    """Also if what it said cannot be written: it never goes on as a second parent."""
    ran = subprocess.run(
        [trial.installed.python, "-c", ENDS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "parent worked\n" == ran.stdout


def test_a_process_that_just_began_can_be_stopped() -> None:
    """A signal that comes before the new process can look is not lost."""
    # A pipe, for a handler that interrupts threading's locks may wait for them for ever.
    heard, hears = os.pipe()

    def work(_is_orphan: object) -> bool:
        # In short steps, for a signal between the last look of Python and select(2) ends no wait.
        return any(select.select([heard], [], [], 0.1)[0] for _ in range(200))

    before = signal.signal(signal.SIGTERM, lambda *_: os.write(hears, b"."))
    try:
        for _ in range(100):
            worker = processes.start_worker(work)
            worker.stop()
            assert worker.wait()
            assert b"." == os.read(heard, 2)
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(heard)
        os.close(hears)
