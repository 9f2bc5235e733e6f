"""System calls counted: three fsyncs a message, and none that does not help.

INTERNALS.md says which calls a mail needs; here the programs are watched by strace, and every call
of theirs from the first setting on is compared with what they may make.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.admin.filesystem import type_of
from picoqmail.layout import CUR, IDLE, NEW, REPORTS
from picoqmail.spool.idle import LOCAL
from picoqmail.spool.syncfs import TRUSTED
from rig.programs import find
from rig.sink import Sink
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trial import Trial

# Memory is the interpreter's affair: when it asks for more is not ours to say.
MEMORY = {"brk", "mmap", "munmap", "mremap", "madvise"}
STATS = {"lstat", "fstat", "newfstatat"}  # as the C library has them
MESSAGE = b"From: a@example.org\nTo: b@example.net\nSubject: x\n\nbody\n"
ENVELOPE = b"Fa@example.org\0Tb@example.net\0\0"
SECONDS = 60

OTHER_SETTINGS = ["openat"] * 4  # databytes, minfree, queuelifetime and minivars are not there
# Between the two, the setting spool is not there: no database keeps the mail.
IDENTITY = ["getpid", "openat", "getrandom"]
# transitions.ACCEPT, call by call; the lock goes before its descriptor.
BODY = ["openat", "flock"]
# The hint has the disk begin with the sidecar; the body's sync waits for both.
ON_DISK = ["openat", "write", "fadvise64", "fsync", "fsync", "close"]
VISIBLE = ["link", "rename", "openat", "fsync", "close", "unlink", "flock", "close"]
QUEUE = [
    *OTHER_SETTINGS,
    *IDENTITY,
    *BODY,
    *("read", "write", "read"),  # the message and its end
    "read",  # the envelope, which says itself where it ends
    *ON_DISK,
    *VISIBLE,
    "exit_group",
]


def calls(command: Sequence[str], directory: Path, environ: dict[str, str]) -> list[str]:
    """Run a program on one mail under strace; its calls from the first setting to its end."""
    trace = directory / "trace"
    (directory / "message").write_bytes(MESSAGE)
    (directory / "envelope").write_bytes(ENVELOPE)
    strace = [find("strace", "strace"), "-f", "-qq", "-o", str(trace)]
    with open(directory / "message", "rb") as message, open(directory / "envelope", "rb") as rest:
        ran = subprocess.run(
            [*strace, *command],
            stdin=message,
            stdout=rest,
            stderr=subprocess.PIPE,
            env=environ,
            check=False,
            timeout=SECONDS,
        )
    assert (0, b"") == (ran.returncode, ran.stderr)
    lines = trace.read_text(errors="replace").splitlines()
    first = next(i for i, line in enumerate(lines) if "/control/" in line)
    found = [re.match(r"\d+ +(\w+)\(", line) for line in lines[first:]]
    return [one[1] for one in found if one is not None and one[1] not in MEMORY]


def test_the_queue_makes_no_needless_call(trial: Trial, tmp_path: Path) -> None:
    """From the first setting to the end: these calls, in this order, three of them an fsync."""
    made = calls([trial.installed.program("queue")], tmp_path, trial.variables())
    # Whose the setting is, and every directory on the way to it.
    way = ["stat"] * len(f"{trial.root}/control".split("/"))
    made = ["stat" if one in STATS else one for one in made]
    assert ["openat", *way, "stat", "read", "read", "close", *QUEUE] == made
    assert 3 == made.count("fsync")


def test_sendmail_makes_three_fsyncs(trial: Trial, tmp_path: Path) -> None:
    """The same acceptance in the same process: what comes before it only reads."""
    program = trial.installed.program("sendmail")
    command = [program, "-i", "-fa@example.org", "b@example.net"]
    made = calls(command, tmp_path, trial.variables())
    assert 3 == made.count("fsync")
    assert 0 == sum(made.count(name) for name in ("fork", "vfork", "clone", "clone3", "execve"))
    assert [*ON_DISK, *VISIBLE, "exit_group"] == made[-len(ON_DISK) - len(VISIBLE) - 1 :]


# One mail by the sender: open, lock, mark and check its body, read its sidecar, mark it before the
# final dot, remove both files, and write two lines of the log. Two names are looked up in vain,
# because a crash may have left another sidecar there.
FOR_A_MAIL = {
    "openat": 2,
    "flock": 1,
    "newfstatat": 4,
    "read": 1,
    "pread64": 1,
    "fchmod": 2,
    "write": 2,
    "unlink": 2,
}


def test_the_sender_makes_no_needless_call_for_a_mail(trial: Trial, tmp_path: Path) -> None:
    """The difference of two runs is what the mails cost; the socket's calls depend on the relay."""
    counts = []
    with Sink(keep=False) as sink:
        trial.setting("relayip", sink.address)
        trial.setting("concurrencyremote", "1")
        trial.setting("log", str(tmp_path / "log"))
        # The first run also makes files that later ones only rewrite.
        for mails in (1, 10, 30):
            for _ in range(mails):
                trial.accepted()
            trace = tmp_path / "trace"
            strace = [find("strace", "strace"), "-f", "-qq", "-o", str(trace)]
            command = [*strace, trial.installed.program("send")]
            subprocess.run(command, env=trial.variables(), check=True, timeout=SECONDS)
            made = re.findall(r"^\d+ +(\w+)\(", trace.read_text(errors="replace"), re.MULTILINE)
            counts.append({name: made.count(name) for name in FOR_A_MAIL})
    _, few, many = counts
    assert FOR_A_MAIL == {name: (many[name] - few[name]) / 20 for name in FOR_A_MAIL}


