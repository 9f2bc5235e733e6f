"""The scenarios that are struck: each has a prepared spool, a program and a relay.

The rule of this module: one function for each scenario, which prepares a home by ordinary means.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from picoqmail.message import envelope
from picoqmail.spool.syncfs import LEAST_MESSAGES
from proof import afterwards, invariant, spools
from proof.spools import BREAKS, LATER, NEVER
from rig import faults

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Collection, Mapping, Sequence

    from proof.world import Promise, World
    from proof.zygote import Zygote
    from rig.received import Received

# The faults of the relay in the struck run; the relay of the recovery accepts everything.
MOODY: dict[str, faults.Fault] = {
    f"RCPT <{LATER}>": faults.reply("451 4.3.0 later"),
    f"RCPT <{NEVER}>": faults.reply("550 5.1.1 never"),
    f"RCPT <{BREAKS}>": faults.drop(),
}


@frozen
class Scenario:
    """One program's run. `prepare` fills the home.

    `submits` are the recipients of each of the `messages` that the run submits; none if empty.
    """

    name: str
    program: str
    prepare: Callable[[World, Zygote, str], None]
    arguments: tuple[str, ...] = ()
    submits: tuple[str, ...] = ()
    messages: int = 1
    acceptances: int = 1
    """How many calls of the library accept them."""
    keyed: bool = False
    """Whether every other message has an idempotency key, whose record is made durable, too."""
    octets: int = 0
    may_fail: frozenset[str] = frozenset()
    may_vanish: frozenset[str] = frozenset()
    """Recipients whose message an administrator deletes."""
    requeues: bool = False
    """Whether what failed, and bounced, is given a new life."""
    restores: bool = False
    """Whether an older copy of the spool was restored: what had been delivered comes again."""
    late_seconds: int = 0
    """How far ahead the program's clock is."""
    upholds: Callable[[World, Zygote, str], list[str]] | None = None
    """What its success promises beyond delivery (afterwards.py)."""
    upholds_always: bool = False
    """Whether that is promised after a crash, too."""
    revive: tuple[str, ...] = ()
    """A command of the administrator without which some mail would wait for ever."""
    statuses: frozenset[int] = frozenset({0})
    environ: Mapping[str, str] = field(factory=dict)

    def promises(self, world: World) -> list[Promise]:
        """Return the messages that a run will submit."""
        count = self.messages if self.submits else 0
        return [world.promise(self.submits, self.octets, ahead) for ahead in range(count)]

    def run(
        self,
        world: World,
        promises: Sequence[Promise],
        wrap: Callable[[list[str]], list[str]] = lambda command: command,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the program in a world; `wrap` may put strace before its command line."""
        message, addresses = self._input_of(promises)
        command = wrap(self._command(world, promises))
        return world.run(command, message=message, envelope=addresses, environ=self.environ)

    def told(
        self, promises: Sequence[Promise], ran: subprocess.CompletedProcess[bytes]
    ) -> list[Promise]:
        """Return the messages, with those that the program has accepted."""
        accepted = [ran.returncode == 0] * len(promises)
        if self.program == "many":
            # A program that died before it reported has accepted nothing.
            answers = json.loads(ran.stdout or b"[]")
            accepted = answers if len(answers) == len(promises) else [False] * len(promises)
        added = self.program in ("inject", "sendmail")
        return [
            evolve(one, accepted=yes, fields_added=added)
            for one, yes in zip(promises, accepted, strict=True)
        ]

    def _input_of(self, promises: Sequence[Promise]) -> tuple[bytes, bytes | None]:
        """Return message and envelope for the program's descriptors 0 and 1."""
        if self.program == "many":
            keys = [
                one.token if self.keyed and not number % 2 else None
                for number, one in enumerate(promises)
            ]
            handed = [
                [one.body.decode("latin-1"), one.sender, one.recipients, key]
                for one, key in zip(promises, keys, strict=True)
            ]
            return json.dumps(handed).encode(), None
        if not promises:
            return b"", None
        (promise,) = promises
        if self.program == "queue":
            return promise.body, envelope.encode_envelope(promise.sender, promise.recipients)
        return promise.body, None

    def judge(
        self, world: World, received: list[Received], may_repeat: Collection[str] = ()
    ) -> invariant.Finding:
        """Return the breaches after this run, however it ended."""
        if self.restores:
            may_repeat = {*may_repeat, *(invariant.token_of(one.unix) for one in world.before)}
        return invariant.judge(
            world,
            received,
            may_fail=self.may_fail,
            may_vanish=self.may_vanish,
            may_repeat=may_repeat,
            requeued=self.requeues,
        )

    def recover(self, world: World, zygote: Zygote, relay: str, *, succeeded: bool) -> list[str]:
        """Recover the spool after this run; return complaints, and promises that were broken.

        `succeeded`: the program reported success.
        """
        found = []
        if self.upholds and (succeeded or self.upholds_always):
            found += self.upholds(world, zygote, relay)
        if self.revive:
            status, said = zygote.run(world.root, "main", *self.revive)
            if status:
                found.append(f"{self.revive}: exit {status}: {said}")
        return found + world.recover(zygote, relay)

    def _command(self, world: World, promises: Sequence[Promise]) -> list[str]:
        """Return the command line."""
        words = world.programs.command(self.program, self.late_seconds)
        words += [one.replace("HOME", world.root) for one in self.arguments]
        if promises and self.program == "sendmail":
            words += ["-i", "-f", promises[0].sender, "--", *promises[0].recipients]
        if promises and self.program == "inject":
            words += ["-a", "-f", promises[0].sender, *promises[0].recipients]
        return words


def _empty(_world: World, _zygote: Zygote, _relay: str) -> None:
    """Leave the spool as it is."""


def _three_new(world: World, _zygote: Zygote, _relay: str) -> None:
    world.accept()
    world.accept(["a@there.test", "b@there.test"])
    world.accept()


def _mixed_new(world: World, _zygote: Zygote, _relay: str) -> None:
    world.accept()
    world.accept([LATER, "now@there.test"])
    world.accept([NEVER])
    world.accept()


def _deferred(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare a spool some time later: two mails in cur/, one of them due, and one in new/."""
    world.accept([LATER])
    world.accept([LATER, "now@there.test"])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    world.accept()


def _failed(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare two mails in undelivered/, both reported, and one that waits."""
    world.accept([NEVER])
    world.accept(["now@there.test", NEVER])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    zygote.run(world.root, "cron", offset=-3600)
    world.accept()


def _many(world: World, _zygote: Zygote, _relay: str) -> None:
    world.accept([f"r{number}@there.test" for number in range(230)])
    world.accept()


def _dropped(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare three mails in the drop, as users of a shared home leave them, and one in new/."""
    uid = os.getuid()
    part = f"{world.spool}/drop/{uid}"
    for name in ("tmp", "new"):
        os.makedirs(f"{part}/{name}", 0o700)
    for _ in range(3):
        accepted = world.accept()
        for suffix in (".eml", ".json"):
            os.rename(f"{world.spool}/new/{accepted}{suffix}", f"{part}/new/{accepted}{suffix}")
    world.accept()


SCENARIOS = (
    Scenario("queue", "queue", _empty, submits=("to@there.test", "cc@there.test"), octets=70000),
    Scenario("sendmail", "sendmail", _empty, submits=("to@there.test",), octets=70000),
    Scenario("inject", "inject", _empty, submits=("to@there.test",)),
    Scenario(
        "enqueue_many",
        "many",
        _empty,
        submits=("to@there.test",),
        messages=LEAST_MESSAGES,
        octets=5000,
    ),
    Scenario(
        "enqueue_many, with keys",
        "many",
        _empty,
        submits=("to@there.test",),
        messages=LEAST_MESSAGES,
        keyed=True,
    ),
    Scenario(
        "enqueue_many, few", "many", _empty, submits=("to@there.test",), messages=3, keyed=True
    ),
    Scenario("send", "send", _three_new),
    Scenario(
        "send, some refused",
        "send",
        _mixed_new,
        may_fail=frozenset({NEVER}),
        statuses=frozenset({69, 75}),
    ),
    Scenario("cron", "cron", _deferred),
    Scenario("send, from the drop", "send", _dropped),
    Scenario("cron, from the drop", "cron", _dropped),
    Scenario(
        "requeue",
        "",
        _failed,
        ("requeue", "--state", "undelivered", "--yes"),
        may_fail=frozenset({NEVER}),
        requeues=True,
        upholds=afterwards.all_is_due,
    ),
    Scenario(
        "delete",
        "",
        _failed,
        ("delete", "--state", "undelivered", "--yes"),
        may_fail=frozenset({NEVER}),
        may_vanish=frozenset({NEVER}),
        requeues=True,
        upholds=afterwards.nothing_failed_is_left,
    ),
    Scenario(
        "queue, starting the sender",
        "queue",
        _empty,
        submits=("to@there.test",),
        environ={"PICOQMAIL_SEND": "on"},
    ),
    Scenario(
        "sendmail, starting the sender",
        "sendmail",
        _empty,
        submits=("to@there.test",),
        environ={"PICOQMAIL_SEND": "on"},
    ),
    Scenario("send, 231 recipients", "send", _many),
    Scenario(
        "prepare and commit",
        "many",
        _empty,
        ("--prepared",),
        submits=("to@there.test",),
        messages=4,
        acceptances=2,
        keyed=True,
    ),
    Scenario(
        "send, one breaks the relay",
        "send",
        spools.one_breaks,
        statuses=frozenset({75}),
        upholds=afterwards.all_was_tried,
    ),
    Scenario(
        "send, after runs that died",
        "send",
        spools.after_deaths,
        statuses=frozenset({74}),
        upholds=afterwards.all_was_tried,
    ),
    Scenario(
        "send, too many failures to report",
        "send",
        spools.a_storm,
        may_fail=frozenset({NEVER}),
        statuses=frozenset({69}),
    ),
    Scenario("cron, a digest is due", "cron", spools.a_storm_ago, may_fail=frozenset({NEVER})),
    Scenario("cron, after a crash", "cron", spools.after_a_crash, may_fail=frozenset({NEVER})),
    Scenario(
        "cron, after a restore",
        "cron",
        spools.restored,
        may_fail=frozenset({NEVER}),
        restores=True,
    ),
    Scenario(
        "cron, old failures",
        "cron",
        spools.all_failed,
        may_fail=frozenset({NEVER}),
        may_vanish=frozenset({NEVER}),
        requeues=True,
        late_seconds=spools.LATE_SECONDS,
        upholds=afterwards.nothing_failed_is_left,
    ),
    Scenario(
        "hold",
        "",
        spools.some_new,
        ("hold", "--all", "--yes"),
        upholds=afterwards.all_stay_held,
        revive=("release", "--state", "held", "--yes"),
    ),
    Scenario(
        "release",
        "",
        spools.some_held,
        ("release", "--state", "held", "--yes"),
        upholds=afterwards.all_is_due,
        revive=("release", "--state", "held", "--yes"),
    ),
    Scenario(
        "retry, later",
        "",
        spools.some_waiting,
        ("retry", "--all", "--later"),
        upholds=afterwards.all_is_due,
        revive=("retry", "--all", "--later"),
    ),
    Scenario(
        "retry, now",
        "",
        spools.some_waiting,
        ("retry", "--all"),
        statuses=frozenset({75}),
        revive=("retry", "--all", "--later"),
    ),
    Scenario(
        "purge",
        "",
        spools.all_failed_and_more,
        ("purge", "--older-than", "0", "--yes"),
        may_fail=frozenset({NEVER}),
        may_vanish=frozenset({NEVER}),
        requeues=True,
        upholds=afterwards.nothing_failed_is_left,
    ),
    Scenario(
        "check --repair, after a crash",
        "",
        spools.after_a_crash,
        ("check", "--repair", "--deep", "--no-relay"),
        may_fail=frozenset({NEVER}),
        statuses=frozenset({0, 1, 2, 3}),
    ),
    Scenario(
        "check --repair, after a restore",
        "",
        spools.restored,
        ("check", "--repair", "--deep", "--no-relay"),
        may_fail=frozenset({NEVER}),
        restores=True,
        statuses=frozenset({0, 1, 2, 3}),
    ),
    Scenario(
        "import-config",
        "",
        spools.another_mailer,
        ("import-config", "nullmailer", "HOME/nullmailer"),
        upholds=afterwards.settings_are_there,
        upholds_always=True,
    ),
)
BY_NAME = {one.name: one for one in SCENARIOS}
