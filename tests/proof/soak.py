"""The soak: a crowd on one spool, and an administrator who does everything that he can, at random.

Programs and his commands are killed at random, and the relay fails at random. Every few minutes
everything stops and is delivered; then all mail is compared by its Message-ID: what was accepted
was delivered, or is stored, or was removed by name. It came twice only if it is marked as in doubt,
or if an old copy of it was restored. The home goes on through all these rounds.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, evolve, field

import installation
from proof import invariant, races
from proof.world import LedgerRelay, Programs, Promise, World, make_body
from rig import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proof.kill_sweep import Stage
    from proof.zygote import Zygote

NAME = "one home, with its administrator"
HEAD = (
    "Home",
    "Seconds of the crowd",
    "Rounds",
    "Programs",
    "Killed",
    "Commands",
    "Restores",
    "Reinstalls",
    "Accepted",
    "Delivered",
    "Stored",
    "Removed",
    "Twice, marked or restored",
    "Breaches",
)
ROUND_SECONDS = 240
_SUBMITTERS = 2
_SENDERS = 2
# No more are listed or changed by one command.
_MOST = 3
_READ_OCTETS = 20000
_MAYBE_NEVER = tuple(f"never{number}@there.test" for number in range(20))
# The exit codes of an administrator's command: done; not possible for some; busy or deferred.
_STATUSES = frozenset({0, 65, 66, 75})
_CHECK_STATUSES = frozenset({0, 1, 2, 3})
_JUMPS = (0.0, 0.0, 0.0, 300000.0, -300000.0)


@define
class SoakReport:
    """The figures of a soak, and all breaches."""

    seconds: float = 0
    rounds: int = 0
    programs: int = 0
    killed: int = 0
    commands: Counter[str] = field(factory=Counter)
    restores: int = 0
    reinstalls: int = 0
    accepted: int = 0
    delivered: int = 0
    stored: int = 0
    removed: int = 0
    duplicates: int = 0
    breaches: list[str] = field(factory=list)

    def row(self) -> list[str]:
        """Return the row of the page's table."""
        commands = sum(self.commands.values())
        figures = (self.rounds, self.programs, self.killed, commands, self.restores)
        mails = self.accepted, self.delivered, self.stored, self.removed, self.duplicates
        cells = NAME, f"{self.seconds:.0f}", *figures, self.reinstalls, *mails, len(self.breaches)
        return [str(cell) for cell in cells]


