"""Races: queue programs, senders and cron runs share one spool, and are killed at random.

The relay fails at random, and the processes die at random. For a while each process is number 1 of
its own PID namespace, as in containers. In the end all accepted mail must have arrived unaltered,
no other mail may have changed, and repeated mail must be marked.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from picoqmail.message import envelope
from proof import invariant
from proof.world import LedgerRelay, Promise, World, make_body
from rig import faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proof.kill_sweep import Stage
    from rig.faults import Fault, Line

_NAMESPACE = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


@define
class RaceReport:
    """The figures of a race, and all breaches."""

    seconds: float = 0
    programs: int = 0
    killed: int = 0
    accepted: int = 0
    refused: int = 0
    delivered: int = 0
    duplicates: int = 0
    sweeps: int = 0
    breaches: list[str] = field(factory=list)


def namespaces_work() -> bool:
    """Say whether processes can get their own PID namespace on this host."""
    try:
        tried = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


def moods(chance: random.Random) -> dict[str, Fault]:
    """Faults that occur now and then, at every step that has one."""

    def sometimes(one_in: int, *these: Fault) -> Fault:
        def act(line: Line, ordinary: bytes) -> bool:
            if chance.randrange(one_in):
                line.send(ordinary)
                return True
            return chance.choice(these)(line, ordinary)

        return act

    gone = faults.drop(), faults.reset(), faults.final("421 4.3.2 bye")
    return {
        "banner": sometimes(12, *gone),
        "EHLO": sometimes(20, *gone),
        "MAIL": sometimes(20, faults.reply("451 4.3.0 later"), *gone),
        "RCPT": sometimes(20, faults.reply("450 4.2.1 later"), *gone),
        "DATA": sometimes(25, faults.reply("451 4.3.0 later"), *gone),
        ".": sometimes(15, faults.reply("451 4.3.0 later"), *gone, faults.closing(b"25")),
    }


@define
class Crowd:
    """Threads that start programs until the time is over."""

    world: World
    until: float
    chance: random.Random
    namespaces: bool
    report: RaceReport
    promises: list[Promise] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    def choose(self, below: int) -> int:
        """Return a random number; safe in threads."""
        with self._lock:
            return self.chance.randrange(below)

    def command(self, name: str) -> list[str]:
        """Run a program, perhaps as process 1 of its own namespace, as in a container."""
        words = self.world.programs.command(name)
        return [*_NAMESPACE, *words] if self.namespaces else words

    def submit(self) -> None:
        """Submit messages, one after another."""
        while time.monotonic() < self.until:
            with self._lock:
                number = len(self.promises)
                octets = self.chance.choice((0, 0, 5000, 90000))
                token = f"race-{number}"
                promise = Promise(
                    token,
                    f"from{number}@here.test",
                    (f"to{number}@there.test",),
                    make_body(token, octets),
                    accepted=False,
                )
                self.promises.append(promise)
            status = self.run("queue", promise, kill_one_in=5)
            with self._lock:
                self.promises[number] = evolve(promise, accepted=status == 0)

    def deliver(self) -> None:
        """Run senders and cron, one after another."""
        while time.monotonic() < self.until:
            self.run(("send", "cron")[self.choose(2)], None, kill_one_in=3)

    def run(self, name: str, promise: Promise | None, *, kill_one_in: int) -> int:
        """Run a program, or kill it at random; return its exit code."""
        message, addresses = b"", b""
        if promise is not None:
            message = promise.body
            addresses = envelope.encode_envelope(promise.sender, promise.recipients)
        first, second = os.memfd_create("message"), os.memfd_create("envelope")
        for descriptor, data in ((first, message), (second, addresses)):
            os.write(descriptor, data)
            os.lseek(descriptor, 0, os.SEEK_SET)
        environ = self.world.variables()
        if self.choose(2):
            # Let it start the sender in the background, as usual.
            del environ["PICOQMAIL_SEND"]
        started = subprocess.Popen(
            self.command(name),
            stdin=first,
            stdout=second if promise else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
            cwd="/",
        )
        os.close(first)
        os.close(second)
        if self.choose(kill_one_in):
            status = started.wait(60)
        else:
            try:
                # A limit on the run, not a wait for an event: most points of the run are reached.
                status = started.wait(0.001 * self.choose(120 if promise else 500))
            except subprocess.TimeoutExpired:
                started.send_signal(signal.SIGKILL)
                status = started.wait(60)
        with self._lock:
            self.report.programs += 1
            self.report.killed += status == -signal.SIGKILL
        return status


def race(
    stage: Stage,
    *,
    seconds: float,
    seed: int = 0,
    namespaces: bool = False,
    submitters: int = 3,
    senders: int = 3,
    jumps: Sequence[float] = (),
) -> RaceReport:
    """Run a crowd for a while, recover the spool, and compare all mail.

    `jumps` are clock offsets (seconds) of further cron runs, which sweep beside the crowd.
    """
    report = RaceReport(seconds=seconds)
    chance = random.Random(seed)  # noqa: S311 - a seeded choice
    with LedgerRelay(moods(random.Random(seed + 1))) as relay:  # noqa: S311 - the same
        world = World.begin(stage.path(), relay.address, stage.programs)
        world.setting("timeoutremote", "20")
        crowd = Crowd(world, time.monotonic() + seconds, chance, namespaces, report)
        threads = [threading.Thread(target=crowd.submit) for _ in range(submitters)]
        threads += [threading.Thread(target=crowd.deliver) for _ in range(senders)]
        for thread in threads:
            thread.start()
        while time.monotonic() < crowd.until:
            for jump in jumps or (0,):
                status, said = stage.zygotes[0].run(world.root, "cron", offset=jump)
                report.sweeps += 1
                if status or said:
                    report.breaches.append(f"cron, {jump} s off: exit {status}: {said[-500:]}")
        for thread in threads:
            thread.join()
        world.await_everybody()
        arrived = relay.ledger.of(world.name)
    world.promises = crowd.promises
    _settle(stage, world, report)
    finding = invariant.judge(world, arrived + stage.received(world))
    report.breaches += finding.breaches
    report.accepted = sum(one.accepted for one in world.promises)
    report.refused = len(world.promises) - report.accepted
    report.delivered, report.duplicates = finding.delivered, finding.duplicates
    return report


def _settle(stage: Stage, world: World, report: RaceReport) -> None:
    """Run cron with a good relay until the spool is empty; then once when leftovers are old."""
    world.relay(stage.good.address)
    # What was in doubt as often as it may be waits for an administrator.
    status, said = stage.zygotes[0].run(world.root, "main", "retry", "--all", "--later")
    if status:
        report.breaches.append(f"picoqmail retry --all --later: exit {status}: {said[-500:]}")
    # Messages that a run half a week ahead deferred are due by then.
    late = 4 * 86400
    for offset in (*range(3600, 12 * 3600, 3600), late):
        stage.zygotes[0].run(world.root, "cron", offset=offset)
        if not world.sidecars("new", "cur"):
            break
    status, said = stage.zygotes[0].run(world.root, "cron", offset=late)
    if status or said:
        report.breaches.append(f"the last cron run: exit {status}: {said[-500:]}")
    left = [
        f"{directory}/{name}"
        for directory in ("tmp", "new", "cur")
        for name in os.listdir(f"{world.spool}/{directory}")
    ]
    if left:
        report.breaches.append(f"left after all: {left[:10]}")
