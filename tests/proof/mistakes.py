"""Small mistakes that nothing noticed once, each with the trial that notices it now.

The rule of this module: a trial makes what it needs by ordinary means, runs the programs of a stage
and returns the breaches. It finds none in the programs as they are, and some where the mistake is
planted. README.md has the table.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, cast

from attrs import evolve, frozen

from picoqmail import Mail, Spool
from picoqmail.layout import BODY, BREAKER, CUR, IN_DOUBT_BIT, NEW, PROGRESS, SIDECAR, UNDELIVERED
from picoqmail.message import envelope
from proof import power
from proof.planted import Plant
from proof.scenarios import Scenario
from proof.spools import BREAKS, LATER
from proof.world import World, read_sidecar
from proof.zygote import Zygote
from rig.hostile import HostileRelay
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proof.disk import State
    from proof.kill_sweep import Stage
    from rig.faults import Fault, Line

_HERE = os.path.dirname(os.path.abspath(__file__))
_STATES_OF_AN_OPERATION = 24
_MOST_RECOVERIES = 60
_WEEK_SECONDS = 7 * 86400
# Less than the file system has, and more than a message leaves of it that fits into it.
_DISK = "16m"
_MINFREE_OCTETS = 8 << 20
_LARGE_OCTETS = 12 << 20
_QUEUE_WRITE = 53
_IO_ERROR = 74
_DEFERRED = 75


@frozen
class Mistake:
    """One mistake: `bad` replaces `good`, which the package holds once; `trial` notices it."""

    name: str
    good: str
    bad: str
    trial: Callable[[Stage], list[str]]

    @property
    def plant(self) -> Plant:
        """The mistake as a bug to be planted."""
        return Plant(self.name, self.good, self.bad, "", "")


# --- Power loss ------------------------------------------------------------------------------


def _two_hundred_recipients(world: World, _zygote: Zygote, _relay: str) -> None:
    world.accept([f"r{number}@there.test" for number in range(230)])


def transactions_that_were_done(stage: Stage) -> list[str]:
    """What a relay took in one transaction is not sent again once the next one has ended.

    The rest of the message may come twice: its last transaction is in the window of doubt.
    """
    scenario = Scenario("send, 230 recipients", "send", _two_hundred_recipients)
    recording = power.record(stage, scenario)
    trials = _states(recording)
    found = []
    zygote = stage.zygotes[0]
    tried = 0
    for trial in trials:
        done = {one for mail in trial.arrived[:-1] for one in mail.recipients}
        if trial.ended or not done or tried == _MOST_RECOVERIES:
            continue
        tried += 1
        world = _after(stage, recording, trial.state)
        world.recover(zygote, stage.good.address)
        again = {one for mail in stage.good.ledger.of(world.name) for one in mail.recipients}
        if done & again:
            found.append(f"{trial.place}: {len(done & again)} recipients twice, although noted")
        stage.forget(world)
        if found:
            break
    assert tried >= min(_MOST_RECOVERIES, 10) or found
    stage.forget(recording.template)
    return found


def _nothing(_world: World, _zygote: Zygote, _relay: str) -> None:
    """Leave the spool empty."""


def one_message_with_a_key(stage: Stage) -> list[str]:
    """After a power loss, a second call with the key of a single message leads to one message.

    Tried are all states before the message becomes visible, all states after success was reported,
    and in between those that a journal may leave.
    """
    scenario = Scenario(
        "enqueue, with a key", "many", _nothing, submits=("to@there.test",), messages=1, keyed=True
    )
    recording = power.record(stage, scenario)
    renames = [n for n, one in enumerate(recording.operations) if one.kind in {"link", "rename"}]
    before = evolve(
        recording,
        operations=recording.operations[: renames[0]],
        disk=copy.deepcopy(recording.disk),
        accepted=False,
    )
    trials = [(one.place, one.state) for one in _states(before)]
    trials += [
        (one.place, one.state) for one in _states(recording) if one.ended or one.state.ordered
    ]
    (promise,) = recording.template.promises
    mail = Mail(promise.body, promise.sender, promise.recipients, idempotency_key=promise.token)
    found = []
    for place, state in trials:
        world = _after(stage, recording, state)
        (outcome,) = Spool(world.root, send=False).enqueue_many([mail])
        visible = len(world.sidecars("new", "cur"))
        if isinstance(outcome, Exception) or visible != 1:
            found.append(f"{place}: {visible} messages after the second call: {outcome!r}")
            break
        stage.forget(world)
    stage.forget(recording.template)
    return found


_TWO_STATES = """
import sys
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
import time
import picoqmail
mail = picoqmail.Mail(b"Subject: x\\n\\nx\\n", "a@here.test", ["b@there.test"])
later = picoqmail.Mail(
    b"Subject: x\\n\\nx\\n", "a@here.test", ["b@there.test"], not_before=time.time() + 9999
)
picoqmail.enqueue_many([mail, later, mail])
"""


def a_group_for_now_and_for_later(stage: Stage) -> list[str]:
    """Where some mail of a group goes to new/ and some to cur/, both are synced after the renames.

    The order in which a set has them may be any, so what was synced is read from the calls.
    """
    world = World.begin(stage.path(), stage.good.address, stage.programs)
    output = f"{world.root}/calls"
    world.run(
        [
            *("strace", "-f", "-y", "-o", output, "-e", "trace=fsync,rename", sys.executable),
            *("-I", "-c", _TWO_STATES, stage.programs.copy),
        ]
    )
    with open(output, encoding="utf-8") as file:
        calls = file.read().splitlines()
    renamed = max(number for number, line in enumerate(calls) if " rename(" in line)
    synced = "".join(line for line in calls[renamed:] if " fsync(" in line)
    found = [
        f"mail in {state}/ was accepted before {state}/ was synced"
        for state in (NEW, CUR)
        if world.sidecars(state) and f"/spool/{state}>" not in synced
    ]
    assert len(world.sidecars(NEW)) == 2
    assert len(world.sidecars(CUR)) == 1
    stage.forget(world)
    return found


def _damaged(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare a message whose body a disk has altered, among others."""
    world.accept([LATER])
    path = f"{world.spool}/{NEW}/{world.accept([LATER])}{BODY}"
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"END!")


