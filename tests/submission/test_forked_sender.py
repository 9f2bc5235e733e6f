"""The program that took a mail becomes its sender by fork, and nothing of the caller is left in it.

Each test runs the installed programs as callers do, and compares with a sender that was started.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from installation import Installation
from picoqmail.layout import NEW, SENDER_LOCK, TMP
from rig import faults
from rig.hostile import HostileRelay
from rig.programs import find
from rig.recording import RecordingRelay
from rig.waiting import wait_until
from temporary_home import MESSAGE
from trial import ENVELOPE, kill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from trial import Trial

    Start = Callable[[HostileRelay], HostileRelay]

SECONDS = 30
PROGRAMS = ("queue", "sendmail", "inject")
# A copy could not get rid of what this variable did, so the sender is started as before.
STARTED = {"LOCPATH": "/nowhere"}
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def command(trial: Trial, program: str) -> list[str]:
    """The command line of a program that takes one mail."""
    words = [] if program == "queue" else ["-fa@example.org", "b@example.net"]
    return [trial.installed.program(program), *words]


def hand_in(trial: Trial, program: str, environ: Mapping[str, str], **options: Any) -> bytes:
    """Have a mail accepted as PHP, cron and many others do: read all words to their end."""
    reading, writing = os.pipe()
    os.write(writing, ENVELOPE)
    os.close(writing)
    with os.fdopen(reading, "rb") as envelope:
        ran = subprocess.run(
            options.pop("before", []) + command(trial, program),
            input=MESSAGE,
            stdout=envelope if program == "queue" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**trial.sending(), **environ},
            timeout=SECONDS,
            check=False,
            **options,
        )
    assert 0 == ran.returncode, ran.stderr
    said: bytes = (ran.stdout or b"") + ran.stderr
    return said


@pytest.fixture
def stalled(trial: Trial, rig: Start) -> HostileRelay:
    """A relay that never answers to the greeting."""
    relay = rig(HostileRelay({"EHLO": faults.stall()}))
    trial.setting("relayip", relay.address)
    return relay


def the_sender(trial: Trial, relay: HostileRelay) -> int:
    """The pid of the one sender, once it waits for the relay."""
    wait_until(lambda: relay.commands, "the sender greets the relay", SECONDS)
    (pid,) = trial.programs()
    return pid


def of_process(pid: int, name: str) -> bytes:
    """A file of /proc about a process."""
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def is_forked(pid: int) -> bool:
    """Whether this sender took the name, for no program was executed that would have one."""
    return of_process(pid, "comm") == b"picoqmail-send\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_status_and_end_of_output_come_while_the_relay_says_nothing(
    trial: Trial, stalled: HostileRelay, program: str
) -> None:
    """The caller has its 0 and read its pipes to their end; the sender still waits."""
    assert b"" == hand_in(trial, program, {})
    pid = the_sender(trial, stalled)
    assert is_forked(pid)
    assert 1 == len(trial.ids(NEW))
    with pytest.raises(BlockingIOError):
        take(f"{trial.spool}/{SENDER_LOCK}")
    kill(pid)


def take(path: str) -> None:
    """Lock a file without waiting."""
    import fcntl

    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_no_descriptor_of_the_caller_is_left(
    trial: Trial, stalled: HostileRelay, closed: tuple[int, ...]
) -> None:
    """Null, the lock and what the sender opened itself; whatever the caller had open or closed."""
    trial.queued()
    script = (
        "import os, resource, sys\n"
        "for number in 5, 9, 77, 300: os.dup2(os.open('/', 0), number)\n"
        # A limit takes no descriptor away that is there already.
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        f"for number in {closed!r}: os.close(number)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    # A message on 0 and no recipient but the arguments: a closed 0 is refused by inject itself.
    words = [trial.installed.program("sendmail"), "-i", "b@example.net"]
    with open("/dev/null", "rb") as null:
        ran = subprocess.run(
            [sys.executable, "-c", script, *words],
            stdin=null,
            capture_output=True,
            env=trial.sending(),
            timeout=SECONDS,
            check=False,
        )
    if 0 in closed:
        assert 111 == ran.returncode
        return
    assert (0, b"") == (ran.returncode, ran.stderr)
    pid = the_sender(trial, stalled)
    held = {
        int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")
    }
    null_path, lock = "/dev/null", f"{trial.spool}/{SENDER_LOCK}"
    assert [null_path, null_path, null_path, lock] == [held[number] for number in range(4)]
    own = ("socket:", "anon_inode:", "pipe:", f"{trial.spool}/{NEW}/", f"{trial.root}/log")
    assert [] == [path for number, path in held.items() if number > 3 and not path.startswith(own)]
    kill(pid)


CALLER = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
os.umask(0)
os.nice(3)
os.chdir(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
"""


