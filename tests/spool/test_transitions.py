"""The table of transitions against the truth: what programs do, and what recovery makes of crashes.

Every test here is generated from transitions.TRANSITIONS.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from picoqmail.layout import BODY, CUR, NEW, SIDECAR, UNDELIVERED
from picoqmail.spool.transitions import TRANSITIONS
from rig import faults
from rig.hostile import HostileRelay
from rig.tracing import Step, trace
from temporary_home import MESSAGE, age
from trial import ENVELOPE, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Steps = tuple[Step, ...]
LEFTOVER_SECONDS = 37 * 3600

# --- What the programs do --------------------------------------------------------------------

DEFERRING = {"RCPT": faults.reply("451 4.3.0 later")}
REFUSING = {"RCPT": faults.reply("550 5.1.1 no")}


def by_queue(trial: Trial) -> tuple[str, list[Step]]:
    """Trace the queue program on a message; returns its ID and the steps."""
    with tempfile.TemporaryFile() as zero, tempfile.TemporaryFile() as one:
        zero.write(MESSAGE * 10_000)
        one.write(ENVELOPE)
        zero.seek(0)
        one.seek(0)
        status, steps = trace(
            [trial.installed.program("queue")],
            trial.spool,
            trial.variables(),
            stdin=zero.fileno(),
            stdout=one.fileno(),
        )
    assert 0 == status
    (message_id,) = trial.ids(NEW)
    return message_id, steps


def by_send(trial: Trial) -> tuple[str, list[Step]]:
    """Trace the first attempt."""
    message_id = trial.accepted()
    return message_id, trace([trial.installed.program("send")], trial.spool, trial.variables())[1]


def by_cron(trial: Trial) -> tuple[str, list[Step]]:
    """Trace a later attempt."""
    message_id = trial.deferred(attempts=1, next_attempt=1_700_000_000)
    return message_id, trace([trial.installed.program("cron")], trial.spool, trial.variables())[1]


def by_hand(verb: str) -> Callable[[Trial], tuple[str, list[Step]]]:
    """Trace what an administrator does to a failed message."""

    def act(trial: Trial) -> tuple[str, list[Step]]:
        message_id = failed(trial)
        command = [f"{trial.installed.bin}/picoqmail", verb, message_id]
        status, steps = trace(command, trial.spool, trial.variables())
        assert 0 == status
        return message_id, steps

    return act


def failed(trial: Trial) -> str:
    """Put a message into undelivered/ as a relay's refusal would; returns its ID."""
    message_id = trial.accepted()
    for suffix in (BODY, SIDECAR):
        os.rename(trial.path(NEW, message_id, suffix), trial.path(UNDELIVERED, message_id, suffix))
    recipients = [{"address": "b@example.net", "state": "failed", "reply": "550 no"}]
    trial.edit(message_id, recipients=recipients, revision=1)
    return message_id


ACTIONS: dict[str, tuple[Callable[[Trial], tuple[str, list[Step]]], dict[str, Any]]] = {
    "accept": (by_queue, {}),
    "defer first": (by_send, DEFERRING),
    "defer again": (by_cron, DEFERRING),
    "fail first": (by_send, REFUSING),
    "fail later": (by_cron, REFUSING),
    "deliver first": (by_send, {}),
    "deliver later": (by_cron, {}),
    "requeue": (by_hand("requeue"), {}),
    "delete": (by_hand("delete"), {}),
}


def of_message(steps: list[Step], message_id: str, table: Steps) -> list[Step]:
    """The steps that concern body and sidecar, with ID for the name, and their directories.

    What the relay said goes to ID.result, durably too; its sync of undelivered/ is not the
    message's.
    """
    directories = {step[1] for step in table if step[0] == "syncdir"}
    found = []
    for step in steps:
        if any(message_id in path and path.endswith((BODY, SIDECAR)) for path in step[1:]):
            found.append(tuple(part.replace(message_id, "ID") for part in step))
        elif step[0] == "syncdir" and step[1] in directories:
            found.append(step)
    extra = found.count(("syncdir", UNDELIVERED)) - table.count(("syncdir", UNDELIVERED))
    for _ in range(extra):
        found.reverse()
        found.remove(("syncdir", UNDELIVERED))
        found.reverse()
    return found