def _half_moved(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare a message that a crash left in two states: the later one has no body yet."""
    message_id = world.accept([LATER])
    record = read_sidecar(f"{world.spool}/{NEW}/{message_id}{SIDECAR}")
    record |= {"revision": 1, "attempts": 1}
    later = f"{world.spool}/{CUR}/{message_id}{SIDECAR}"
    with open(later, "w", encoding="utf-8") as file:
        json.dump(record, file)
    due = cast("int", record["next_attempt"])
    os.utime(later, (due, due))


def _never_nowhere(stage: Stage, scenario: Scenario) -> list[str]:
    """Return the states in which a message has lost its sidecar or its body."""
    recording = power.record(stage, scenario)
    ids = {name.partition(".eml")[0] for (_, name) in recording.disk.entries if BODY in name}
    found = []
    for trial in _states(recording):
        there = {name for (directory, name), _ in trial.state.entries if directory != "tmp"}
        lost = [one for one in ids if not {one + BODY, one + SIDECAR} <= there]
        if lost:
            found.append(f"{trial.place}: of {len(lost)} messages the sidecar or the body is gone")
            break
    assert ids
    stage.forget(recording.template)
    return found


def a_message_that_is_put_aside(stage: Stage) -> list[str]:
    """Damaged mail is in the spool at every moment of its way to undelivered/."""
    statuses = frozenset({_IO_ERROR, _DEFERRED, 0, 69})
    scenario = Scenario("send, damaged", "send", _damaged, statuses=statuses)
    found = _never_nowhere(stage, scenario)
    world = stage.template(scenario)
    world.run(world.programs.command("send"))
    if not any(name.endswith(SIDECAR) for name in os.listdir(f"{world.spool}/{UNDELIVERED}")):
        found.append("a damaged message was not put aside")
    stage.forget(world)
    return found


def a_message_in_two_states(stage: Stage) -> list[str]:
    """Settling what a crash left loses neither the later sidecar nor the body."""
    statuses = frozenset({_DEFERRED, 0})
    return _never_nowhere(
        stage, Scenario("send, half moved", "send", _half_moved, statuses=statuses)
    )


def _states(recording: power.Recording) -> list[power._Trial]:
    return power.trials(
        recording, limit=64, most=_STATES_OF_AN_OPERATION, seed=1, report=power.PowerReport()
    )


def _after(stage: Stage, recording: power.Recording, state: State) -> World:
    """Return a home whose spool is what a power loss left of a recorded one."""
    world = World.begin(stage.path(), stage.good.address, recording.template.programs)
    shutil.rmtree(world.spool)
    state.materialise(world.spool)
    return world


# --- The disk ----------------------------------------------------------------------------------


def an_outcome_that_cannot_be_recorded(stage: Stage) -> list[str]:
    """Where the disk refuses the new sidecar, send says 74, and the message is as it was."""
    world = World.begin(stage.path(), stage.moody.address, stage.programs)
    message_id = world.accept([LATER])
    ran = world.run(
        [
            *("strace", "-f", "-o", "/dev/null", "-e", "trace=rename"),
            *("-e", "inject=rename:error=ENOSPC", *world.programs.command("send")),
        ]
    )
    found = []
    if ran.returncode != _IO_ERROR:
        found.append(f"the outcome could not be recorded, and send ended with {ran.returncode}")
    if world.sidecars("new", "cur", "undelivered") != [f"{world.spool}/new/{message_id}{SIDECAR}"]:
        found.append(f"the message has moved: {world.sidecars('new', 'cur', 'undelivered')}")
    stage.forget(world)
    return found


def a_disk_that_fills_meanwhile(stage: Stage) -> list[str]:
    """A message that would leave less than `minfree` is refused while it is written.

    The spool is a small file system of its own, in a namespace of its own.
    """
    world = World.begin(stage.path(), stage.good.address, stage.programs)
    world.setting("minfree", str(_MINFREE_OCTETS))
    with open(f"{world.root}/message", "wb") as file:
        file.write(b"Subject: large\n\n" + b"0123456789abcde\n" * (_LARGE_OCTETS // 16))
    with open(f"{world.root}/envelope", "wb") as file:
        file.write(envelope.encode_envelope("from@here.test", ["to@there.test"]))
    script = (
        f'mount -t tmpfs -o size={_DISK},mode=700 none "$0/spool" || exit 200; cd "$0/spool"; '
        "mkdir -m 700 tmp new cur undelivered; "
        'f=$0; "$@" <"$f/message" 1<"$f/envelope"; s=$?; find "$f/spool" -type f >&2; exit $s'
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, world.root]
    ran = world.run([*command, *world.programs.command("queue")])
    if ran.returncode == 200 or b"unshare:" in ran.stderr:
        raise NotImplementedError(f"no mounts in a namespace here: {ran.stderr!r}")
    found = []
    left = [line for line in ran.stderr.decode().splitlines() if line.startswith(world.spool)]
    if ran.returncode != _QUEUE_WRITE or left:
        found.append(f"a message left too little space: exit {ran.returncode}, {left}")
    stage.forget(world)
    return found


# --- Relays that fail --------------------------------------------------------------------------


@contextlib.contextmanager
def _two_routes(stage: Stage, first: HostileRelay, other: HostileRelay) -> Iterator[World]:
    """Yield a home with a message to both relays, and a sender at work on it; then kill that."""
    with first, other:
        world = World.begin(stage.path(), first.address, stage.programs)
        world.setting("smtproutes", f"other.test:{other.address}")
        world.accept(["a@one.test", "b@other.test"])
        with subprocess.Popen(world.programs.command("send"), env=world.variables()) as sender:
            try:
                yield world
            finally:
                sender.kill()
        stage.forget(world)


def _is_marked(world: World) -> bool:
    (body,) = [one for one in os.scandir(f"{world.spool}/{NEW}") if one.name.endswith(BODY)]
    return bool(body.stat().st_mode & IN_DOUBT_BIT)


def _silent_after_the_end(ended: threading.Event) -> Fault:
    """Give no reply to the final dot, as a relay that thinks about it."""

    def act(line: Line, _ordinary: bytes) -> bool:
        ended.set()
        line.await_end()
        return False

    return act


def _once(ended: threading.Event, then: Callable[[Line, bytes], bool]) -> Fault:
    """Wait until the other relay has the end of its data."""

    def act(line: Line, ordinary: bytes) -> bool:
        ended.wait(30)
        return then(line, ordinary)

    return act


def a_part_that_is_noted(stage: Stage) -> list[str]:
    """The reply to one part leaves the mark while the end of another part has no reply yet."""
    ended = threading.Event()

    def answer(line: Line, ordinary: bytes) -> bool:
        line.send(ordinary)
        return True

    silent = HostileRelay({".": _silent_after_the_end(ended)})
    other = HostileRelay({".": _once(ended, answer)})
    with _two_routes(stage, silent, other) as world:
        path = f"{world.spool}/{NEW}"
        wait_until(lambda: any(PROGRESS in one for one in os.listdir(path)), "a part is noted")
        # The mark would go right after the note: the connection ends after both.
        wait_until(lambda: "QUIT" in other.verbs(), "the other relay is done with")
        if not _is_marked(world):
            return ["a part waits for the reply to its end, and the message is not marked"]
    return []


def a_part_that_is_handed_back(stage: Stage) -> list[str]:
    """A part that failed before its end leaves the mark while the end of another has no reply."""
    ended = threading.Event()

    def drop(_line: Line, _ordinary: bytes) -> bool:
        return False

    silent = HostileRelay({".": _silent_after_the_end(ended)})
    other = HostileRelay({"MAIL": _once(ended, drop)})
    with _two_routes(stage, silent, other) as world:
        wait_until(lambda: other.verbs().count("MAIL") > 1, "the other relay is tried again")
        if not _is_marked(world):
            return ["a part waits for the reply to its end, and the message is not marked"]
    return []


def a_message_that_the_relay_dies_of(stage: Stage) -> list[str]:
    """It steps aside, uncharged and for a while; the others are delivered in the same run."""
    world = World.begin(stage.path(), stage.moody.address, stage.programs)
    message_id = world.accept([BREAKS])
    for _ in range(3):
        world.accept()
    begun = int(time.time())
    ran = world.run(world.programs.command("send"))
    found = []
    if ran.returncode != _DEFERRED:
        found.append(f"exit {ran.returncode}: {ran.stderr!r}")
    if world.sidecars("new", "cur") != [f"{world.spool}/cur/{message_id}{SIDECAR}"]:
        found.append(f"one message breaks the relay; waiting are {world.sidecars('new', 'cur')}")
    else:
        record = read_sidecar(f"{world.spool}/cur/{message_id}{SIDECAR}")
        if record["attempts"] or cast("int", record["next_attempt"]) < begun + 60:
            found.append(f"it does not step aside: {record}")
    if os.path.exists(f"{world.spool}/{BREAKER}"):
        found.append("one message breaks the relay, which is taken to be down for all")
    stage.forget(world)
    return found


def held_mail_in_front_of_a_dead_relay(stage: Stage) -> list[str]:
    """It never expires, whatever the hint says and however old it is."""
    world = World.begin(stage.path(), "127.0.0.1:1", stage.programs)
    # A run opens one message before it knows that the relay is down.
    world.accept()
    message_id = world.accept()
    world.edit(message_id, held=True, attempts=100)
    # A restore from a backup may have lost the hint, which is the time of the file.
    os.utime(f"{world.spool}/new/{message_id}{SIDECAR}")
    with Zygote(stage.programs.copy) as zygote:
        zygote.run(world.root, "cron", offset=_WEEK_SECONDS + 86400)
    found = []
    kept = [one for one in world.sidecars("new", "cur") if message_id in one]
    if len(kept) != 1 or not read_sidecar(kept[0])["held"]:
        found.append(f"held mail is not where it was, but: {world.everything()}")
    stage.forget(world)
    return found


# --- Locks -----------------------------------------------------------------------------------


def _race(stage: Stage, name: str) -> list[str]:
    """Run one of the races of lock_races.py; it prints the breaches."""
    ran = subprocess.run(
        [sys.executable, "-I", f"{_HERE}/lock_races.py", stage.programs.copy, name, stage.path()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ran.stdout.splitlines()


def a_run_of_cron_that_has_just_begun(stage: Stage) -> list[str]:
    """Another run does not take its lock for that of the dead run whose stamp is still there."""
    return _race(stage, "cron")


def a_lock_whose_file_was_removed(stage: Stage) -> list[str]:
    """Who has waited for it does not think that others are kept out now."""
    return _race(stage, "key")


MISTAKES = (
    Mistake(
        "the progress file is not synced",
        "            if is_synced:\n                durable.sync(descriptor)\n",
        "            pass\n",
        transactions_that_were_done,
    ),
    Mistake(
        "the directory of the progress file is not synced",
        "        if is_first:\n            durable.sync_directory(files.join(state))\n",
        "        if is_first:\n            pass\n",
        transactions_that_were_done,
    ),
    Mistake(
        "a key alone: tmp/ is not synced before its record",
        '            durable.sync_directory(f"{spool}/{TMP}")\n',
        "            pass\n",
        one_message_with_a_key,
    ),
    Mistake(
        "a key alone: the directory of the keys is not synced",
        '            durable.sync_directory(f"{spool}/{IDEMPOTENCY}")\n',
        "            pass\n",
        one_message_with_a_key,
    ),
    Mistake(
        "of a group for two states one is synced",
        '        for directory in {f"{one._spool}/{one._state}" for one in group}:',
        '        for directory in {f"{one._spool}/{one._state}" for one in group[:1]}:',
        a_group_for_now_and_for_later,
    ),
    Mistake(
        "trouble with the disk is not counted",
        '        """Log that the disk did not let us handle a message; the others go on."""\n'
        "        self.summary.errors += 1\n",
        '        """Log that the disk did not let us handle a message; the others go on."""\n',
        an_outcome_that_cannot_be_recorded,
    ),
    Mistake(
        "the quarantine does not sync undelivered/",
        "            durable.sync_directory(self._files.join(UNDELIVERED))\n"
        "            durable.unlink_if_there(source)\n",
        "            durable.unlink_if_there(source)\n",
        a_message_that_is_put_aside,
    ),
    Mistake(
        "settling does not sync the state that stays",
        "        durable.sync_directory(self._files.join(best))\n",
        "",
        a_message_in_two_states,
    ),
    Mistake(
        "the mark of doubt is cleared while another part is open: a part was noted",
        "            self._take_back(part, rest)\n"
        "        if not work.without_reply and not work.in_doubt:\n",
        "            self._take_back(part, rest)\n        if True:\n",
        a_part_that_is_noted,
    ),
    Mistake(
        "the mark of doubt is cleared while another part is open: a part was handed back",
        "            if not work.without_reply and not work.in_doubt:\n",
        "            if True:\n",
        a_part_that_is_handed_back,
    ),
    Mistake(
        "a message that the relay dies of never steps aside",
        "        if part.faults < _FAULTS_A_RUN:\n",
        "        if part.faults:\n",
        a_message_that_the_relay_dies_of,
    ),
    Mistake(
        "held mail expires before a dead relay",
        "self._is_over(claim.message, tried_seconds) and not claim.message.held:\n",
        "self._is_over(claim.message, tried_seconds):\n",
        held_mail_in_front_of_a_dead_relay,
    ),
    Mistake(
        "minfree is not looked at while a message is written",
        "            if after >> _CHECK_SPACE_BITS != self.size >> _CHECK_SPACE_BITS:\n",
        "            if after < 0:\n",
        a_disk_that_fills_meanwhile,
    ),
    Mistake(
        "the lock of cron: a stamp is believed that was read before the lock's holder wrote it",
        "        time.sleep(_STAMPING_SECONDS)\n"
        "        if not _is_overdue(path, now, lifetime_seconds()):\n"
        "            return -1\n",
        "",
        a_run_of_cron_that_has_just_begun,
    ),
    Mistake(
        "a lock is believed whose file has lost its name",
        "        if is_at(path, lock):\n            return lock\n",
        "        if lock >= 0:\n            return lock\n",
        a_lock_whose_file_was_removed,
    ),
)
