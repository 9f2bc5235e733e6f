"""What the programs are made to do while they are struck: a spool prepared, a program, a relay.

The rule of this module: one function a scenario; each prepares a home by ordinary means only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from picoqmail import envelope
from proof.world import World
from rig import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proof.world import Promise
    from proof.zygote import Zygote

LATER = "later@there.test"
NEVER = "never@there.test"
BREAKS = "breaks@there.test"
# What the relay of the struck run does; the one of the recovery takes everything.
MOODY: dict[str, object] = {
    f"RCPT <{LATER}>": faults.reply("451 4.3.0 later"),
    f"RCPT <{NEVER}>": faults.reply("550 5.1.1 never"),
    f"RCPT <{BREAKS}>": faults.drop(),
}


@frozen
class Scenario:
    """One program's run. `prepare` fills the home; `submits` says that the run hands in a mail."""

    name: str
    program: str
    prepare: Callable[[World, Zygote, str], None]
    arguments: tuple[str, ...] = ()
    submits: tuple[str, ...] = ()
    octets: int = 0
    may_fail: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset({0})
    environ: Mapping[str, str] = field(factory=dict)

    def input_of(self, promise: Promise | None) -> tuple[bytes, bytes | None]:
        """Message and envelope for the program's descriptors 0 and 1."""
        if promise is None:
            return b"", None
        if self.program == "queue":
            return promise.body, envelope.encode(promise.sender, promise.recipients)
        return promise.body, None

    def command(self, world: World, promise: Promise | None) -> list[str]:
        """The command line."""
        words = [*world.programs.command(self.program), *self.arguments]
        if promise is not None and self.program == "sendmail":
            words += ["-i", "-f", promise.sender, "--", *promise.recipients]
        if promise is not None and self.program == "inject":
            words += ["-a", "-f", promise.sender, *promise.recipients]
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
    """A spool some time later: two mails in cur/, one of them due, and one in new/."""
    world.accept([LATER])
    world.accept([LATER, "now@there.test"])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    world.accept()


def _many(world: World, _zygote: Zygote, _relay: str) -> None:
    world.accept([f"r{number}@there.test" for number in range(230)])
    world.accept()


SCENARIOS = (
    Scenario("queue", "queue", _empty, submits=("to@there.test", "cc@there.test"), octets=70000),
    Scenario("sendmail", "sendmail", _empty, submits=("to@there.test",), octets=70000),
    Scenario("inject", "inject", _empty, submits=("to@there.test",)),
    Scenario("send", "send", _three_new),
    Scenario(
        "send, some refused",
        "send",
        _mixed_new,
        may_fail=frozenset({NEVER}),
        statuses=frozenset({69, 75}),
    ),
    Scenario("cron", "cron", _deferred),
    Scenario("send, 231 recipients", "send", _many),
)
BY_NAME = {one.name: one for one in SCENARIOS}