@pytest.mark.parametrize("name", TRANSITIONS)
def test_the_programs_do_what_the_table_says(
    trial: Trial, rig: Callable[[HostileRelay], HostileRelay], name: str
) -> None:
    """Each operation and each fsync, in this order and no other, as strace sees it."""
    act, answers = ACTIONS[name]
    trial.setting("relayip", rig(HostileRelay(answers)).address)
    message_id, steps = act(trial)
    table = TRANSITIONS[name]
    expected = [step for step in table if step != ("commit",)]
    assert expected == of_message(steps, message_id, table)


# --- What recovery makes of a crash ------------------------------------------------------------


@frozen
class Change:
    """One change of a directory: the name comes to mean this content, or nothing."""

    directory: str
    name: str
    content: str
    """body, before or after (which sidecar), or nothing: the name goes."""
    synced: bool


def changes(steps: Steps) -> list[Change]:
    """The changes of directories that these steps make, and whether they are durable.

    A rename is two of them: what a disk keeps of it after power loss may be either half.
    """
    made: list[tuple[int, str, str]] = []
    for position, step in enumerate(steps):
        if step[0] in ("create", "rename", "link"):
            content = "body" if step[-1].endswith(BODY) else "after"
            made.append((position, step[-1], content))
        if step[0] in ("rename", "unlink"):
            made.append((position, step[1], ""))
    found = []
    for position, path, content in made:
        directory, name = path.split("/")
        synced = ("syncdir", directory) in steps[position:]
        found.append(Change(directory, name, content, synced))
    return found


def disks(before: dict[str, str], steps: Steps) -> Iterator[dict[str, str]]:
    """Every disk that a crash after these steps can leave: path to content.

    What was synced is there; of the rest any part may have been lost with the power.
    """
    made = changes(steps)
    loose = [index for index, change in enumerate(made) if not change.synced]
    for kept in itertools.product((True, False), repeat=len(loose)):
        lost = {index for index, keep in zip(loose, kept, strict=True) if not keep}
        disk = dict(before)
        for index, change in enumerate(made):
            if index not in lost:
                disk[f"{change.directory}/{change.name}"] = change.content
        yield {path: content for path, content in disk.items() if content}


BEFORE = {
    "accept": {},
    **dict.fromkeys(("defer first", "fail first", "deliver first"), NEW),
    **dict.fromkeys(("defer again", "fail later", "deliver later"), CUR),
    **dict.fromkeys(("requeue", "delete"), UNDELIVERED),
}


def is_removal(name: str) -> bool:
    """Say whether this transition ends the message."""
    return TRANSITIONS[name][0][0] == "unlink"


def every_crash(name: str) -> list[tuple[bool, dict[str, str]]]:
    """Each distinct disk that a crash in this transition can leave, and whether after the yes."""
    state, steps = BEFORE[name], TRANSITIONS[name]
    before = {f"{state}/ID.eml": "body", f"{state}/ID.json": "before"} if state else {}
    found: list[tuple[bool, dict[str, str]]] = []
    for length in range(len(steps) + 1):
        # Removals count from their yes, but become durable only with the end of the session.
        promised = ("commit",) in steps[:length] and (not is_removal(name) or length == len(steps))
        for disk in disks(before, steps[:length]):
            if (promised, disk) not in found:
                found.append((promised, disk))
    return found


def sidecars(trial: Trial, message_id: str, name: str) -> dict[str, bytes]:
    """The sidecar before and after the transition."""
    fresh = trial.sidecar(message_id)
    pending = [{"address": "b@example.net", "state": "pending", "reply": None}]
    refused = [{"address": "b@example.net", "state": "failed", "reply": "550 no"}]
    due = {"next_attempt": fresh["created"] - 5}
    before = {**fresh, **due, "revision": 3}
    after = {**before, "revision": 4, "attempts": 1}
    if name in ("requeue", "delete"):
        before["recipients"] = refused
        after["recipients"] = pending
    elif name.startswith("fail"):
        after["recipients"] = refused
    elif name == "accept":
        after = fresh
    return {"before": json.dumps(before).encode(), "after": json.dumps(after).encode()}


