"""The sender's lock: no message waits for cron merely because a sender was just ending."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest
from attrs import define

from picoqmail.delivery.sender import PATIENCE_SECONDS, Sender
from picoqmail.layout import BREAKER, CUR, NEW, SENDER_LOCK
from picoqmail.spool.locks import take_lock
from picoqmail.store.directory import DirectoryStore
from rig import faults
from rig.hostile import HostileRelay
from rig.sink import Sink
from rig.waiting import wait_until
from temporary_home import age
from trial import kill, make_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from installation import Installation
    from trial import Trial

SECONDS = 120
ROUNDS = 1000
# About what accepting and sending one message takes in memory.
LONGEST_SENDING = 0.003
# The race with real programs: more of them where somebody has the time.
RACES = int(os.environ.get("PICOQMAIL_RACES", "60"))


@define
class Removing:
    """Stands where a run stands, with the real spool and locks: a relay that takes everything.

    The race is between look, lock and claim; SMTP would only make it rarer.
    """

    spool: DirectoryStore
    stopped: bool = False
    delivered: int = 0
    look: Callable[[], list[str]] | None = None

    def deliver(self, ids: Iterable[str]) -> set[str]:
        """Remove what can be claimed; returns what another has."""
        busy = set()
        for message_id in ids:
            claim = self.spool.claim(message_id)
            if claim is None:
                busy.add(message_id)
                continue
            self.spool.remove(claim)
            claim.release()
            self.delivered += 1
        self.spool.flush()
        return busy


@pytest.fixture
def quick(installed: Installation) -> Iterator[Trial]:
    """A home in memory, where a sync costs nothing: the race is meant, not the disk."""
    directory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="picoqmail-race-", dir=directory) as root:
        yield make_trial(f"{root}/home", installed)


@pytest.mark.slow
def test_a_thousand_acceptances_against_ending_senders(quick: Trial) -> None:
    """Threads accept and, where they find the lock free, become the sender, as programs do.

    In each round one accepts at any moment of the other's sending; then both have come home, and
    nothing may be left. (One long race would prove little: the next sender would tidy up.)
    """
    path = f"{quick.spool}/{SENDER_LOCK}"
    left: list[str] = []
    runs: list[Removing] = []
    waited: list[int] = []
    gate = threading.Barrier(2, lambda: left.extend(quick.names(NEW)), timeout=60)

    def accept(number: int) -> None:
        luck = random.Random(number)  # noqa: S311 - pauses, not secrets
        for _ in range(ROUNDS):
            until = time.perf_counter() + number * luck.random() * LONGEST_SENDING
            while time.perf_counter() < until:
                pass
            quick.accepted()
            lock = take_lock(path)
            if lock < 0:
                waited.append(number)
            else:
                runs.append(Removing(DirectoryStore(quick.spool)))
                sender = Sender(quick.home, "trial")
                sender._run = runs[-1]  # type: ignore[assignment]
                sender.send_new(lock)
            gate.wait()

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(2)]
    # So that a thread may be interrupted between any two steps, not only where it waits.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    finally:
        sys.setswitchinterval(interval)
    assert not gate.broken
    assert [] == left
    assert 2 * ROUNDS == sum(run.delivered for run in runs)
    # Both kinds of round were there: found taken, found free.
    assert min(len(waited), len(runs) - ROUNDS) > 0


def test_real_programs_against_ending_senders(trial: Trial) -> None:
    """Queue programs at random moments, senders that end as soon as they can: no cron, no rest."""
    with Sink() as sink:
        trial.setting("relayip", sink.address)
        luck = random.Random(1)  # noqa: S311 - pauses, not secrets

        def hand_in() -> None:
            for _ in range(RACES // 2):
                assert 0 == trial.queue(env=trial.sending()).returncode
                time.sleep(luck.random() / 5)

        threads = [threading.Thread(target=hand_in) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        # No cron runs: what no sender takes stays for ever.
        wait_until(lambda: not trial.files(), "the last sender has sent the last mail", SECONDS)
        trial.wait_for_senders()
        assert [] == trial.events("relay_down")
        assert RACES // 2 * 2 == len(sink.wait_for(RACES // 2 * 2))


def test_the_last_look_finds_what_came_while_it_ended(trial: Trial) -> None:
    """The very moment: a message that came after the look and before the lock went."""
    lock = take_lock(f"{trial.spool}/{SENDER_LOCK}")
    sender = Sender(trial.home, "trial")
    run = Removing(DirectoryStore(trial.spool))
    sender._run = run  # type: ignore[assignment]
    trial.accepted()
    looks = 0
    look = sender.look

    def late(state: str) -> object:
        nonlocal looks
        looks += 1
        sight = look(state)
        if looks == 2:
            # Just looked, found nothing; now somebody accepts, and finds the lock taken.
            trial.accepted()
            assert -1 == take_lock(f"{trial.spool}/{SENDER_LOCK}")
        return sight

    sender.look = late  # type: ignore[method-assign, assignment]
    assert not sender.send_new(lock)
    assert (2, []) == (run.delivered, trial.names(NEW))
    assert trial_lock_is_free(trial)


def trial_lock_is_free(trial: Trial) -> bool:
    """Say whether nobody has the sender's lock; only where nobody could want it."""
    lock = take_lock(f"{trial.spool}/{SENDER_LOCK}")
    if lock >= 0:
        os.close(lock)
    return lock >= 0


