"""Spools in disorder: copied, restored, half deleted. One cron run recovers them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import pytest

from picoqmail.spool.files import SpoolFiles
from picoqmail.spool.sweep import sweep_files
from picoqmail.store.directory import DirectoryStore
from proof import invariant
from proof.spools import LATER, NEVER
from proof.world import World, read_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from proof.kill_sweep import Stage

TWO_DAYS = 2 * 86400


def recovers(stage: Stage, world: World, offset: float = 0) -> None:
    """Fail unless one cron run delivers everything, whole and once."""
    world.relay(stage.good.address)
    assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=offset)
    finding = invariant.judge(world, stage.good.ledger.of(world.name))
    assert [] == finding.breaches
    assert (3, 0) == (finding.delivered, finding.duplicates)
    assert [] == world.sidecars("new", "cur", "undelivered")


def files(world: World, *states: str) -> list[str]:
    """Return the names of all files in these directories."""
    return sorted(name for state in states for name in os.listdir(f"{world.spool}/{state}"))


def test_a_spool_copied_file_by_file(stage: Stage, world: World) -> None:
    """A copy without times, links and locks (cp -r, rsync -r) is delivered like the original."""
    shutil.move(world.spool, f"{world.root}/old")
    subprocess.run(["cp", "-r", f"{world.root}/old", world.spool], check=True)
    recovers(stage, world)


def test_a_spool_restored_with_times_of_long_ago(stage: Stage, world: World) -> None:
    """A message with times of 1980 is not treated as a leftover."""
    for directory, _, names in os.walk(world.spool):
        for name in names:
            os.utime(f"{directory}/{name}", (315532800, 315532800))
    recovers(stage, world)


def test_a_spool_restored_with_times_from_the_future(stage: Stage, world: World) -> None:
    """A due time in the file's time only is a hint: when it comes, all mail is sent."""
    for path in world.sidecars("new"):
        os.utime(path, (4e9, 4e9))
    recovers(stage, world)


def test_both_sidecars_after_a_move_that_was_cut(stage: Stage, world: World) -> None:
    """If a message is in two states, the later revision counts, and it is sent once."""
    (path,) = world.sidecars("cur")
    record = cast("dict[str, Any]", read_sidecar(path))
    older = path.replace("/cur/", "/new/")
    with open(older, "w", encoding="utf-8") as file:
        json.dump(record | {"revision": record["revision"] - 1, "attempts": 0}, file)
    os.link(path[:-4] + "eml", older[:-4] + "eml")
    recovers(stage, world)
    assert [] == files(world, "new", "cur", "tmp")


@pytest.mark.parametrize("both", [True, False], ids=["both sidecars", "one sidecar"])
def test_a_failure_whose_body_power_loss_left_behind(stage: Stage, *, both: bool) -> None:
    """The next cron run finishes the move, although the older sidecar in cur/ is not yet due."""
    world = World.begin(stage.path(), stage.moody.address)
    stem = world.accept([NEVER])
    stage.zygotes[0].run(world.root, "send")
    failed = f"{world.spool}/undelivered/{stem}.json"
    waiting = failed.replace("/undelivered/", "/cur/")
    record = cast("dict[str, Any]", read_sidecar(failed))
    with open(waiting, "w", encoding="utf-8") as file:
        json.dump(record | {"revision": record["revision"] - 1}, file)
    os.utime(waiting, (record["created"] + 3600,) * 2)
    os.rename(failed[:-4] + "eml", waiting[:-4] + "eml")
    if not both:
        os.unlink(waiting)
    assert [] != invariant.half_visible(world)
    world.relay(stage.good.address)
    assert (0, "") == stage.zygotes[0].run(world.root, "cron")
    assert [] == invariant.half_visible(world)
    assert {f"{stem}.eml", f"{stem}.json"} <= set(files(world, "undelivered"))
    assert [] == files(world, "cur")


def test_a_copy_that_broke_a_link_in_two(stage: Stage, world: World) -> None:
    """A second, damaged body of the same name does not replace the good one."""
    path = world.sidecars("new")[0]
    with open(path[:-4].replace("/new/", "/cur/") + "eml", "wb") as file:
        file.write(b"half of it")
    recovers(stage, world)


def test_deferred_over_a_damaged_copy(stage: Stage) -> None:
    """A message that moves to a directory with a damaged copy of its body keeps its own body."""
    world = World.begin(stage.path(), stage.moody.address)
    stem = world.accept([LATER])
    with open(f"{world.spool}/cur/{stem}.eml", "wb") as file:
        file.write(b"half of it")
    stage.zygotes[0].run(world.root, "send", offset=-7200)
    assert [] == invariant.half_visible(world)
    assert [f"{stem}.eml", f"{stem}.json"] == files(world, "new", "cur")