def materialise(trial: Trial, name: str, disk: dict[str, str]) -> str:
    """Lay a message out as the crash left it; returns its ID."""
    message_id = trial.accepted()
    contents = {"body": trial.body(message_id), **sidecars(trial, message_id, name)}
    for suffix in (BODY, SIDECAR):
        os.unlink(trial.path(NEW, message_id, suffix))
    first = ""
    for path, content in disk.items():
        target = f"{trial.spool}/{path}".replace("ID", message_id)
        if content == "body" and first:
            os.link(first, target)
            continue
        with open(target, "wb") as file:
            file.write(contents[content])
        if path.startswith(CUR) and path.endswith(SIDECAR):
            age(target, 10)
        if content == "body":
            first = target
    return message_id


def survivor(name: str, disk: dict[str, str]) -> str:
    """The state that counts: where the newer sidecar is; "" if there is none."""
    places = {
        path.split("/")[0]: content
        for path, content in disk.items()
        if path.endswith(SIDECAR) and not path.startswith("tmp/")
    }
    for content in ("after", "before"):
        for state, found in places.items():
            if found == content:
                return state
    assert not places, name
    return ""


@pytest.mark.parametrize("name", TRANSITIONS)
def test_a_crash_anywhere_loses_nothing_and_sends_nothing_twice(
    trial: Trial, strict_relay: HostileRelay, name: str
) -> None:
    """Every disk that a crash or power loss can leave, recovered by one real run of cron."""
    trial.setting("relayip", strict_relay.address)
    crashes = []
    for promised, disk in every_crash(name):
        crashes.append((materialise(trial, name, disk), promised, disk))
    trial.cron()
    delivered = [message.content for message in strict_relay.messages]
    for message_id, promised, disk in crashes:
        count = sum(f"id {message_id};".encode() in content for content in delivered)
        state = survivor(name, disk)
        has_body = "body" in disk.values()
        shown = (message_id, promised, disk)
        if state and not has_body:
            # Of a message that nobody was promised yet, or one that was being removed: a disk
            # that keeps half of two changes to one directory. It is told, and never sent.
            assert name == "accept" or is_removal(name), shown
        if promised:
            assert after_state(name) == state, shown
        if state in (NEW, CUR) and has_body:
            assert (1, []) == (count, kept(trial, message_id)), shown
        elif state in (NEW, CUR):
            assert not promised, shown
            assert (0, [UNDELIVERED]) == (count, kept(trial, message_id)), shown
        elif state:
            assert (0, [UNDELIVERED]) == (count, kept(trial, message_id)), shown
            assert not has_body or trial.body(message_id).endswith(MESSAGE), shown
        else:
            assert (0, []) == (count, kept(trial, message_id)), shown
    assert len(delivered) == len(set(delivered))
    sweep_leaves_messages_only(trial)


def after_state(name: str) -> str:
    """Where the message is after the transition."""
    targets = [step[2] for step in TRANSITIONS[name] if step[0] == "rename"]
    return targets[-1].split("/")[0] if targets else ""


def kept(trial: Trial, message_id: str) -> list[str]:
    """The states that have a sidecar of this message."""
    return [state for state in (NEW, CUR, UNDELIVERED) if message_id in trial.ids(state)]


def sweep_leaves_messages_only(trial: Trial) -> None:
    """Once they are old, cron takes away all the traces of crashes, and no message."""
    messages = set(trial.ids(UNDELIVERED))
    for path in trial.files():
        age(f"{trial.spool}/{path}", LEFTOVER_SECONDS)
    trial.cron()
    assert messages == set(trial.ids(UNDELIVERED))
    left = {path.split("/")[1].rsplit(".", 1)[0] for path in trial.files()}
    assert messages == left
    assert [] == trial.names("tmp") + trial.names(NEW) + trial.names(CUR)
