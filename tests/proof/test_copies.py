"""Copied spools: `check --repair` reports what it did, and cron sends the mail.

The rule of this module: a real copying program makes the copy, with good or bad options that people
use. Of the product only the programs are called.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from proof import invariant
from proof.spools import LATER
from rig.programs import find

if TYPE_CHECKING:
    from proof.kill_sweep import Stage
    from proof.world import World

WARNING = 1


@pytest.fixture
def world(world: World) -> World:
    """Return the usual home, with a spool that is closed to others, as `init` makes it."""
    os.chmod(world.spool, 0o700)
    return world


def rsync(world: World, *options: str) -> None:
    """Put a copy of the spool in its place."""
    shutil.move(world.spool, f"{world.root}/old")
    program = find("rsync", "rsync")
    subprocess.run([program, *options, f"{world.root}/old/", f"{world.spool}/"], check=True)


def repair(world: World) -> tuple[int, list[str], dict[str, int]]:
    """Run `picoqmail check --repair`; return its level, its repairs, the worst level by finding."""
    words = ["check", "--repair", "--deep", "--no-relay", "--json"]
    ran = world.run([*world.programs.command(""), *words])
    assert b"" == ran.stderr
    said = json.loads(ran.stdout)
    levels: dict[str, int] = {}
    for one in said["findings"]:
        levels[one["name"]] = max(levels.get(one["name"], 0), one["level"])
    return ran.returncode, said["repaired"], levels


def delivers(stage: Stage, world: World, count: int = 3) -> None:
    """Fail unless one cron run delivers everything, whole and once, and empties the spool."""
    world.relay(stage.good.address)
    assert (0, "") == stage.zygotes[0].run(world.root, "cron")
    finding = invariant.judge(world, stage.good.ledger.of(world.name))
    assert [] == finding.breaches
    assert (count, 0) == (finding.delivered, finding.duplicates)
    assert [] == world.sidecars("new", "cur", "undelivered")


def modes(world: World) -> set[tuple[str, int]]:
    """Return kinds and permissions of all files of the spool, without the mark of doubt."""
    found = set()
    for directory, _, names in os.walk(world.spool):
        found.add(("directory", stat.S_IMODE(os.stat(directory).st_mode)))
        paths = [f"{directory}/{name}" for name in names]
        found |= {("file", stat.S_IMODE(os.stat(path).st_mode) & ~0o100) for path in paths}
    return found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-a"], ()),
        (["-aH"], ()),
        (["-rt"], ()),
        (["-r"], ("when it is due",)),
        (["-r", "--chmod=D755,F644"], ("lets other users access mail", "when it is due")),
        (["-a", "--chmod=D500,F400"], ("keeps its owner out",)),
        (["-a", "--chmod=F000"], ("keeps its owner out",)),
        (["-am"], ("was missing, and was made",)),
    ],
    ids=" ".join,
)
def test_rsync(stage: Stage, world: World, options: list[str], told: tuple[str, ...]) -> None:
    """With or without times and modes, the loss is reported and repaired, and all goes out once."""
    # Not yet due when it is copied. Without times the copy looks due, but that is only a hint.
    rsync(world, *options)
    _, done, levels = repair(world)
    for one in told:
        assert any(one in line for line in done), done
    if not told:
        assert [] == done
    assert (0, 0) == (levels["modes"], levels["messages"])
    assert {("directory", 0o700), ("file", 0o600)} == modes(world)
    delivers(stage, world)


def test_rsync_that_was_cut(stage: Stage, world: World) -> None:
    """A killed rsync leaves a part under another name, which is no message."""
    part = f"{world.spool}/new/.{os.path.basename(world.sidecars('new')[0])}.qX3a9Z"
    with open(part, "w", encoding="utf-8") as file:
        file.write('{"version": 1, ')
    os.chmod(part, 0o600)
    os.utime(part, (1, 1))
    _, done, _ = repair(world)
    assert [f"swept {part}"] == done
    delivers(stage, world)


def test_a_copy_into_a_spool_that_went_on(stage: Stage, world: World) -> None:
    """After a restore over newer files the later of two states counts, and each goes out once."""
    backup = f"{world.root}/backup"
    subprocess.run([find("rsync", "rsync"), "-a", f"{world.spool}/", f"{backup}/"], check=True)
    # Another message is deferred after the backup: it is in cur/ now, and in new/ in the backup.
    world.setting("relayip", "127.0.0.1:9")
    stage.zygotes[0].run(world.root, "send")
    world.relay(stage.moody.address)
    os.unlink(f"{world.spool}/relay-down")
    later = world.accept([LATER])
    for suffix in (".eml", ".json"):
        shutil.copy2(f"{world.spool}/new/{later}{suffix}", f"{backup}/new/")
    stage.zygotes[0].run(world.root, "send", later, offset=-3600)
    stem = os.path.basename(world.sidecars("cur")[-1])[:-5]
    assert later == stem
    restore = [find("rsync", "rsync"), "-a", f"{backup}/", f"{world.spool}/"]
    for _ in range(2):
        subprocess.run(restore, check=True)
    _, done, levels = repair(world)
    assert [f"{stem}: now in cur"] == done
    assert 0 == levels["messages"]
    delivers(stage, world, 4)


@pytest.mark.parametrize("octets", [0, 50])
@pytest.mark.parametrize("with_sidecar", [False, True])
@pytest.mark.parametrize("by", ["check", "cron"])
def test_a_part_of_a_body_where_it_is_looked_for_first(
    stage: Stage,
    world: World,
    octets: int,
    with_sidecar: bool,  # noqa: FBT001 - a parameter of the test
    by: str,
) -> None:
    """A copy in new/ that a full disk cut does not replace the whole body in cur/."""
    (path,) = world.sidecars("cur")
    part = path[:-4].replace("/cur/", "/new/") + "eml"
    with open(path[:-4] + "eml", "rb") as whole, open(part, "wb") as file:
        file.write(whole.read()[:octets])
    if with_sidecar:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        with open(f"{part[:-4]}.json", "w", encoding="utf-8") as file:
            json.dump(record | {"revision": 0, "attempts": 0, "history": []}, file)
    if by == "check":
        _, done, _ = repair(world)
        assert f"swept {part}, a damaged copy of a body that is whole" in done
    delivers(stage, world)
    if by == "cron":
        assert any("swept" in line and part in line for line in world.events())


def test_several_bodies_none_of_them_whole(stage: Stage, world: World) -> None:
    """All copies are kept, because one may be repaired; the message is put aside, and reported."""
    (path,) = world.sidecars("cur")
    stem = os.path.basename(path)[:-5]
    with open(path[:-4] + "eml", "r+b") as file:
        file.write(b"X")
        file.seek(0)
        altered = file.read()
    with open(f"{world.spool}/new/{stem}.eml", "wb"):
        pass
    level, done, levels = repair(world)
    assert (WARNING, WARNING) == (level, levels["messages"])
    assert f"{stem}: now in undelivered" in done
    assert any(line.startswith(f"{stem}: its body has 0 octets") for line in done)
    with open(f"{world.spool}/cur/{stem}.eml", "rb") as file:
        assert altered == file.read()
    # After a repair by hand it is sent.
    with open(f"{world.spool}/cur/{stem}.eml", "r+b") as file:
        file.write(b"R")
    ran = world.run([*world.programs.command(""), "requeue", stem])
    assert 0 == ran.returncode, ran.stderr
    delivers(stage, world)


def test_what_was_promoted_out_of_tmp_by_hand(stage: Stage, world: World) -> None:
    """A body that was moved into new/ without its sidecar is no mail; it is swept, and reported."""
    stray = f"{world.spool}/new/1.M1P1Q1R1.stray.eml"
    with open(stray, "wb") as file:
        file.write(b"never accepted\n")
    os.chmod(stray, 0o600)
    assert [] == repair(world)[1]
    os.utime(stray, (1, 1))
    assert [f"swept {stray}"] == repair(world)[1]
    delivers(stage, world)
