"""A real file system, cut off: a loop-mounted image that is copied the moment a program dies.

The image then contains what a disk would contain after a power loss. A file system that can be shut
down without further writes (ext4, XFS) is shut down first, so that no write happens during the
copy. The copy is mounted, its journal is replayed, and cron recovers the spool on it. Needs root
and a loop device; `why_not` says what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from proof import invariant, tracing
from proof.kill_sweep import record
from proof.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proof.kill_sweep import Stage
    from proof.scenarios import Scenario
    from proof.tracing import Call

MEBIBYTE = 1 << 20


@frozen
class FileSystem:
    """One kind of file system: its tools, its smallest size, and options that delay writeback."""

    name: str
    mkfs: tuple[str, ...]
    mebibytes: int
    options: str
    package: str


FILE_SYSTEMS = (
    FileSystem("ext4", ("mkfs.ext4", "-q", "-F"), 48, "loop,commit=3600", "e2fsprogs"),
    FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), 320, "loop", "xfsprogs"),
    FileSystem("btrfs", ("mkfs.btrfs", "-q", "-f"), 160, "loop,commit=3600", "btrfs-progs"),
)


@define
class DeviceReport:
    """The figures of one file system, and all breaches."""

    cuts: int = 0
    repeats: int = 0
    breaches: list[str] = field(factory=list)


def why_not(system: FileSystem, directory: str) -> str:
    """Return what is missing for a trial on this host; empty if nothing is."""
    if os.geteuid():
        return "a real file system can be cut by root only, who may mount one"
    if shutil.which(system.mkfs[0], path="/usr/sbin:/sbin:/usr/bin") is None:
        return f"no {system.mkfs[0]} here: apt-get install {system.package}"
    image = f"{directory}/try.img"
    try:
        make(system, image)
        with mounted(system, image, f"{directory}/try"):
            return ""
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode().strip()
        return f"no {system.name} can be mounted from a file here: {said}"
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(image)


def mkfs_version(system: FileSystem) -> str:
    """Return the package of a file system's tools and its version; empty without them."""
    path = shutil.which(system.mkfs[0], path="/usr/sbin:/sbin:/usr/bin")
    if path is None:
        return ""
    ran = subprocess.run([path, "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"[0-9]+\.[0-9.]*[0-9]", ran.stdout + ran.stderr)
    return f"{system.package} {found[0] if found else '?'}"


def make(system: FileSystem, image: str) -> None:
    """Make an image with an empty file system."""
    with open(image, "wb") as file:
        file.truncate(system.mebibytes * MEBIBYTE)
    path = shutil.which(system.mkfs[0], path="/usr/sbin:/sbin:/usr/bin") or system.mkfs[0]
    subprocess.run([path, *system.mkfs[1:], image], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(system: FileSystem, image: str, where: str) -> Iterator[str]:
    """Mount an image for a while."""
    os.makedirs(where, exist_ok=True)
    options = system.options + (",nouuid" if system.name == "xfs" else "")
    subprocess.run(
        ["mount", "-t", system.name, "-o", options, image, where], check=True, capture_output=True
    )
    try:
        yield where
    finally:
        # A lazy unmount, because a program that was struck may still hold files.
        subprocess.run(["umount", "-l", where], check=True, capture_output=True)


# XFS_IOC_GOINGDOWN is EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32); the flag leaves the log unflushed.
_SHUTDOWN = 0x8004587D
_WITHOUT_LOG = 2


def shut_down(where: str) -> bool:
    """Stop all further writes of the file system; False if it cannot do that."""
    descriptor = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
    except OSError as exc:
        if exc.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


_CHANGING = frozenset(
    {
        "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "syncfs", "rename",
        "renameat", "renameat2", "link", "linkat", "symlink", "unlink", "unlinkat", "mkdir",
        "mkdirat", "rmdir", "chmod", "fchmod", "chown", "fchown", "utimensat", "sendto", "sendmsg",
        "exit_group",
    }
)  # fmt: skip


def _leaves_a_trace(call: Call) -> bool:
    """Say whether a call changes the disk or sends; a cut before any other is one before those."""
    if call.name == "openat":
        return "O_CREAT" in call.rest or "O_TRUNC" in call.rest
    return call.name in _CHANGING


def _copy(image: str, target: str) -> None:
    subprocess.run(["cp", "--sparse=always", image, target], check=True)


@define
class Cutter:
    """Trials on one kind of file system. `root` should be in memory, because images are copied."""

    stage: Stage
    system: FileSystem
    root: str
    report: DeviceReport = field(factory=DeviceReport)
    _number: int = 0

    def sweep(
        self,
        scenario: Scenario,
        *,
        sample: int = 0,
        seed: int = 0,
        step: Callable[[], None] = lambda: None,
        announce: Callable[[int], None] = lambda _total: None,
    ) -> None:
        """Cut the power before each call that writes or sends, and after the end."""
        calls = record(self.stage, scenario, self.stage.template(scenario))
        places: list[Call | None] = [
            one for one in tracing.places(calls, "HOME") if _leaves_a_trace(one)
        ]
        if sample and sample < len(places):
            places = random.Random(f"{seed} {scenario.name}").sample(places, sample)  # noqa: S311 - a seeded choice
        # The most important point is right after success.
        places += [None] * (1 if sample else 3)
        base, world = self._prepare(scenario)
        announce(len(places))
        for place in places:
            self._cut(scenario, base, world, place)
            step()
        os.unlink(base)

    def _prepare(self, scenario: Scenario) -> tuple[str, World]:
        """Make an image with a home in which everything is durable."""
        image = f"{self.root}/base-{self.system.name}.img"
        make(self.system, image)
        home = f"{self.root}/live/home"
        with mounted(self.system, image, f"{self.root}/live"):
            world = World.begin(home, self.stage.moody.address, self.stage.programs)
            scenario.prepare(world, self.stage.zygotes[0], self.stage.moody.address)
            world.before = self.stage.moody.ledger.of(world.name)
            subprocess.run(["sync", "-f", home], check=True)
        return image, world

    def _cut(self, scenario: Scenario, base: str, prepared: World, place: Call | None) -> None:
        self._number += 1
        # A name of its own for each: after a lazy unmount mount(8) would take the device of a file
        # that had the name before, and with it the file system that was shut down.
        live, dead = (f"{self.root}/{name}{self._number}.img" for name in ("live", "dead"))
        _copy(base, live)
        with mounted(self.system, live, f"{self.root}/live"):
            world = self._named(prepared)
            subprocess.run(["sync", "-f", world.root], check=True)
            promises = scenario.promises(world)
            ran = scenario.run(
                world,
                promises,
                lambda command: (
                    tracing.strike_command(place, "signal=KILL", command) if place else command
                ),
            )
            shut_down(f"{self.root}/live")
            _copy(live, dead)
        ended = ran.returncode >= 0
        world.promises += scenario.told(promises, ran)
        arrived = {invariant.token_of(mail.unix) for mail in self.stage.received(world)}
        self.report.cuts += 1
        try:
            with mounted(self.system, dead, f"{self.root}/live"):
                world.setting("me", world.name)
                breaches = scenario.recover(
                    world, self.stage.zygotes[0], self.stage.good.address, succeeded=ended
                )
                finding = scenario.judge(
                    world, self.stage.received(world), () if ended else arrived
                )
                breaches += finding.breaches
                self.report.repeats += bool(finding.duplicates)
        except subprocess.CalledProcessError as exc:
            breaches = [f"the file system did not survive: {exc.stderr.decode().strip()}"]
        os.unlink(live)
        os.unlink(dead)
        where = "after the end" if place is None else f"before {place.place}"
        self.report.breaches += [
            f"{self.system.name}, {scenario.name}, cut {where}: {one}" for one in breaches
        ]

    def _named(self, prepared: World) -> World:
        """Return the world of the image, with a name that no other trial has at the relay."""
        name = f"{self.system.name}{self._number}.{prepared.name}"
        world = evolve(prepared, name=name, promises=list(prepared.promises))
        world.setting("me", name)
        return world