@pytest.mark.parametrize("suffix", [".eml", ".json"])
def test_half_deleted(stage: Stage, world: World, suffix: str) -> None:
    """If one file of a message is gone, the other is no mail; other messages are delivered."""
    stem = world.sidecars("new")[0][:-5]
    os.unlink(stem + suffix)
    world.relay(stage.good.address)
    assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=7200)
    came = {one.recipients for one in stage.good.ledger.of(world.name)}
    assert {(LATER,), ("a@there.test", "b@there.test")} == came
    aside = world.sidecars("undelivered")
    if suffix == ".eml":
        assert [os.path.basename(stem) + ".json"] == [os.path.basename(one) for one in aside]
        assert any("damaged" in line and "body is missing" in line for line in world.events())
    else:
        assert ([], [os.path.basename(stem) + ".eml"]) == (aside, files(world, "new"))
        assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=TWO_DAYS)
        assert [] == files(world, "new")


def test_a_full_disk_leaves_nothing_that_space_would_not_mend(
    stage: Stage, world: World, full: Callable[[World], Callable[[], None]]
) -> None:
    """Mail in new/ is sent although nothing can be written; deferred mail as soon as it can be."""
    make_room = full(world)
    world.relay(stage.good.address)
    stage.zygotes[0].run(world.root, "cron", offset=7200)
    make_room()
    stage.zygotes[0].run(world.root, "cron", offset=7200)
    finding = invariant.judge(world, stage.good.ledger.of(world.name))
    assert [] == finding.breaches
    assert 3 == finding.delivered


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Callable[[World], Callable[[], None]]]:
    """Move a home's spool to a full file system; return a function that makes room there."""
    mount = str(tmp_path / "small")
    os.mkdir(mount)
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs", mount],
            check=False,
            capture_output=True,
        ).returncode
    ):
        pytest.skip("a full disk needs root, who may mount a small tmpfs")

    def fill(world: World) -> Callable[[], None]:
        subprocess.run(["cp", "-a", world.spool, f"{mount}/spool"], check=True)
        shutil.rmtree(world.spool)
        os.symlink(f"{mount}/spool", world.spool)
        with open(f"{mount}/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return lambda: os.unlink(f"{mount}/filler")
        raise AssertionError("the disk does not get full")

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_leftover_that_cannot_go_stops_no_mail(stage: Stage, world: World) -> None:
    """The sweep reports a file that it cannot unlink, and the run goes on."""
    stuck = f"{world.spool}/tmp/1.leftover.eml"
    with open(stuck, "wb"):
        pass
    if (
        os.geteuid()
        or subprocess.run(["chattr", "+i", stuck], check=False, capture_output=True).returncode
    ):
        pytest.skip("an immutable file needs root, and a file system that has such")
    try:
        recovers(stage, world, offset=TWO_DAYS)
        assert any("cannot sweep" in line for line in world.events())
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)


def test_what_became_a_message_while_it_was_swept_stays(world: World) -> None:
    """A body that looks old after a clock jump gets its sidecar during the sweep: it stays."""
    path = world.sidecars("new")[0]
    hidden = path.replace("/new/", "/tmp/")
    os.rename(path, hidden)
    body = path[:-4] + "eml"
    seen: list[str] = []

    class Racing(SpoolFiles):
        """A spool whose message is completed between the check and the lock."""

        def where(self, message_id: str) -> list[str]:
            found = super().where(message_id)
            seen.append(message_id)
            if len(seen) == 2:
                os.rename(hidden, path)
            return found

    assert ([], []) == sweep_files(Racing(world.spool), [body])
    assert os.path.exists(body)
    # The control: without a sidecar it is removed.
    os.unlink(path)
    assert ([body], []) == DirectoryStore(world.spool).sweep([body])


def test_a_held_leftover_stays(world: World) -> None:
    """A locked file is being written, however old it seems."""
    path = f"{world.spool}/tmp/1.being.written.eml"
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert ([], []) == DirectoryStore(world.spool).sweep([path])
    assert ([path], []) == DirectoryStore(world.spool).sweep([path])


def test_progress_that_was_cut_costs_only_the_cut_line(world: World) -> None:
    """After a crash in the middle of a progress line the next line is read."""
    stem = os.path.basename(world.sidecars("new")[1])[:-5]
    with open(f"{world.spool}/new/{stem}.progress", "w", encoding="utf-8") as file:
        file.write('[0, [[0, "deliv')
    spool = DirectoryStore(world.spool)
    claim = spool.claim(stem)
    assert claim is not None
    spool.note_progress(claim, {1: ("delivered", "250 ok")})
    claim.release()
    again = spool.claim(stem)
    assert again is not None
    again.release()
    assert ["pending", "delivered"] == [one.state for one in again.message.recipients]