# Much that other programs of the host have not written yet would have a group sync each message
# alone; test_syncfs.py tries that.
ENQUEUE_MANY = """
import sys
import picoqmail
from picoqmail import Mail
from picoqmail.spool import syncfs
syncfs.MOST_DIRTY_OCTETS = 1 << 60
count, keyed = int(sys.argv[1]), sys.argv[2] == "keyed"
mails = [
    Mail(b"Subject: x\\n\\nbody\\n", "a@example.org", ["b@example.net"],
         idempotency_key=str(number) if keyed else None)
    for number in range(count)
]
results = picoqmail.enqueue_many(mails)
assert all(isinstance(one, picoqmail.Receipt) for one in results), results
"""


def syncs(trial: Trial, trace: Path, *arguments: str) -> dict[str, int]:
    """How often enqueue_many called each of the calls that make things durable."""
    names = ("fsync", "fdatasync", "syncfs", "sync")
    strace = [find("strace", "strace"), "-f", "-qq", "-e", f"trace={','.join(names)}"]
    subprocess.run(
        [*strace, "-o", str(trace), trial.installed.python, "-I", "-c", ENQUEUE_MANY, *arguments],
        env=trial.variables(),
        check=True,
        timeout=SECONDS,
    )
    made = re.findall(r"^\d+ +(\w+)\(\d", trace.read_text(), re.MULTILINE)
    return {name: made.count(name) for name in names if name in made}


@pytest.mark.parametrize(
    ("keyed", "count", "expected"),
    [
        ("plain", 1, {"fsync": 3}),
        # Too few for a sync of all: two each, and one for the state.
        ("plain", 7, {"fsync": 2 * 7 + 1}),
        ("plain", 8, {"syncfs": 1, "fsync": 1}),
        ("plain", 128, {"syncfs": 1, "fsync": 1}),
        ("plain", 258, {"syncfs": 2, "fsync": 2 + 2 * 2 + 1}),
        # One more for the keys; the directory for them is made, and with it a name in the spool.
        ("keyed", 128, {"syncfs": 2, "fsync": 1 + 1}),
    ],
)
def test_a_group_shares_its_syncs(
    trial: Trial, tmp_path: Path, keyed: str, count: int, expected: dict[str, int]
) -> None:
    """enqueue_many: a syncfs for 128 messages, an fsync for their state; few are synced alone."""
    kind = type_of(trial.spool)
    if kind not in TRUSTED:
        pytest.skip(f"on {kind} each message is synced by itself")
    assert expected == syncs(trial, tmp_path / "trace", str(count), keyed)


WITHOUT_SYNCFS = "import sys; sys.modules['_ctypes'] = None\n" + ENQUEUE_MANY


def traced_without_syncfs(trial: Trial, trace: Path, count: int, *options: str) -> list[str]:
    """The names of the calls that put a group on disk, where no sync of all can be trusted."""
    names = "trace=fsync,fdatasync,syncfs,sync_file_range,fadvise64"
    strace = [find("strace", "strace"), "-f", "-qq", "-e", names, *options, "-o", str(trace)]
    command = [trial.installed.python, "-I", "-c", WITHOUT_SYNCFS, str(count), "plain"]
    subprocess.run([*strace, *command], env=trial.variables(), check=True, timeout=SECONDS)
    return re.findall(r"^\d+ +(\w+)\(\d", trace.read_text(), re.MULTILINE)


@pytest.mark.parametrize("count", [2, 7, 100])
def test_the_disk_begins_with_all_before_one_is_waited_for(
    trial: Trial, tmp_path: Path, count: int
) -> None:
    """Where no sync of all can be trusted: two requests a message, then two fsyncs a message."""
    made = traced_without_syncfs(trial, tmp_path / "trace", count)
    assert ["fadvise64"] * 2 * count + ["fsync"] * (2 * count + 1) == made


def test_a_request_to_begin_that_fails_proves_nothing(trial: Trial, tmp_path: Path) -> None:
    """Each file is synced all the same, and that decides."""
    refused = "inject=fadvise64:error=EIO"
    made = traced_without_syncfs(trial, tmp_path / "trace", 10, "-e", refused)
    assert 2 * 10 + 1 == made.count("fsync")
    assert 2 * 10 == len(os.listdir(f"{trial.spool}/new"))


