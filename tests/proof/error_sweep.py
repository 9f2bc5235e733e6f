"""The error sweep: each call of a program fails once, with each error that it can return.

The run with the error is recorded too, so that success can be compared with its fsyncs: body,
sidecar and directory must be synced successfully, and never twice on one descriptor.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from attrs import define

from proof import tracing
from proof.kill_sweep import Report, Stage, record, sampled, strike_all
from proof.scenarios import SCENARIOS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

    from proof.scenarios import Scenario
    from proof.tracing import Call
    from proof.world import World
    from proof.zygote import Zygote

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EMFILE", "ENOMEM", "EACCES", "EROFS", "ENOLCK")
# What a call can return of these, on any file system (the manual pages of section 2; a file system
# that copies on write needs room for a mode, too). A call that is not listed gets all of them.
WRITE_ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS")
_LOOKS = ("EIO", "ENOMEM", "EACCES")
_NAMES = (*WRITE_ERRORS, "ENOMEM", "EACCES")
_CAN_RETURN = {
    **dict.fromkeys(
        ("fsync", "fdatasync", "syncfs", "ftruncate", "write", "pwrite64"), WRITE_ERRORS
    ),
    **dict.fromkeys(("fchmod", "chmod", "fchown", "chown", "utimensat"), (*WRITE_ERRORS, "EACCES")),
    **dict.fromkeys(("newfstatat", "fstat", "lstat", "stat", "statx", "statfs"), _LOOKS),
    **dict.fromkeys(("access", "faccessat2", "readlink", "readlinkat"), _LOOKS),
    **dict.fromkeys(("unlink", "rename", "renameat2", "link", "linkat", "mkdir"), _NAMES),
    **dict.fromkeys(("unlinkat", "rmdir", "symlink"), _NAMES),
    **dict.fromkeys(("read", "pread64", "fstatfs", "fadvise64"), ("EIO",)),
    "getdents64": ("EIO", "ENOMEM"),
    "flock": ("ENOLCK", "EIO"),
    "openat": (*_NAMES, "EMFILE"),
    # strace makes a call fail by skipping it, but a real close that fails still closes (close(2)).
    "close": ("EIO", "ENOSPC", "EDQUOT"),
}
_READING_ONLY = frozenset({"ENOSPC", "EDQUOT", "EROFS"})
# The exit codes for a failure of the disk: temporary errors, never a bug, never success.
QUEUE_STATUSES = frozenset({51, 53, 54, 55, 61, 62, 63, 64, 65, 66})
STATUSES = {
    "": frozenset({70, 71, 74, 75, 78}),
    "queue": QUEUE_STATUSES,
    "sendmail": frozenset({111}),
    "inject": frozenset({111}),
    "send": frozenset({0, 69, 71, 74, 75, 78}),
    "cron": frozenset({0, 71, 74, 75, 78}),
    "many": frozenset({71, 74, 75, 78}),
}
# Calls that cannot fail with these errors, or whose failure Linux does not report in this way.
_SPARED = frozenset(
    {
        "exit_group", "execve", "mmap", "lseek", "epoll_wait", "epoll_ctl", "fcntl", "getsockopt",
        "setsockopt", "getsockname", "recvfrom", "sendto", "socket", "connect", "shutdown", "ioctl",
        "dup", "dup2", "getcwd", "chdir", "poll", "socketpair", "bind", "listen", "accept4",
        "getpeername",
    }
)  # fmt: skip
_PLAIN_LINE = re.compile(rb"\A(?:(?:picoqmail-[a-z]+|qmail-inject: fatal): [^\n]{10,}\n)+\Z")


@define
class ErrorReport(Report):
    """The figures of the error sweep."""

    refused: int = 0


def sweep(
    stage: Stage,
    names: Sequence[str] = (),
    *,
    errors: Sequence[str] = ERRORS,
    only: Sequence[str] = (),
    sample: int = 0,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
    announce: Callable[[int], None] = lambda _total: None,
) -> ErrorReport:
    """Inject each error at each call of each scenario, or `sample` of these pairs.

    `only` are names of calls, for all.
    """
    report = ErrorReport()
    work = []
    for scenario in [one for one in SCENARIOS if not names or one.name in names]:
        template = stage.template(scenario)
        calls = record(stage, scenario, template)
        places = [one for one in tracing.places(calls, "HOME") if one.name not in _SPARED]
        places = [one for one in places if not only or one.name in only]
        pairs = [(place, error) for place in places for error in errors if _can_fail(place, error)]
        pairs = sampled(pairs, sample, f"{seed} {scenario.name}")
        report.tried[scenario.name] = len(pairs)
        work += [(scenario, template, place, error) for place, error in pairs]
    strike_all(stage, work, _strike, report, announce=announce, step=step)
    return report


def _can_fail(place: Call, error: str) -> bool:
    """Say whether Linux can return this error for this call."""
    if error not in _CAN_RETURN.get(place.name, ERRORS):
        return False
    if place.name == "close":
        # Only those closes fail after which no program waits for the descriptor's lock.
        return "/tmp/" in place.rest
    if place.name == "openat" and "O_WRONLY" not in place.rest and "O_RDWR" not in place.rest:
        return error not in _READING_ONLY
    return True


def _strike(
    stage: Stage,
    zygote: Zygote,
    scenario: Scenario,
    template: World,
    place: Call,
    error: str,
    report: ErrorReport,
) -> None:
    world = template.clone(stage.path())
    promises = scenario.promises(world)
    output = f"{world.root}.trace"
    ran = scenario.run(
        world,
        promises,
        lambda command: tracing.strike_command(place, f"error={error}", command, output),
    )
    calls = tracing.read_calls(output)
    os.unlink(output)
    struck = any(call.injected and call.concerns(world.root) for call in calls)
    if not struck:
        # The ordinal met another call: the calls of Python's own start are not ours.
        report.missed += 1
    breaches = _outcome(scenario, ran) if struck else []
    if promises:
        told = scenario.told(promises, ran)
        world.promises += told
        accepted = sum(one.accepted for one in told)
        report.refused += len(told) - accepted
        breaches += _durability(calls, world.spool, scenario.acceptances, accepted=accepted > 0)
        if accepted < len(told) and struck:
            breaches += _remains(world, place, accepted)
    # What a command says of messages it says of each; senders say it of the run as a whole.
    succeeded = ran.returncode in scenario.statuses and not scenario.program
    breaches += scenario.recover(world, zygote, stage.good.address, succeeded=succeeded)
    finding = scenario.judge(world, stage.received(world))
    breaches += finding.breaches
    if breaches:
        where = f"{scenario.name}, {error} at {place.place} ({place.rest[:120]})"
        report.breaches += [f"{where}: {one}" for one in breaches]
    else:
        stage.forget(world)


def _outcome(scenario: Scenario, ran: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Check the exit code, and that a failure is explained in a line."""
    status, said = ran.returncode, ran.stderr
    good = scenario.statuses | STATUSES[scenario.program]
    found = []
    if status not in good:
        found.append(f"exit {status}: {said[-600:]!r}")
    if b"Traceback" in said:
        found.append(f"a traceback: {said[-600:]!r}")
    elif scenario.submits and status and not _PLAIN_LINE.match(said):
        found.append(f"exit {status} without a clear line: {said[-300:]!r}")
    return found