@pytest.mark.parametrize("suffix", [".eml", ".json"])
def test_a_report_of_a_message_that_is_half_deleted_still_goes(stage: Stage, suffix: str) -> None:
    """A report about a damaged message is sent; it once made the sender search for ever."""
    world = World.begin(stage.path(), stage.moody.address)
    stem = world.accept([NEVER])
    # The report waits in new/: the relay was gone before the report could be sent.
    world.relay(stage.moody.address)
    stage.zygotes[0].run(world.root, "send", offset=-7200)
    (report,) = [one for one in stage.moody.ledger.of(world.name) if not one.sender]
    assert report.recipients == (world.promises[0].sender,)
    stage.moody.ledger.forget(world.name)
    # Restore the moment before: the message names a report that is in new/ again.
    path = f"{world.spool}/undelivered/{stem}.json"
    record = cast("dict[str, Any]", read_sidecar(path))
    (told,) = {one["told"] for one in record["recipients"]}
    for one in record["recipients"]:
        del one["told"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record | {"telling": told}, file)
    body = report.unix
    sidecar = dict(record, id=told, sender="", telling=None, report_of=stem, history=[])
    del sidecar["telling"]
    sidecar |= {"size": len(body), "crc32": crc32(body), "attempts": 0, "next_attempt": 0}
    sidecar["recipients"] = [
        {"address": world.promises[0].sender, "state": "pending", "reply": None}
    ]
    with open(f"{world.spool}/new/{told}.eml", "wb") as file:
        file.write(body)
    with open(f"{world.spool}/new/{told}.json", "w", encoding="utf-8") as file:
        json.dump(sidecar, file)
    os.unlink(f"{world.spool}/undelivered/{stem}{suffix}")
    world.relay(stage.good.address)
    assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=7200)
    assert [""] == [one.sender for one in stage.good.ledger.of(world.name)]


def test_a_report_whose_message_is_busy_waits_without_spinning(stage: Stage) -> None:
    """A free message that cannot be claimed now is tried once more, and then left to cron."""
    world = World.begin(stage.path(), stage.moody.address)
    stem = world.accept([NEVER])
    stage.zygotes[0].run(world.root, "send", offset=-7200)
    stage.moody.ledger.forget(world.name)
    path = f"{world.spool}/undelivered/{stem}.json"
    record = cast("dict[str, Any]", read_sidecar(path))
    for one in record["recipients"]:
        del one["told"]
    report = world.accept()
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record | {"telling": report}, file)
    (waiting,) = world.sidecars("new")
    with open(waiting, encoding="utf-8") as file:
        other = json.load(file)
    with open(waiting, "w", encoding="utf-8") as file:
        json.dump(other | {"report_of": stem}, file)
    world.relay(stage.good.address)
    with open(f"{world.spool}/undelivered/{stem}.eml", "rb") as body:
        fcntl.flock(body, fcntl.LOCK_EX)
        # Its own alarm would kill it, with an exit code other than 0, if it searched for ever.
        assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=7200)
        assert [] == stage.good.ledger.of(world.name)
    assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=7200)
    assert 1 == len(stage.good.ledger.of(world.name))


def test_a_report_whose_body_power_loss_took_is_made_anew(stage: Stage) -> None:
    """A report's sidecar alone, in any state, does not prove that the report was sent."""
    world = World.begin(stage.path(), stage.moody.address)
    stem = world.accept([NEVER])
    stage.zygotes[0].run(world.root, "send", offset=-7200)
    stage.moody.ledger.forget(world.name)
    # Restore the moment at which the report's sidecar was in new/, but its body was not.
    record = cast("dict[str, Any]", read_sidecar(f"{world.spool}/undelivered/{stem}.json"))
    (told,) = {one.pop("told") for one in record["recipients"]}
    for suffix in (".json", ".eml"):
        os.rename(f"{world.spool}/undelivered/{stem}{suffix}", f"{world.spool}/cur/{stem}{suffix}")
    with open(f"{world.spool}/cur/{stem}.json", "w", encoding="utf-8") as file:
        json.dump(record | {"telling": told}, file)
    report = dict(record, id=told, sender="", report_of=stem, history=[], attempts=0)
    report["recipients"] = [{"address": "x@here.test", "state": "pending", "reply": None}]
    with open(f"{world.spool}/new/{told}.json", "w", encoding="utf-8") as file:
        json.dump(report, file)
    world.relay(stage.good.address)
    for number in (1, 2):
        assert (0, "") == stage.zygotes[0].run(world.root, "cron", offset=number * 7200)
    (came,) = stage.good.ledger.of(world.name)
    assert ("", (world.promises[0].sender,)) == (came.sender, came.recipients)
    record = cast("dict[str, Any]", read_sidecar(f"{world.spool}/undelivered/{stem}.json"))
    assert told != record["recipients"][0]["told"]
