"""The forwarder killed again and again, the server restarted: none is missing, none comes twice.

Mail is put into the directory of a host, as while its database is away. Cron brings it over, and is
killed: at a statement, or after a moment that is chosen at random. Workers of another host deliver
meanwhile what has arrived.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from attrs import define, field

from proof.shared import Hall, at, kill
from proof.world import World
from rig.statement_line import Strike

if TYPE_CHECKING:
    from collections.abc import Callable

    from proof.shared import House

# More statements than a forwarder makes for what waits as a rule.
_STATEMENTS = 24
_LONGEST_SECONDS = 0.8
_MOST_WAITING = 8
_NOWHERE = "127.0.0.1:1"


@define
class ForwarderReport:
    """The figures, and all breaches."""

    kills: int = 0
    restarts: int = 0
    messages: int = 0
    duplicates: int = 0
    breaches: list[str] = field(factory=list)


def forward_and_kill(
    hall: Hall,
    *,
    kills: int,
    restarts: int,
    seed: int = 1,
    step: Callable[[], None] = lambda: None,
) -> ForwarderReport:
    """Kill the forwarder so often, and restart the hall's own server so often meanwhile."""
    report = ForwarderReport()
    draw = random.Random(seed)  # noqa: S311 - repeatable
    with hall.house() as house:
        # Only the other host delivers, and nobody kills it: whatever comes twice was brought twice.
        house.world.relay(_NOWHERE)
        other = _other_host(house)
        restart_at = set(draw.sample(range(kills), restarts))
        while report.kills < kills:
            while len(house.here.names()) < draw.randrange(1, _MOST_WAITING):
                house.world.accept(octets=draw.choice([0, 0, 300_000]))
            if report.kills in restart_at:
                restart_at.discard(report.kills)
                _restart_meanwhile(house, draw)
                report.restarts += 1
            was_killed = _at_a_statement(house, draw) if draw.random() < 0.6 else _soon(house, draw)
            if was_killed:
                report.kills += 1
                step()
            if draw.random() < 0.4:
                house.expire_leases()
                hall.zygote.run(other.root, "cron")
        report.messages = len(house.world.promises)
        report.breaches = house.finish()
        other.destroy()
        arrived = house.arrivals()
        report.duplicates = sum(count > 1 for count in arrived.values())
        report.breaches += [f"{one} came {n} times" for one, n in arrived.items() if n > 1]
    return report


def _other_host(house: House) -> World:
    """Return the home of another host, with the same name at the relay."""
    world = house.world
    other = World.begin(f"{world.root}-other", house.hall.good.address, world.programs)
    other.setting("me", world.name)
    other.setting("spool", house.url)
    return other


def _at_a_statement(house: House, draw: random.Random) -> bool:
    """Run cron, and kill it before or after a statement; return whether it came that far."""
    line = house.line
    line.was_struck.clear()
    number = len(line.statements) + draw.randrange(1, _STATEMENTS)
    line.strike = Strike(at(number), kill, answered=draw.random() < 0.5)
    status, _ = house.run("cron")
    line.strike = None
    return status == -signal.SIGKILL


def _soon(house: House, draw: random.Random) -> bool:
    """Start cron as users do, and kill it after a moment; return whether it was still at work."""
    world = house.world
    with subprocess.Popen(
        world.programs.command("cron"), env=world.variables(), stderr=subprocess.DEVNULL
    ) as cron:
        # A limit on the run, not a wait for an event.
        time.sleep(draw.random() * _LONGEST_SECONDS)
        cron.kill()
        return cron.wait() == -signal.SIGKILL


def _restart_meanwhile(house: House, draw: random.Random) -> None:
    """Start cron, and restart the server under it: a crash, or in order."""
    world = house.world
    with subprocess.Popen(
        world.programs.command("cron"), env=world.variables(), stderr=subprocess.DEVNULL
    ) as cron:
        time.sleep(draw.random() * _LONGEST_SECONDS)
        house.hall.server.restart(draw.choice([signal.SIGQUIT, signal.SIGINT]))
        cron.wait()
