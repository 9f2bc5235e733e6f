"""A message that runs die of: others go first, then it waits a while, and the log says so."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import EX_IOERR
from picoqmail.layout import (
    BODY,
    CUR,
    IN_DOUBT_BIT,
    IN_HAND_BIT,
    NEW,
    SIDECAR,
    SUSPECT_BIT,
)
from rig import faults
from rig.hostile import HostileRelay
from temporary_home import age
from trial import PROGRAM_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rig.faults import Fault, Line
    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

KILLER = "killer@example.net"
OTHERS = ["one@example.net", "two@example.net", "three@example.net"]
ASIDE_SECONDS = 3600


class Killer:
    """A fault that kills the program whose message it is, as the kernel does without memory."""

    def __init__(self) -> None:
        self.pid = 0

    def fault(self) -> Fault:
        """Return the fault, for one occurrence."""

        def act(line: Line, _ordinary: bytes) -> bool:
            os.kill(self.pid, signal.SIGKILL)
            line.await_end()
            return False

        return act

    def run(self, trial: Trial, program: str) -> int:
        """Run a program to its end; return its exit code, negative for a signal."""
        with trial.start(program, stderr=subprocess.PIPE) as process:
            self.pid = process.pid
            process.communicate(timeout=PROGRAM_SECONDS)
        return process.returncode


def marks(trial: Trial, message_id: str) -> int:
    """The marks on a body."""
    mode = os.stat(trial.path(trial.state(message_id), message_id, BODY)).st_mode
    return stat.S_IMODE(mode) & (IN_DOUBT_BIT | IN_HAND_BIT | SUSPECT_BIT)


def due_at(trial: Trial, message_id: str) -> float:
    """When runs look at a message of cur/ again."""
    return os.stat(trial.path(CUR, message_id, SIDECAR)).st_mtime


def arrived(relay: HostileRelay) -> list[str]:
    """The recipients of what has arrived, in order."""
    return [one for message in relay.messages for one in message.recipients]


def without_sharing(trial: Trial, relay: HostileRelay) -> None:
    """Have one message at a time on its way, so that a death comes before all behind it."""
    trial.setting("relayip", relay.address)
    trial.setting("concurrencyremote", "1")
    trial.setting("pipelining", "off")


@pytest.mark.parametrize("program", ["send", "cron"])
@pytest.mark.parametrize("step", [f"RCPT <{KILLER}>", f"MAIL <{KILLER}>", "DATA"])
def test_others_go_on(trial: Trial, rig: Rig, program: str, step: str) -> None:
    """The oldest message kills whatever takes it, time and again. All others are delivered."""
    killer = Killer()
    killings: list[Fault | None] = [killer.fault()] * 3
    if step == "DATA":
        # Others are sent by the second and third run, before they try this one again.
        killings = [killings[0], *[None] * len(OTHERS), killings[1], None, killings[2]]
    relay = rig(HostileRelay({step: killings}))
    without_sharing(trial, relay)
    suspect = trial.accepted(KILLER, [KILLER])
    for other in OTHERS:
        trial.accepted(recipients=[other])
    assert -signal.SIGKILL == killer.run(trial, program)
    assert ([], IN_HAND_BIT) == (arrived(relay), marks(trial, suspect))
    assert -signal.SIGKILL == killer.run(trial, program)
    assert (OTHERS, IN_HAND_BIT | SUSPECT_BIT) == (arrived(relay), marks(trial, suspect))
    late = trial.accepted(recipients=["late@example.net"])
    before = time.time()
    assert killer.run(trial, program) in {0, EX_IOERR}
    assert [*OTHERS, "late@example.net"] == arrived(relay)
    assert not os.path.exists(trial.path(NEW, late))
    assert (CUR, SUSPECT_BIT) == (trial.state(suspect), marks(trial, suspect))
    assert [] == trial.ids(NEW)
    assert before + ASIDE_SECONDS - 2 <= due_at(trial, suspect) <= time.time() + ASIDE_SECONDS
    first, second = trial.events("run_died")
    assert (suspect, None) == (first["id"], first.get("next_attempt"))
    assert (suspect, due_at(trial, suspect)) == (second["id"], second["next_attempt"])
    # While it waits, no run touches it.
    tried = relay.verbs().count("MAIL")
    assert 0 == killer.run(trial, "send") == killer.run(trial, "cron")
    assert tried == relay.verbs().count("MAIL")
    # After that hour one death is enough for another hour.
    age(trial.path(CUR, suspect), 1)
    assert -signal.SIGKILL == killer.run(trial, "cron")
    assert 0 == killer.run(trial, "cron")
    assert due_at(trial, suspect) > time.time() + ASIDE_SECONDS - 60
    # What killed it is repaired.
    age(trial.path(CUR, suspect), 1)
    assert 0 == killer.run(trial, "cron")
    assert KILLER == arrived(relay)[-1]
    assert [] == trial.ids(CUR)


def test_an_ordinary_kill_delays_nothing(trial: Trial, rig: Rig) -> None:
    """A run is killed in the middle, once; the next one delivers all, and keeps no mark."""
    killer = Killer()
    relay = rig(HostileRelay({"RCPT <two@example.net>": [killer.fault()]}))
    without_sharing(trial, relay)
    for other in OTHERS:
        trial.accepted(recipients=[other])
    assert -signal.SIGKILL == killer.run(trial, "send")
    assert 0 == killer.run(trial, "send")
    assert sorted(OTHERS) == sorted(arrived(relay))
    assert [] == trial.ids(NEW) + trial.ids(CUR)


def test_one_that_survived_is_no_suspect(trial: Trial, rig: Rig) -> None:
    """A run died, the next one got a reply: a later death is the first again."""
    killer = Killer()
    step = f"RCPT <{KILLER}>"
    later = faults.reply("451 4.3.0 later")
    relay = rig(HostileRelay({step: [killer.fault(), later, killer.fault()]}))
    without_sharing(trial, relay)
    suspect = trial.accepted(KILLER, [KILLER])
    assert -signal.SIGKILL == killer.run(trial, "send")
    killer.run(trial, "send")
    assert 0 == marks(trial, suspect)
    trial.edit(suspect, next_attempt=int(time.time()) - 1)
    assert -signal.SIGKILL == killer.run(trial, "cron")
    assert 0 == killer.run(trial, "cron")
    assert [] == trial.ids(CUR)


def test_one_that_no_relay_saw_stays_a_suspect(trial: Trial) -> None:
    """The relay is down when it is tried again: that says nothing about the message."""
    killer = Killer()
    suspect = trial.accepted(KILLER, [KILLER])
    with HostileRelay({f"RCPT <{KILLER}>": [killer.fault()]}) as relay:
        without_sharing(trial, relay)
        assert -signal.SIGKILL == killer.run(trial, "send")
    killer.run(trial, "send")
    assert (NEW, SUSPECT_BIT) == (trial.state(suspect), marks(trial, suspect))


def test_one_that_no_relay_saw_has_no_mark(trial: Trial, rig: Rig) -> None:
    """A message that was in hand and left as it was, is as it was."""
    relay = rig(HostileRelay({"banner": faults.final("421 4.3.2 not now")}))
    trial.setting("relayip", relay.address)
    message_id = trial.accepted()
    trial.run("send")
    assert (NEW, 0) == (trial.state(message_id), marks(trial, message_id))
    assert [] == trial.events("run_died")


def test_a_forced_attempt_is_made(trial: Trial, rig: Rig) -> None:
    """Who names a message that runs died of twice gets an attempt."""
    killer = Killer()
    relay = rig(HostileRelay({f"RCPT <{KILLER}>": [killer.fault()] * 2}))
    without_sharing(trial, relay)
    suspect = trial.accepted(KILLER, [KILLER])
    assert [-signal.SIGKILL] * 2 == [killer.run(trial, "send") for _ in range(2)]
    assert 0 == trial.send(suspect)
    assert [KILLER] == arrived(relay)


@pytest.mark.slow
def test_too_large_for_the_memory(trial: Trial, rig: Rig) -> None:
    """A process that may have little memory cannot even read one message. The others go on."""
    relay = rig(HostileRelay())
    trial.setting("relayip", relay.address)
    large = trial.accepted(recipients=[f"{n}@d.example" for n in range(300_000)])
    # Laid out in another way, so that it is read as a whole.
    trial.edit(large)
    for other in OTHERS:
        trial.accepted(recipients=[other])
    octets = 100_000_000
    process = trial.start(
        "send",
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (octets, octets)),
    )
    said = process.communicate(timeout=PROGRAM_SECONDS)[1]
    assert (EX_IOERR, b"") == (process.returncode, said)
    assert sorted(OTHERS) == sorted(arrived(relay))
    assert (CUR, [], 0) == (trial.state(large), trial.ids(NEW), marks(trial, large))
    assert due_at(trial, large) > time.time() + ASIDE_SECONDS - 60
    (event,) = trial.events("error")
    assert (large, due_at(trial, large)) == (event["id"], event["next_attempt"])