def test_an_open_breaker_leaves_new_to_cron(trial: Trial) -> None:
    """The sender says that something is left; the lock is let go."""
    with open(f"{trial.spool}/{BREAKER}", "wb"):
        pass
    age(f"{trial.spool}/{BREAKER}", -200)
    trial.accepted()
    sender = Sender(trial.home, "trial")
    run = Removing(DirectoryStore(trial.spool))
    sender._run = run  # type: ignore[assignment]
    assert sender.send_new(take_lock(f"{trial.spool}/{SENDER_LOCK}"))
    assert (0, 1) == (run.delivered, len(trial.ids(NEW)))
    assert trial_lock_is_free(trial)


def test_no_work_imports_nothing(trial: Trial) -> None:
    """Where there is nothing to deliver no run is made."""
    sender = Sender(trial.home, "trial")
    assert not sender.send_new()
    sender.retry()
    assert not sender.has_run


def test_cron_leaves_new_to_a_living_sender(trial: Trial, strict_relay: HostileRelay) -> None:
    """Unless a message has lain there for five minutes: a sender that hangs keeps its lock."""
    trial.setting("relayip", strict_relay.address)
    message_id = trial.accepted()
    lock = take_lock(f"{trial.spool}/{SENDER_LOCK}")
    trial.cron()
    assert [] == strict_relay.messages
    old = f"{int(time.time()) - PATIENCE_SECONDS - 5}.{message_id.partition('.')[2]}"
    record = trial.sidecar(message_id)
    trial.edit(message_id, id=old, created=record["created"] - PATIENCE_SECONDS)
    for suffix in (".eml", ".json"):
        os.rename(trial.path(NEW, message_id, suffix), trial.path(NEW, old, suffix))
    trial.cron()
    assert 1 == len(strict_relay.messages)
    os.close(lock)


@pytest.mark.parametrize("stage", ["EHLO", "RCPT", "DATA"])
def test_a_killed_sender_is_followed_by_cron(
    trial: Trial, rig: Callable[[HostileRelay], HostileRelay], stage: str
) -> None:
    """Killed in the middle, before the final dot: the next cron delivers, once."""
    relay = rig(HostileRelay({stage: [faults.stall()]}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    process = trial.start("send")
    wait_until(lambda: stage in relay.verbs(), f"{stage} is sent", SECONDS)
    kill(process.pid)
    process.wait(SECONDS)
    assert NEW == trial.state(message_id)
    trial.cron()
    assert [] == trial.files()
    assert 1 == len(relay.messages)
    assert [] == trial.events("in_doubt")


def test_killed_in_the_window_of_doubt(
    trial: Trial, rig: Callable[[HostileRelay], HostileRelay]
) -> None:
    """Between the final dot and the reply nobody knows: said in history and log, sent again."""
    relay = rig(HostileRelay({".": [faults.stall()], "RCPT": [None, faults.reply("451 4.3.0 no")]}))
    trial.setting("relayip", relay.address)
    message_id = trial.queued()
    process = trial.start("send")
    wait_until(lambda: b"\r\n.\r\n" in relay.wire.get(1, b""), "the final dot is sent", SECONDS)
    kill(process.pid)
    process.wait(SECONDS)
    assert [] == trial.sidecar(message_id)["history"]
    # The first cron after it finds the mark, and the relay defers: so the history can be seen.
    trial.cron()
    assert CUR == trial.state(message_id)
    assert ["in_doubt", "deferred"] == trial.outcomes(message_id)
    assert [message_id] == [event["id"] for event in trial.events("in_doubt")]
    assert 2 == trial.sidecar(message_id)["attempts"]
    age(trial.path(CUR, message_id), 10)
    trial.edit(message_id, next_attempt=int(time.time()) - 1)
    trial.cron()
    assert [] == trial.files()
    # Once without a reply, once with: at worst twice, never lost.
    assert [None, "250 2.0.0 Kept"] == [message.reply for message in relay.messages]
    (event,) = trial.events("delivered")
    assert event["maybe_duplicate"]
