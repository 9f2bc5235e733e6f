"""The sender in the background: detached in every way, few for a burst, never an error."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import BREAKER, NEW, SENDER_LOCK
from picoqmail.ledger.relay_down import relay_is_down
from picoqmail.spool.locks import take_lock
from picoqmail.submission import start_sender
from rig import faults
from rig.hostile import HostileRelay
from rig.waiting import wait_until
from temporary_home import MESSAGE
from trial import ENVELOPE, kill

if TYPE_CHECKING:
    from collections.abc import Callable

    from trial import Trial

SECONDS = 20


def test_a_lock_keeps_others_out_until_it_is_closed(trial: Trial) -> None:
    """Without waiting; the file stays where it is."""
    path = f"{trial.spool}/{SENDER_LOCK}"
    lock = take_lock(path)
    assert lock >= 0
    assert -1 == take_lock(path)
    os.close(lock)
    again = take_lock(path)
    assert again >= 0
    os.close(again)
    assert os.path.exists(path)


def test_a_lock_is_no_symlink(trial: Trial) -> None:
    """A planted link is not followed."""
    os.symlink(f"{trial.root}/precious", f"{trial.spool}/{SENDER_LOCK}")
    with pytest.raises(OSError, match="symbolic"):
        take_lock(f"{trial.spool}/{SENDER_LOCK}")
    assert not os.path.exists(f"{trial.root}/precious")


@pytest.mark.parametrize(
    ("until", "down"), [(None, False), (-1, False), (60, True), (599, True), (7200, False)]
)
def test_the_breaker_is_one_stat(trial: Trial, until: int | None, *, down: bool) -> None:
    """Its time is when to look again; one that is too far off is a clock that jumped."""
    now = 1_700_000_000
    if until is not None:
        path = f"{trial.spool}/{BREAKER}"
        with open(path, "wb"):
            pass
        os.utime(path, (now + until, now + until))
    assert down == relay_is_down(trial.spool, now)


def test_the_sender_gets_a_clean_environment(trial: Trial) -> None:
    """What name lookups and password commands need, and the home; nothing else of the caller."""
    environ = {
        "PATH": "/bin",
        "HOME": "/h",
        "LD_PRELOAD": "evil.so",
        "PYTHONPATH": "/evil",
        "PICOQMAIL_SEND": "off",
        "SECRET": "x",
    }
    assert {
        "PATH": "/bin",
        "HOME": "/h",
        "PICOQMAIL_HOME": trial.root,
        "PICOQMAIL_CONTROL": f"{trial.root}/control",
        "PICOQMAIL_SPOOL": trial.spool,
    } == start_sender.sender_environment(trial.home, environ)


def stalled(trial: Trial, rig: Callable[[HostileRelay], HostileRelay]) -> HostileRelay:
    """A relay that never answers to the greeting."""
    relay = rig(HostileRelay({"EHLO": faults.stall()}))
    trial.setting("relayip", relay.address)
    return relay


def the_sender(trial: Trial, relay: HostileRelay) -> int:
    """The pid of the one sender, once it waits for the relay."""
    wait_until(lambda: relay.commands, "the sender greets the relay", SECONDS)
    (pid,) = trial.programs()
    return pid


def test_nobody_waits_for_the_relay(
    trial: Trial, rig: Callable[[HostileRelay], HostileRelay]
) -> None:
    """The caller's pipes end and its process is gone while the sender still talks.

    The sender has none of the caller's descriptors, a session of its own, the root directory,
    and nothing blocked or ignored but what Python ignores.
    """
    relay = stalled(trial, rig)
    pipes = [os.pipe() for _ in range(2)]
    extra = os.open(trial.root, os.O_RDONLY)
    with tempfile.TemporaryFile() as zero, tempfile.TemporaryFile() as one:
        zero.write(MESSAGE)
        one.write(ENVELOPE)
        zero.seek(0)
        one.seek(0)
        # Descriptor 6 is a pipe, 3 and 9 are of the caller too; 2 is a pipe that somebody reads.
        script = (
            "import os, sys\n"
            "six, other = int(sys.argv[1]), int(sys.argv[2])\n"
            "for source, target in ((six, 6), (other, 9), (other, 3)):\n"
            "    source != target and os.dup2(source, target)\n"
            "    os.set_inheritable(target, True)\n"
            "os.execv(sys.argv[3], sys.argv[3:])\n"
        )
        arguments = [str(pipes[0][1]), str(extra), trial.installed.program("queue")]
        started = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=zero,
            stdout=one,
            stderr=pipes[1][1],
            pass_fds=[pipes[0][1], extra],
            env=trial.sending(),
            cwd=trial.root,
        )
        for _, writing in pipes:
            os.close(writing)
        assert 0 == started.wait(SECONDS)
    # Both end although the sender runs: nothing of it holds them open.
    for reading, _ in pipes:
        assert b"" == os.read(reading, 1)
        os.close(reading)
    os.close(extra)
    pid = the_sender(trial, relay)
    assert os.getsid(pid) not in (os.getsid(0), os.getsid(os.getpid()))
    assert pid == os.getsid(pid)
    assert "/" == os.readlink(f"/proc/{pid}/cwd")
    held = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        held[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    assert {0: "/dev/null", 1: "/dev/null", 2: "/dev/null"} == {n: held[n] for n in range(3)}
    assert f"{trial.spool}/{SENDER_LOCK}" == held[3]
    mine = [path for n, path in held.items() if n > 3]
    ours = ("socket:", "anon_inode:", "pipe:", f"{trial.spool}/{NEW}/", f"{trial.root}/log")
    assert [] == [path for path in mine if not path.startswith(ours)]
    # A pipe of its own, to wake itself: both ends are its own.
    for path in [path for path in mine if path.startswith("pipe:")]:
        assert 2 == mine.count(path)
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        masks = dict(line.rstrip("\n").split(":\t") for line in file if line.startswith("Sig"))
    assert 0 == int(masks["SigBlk"], 16)
    # SIGPIPE and SIGXFSZ are ignored by Python; 32 and above are not ours.
    assert 0 == int(masks["SigIgn"], 16) & 0x7FFFFFFF & ~(1 << 12 | 1 << 24)
    kill(pid)


def test_a_burst_starts_one_sender(
    trial: Trial, rig: Callable[[HostileRelay], HostileRelay]
) -> None:
    """While one is active nobody starts another, and it takes all that came meanwhile."""
    relay = rig(HostileRelay({"EHLO": [faults.delayed(1.0)]}))
    trial.setting("relayip", relay.address)
    for _ in range(10):
        assert 0 == trial.queue(env=trial.sending()).returncode
    relay.wait_for(10, SECONDS)
    trial.wait_for_senders()
    assert [] == trial.files()
    # Each sender's connections begin anew; with a sender for each mail there were ten greetings.
    assert relay.connections < 10


def test_off_means_off(trial: Trial) -> None:
    """PICOQMAIL_SEND=off: accepted, and left to cron."""
    assert 0 == trial.queue().returncode
    assert [] == trial.programs()
    assert not os.path.exists(f"{trial.spool}/{SENDER_LOCK}")


def test_an_open_breaker_starts_nobody(trial: Trial) -> None:
    """A relay that is down costs a burst one stat a mail."""
    path = f"{trial.spool}/{BREAKER}"
    with open(path, "wb"):
        pass
    os.utime(path, (time.time() + 200, time.time() + 200))
    assert 0 == trial.queue(env=trial.sending()).returncode
    assert not os.path.exists(f"{trial.spool}/{SENDER_LOCK}")
    assert 1 == len(trial.ids(NEW))


def test_a_library_caller_gets_no_child(trial: Trial, strict_relay: HostileRelay) -> None:
    """Started from a long-lived process the sender is nobody's child: no zombie is left."""
    trial.setting("relayip", strict_relay.address)
    trial.accepted()
    script = (
        "import os, sys, time\n"
        "from picoqmail.home.paths import Home\n"
        "from picoqmail.submission.start_sender import start_sender\n"
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        "assert start_sender(Home(sys.argv[1]), time.time())\n"
        "assert before == sorted(os.listdir('/proc/self/fd'))\n"
        "try:\n"
        "    os.waitpid(-1, 0)\n"
        "except ChildProcessError:\n"
        "    print('none')\n"
    )
    ran = subprocess.run(
        [trial.installed.python, "-c", script, trial.root],
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
        env={"PATH": os.environ["PATH"]},
    )
    assert "none\n" == ran.stdout
    strict_relay.wait_for(1, SECONDS)
    trial.wait_for_senders()
    assert [] == trial.files()


def test_trouble_in_starting_is_no_error(trial: Trial) -> None:
    """The mail is accepted already: where no sender can be started, cron has it."""
    os.mkdir(f"{trial.spool}/{SENDER_LOCK}")
    assert 0 == trial.queue(env=trial.sending()).returncode
    assert 1 == len(trial.ids(NEW))