def _durability(
    calls: Sequence[Call], spool: str, acceptances: int, *, accepted: bool
) -> list[str]:
    """Check that success had three good fsyncs, and that none was retried on its descriptor.

    One syncfs replaces all of them except that of the directory, which follows the renames. Each of
    several `acceptances` opens the directories anew.
    """
    good: set[str] = set()
    bad: set[str] = set()
    kinds: set[str] = set()
    found = []
    for call in calls:
        if call.name not in ("fsync", "fdatasync", "syncfs") or spool not in call.rest:
            continue
        path = call.rest[call.rest.index(spool) + len(spool) :].partition(">")[0]
        if call.name == "syncfs":
            path += " (syncfs)"
            kinds |= {"eml", "json"} if call.result == 0 else set()
        if path in bad and (acceptances == 1 or "." in path):
            found.append(f"fsync tried again on {path}")
        (good if call.result == 0 else bad).add(path)
    synced = [path for path in good if "syncfs" not in path]
    kinds |= {path.rpartition(".")[2] if "." in path else "directory" for path in synced}
    if accepted and kinds < {"eml", "json", "directory"}:
        found.append(f"a yes without durability: only {sorted(kinds)} were synced")
    return found


def _remains(world: World, place: Call, accepted: int) -> list[str]:
    """Check that a failure left nothing of the message, unless an unlink failed.

    `accepted` other messages exist, with two files each.
    """
    if place.name.startswith("unlink"):
        return []
    left = [
        f"{directory}/{name}"
        for directory in ("tmp", "new", "cur", "undelivered")
        for name in os.listdir(f"{world.spool}/{directory}")
    ]
    hidden = [one for one in left if one.startswith("tmp/")]
    if len(left) > 2 * accepted or hidden:
        return [f"{accepted} accepted, others refused, and left behind: {left}"]
    return []