@define
class Gate:
    """Many may pass at once; while it is `shut`, nobody is inside."""

    _inside: int = 0
    _is_shut: bool = False
    _changed: threading.Condition = field(factory=threading.Condition)

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        """Be inside for a while."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Wait until nobody is inside, and let nobody in for a while."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._is_shut = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._is_shut = False
                self._changed.notify_all()


@define
class Soaking(races.Crowd):
    """A crowd whose programs may be replaced at any time, and stop while a copy is restored."""

    gate: Gate = field(factory=Gate)

    def command(self, name: str) -> list[str]:
        """Run a program by env, which ends with 127 while the package is being replaced."""
        return ["env", *self.world.programs.command(name)]

    def submit(self) -> None:
        """Submit messages, one after another; some have a recipient that may be refused."""
        while time.monotonic() < self.until:
            with self._lock:
                promise = self._next()
                number = len(self.promises)
                self.promises.append(promise)
            status = self.run("queue", promise, kill_one_in=6)
            with self._lock:
                self.promises[number] = evolve(promise, accepted=status == 0)
                with open(f"{self.world.root}/submitted", "a", encoding="utf-8") as file:
                    file.write(f"{time.time():.3f} {promise.token} exit {status}\n")

    def _next(self) -> Promise:
        token = f"{self.world.name}-{time.time_ns()}"
        recipients = [f"to{len(self.promises)}@there.test"]
        if not self.chance.randrange(4):
            recipients = [self.chance.choice(_MAYBE_NEVER), *recipients][
                : self.chance.choice((1, 2))
            ]
        body = make_body(token, self.chance.choice((0, 0, 5000, 30000)))
        return Promise(
            token,
            f"from{token}@here.test",
            tuple(recipients),
            f"Message-ID: <{token}@soak.test>\n".encode() + body,
            accepted=False,
        )

    def run(self, name: str, promise: Promise | None, *, kill_one_in: int) -> int:
        """Run a program, or kill it at random; return its exit code."""
        with self.gate.passed():
            return super().run(name, promise, kill_one_in=kill_one_in)


@define
class Administrator:
    """Does one thing after the other, at random, and remembers what that permits."""

    crowd: Soaking
    report: SoakReport
    zygote: Zygote
    install: Callable[[], None]
    removed: set[str] = field(factory=set)
    """Tokens of the messages that he removed by name, or tried to."""
    unreported: set[str] = field(factory=set)
    """Tokens of the messages whose report he removed, or tried to."""
    renewed: set[str] = field(factory=set)
    """Tokens of the messages that he requeued, which may fail again."""
    restored: set[str] = field(factory=set)
    """Tokens of the messages of which he restored an old copy."""
    _copied: set[str] = field(factory=set)
    _installs: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    def work(self) -> None:
        """Do things until the time of the crowd is over."""
        verbs = ["hold"] * 3 + ["release"] * 4 + ["retry"] * 3 + ["requeue"] * 3 + ["delete"] * 2
        verbs += ["purge", "check", "check", "copy", "restore", "reinstall"]
        while time.monotonic() < self.crowd.until:
            verb = verbs[self.crowd.choose(len(verbs))]
            action = {
                "purge": self._purge,
                "check": self._check,
                "copy": self._copy,
                "restore": self._restore,
                "reinstall": self._reinstall,
            }.get(verb)
            if action is not None:
                action()
            else:
                self._change(verb)

    # --- Commands ---------------------------------------------------------------------------------

    def _change(self, verb: str) -> None:
        """Apply a verb to some messages, by name."""
        states = {"requeue": ("undelivered",), "release": ("cur",)}
        with self.crowd.gate.passed():
            named = self._some(*states.get(verb, ("new", "cur")))
            if not named:
                return
            tokens = {name: self._token(name) for name in named}
            if verb == "delete":
                self._note_removed(tokens)
            if verb == "requeue":
                with self._lock:
                    self.renewed |= {token for token, _ in tokens.values()}
            later = ["--later"] if verb == "retry" and self.crowd.choose(2) else []
            self._command([verb, *later, "--json", *named], _STATUSES)

    def _purge(self) -> None:
        """Purge one message: by its sender, which no other message has."""
        with self.crowd.gate.passed():
            for name in self._some("undelivered")[:1]:
                token, is_report = self._token(name)
                if token and not is_report:
                    self._note_removed({name: (token, False)})
                    words = ["purge", "--older-than", "0", "--sender", f"from{token}@here.test"]
                    self._command([*words, "--yes", "--json"], _STATUSES)

    def _check(self) -> None:
        with self.crowd.gate.passed():
            words = ["check", "--repair", "--no-relay", "--json"]
            self._command(words + ["--deep"] * self.crowd.choose(2), _CHECK_STATUSES)

    def _command(self, words: list[str], statuses: frozenset[int]) -> None:
        """Run a command, or kill it at random; check its exit code unless it was disturbed."""
        before = self._installs
        started = subprocess.Popen(
            [*self.crowd.command(""), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.crowd.world.variables(),
            cwd="/",
        )
        if not self.crowd.choose(4):
            try:
                # A limit on the run, not a wait for an event: most points of the run are reached.
                started.wait(0.001 * self.crowd.choose(800))
            except subprocess.TimeoutExpired:
                started.send_signal(signal.SIGKILL)
        _, said = started.communicate(timeout=120)
        status = started.returncode
        with self._lock:
            self._note(f"{' '.join(words)}: exit {status}")
            self.report.commands[words[0]] += 1
            self.report.killed += status == -signal.SIGKILL
            # An odd number: the package is being replaced.
            disturbed = before % 2 or self._installs != before
            if status not in statuses and status != -signal.SIGKILL and not disturbed:
                text = said.decode(errors="replace")[-500:]
                self.report.breaches.append(f"picoqmail {' '.join(words)}: exit {status}: {text}")

    def _note(self, what: str) -> None:
        """Write into the home what was done, for whoever has to explain a breach."""
        with open(f"{self.crowd.world.root}/administrator", "a", encoding="utf-8") as file:
            file.write(f"{time.time():.3f} {what}\n")

    # --- Messages by name -------------------------------------------------------------------------

    def _some(self, *states: str) -> list[str]:
        """Return the IDs of some messages."""
        found = [os.path.basename(one)[:-5] for one in self.crowd.world.sidecars(*states)]
        count = min(len(found), 1 + self.crowd.choose(_MOST))
        return [found[self.crowd.choose(len(found))] for _ in range(count)]

    def _token(self, message_id: str) -> tuple[str, bool]:
        """Return the token of a message, and whether it is a report on the message of this token.

        A message that has just been delivered has none any more.
        """
        for state in ("new", "cur", "undelivered"):
            try:
                with open(f"{self.crowd.world.spool}/{state}/{message_id}.eml", "rb") as file:
                    content = file.read(_READ_OCTETS)
            except FileNotFoundError:
                continue
            is_report = b"\nAuto-Submitted: auto-replied\n" in content
            return invariant.token_of(content), is_report
        return "", False

    def _note_removed(self, tokens: dict[str, tuple[str, bool]]) -> None:
        with self._lock:
            for token, is_report in tokens.values():
                (self.unreported if is_report else self.removed).add(token)

    # --- Copies and installations -----------------------------------------------------------------

    def _copy(self) -> None:
        """Copy the spool while nothing is at work, as a snapshot is."""
        with self.crowd.gate.shut():
            self._copy_now()

    def _copy_now(self) -> None:
        world = self.crowd.world
        world.await_everybody()
        found = {self._token(os.path.basename(one)[:-5])[0] for one in world.sidecars(*_STATES)}
        for state in _STATES:
            source, target = f"{world.spool}/{state}/", f"{world.root}.copy/{state}/"
            os.makedirs(target, exist_ok=True)
            subprocess.run(["rsync", "-a", "--delete", source, target], check=True)
        self._copied = found

    def _restore(self) -> None:
        """Restore the copy over the spool, while nothing is at work (docs/operations.md)."""
        world = self.crowd.world
        with self.crowd.gate.shut():
            if not self._copied:
                self._copy_now()
                return
            world.await_everybody()
            with self._lock:
                self.restored |= self._copied
            for state in _STATES:
                source, target = f"{world.root}.copy/{state}/", f"{world.spool}/{state}/"
                subprocess.run(["rsync", "-a", source, target], check=True)
            self.report.restores += 1
            self._note("restored")

    def _reinstall(self) -> None:
        """Replace the files of the package, while programs start and run; one at a time."""
        with self._lock:
            if self._installs % 2:
                return
            self._installs += 1
            self._note("the package is being replaced")
        try:
            self.install()
            self.report.reinstalls += 1
        finally:
            with self._lock:
                self._installs += 1
                self._note("the package was replaced")


_STATES = ("new", "cur", "undelivered")


def soak(
    stage: Stage,
    *,
    seconds: float,
    seed: int = 0,
    announce: Callable[[int], None] = lambda _total: None,
    step: Callable[[], None] = lambda: None,
) -> SoakReport:
    """Run crowd and administrator for so long, in rounds; recover and compare after each."""
    report = SoakReport()
    announce(max(1, round(seconds / ROUND_SECONDS)))
    wheel = installation.build_wheel(stage.root)
    environment = installation.make_environment(f"{stage.root}/environment")
    installation.share_dependencies(environment.python)
    installation.install(wheel, environment.python)

    def install() -> None:
        installation.install(wheel, environment.python, "--force-reinstall")

    chance = random.Random(seed)  # noqa: S311 - a seeded choice
    troubles = races.moods(random.Random(seed + 1))  # noqa: S311 - the same
    for address in _MAYBE_NEVER:
        troubles[f"RCPT <{address}>"] = _mostly(chance, faults.reply("550 5.1.1 never"))
    with LedgerRelay(troubles) as relay:
        programs = Programs(bin=environment.bin)
        world = World.begin(stage.path(), relay.address, programs)
        os.chmod(world.spool, 0o700)
        world.setting("timeoutremote", "20")
        while report.seconds < seconds and not report.breaches:
            lasting = min(ROUND_SECONDS, seconds - report.seconds)
            world.relay(relay.address)
            _round(stage, world, relay, report, chance, install, lasting)
            if report.breaches:
                kept = tempfile.mkdtemp(prefix="picoqmail-soak-")
                shutil.copytree(world.root, f"{kept}/home", symlinks=True)
                report.breaches.append(f"the home is kept in {kept}/home")
            report.seconds += lasting
            report.rounds += 1
            step()
    return report


def _mostly(chance: random.Random, fault: faults.Fault) -> faults.Fault:
    """Show this fault three times out of four."""

    def act(line: faults.Line, ordinary: bytes) -> bool:
        if chance.randrange(4):
            return fault(line, ordinary)
        line.send(ordinary)
        return True

    return act


def _round(
    stage: Stage,
    world: World,
    relay: LedgerRelay,
    report: SoakReport,
    chance: random.Random,
    install: Callable[[], None],
    seconds: float,
) -> None:
    """Let crowd and administrator work for a while, then recover, compare, and empty the spool."""
    told = races.RaceReport()
    until = time.monotonic() + seconds
    crowd = Soaking(world, until, chance, namespaces=False, report=told)
    zygote = stage.zygotes[0]
    administrator = Administrator(crowd, report, zygote, install)
    tasks = [crowd.submit] * _SUBMITTERS + [crowd.deliver] * _SENDERS + [administrator.work] * 2
    failures: list[BaseException] = []
    threads = [threading.Thread(target=_guarded, args=(one, failures)) for one in tasks]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        with crowd.gate.passed():
            jump = _JUMPS[crowd.choose(len(_JUMPS))]
            status, said = zygote.run(world.root, "cron", offset=jump)
        if status or said:
            report.breaches.append(f"cron, {jump} s off: exit {status}: {said[-500:]}")
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    world.await_everybody()
    arrived = relay.ledger.of(world.name)
    world.promises = crowd.promises
    _settle(stage, world, report)
    finding = invariant.judge(
        world,
        arrived + stage.good.ledger.of(world.name),
        may_fail=_MAYBE_NEVER,
        may_vanish=administrator.removed,
        may_repeat=administrator.restored,
        may_fail_again=administrator.restored | administrator.renewed,
        unreported=administrator.unreported,
        requeued=True,
    )
    report.programs += told.programs
    report.killed += told.killed
    report.accepted += sum(one.accepted for one in world.promises)
    report.delivered += finding.delivered
    report.stored += len(world.sidecars("undelivered"))
    report.removed += len(administrator.removed)
    report.duplicates += finding.duplicates
    report.breaches += finding.breaches
    if not report.breaches:
        _empty(stage, world, relay, report)


def _guarded(task: Callable[[], None], failures: list[BaseException]) -> None:
    try:
        task()
    except BaseException as exc:  # noqa: BLE001 - raised in the main thread
        failures.append(exc)


def _settle(stage: Stage, world: World, report: SoakReport) -> None:
    """Release what is held, and run cron with a good relay until nothing waits."""
    world.relay(stage.good.address)
    _administer(world, report, "release", "--state", "held", "--yes")
    _administer(world, report, "retry", "--all", "--later")
    # Messages that a run half a week ahead deferred are due by then.
    for offset in (*range(0, 12 * 3600, 3600), 4 * 86400, 5 * 86400):
        status, said = stage.zygotes[0].run(world.root, "cron", offset=offset)
        if status or said:
            report.breaches.append(f"cron in the end: exit {status}: {said[-500:]}")
        if offset and not world.sidecars("new", "cur") and not world.reports():
            break


def _empty(stage: Stage, world: World, relay: LedgerRelay, report: SoakReport) -> None:
    """Remove what failed, and sweep; nothing may be left. Forget the mail of this round."""
    _administer(world, report, "delete", "--state", "undelivered", "--yes")
    # Leftovers are old by then.
    stage.zygotes[0].run(world.root, "cron", offset=5 * 86400)
    left = [f"{one}/{name}" for one in ("tmp", *_STATES) for name in world.names(one)]
    if left:
        report.breaches.append(f"left after all: {left[:10]}")
    world.promises = []
    for name in ("events", "submitted", "administrator"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{world.root}/{name}")
    for one in (relay, stage.good):
        one.ledger.forget(world.name)
        # A relay of the rig keeps every octet.
        one.commands.clear()
        one.wire.clear()
        one.reads.clear()


def _administer(world: World, report: SoakReport, *words: str) -> None:
    ran = world.run([*world.programs.command(""), *words])
    if ran.returncode not in (0, 65):
        said = ran.stderr.decode(errors="replace")[-500:]
        report.breaches.append(f"picoqmail {' '.join(words)}: exit {ran.returncode}: {said}")