def as_seen(pid: int) -> dict[str, object]:
    """What of a process another one can see, but for numbers that differ in each."""
    status = dict(
        line.split(":\t")
        for line in of_process(pid, "status").decode().splitlines()
        if ":\t" in line
    )
    stat = of_process(pid, "stat").rpartition(b")")[2].split()
    names = ("Umask", "CoreDumping", "NoNewPrivs", "Seccomp")
    signals = ("SigBlk", "SigIgn", "SigCgt")
    return {
        **{name: status[name] for name in names if name in status},
        # Two signals are the C library's own, which ignores them where it starts a program.
        **{name: int(status[name], 16) & ~(1 << 31 | 1 << 32) for name in signals},
        "limits": of_process(pid, "limits"),
        "oom": of_process(pid, "oom_score_adj"),
        "slack": of_process(pid, "timerslack_ns"),
        "nice": stat[16],
        "terminal": stat[4],
        "leads": (os.getsid(pid) == pid, os.getpgid(pid) == pid),
        "directory": os.readlink(f"/proc/{pid}/cwd"),
        "readable": os.stat(f"/proc/{pid}/stat").st_uid,
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_else_is_as_in_a_sender_that_was_started(
    trial: Trial, stalled: HostileRelay, program: str
) -> None:
    """A caller that ignores and blocks every signal, and is nice; session, umask, limits, core."""
    seen = []
    for environ in ({}, STARTED):
        before = [sys.executable, "-c", CALLER, trial.root]
        assert b"" == hand_in(trial, program, environ, before=before)
        pid = the_sender(trial, stalled)
        assert (environ == {}) == is_forked(pid)
        seen.append(as_seen(pid))
        kill(pid)
        trial.wait_for_senders()
        stalled.commands.clear()
    forked, started = seen
    assert started == forked
    assert "/" == forked["directory"]
    assert (True, True) == forked["leads"]
    assert 0 == forked["SigBlk"]
    assert 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 == forked["SigIgn"]


OBEYED = (
    *("SSLKEYLOGFILE", "OPENSSL_CONF", "OPENSSL_MODULES", "RES_OPTIONS", "LOCALDOMAIN"),
    *("HOSTALIASES", "RESOLV_HOST_CONF", "TMPDIR", "NLSPATH", "PYTHONPATH", "PYTHONWARNINGS"),
    *("PYTHONHOME", "PICOQMAIL_SEND", "QMAILINJECT", "LC_ALL", "http_proxy", "SECRET", "empty"),
)
# Of a shell's own.
_OF_SHELL = ("PWD", "SHLVL", "OLDPWD", "_")


@pytest.mark.parametrize("program", ["queue", "sendmail"])
@pytest.mark.parametrize("language", [{}, {"LANG": "C"}, {"LANG": "C.UTF-8"}])
def test_a_command_of_the_sender_gets_what_one_of_a_started_sender_gets(
    trial: Trial,
    rig: Callable[[RecordingRelay], RecordingRelay],
    tmp_path: Path,
    program: str,
    language: dict[str, str],
) -> None:
    """The command of relaypass prints its environment: that of C, not only of Python."""
    relay = rig(RecordingRelay(tls="starttls", users={"alice": "hunter2"}))
    trial.setting("relayip", f"alice@{relay.address}")
    trial.setting("tls", "require")
    trial.setting("tlsca", relay.certificate.trusted)
    trial.setting("relaypass", f"!sh -c 'env -0 >{tmp_path}/environ; echo hunter2'")
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    caller = {name: "1" for name in OBEYED if name not in ("PICOQMAIL_SEND", "LC_ALL")}
    caller |= {"LC_ALL": "C.UTF-8", "empty": "", "SSL_CERT_DIR": "/etc/ssl/certs", "HOME": "/h"}
    caller |= {"TZ": "UTC", **language}
    seen = []
    for count, more in enumerate(({}, STARTED), 1):
        assert b"" == hand_in(trial, program, {**caller, **more})
        trial.wait_for_senders()
        assert count == len(relay.messages)
        variables = (tmp_path / "environ").read_bytes().split(b"\0")
        pairs = dict(one.decode().split("=", 1) for one in variables if one)
        seen.append({name: pairs[name] for name in pairs if name not in _OF_SHELL})
    forked, started = seen
    assert started == forked
    assert [] == [name for name in OBEYED if name in forked]
    assert "/h" == forked["HOME"]


def test_c_finds_no_variable_of_the_caller(trial: Trial, tmp_path: Path) -> None:
    """By getenv(3) in the child itself, also of a name that the caller gave twice."""
    code = (
        "import ctypes, json, os\n"
        "sys.path.append(sys.path[-1] + '/picoqmail/merged')\n"
        "import picoqmail_queue as merged\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.getenv.restype = ctypes.c_char_p\n"
        "libc.setenv(b'PICOQMAIL_SEND', b'x', 1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    merged._begin_anew(merged.locate())\n"
        f"    names = {OBEYED!r}\n"
        "    found = [libc.getenv(name.encode()) for name in names]\n"
        "    kept = libc.getenv(b'PICOQMAIL_HOME').decode()\n"
        "    everything = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\n"
        "    words = []\n"
        "    while everything[len(words)]: words.append(everything[len(words)].decode())\n"
        f"    with open({str(tmp_path / 'report')!r}, 'w') as file:\n"
        "        json.dump([found, kept, words, dict(os.environ)], file)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    # Twice the same name, an entry without a sign, and one without a name: execve(2) takes all.
    entries = [f"{name}=1" for name in OBEYED] + ["RES_OPTIONS=2", "LC_ALL=C.UTF-8", "odd", "=x"]
    entries += [f"PICOQMAIL_HOME={trial.root}", "PATH=/bin:/usr/bin"]
    packages = trial.python("print(sys.path[-1])").stdout.decode().strip()
    words = [trial.installed.python, "-I", "-S", "-c"]
    words.append(f"import sys; sys.path.append({packages!r})\n{code}")
    child = os.fork()
    if not child:
        exec_with(words, entries)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found, kept, everything, of_python = json.loads((tmp_path / "report").read_text())
    assert [None] * len(OBEYED) == found
    assert trial.root == kept
    assert sorted([f"{name}={value}" for name, value in of_python.items()] + ["odd", "=x"]) == (
        sorted(everything)
    )


def exec_with(words: list[str], entries: list[str]) -> None:
    """Execute a program with these entries as its environment; never return."""
    try:
        arrays = [
            (ctypes.c_char_p * (len(texts) + 1))(*[one.encode() for one in texts], None)
            for texts in (words, entries)
        ]
        ctypes.CDLL(None).execve(words[0].encode(), *arrays)
    finally:
        os._exit(127)


def test_ps_shows_the_sender_and_nothing_of_its_caller(trial: Trial, stalled: HostileRelay) -> None:
    """Name, arguments and environment; the recipient and a secret of the caller are gone."""
    assert b"" == hand_in(trial, "sendmail", {"SECRET": "x" * 2000, "HOME": "/h"})
    pid = the_sender(trial, stalled)
    assert b"picoqmail-send\n" == of_process(pid, "comm")
    assert b"picoqmail-send\0--lock=3" == of_process(pid, "cmdline").rstrip(b"\0")
    shown = dict(one.split(b"=", 1) for one in of_process(pid, "environ").split(b"\0") if one)
    assert (trial.root.encode(), b"/h") == (shown[b"PICOQMAIL_HOME"], shown[b"HOME"])
    assert not {b"SECRET", b"PICOQMAIL_SEND"}.intersection(shown)
    told = subprocess.run(
        [find("ps", "procps"), "-o", "args=", "-p", str(pid)], capture_output=True, check=True
    )
    assert b"picoqmail-send --lock=3" == told.stdout.strip()
    kill(pid)


@pytest.fixture
def own(trial: Trial, tmp_path: Path) -> Iterator[Trial]:
    """A trial with an installation that a test may change."""
    directory = tmp_path / "environment"
    shutil.copytree(os.path.dirname(trial.installed.bin), directory, symlinks=True)
    trial.installed = Installation(f"{directory}/bin", f"{directory}/bin/python3")
    yield trial
    for pid in trial.programs():
        kill(pid)


def sender_file(trial: Trial) -> str:
    """The merged file that is loaded after the fork."""
    packages = trial.python("print(sys.path[-1])").stdout.decode().strip()
    return f"{packages}/picoqmail/merged/picoqmail_sender.py"


def of_another_build(text: str) -> str:
    """The file of another version, which would say so if it was loaded."""
    build = text.partition("if BUILD != '")[2].partition("'")[0]
    assert build
    return text.replace(build, "0" * len(build))


CHANGES: dict[str, Callable[[str], str]] = {
    "another version": of_another_build,
    "cut": lambda text: text[: text.index("\nclass ", len(text) // 2)],
    "not Python": lambda text: text + "(",
    "empty": lambda _text: "",
    "an error": lambda text: text.replace("import sys\n", "import sys\nraise MemoryError\n", 1),
    "none": lambda text: text,
    "gone": lambda _text: "gone",
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_upgrade_while_the_mail_arrives_is_noticed(
    own: Trial, stalled: HostileRelay, change: str
) -> None:
    """What was loaded and what is there now do not meet: the installed program is executed."""
    reading, writing = os.pipe()
    addresses, envelope = os.pipe()
    program = own.start("queue", stdin=reading, stdout=addresses, env=own.sending())
    os.close(reading)
    os.close(addresses)
    wait_until(lambda: os.listdir(f"{own.spool}/{TMP}"), "the queue program reads", SECONDS)
    path = sender_file(own)
    with open(path, encoding="utf-8") as file:
        text = CHANGES[change](file.read())
    os.unlink(path)
    # Its code with a checksum would be taken in its place.
    os.unlink(path.removesuffix("py") + "code")
    if text != "gone":
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    os.write(writing, MESSAGE)
    os.close(writing)
    os.write(envelope, ENVELOPE)
    os.close(envelope)
    assert 0 == program.wait(SECONDS)
    pid = the_sender(own, stalled)
    assert (change == "none") == is_forked(pid)
    with pytest.raises(BlockingIOError):
        take(f"{own.spool}/{SENDER_LOCK}")
    assert pid == os.getsid(pid)
    if change != "none":
        # The program that is installed now, with all that a started sender has.
        assert f"{own.installed.bin}/picoqmail-send".encode() in of_process(pid, "cmdline")
        assert b"PICOQMAIL_SEND" not in of_process(pid, "environ")


def exits(trial: Trial, environ: Mapping[str, str]) -> list[int]:
    """Hand in a mail, adopt its sender, and return the exit codes of the program and the sender."""
    child = os.fork()
    if not child:
        status = 1
        try:
            ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
            assert b"" == hand_in(trial, "queue", environ)
            status = os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])
        finally:
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


@pytest.mark.parametrize(
    ("answer", "status"), [(None, 0), ("550 5.1.1 no", 69), ("450 4.2.0 later", 75), ("", 78)]
)
def test_log_and_exit_code_are_those_of_a_started_sender(
    trial: Trial, rig: Callable[[RecordingRelay], RecordingRelay], answer: str | None, status: int
) -> None:
    """Delivered, failed, deferred, and a wrong setting: its parent, init, gets the same code."""
    answers = {"RCPT <b@example.net>": [answer, answer]} if answer else {}
    relay = rig(RecordingRelay(answers=answers))
    trial.setting("relayip", relay.address)
    if answer == "":
        trial.setting("tls", "perhaps")
    logs = []
    for environ in ({}, STARTED):
        assert [status] == exits(trial, environ)
        logs.append([(one["event"], one["level"]) for one in trial.events()])
    forked, both = logs
    assert forked + forked == both
    assert forked or status == 78


@pytest.mark.parametrize("error", ["ENOMEM", "EAGAIN"])
def test_a_fork_that_fails_is_no_loss(
    trial: Trial, strict_relay: HostileRelay, error: str, tmp_path: Path
) -> None:
    """Another program takes less memory; and the yes stays a yes."""
    trial.setting("relayip", strict_relay.address)
    before = [find("strace", "strace"), "-o", str(tmp_path / "trace"), "-e", "trace=clone,fork"]
    before += ["-e", f"inject=clone,fork:error={error}"]
    assert b"" == hand_in(trial, "queue", {}, before=before)
    assert error in (tmp_path / "trace").read_text()
    strict_relay.wait_for(1, SECONDS)
    trial.wait_for_senders()


@pytest.mark.parametrize("program", ["sendmail", "inject"])
def test_nothing_of_the_message_stays_in_memory(
    trial: Trial, stalled: HostileRelay, program: str
) -> None:
    """A header of six million octets, which these programs keep whole, is gone in the sender."""
    sizes = []
    for lines in (1, 6_000):
        header = b"X-Filler: " + b"x" * 1000 + b"\n"
        ran = subprocess.run(
            command(trial, program),
            input=header * lines + b"\nbody\n",
            env=trial.sending(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        assert (0, b"") == (ran.returncode, ran.stderr)
        pid = the_sender(trial, stalled)
        assert is_forked(pid)
        status = of_process(pid, "status").decode()
        sizes.append(int(status.partition("VmRSS:")[2].split()[0]))
        kill(pid)
        trial.wait_for_senders()
        for message_id in trial.ids(NEW):
            for suffix in (".eml", ".json"):
                os.unlink(f"{trial.spool}/{NEW}/{message_id}{suffix}")
        stalled.commands.clear()
    small, large = sizes
    assert large - small < 3000, sizes