def test_a_sync_that_fails_costs_its_message_alone(trial: Trial, tmp_path: Path) -> None:
    """The fsync of one file decides about one message of the group, and none of it is left."""
    code = WITHOUT_SYNCFS.replace("assert all(", "print(sum(").removesuffix(", results\n") + ")"
    strace = [find("strace", "strace"), "-f", "-qq", "-o", str(tmp_path / "trace")]
    refused = ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=4"]
    command = [*strace, *refused, trial.installed.python, "-I", "-c", code, "10", "plain"]
    ran = subprocess.run(
        command, env=trial.variables(), stdout=subprocess.PIPE, check=True, timeout=SECONDS
    )
    # strace counts the calls of each thread by itself.
    left = int(ran.stdout)
    assert left < 10
    assert 2 * left == len(os.listdir(f"{trial.spool}/new"))
    assert [] == os.listdir(f"{trial.spool}/tmp")


ENQUEUE = """
import sys
import picoqmail
for _ in range(int(sys.argv[1])):
    picoqmail.enqueue(b"Subject: x\\n\\nbody\\n", sender="a@b.example", recipients=["c@d.example"])
"""


def test_enqueue_judges_the_way_to_the_settings_once(trial: Trial, tmp_path: Path) -> None:
    """However many settings it reads; root's judgement on the whole home is the same one."""
    counts = []
    for calls_made in (2, 12):
        trace = tmp_path / "trace"
        strace = [find("strace", "strace"), "-f", "-qq", "-o", str(trace)]
        command = [*strace, trial.installed.python, "-I", "-c", ENQUEUE, str(calls_made)]
        subprocess.run(command, env=trial.variables(), check=True, timeout=SECONDS)
        text = trace.read_text(errors="replace")
        control = re.escape(f'"{trial.root}/control"')
        counts.append(len(re.findall(rf"(?:lstat|newfstatat)\(.*{control}", text)))
    assert 10 == counts[1] - counts[0]


def test_an_idle_run_opens_no_sidecar(trial: Trial, tmp_path: Path) -> None:
    """What is not due costs one stat and nothing else, however much of it there is."""
    counts = []
    for more in (10, 100):
        for number in range(more):
            defer(trial, f"{int(time.time())}.M{number:06}P{more}Q1R0.me.test")
        trace = tmp_path / "trace"
        strace = [find("strace", "strace"), "-f", "-qq", "-o", str(trace)]
        command = [*strace, trial.installed.program("cron")]
        subprocess.run(command, env=trial.variables(), check=True, timeout=SECONDS)
        text = trace.read_text(errors="replace")
        assert not re.search(r"open(?:at)?\(.*\.json", text)
        # By the descriptor of the directory: no way to it is walked again and again.
        counts.append(len(re.findall(r"(?:newfstatat|statx)\(\d+, \"[^\"/]*\.json", text)))
    assert [10, 110] == counts


def cron_calls(trial: Trial, trace: Path) -> list[str]:
    """Run cron under strace: its calls from the first setting on, as lines."""
    strace = [find("strace", "strace"), "-f", "-qq", "-o", str(trace)]
    command = [*strace, trial.installed.program("cron")]
    subprocess.run(command, env=trial.variables(), check=True, timeout=SECONDS)
    lines = trace.read_text(errors="replace").splitlines()
    lines = lines[next(n for n, line in enumerate(lines) if "/control/" in line) :]
    return [line for line in lines if re.sub(r"\d+ +(\w+).*", r"\1", line) not in MEMORY]


def test_an_idle_run_opens_nothing_where_nothing_changed(trial: Trial, tmp_path: Path) -> None:
    """Seven calls instead of all looks: it costs less than a look at an empty spool."""
    kind = type_of(trial.spool)
    if kind not in LOCAL:
        pytest.skip(f"nothing is noted on {kind}")
    empty = cron_calls(trial, tmp_path / "trace")
    for number in range(300):
        defer(trial, f"{int(time.time())}.M{number:06}P1Q1R0.me.test")
    # Directories that changed just now may change again in the same step of the clock.
    hint = f"{trial.spool}/{IDLE}"
    wait_until(lambda: cron_calls(trial, tmp_path / "trace") and os.path.exists(hint), "a note", 30)
    idle = cron_calls(trial, tmp_path / "trace")
    assert len(idle) <= len(empty)
    names = [re.sub(rf'.*"{trial.spool}/?([^"]*)".*', r"\1", line) for line in idle]
    asked = [name for name in names if "(" not in name]
    # The lock of the run, the breaker, the drop and complaints are asked for by every run.
    assert {"", "cron.lock", "relay-down", "drop", "cron-complaint"} >= {
        name for name in asked if name not in {IDLE, CUR, NEW, REPORTS}
    }
    assert [IDLE, CUR, NEW, REPORTS] == [n for n in asked if n in {IDLE, CUR, NEW, REPORTS}]
    opened = [line for line in idle if "O_DIRECTORY" in line and "ENOENT" not in line]
    assert [] == opened


def defer(trial: Trial, message_id: str) -> None:
    """Put a message into cur/ that is due in an hour; an idle run looks at its time alone."""
    for suffix in (".json", ".eml"):
        path = f"{trial.spool}/cur/{message_id}{suffix}"
        with open(path, "wb"):
            pass
        os.utime(path, (time.time() + 3600,) * 2)
