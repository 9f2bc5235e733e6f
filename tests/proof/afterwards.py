"""What the success of a program promises, beyond that no mail is lost: one function for each.

The rule of this module: each function is called after a program reported success, and perhaps the
power failed then; it returns the breaches. It may run programs, and knows nothing of the fault.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from proof.spools import IMPORTED
from proof.world import read_sidecar

if TYPE_CHECKING:
    from proof.world import World
    from proof.zygote import Zygote


def all_stay_held(world: World, zygote: Zygote, relay: str) -> list[str]:
    """What is held is in the spool, and cron does not send it."""
    before = world.sidecars("new", "cur")
    _cron(world, zygote, relay)
    left = world.sidecars("new", "cur")
    if before != left or not all(read_sidecar(path)["held"] for path in left):
        return [f"held, and not kept: {_names(before)} became {_names(left)}"]
    if len(left) < len(world.promises):
        return [f"held, and gone: {len(left)} of {len(world.promises)} are in the spool"]
    return []


def all_is_due(world: World, zygote: Zygote, relay: str) -> list[str]:
    """The next run of cron sends everything."""
    _cron(world, zygote, relay)
    left = _names(world.sidecars("new", "cur", "undelivered"))
    return [f"due, and not sent by the next run of cron: {left}"] if left else []


def nothing_failed_is_left(world: World, _zygote: Zygote, _relay: str) -> list[str]:
    """What was deleted does not come back."""
    left = _names(world.sidecars("undelivered"))
    return [f"deleted, and still there: {left}"] if left else []


def all_was_tried(world: World, _zygote: Zygote, _relay: str) -> list[str]:
    """No mail waits for its first attempt because of another one."""
    left = _names(world.sidecars("new"))
    return [f"not tried, because of another mail: {left}"] if left else []


def settings_are_there(world: World, zygote: Zygote, _relay: str) -> list[str]:
    """Each setting is whole or missing; another run of the command completes them."""
    found = [
        f"half a setting: {name}: {text!r}"
        for name, text in _imported(world).items()
        if text not in (IMPORTED[name], None)
    ]
    words = "import-config", "nullmailer", f"{world.root}/nullmailer"
    status, said = zygote.run(world.root, "main", *words)
    if status or _imported(world) != IMPORTED:
        found.append(f"imported again: exit {status}: {said}; {_imported(world)}")
    mode = stat.S_IMODE(os.stat(f"{world.root}/control/relaypass").st_mode)
    return found + ([f"relaypass has mode {mode:04o}"] if mode & 0o077 else [])


def _imported(world: World) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in IMPORTED:
        try:
            with open(f"{world.root}/control/{name}", encoding="utf-8") as file:
                found[name] = file.read()
        except FileNotFoundError:
            found[name] = None
    return found


def _cron(world: World, zygote: Zygote, relay: str) -> None:
    world.relay(relay)
    zygote.run(world.root, "cron")


def _names(paths: list[str]) -> list[str]:
    return ["/".join(path.split("/")[-2:]) for path in paths]
