"""What a user of the host tries, and what comes of it: the table of docs/security.md, as code.

Every function here is one row: it attacks a host as its user mallory, and fails unless the outcome
is the one that the row states.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
from typing import TYPE_CHECKING
from zlib import crc32

from attrs import frozen

from picoqmail.layout import (
    BODY,
    CUR,
    DIRECTORIES,
    DROP,
    DROP_FILE_MODE,
    NEW,
    RESULT,
    SIDECAR,
    TMP,
    UNDELIVERED,
    USERS,
)
from privileges.host import ENVELOPE, MESSAGE, SECONDS
from privileges.waiting_queue import WaitingQueue
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from privileges.host import Host, Mail, User

DENIED = (errno.EACCES, errno.EPERM)
PTRACE_ATTACH = 16
FULL = 53
UNREADABLE = 54


@frozen
class Attack:
    """One row: what is tried, what comes of it, and the code that does it."""

    what: str
    outcome: str
    run: Callable[[Host], None]


ATTACKS: list[Attack] = []


def attack(what: str, outcome: str) -> Callable[[Callable[[Host], None]], Callable[[Host], None]]:
    """Put a function into the table."""

    def enter(run: Callable[[Host], None]) -> Callable[[Host], None]:
        ATTACKS.append(Attack(what, outcome, run))
        return run

    return enter


def accepted(host: Host, user: User | None = None) -> Mail:
    """The one message: whole, private, and of that user; the owner's once it is in the spool."""
    (mail,) = host.mails()
    uid = (user or host.mallory).uid
    assert (uid, "picoqmail-queue") == (
        mail.record["origin"]["uid"],
        mail.record["origin"]["program"],
    )
    received, _, rest = mail.body.partition(b"\n")
    assert f"invoked by uid {uid})".encode() in received
    assert MESSAGE == rest
    for suffix in (BODY, SIDECAR):
        found = os.stat(f"{host.home.spool}/{mail.state}/{mail.id}{suffix}")
        private = (host.owner.pw_uid, host.owner.pw_gid, 0o600)
        if mail.state.startswith(DROP):
            private = (uid or host.drop_owner.pw_uid, host.owner.pw_gid, DROP_FILE_MODE)
        assert private == (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
    return mail


def refused(host: Host, status: int, done: subprocess.CompletedProcess[bytes]) -> None:
    """Nothing was accepted, nothing is left, and the exit code is that of the interface."""
    assert (status, []) == (done.returncode, host.files()), done.stderr


def as_mallory(host: Host, act: Callable[[], object]) -> int:
    """Do something in a process of mallory's: its errno, 0 if it worked."""
    pid = os.fork()
    if not pid:
        status = 255
        try:
            os.setgroups([])
            os.setresgid(*[host.mallory.gid] * 3)
            os.setresuid(*[host.mallory.uid] * 3)
            act()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def places(host: Host) -> Iterator[str]:
    """Every directory of a home."""
    yield host.home.root
    yield from (host.home.control, host.home.bin, host.home.spool)
    yield from (f"{host.home.spool}/{name}" for name in (*DIRECTORIES, DROP))
    yield from (f"{host.home.spool}/{part}" for part in host.parts())
    yield from (f"{host.part_of(host.mallory)}/{name}" for name in (TMP, NEW, USERS))


# --- The disk ------------------------------------------------------------------------------------


@attack(
    "List the spool; read, alter, rename or delete another user's message whose path is known",
    "EACCES: only its owner can enter the spool",
)
def touch_mail(host: Host) -> None:
    """Whatever is tried with a message of alice's, or with the directories, fails."""
    assert 0 == host.submit(host.alice).returncode
    touch_it(host, accepted(host, host.alice))
    host.empty()
    host.setting("sendatonce", "off")
    assert 0 == host.submit(host.alice).returncode
    mail = accepted(host, host.alice)
    assert mail.state.startswith(DROP)
    touch_it(host, mail)


def touch_it(host: Host, mail: Mail) -> None:
    """Try all that with this message."""
    paths = [f"{host.home.spool}/{mail.state}/{mail.id}{suffix}" for suffix in (BODY, SIDECAR)]
    for place in (*places(host),):
        if place in (host.home.root, host.home.control, host.home.bin):
            continue  # These are everybody's to read.
        assert as_mallory(host, functools.partial(os.listdir, place)) in DENIED
        assert as_mallory(host, functools.partial(os.chdir, place)) in DENIED
    for path in paths:
        for act in (
            functools.partial(os.open, path, os.O_RDONLY),
            functools.partial(os.open, path, os.O_WRONLY),
            functools.partial(os.stat, path),
            functools.partial(os.truncate, path, 0),
            functools.partial(os.chmod, path, 0o666),
            functools.partial(os.unlink, path),
            functools.partial(os.rename, path, f"{host.mallory.directory}/mine"),
            functools.partial(os.link, path, f"{host.mallory.directory}/mine"),
        ):
            assert as_mallory(host, act) in DENIED
    assert mail == accepted(host, host.alice)


@attack(
    "Create a file, directory, symbolic link or hard link anywhere in the home",
    "EACCES: users can write to no directory of a home",
)
def plant(host: Host) -> None:
    """Nothing can be put into, moved within, or taken out of any directory of the home."""
    assert 0 == host.submit(host.mallory).returncode
    own = f"{host.mallory.directory}/own"
    assert 0 == as_mallory(host, lambda: os.close(os.open(own, os.O_CREAT | os.O_WRONLY)))
    for place in places(host):
        for act in (
            functools.partial(os.open, f"{place}/x", os.O_CREAT | os.O_WRONLY),
            functools.partial(os.mkdir, f"{place}/x"),
            functools.partial(os.symlink, "/etc/passwd", f"{place}/x"),
            functools.partial(os.link, own, f"{place}/x"),
            functools.partial(os.rename, own, f"{place}/x"),
            functools.partial(os.rename, place, f"{place}.away"),
            functools.partial(os.rmdir, place),
            functools.partial(os.chmod, place, 0o777),
        ):
            assert as_mallory(host, act) in DENIED
    for path in (host.queue, f"{host.home.control}/me", f"{host.home.bin}/sendmail"):
        assert as_mallory(host, functools.partial(os.unlink, path)) in DENIED
    assert as_mallory(host, lambda: os.open(host.queue, os.O_RDONLY)) in DENIED
    assert as_mallory(host, lambda: os.open(host.queue, os.O_WRONLY)) in DENIED


@attack(
    "Start the set-id program through a link, from a directory full of the user's own modules",
    "the mail lands in the one spool; no module of the user is imported",
)
def start_elsewhere(host: Host) -> None:
    """Neither the name nor the directory that it is started from steers it."""
    evil = make_evil(host)
    link = f"{evil}/qmail-queue"
    os.symlink(host.queue, link)
    assert 0 == host.run_as(host.mallory, [link], cwd=evil).returncode
    accepted(host)
    assert not ran_evil(host)


@attack(
    "Keep a hard link to an old set-id program, to use it when a fault in it becomes known",
    "EPERM where the kernel protects hard links; otherwise an update removes the old "
    "program's rights",
)
def keep_old_program(host: Host) -> None:
    """After init has run again, what was there before has no rights any more."""
    kept = f"{host.directory}/kept"
    # As root: with fs.protected_hardlinks=0 mallory could.
    os.link(host.queue, kept)
    try:
        assert host.init().returncode == 0
        assert 0 == stat.S_IMODE(os.stat(kept).st_mode)
        assert 0o4711 == stat.S_IMODE(os.stat(host.queue).st_mode)
    finally:
        os.unlink(kept)


# --- The environment -----------------------------------------------------------------------------


def make_evil(host: Host) -> str:
    """A directory of modules and programs that leave a mark when somebody runs them."""
    evil = f"{host.mallory.directory}/evil"
    shutil.rmtree(evil, ignore_errors=True)
    os.makedirs(f"{evil}/control")
    mark = f"open({evil + '/ran'!r}, 'w').close()\n"
    for name in (
        "sitecustomize",
        "usercustomize",
        "picoqmail",
        "posix",
        "os",
        "fcntl",
        "zlib",
        "pwd",
    ):
        with open(f"{evil}/{name}.py", "w", encoding="utf-8") as file:
            file.write(mark)
    os.makedirs(f"{evil}/lib/python3.11/encodings")
    with open(f"{evil}/lib/python3.11/encodings/__init__.py", "w", encoding="utf-8") as file:
        file.write(mark)
    for name in ("sh", "python3", "readlink", "picoqmail-send", "env"):
        with open(f"{evil}/{name}", "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n: >{evil}/ran\n")
        os.chmod(f"{evil}/{name}", 0o755)
    with open(f"{evil}/control/me", "w", encoding="utf-8") as file:
        file.write("evil.example\n")
    os.chmod(evil, 0o777)
    os.chmod(host.mallory.directory, 0o755)
    return evil


def ran_evil(host: Host) -> bool:
    """Say whether anything of mallory's was run."""
    return os.path.exists(f"{host.mallory.directory}/evil/ran")


@attack(
    "PYTHONPATH, PYTHONHOME, PYTHONSTARTUP, PYTHONUSERBASE, PYTHONPYCACHEPREFIX, "
    "PYTHONINSPECT, PYTHONWARNINGS, PYTHONBREAKPOINT",
    "dropped: the program gets its own environment",
)
def python_variables(host: Host) -> None:
    """Python is started deaf, and is not even told."""
    evil = make_evil(host)
    names = ("PATH", "HOME", "STARTUP", "USERBASE", "PYCACHEPREFIX", "EXECUTABLE", "PLATLIBDIR")
    environ = {f"PYTHON{name}": evil for name in names}
    environ |= {"PYTHONINSPECT": "1", "PYTHONWARNINGS": "error", "PYTHONBREAKPOINT": "os.abort"}
    environ |= {"PYTHONMALLOC": "debug", "PYTHONTRACEMALLOC": "9", "PYTHONIOENCODING": "utf-16"}
    done = host.submit(host.mallory, environ=environ, cwd=evil)
    assert (0, b"") == (done.returncode, done.stderr)
    accepted(host)
    assert not ran_evil(host)


@attack(
    "LD_PRELOAD, LD_LIBRARY_PATH, LD_AUDIT, LD_DEBUG, GLIBC_TUNABLES",
    "the loader ignores them for a set-id program, and they are dropped before Python starts",
)
def loader_variables(host: Host) -> None:
    """A library whose constructor leaves a mark with its uid never runs as anybody else."""
    evil = make_evil(host)
    source = f"{evil}/evil.c"
    with open(source, "w", encoding="utf-8") as file:
        file.write(
            "#include <fcntl.h>\n#include <unistd.h>\n"
            "__attribute__((constructor)) static void go(void)\n"
            f"{{ if (geteuid() != {host.mallory.uid})"
            f' open("{evil}/ran", O_CREAT | O_WRONLY, 0666); }}\n'
            "unsigned la_version(unsigned v) { return v; }\n"
        )
    library = f"{evil}/libc.so.6"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=SECONDS)
    environ = {"LD_PRELOAD": library, "LD_AUDIT": library, "LD_LIBRARY_PATH": evil}
    environ |= {"LD_DEBUG": "all", "LD_DEBUG_OUTPUT": f"{evil}/ran"}
    environ["GLIBC_TUNABLES"] = "glibc.malloc.check=3:" + "A" * 4096
    done = host.submit(host.mallory, environ=environ)
    assert 0 == done.returncode, done.stderr
    accepted(host)
    assert not ran_evil(host)


@attack(
    "PICOQMAIL_HOME, PICOQMAIL_CONTROL, PICOQMAIL_SPOOL, QMAILQUEUE: name another home",
    "dropped: the home is compiled into the program",
)
def home_variables(host: Host) -> None:
    """The mail lands in the shared spool, under its host's name."""
    evil = make_evil(host)
    names = ("PICOQMAIL_HOME", "PICOQMAIL_CONTROL", "PICOQMAIL_SPOOL", "XDG_STATE_HOME", "HOME")
    environ = {**dict.fromkeys(names, evil), "QMAILQUEUE": f"{evil}/sh"}
    assert 0 == host.submit(host.mallory, environ=environ).returncode
    assert b"by host.example (picoqmail" in accepted(host).body
    assert not ran_evil(host)


@attack(
    "PICOQMAIL_CALLER, SUDO_UID, USER, LOGNAME: claim to be another user",
    "the real uid is recorded, in `origin` and in `Received:`",
)
def lie_about_himself(host: Host) -> None:
    """Who submitted is the kernel's word."""
    environ = {"PICOQMAIL_CALLER": "0", "SUDO_UID": str(host.alice.uid), "USER": "root"}
    assert 0 == host.submit(host.mallory, environ=environ).returncode
    accepted(host)


@attack(
    "PICOQMAIL_SEND=off, odd PATH, TMPDIR, IFS, BASH_ENV, ENV, LANG and LC_ALL",
    "dropped: the sender is started, with a fixed PATH",
)
def other_variables(host: Host) -> None:
    """The sender looks for the relay, finds nobody, and opens the breaker."""
    evil = make_evil(host)
    environ = {"PATH": evil, "TMPDIR": evil, "BASH_ENV": f"{evil}/sh", "ENV": f"{evil}/sh"}
    environ |= {"IFS": "/ep", "LANG": "xx_YY.UTF-16", "LC_ALL": "../../evil", "TZ": f":{evil}/ran"}
    environ |= {"PICOQMAIL_SEND": "off", "MALLOC_CHECK_": "3", "SSL_CERT_FILE": f"{evil}/ran"}
    assert 0 == host.submit(host.mallory, environ=environ).returncode
    accepted(host)
    wait_until(
        lambda: os.path.exists(f"{host.home.spool}/relay-down"), "a sender tries the relay", SECONDS
    )
    assert not ran_evil(host)


# --- Descriptors ---------------------------------------------------------------------------------


def closing(*descriptors: int) -> Callable[[], None]:
    """What closes these in the child."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


def opening(numbers: dict[int, Callable[[], int]]) -> Callable[[], None]:
    """What puts something else at these numbers in the child."""

    def put() -> None:
        for number, make in numbers.items():
            made = make()
            if made != number:
                os.dup2(made, number, inheritable=True)
                os.close(made)
            os.set_inheritable(number, True)  # noqa: FBT003 - its only argument

    return put


def _directory() -> int:
    return os.open("/", os.O_RDONLY)


def _write_only() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def _socket() -> int:
    ours, theirs = socket.socketpair()
    theirs.shutdown(socket.SHUT_RDWR)
    theirs.detach()
    return ours.detach()


@attack(
    "Descriptor 0 or 1 closed, a directory, write-only, or a non-blocking pipe",
    "exit 54, nothing accepted; no file of the program gets the number",
)
def unreadable(host: Host) -> None:
    """Every such thing at every such place is told as unreadable."""
    for number in (0, 1):
        refused(host, UNREADABLE, host.submit(host.mallory, prepare=closing(number)))
        for make in (_directory, _write_only):
            prepare = opening({number: make})
            refused(host, UNREADABLE, host.submit(host.mallory, prepare=prepare))
        reading, writing = os.pipe()
        try:
            os.set_blocking(reading, False)
            prepare = opening({number: functools.partial(os.dup, reading)})
            refused(host, UNREADABLE, host.submit(host.mallory, prepare=prepare))
        finally:
            os.close(reading)
            os.close(writing)
    refused(host, UNREADABLE, host.submit(host.mallory, prepare=closing(0, 1, 2)))


@attack(
    "Descriptor 2 closed, a directory, a dead socket; descriptor 6 a file, a directory, a socket",
    "accepted as usual; the program writes nothing there",
)
def odd_standard_error(host: Host) -> None:
    """The message is what was submitted, wherever complaints would have gone."""
    for prepare in (
        closing(2),
        closing(2, *range(3, 3)),
        opening({2: _directory}),
        opening({2: _socket, 6: _socket}),
        opening({6: _directory}),
        opening({6: lambda: os.open(f"{host.mallory.directory}/six", os.O_CREAT | os.O_RDWR)}),
    ):
        assert 0 == host.submit(host.mallory, prepare=prepare).returncode
        accepted(host)
        host.empty()
    assert 0 == os.stat(f"{host.mallory.directory}/six").st_size


@attack(
    "Descriptors 3 to 200 open when the program starts",
    "closed before Python starts, except a pipe at 6",
)
def more_descriptors(host: Host) -> None:
    """The running program has nothing open that its caller gave, save 0, 1, 2 and that pipe."""
    numbers = dict.fromkeys(range(20, 200, 20), _socket)
    prepare = opening({**numbers, 3: _directory, 4: _write_only, 5: _socket, 7: _socket})
    with WaitingQueue(host, prepare) as waiting:
        targets = waiting.open_files()
        own = [one for one in targets[3:] if one.startswith(f"{host.part_of(host.mallory)}/tmp/")]
        assert own == targets[3:]


@attack(
    "Full pipes that nobody reads at descriptors 2 and 6",
    "an accepted mail waits for neither",
)
def full_pipes(host: Host) -> None:
    """A program that has something to say to nobody holds nothing of anybody's."""

    def full() -> int:
        reading, writing = os.pipe()
        os.dup2(reading, 51 if writing < 51 else 52, inheritable=True)
        os.set_blocking(writing, False)
        try:
            while True:
                os.write(writing, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(writing, True)
        return writing

    assert 0 == host.submit(host.mallory, prepare=opening({2: full, 6: full})).returncode
    accepted(host)


# --- What a process inherits ---------------------------------------------------------------------


@attack(
    "umask 0777 or 0",
    "files have mode 0640 in the drop and 0600 in the spool all the same",
)
def odd_umask(host: Host) -> None:
    """The modes are ours."""
    for mask in (0o777, 0):
        prepare = functools.partial(os.umask, mask)
        assert 0 == host.submit(host.mallory, prepare=prepare).returncode
        accepted(host)
        host.empty()


LIMITS: dict[str, tuple[int, int]] = {
    "a file of 350 octets": (resource.RLIMIT_FSIZE, 350),
    "no octet to a file": (resource.RLIMIT_FSIZE, 0),
    "7 descriptors": (resource.RLIMIT_NOFILE, 7),
    "no descriptor": (resource.RLIMIT_NOFILE, 0),
    "1 MiB of memory": (resource.RLIMIT_AS, 1 << 20),
    "24 MiB of memory": (resource.RLIMIT_AS, 24 << 20),
    "64 KiB of data": (resource.RLIMIT_DATA, 1 << 16),
    "no process": (resource.RLIMIT_NPROC, 0),
    "64 KiB of stack": (resource.RLIMIT_STACK, 1 << 16),
    "no locked memory": (resource.RLIMIT_MEMLOCK, 0),
    "1 second of processor": (resource.RLIMIT_CPU, 1),
    "no pending signal": (resource.RLIMIT_SIGPENDING, 0),
    "no message queue": (resource.RLIMIT_MSGQUEUE, 0),
}


@attack(
    "Tiny soft and hard limits: RLIMIT_FSIZE, NOFILE, AS, DATA, NPROC, STACK, CPU, MEMLOCK, "
    "SIGPENDING, MSGQUEUE",
    "raised where root may; otherwise the mail is accepted whole, or refused with "
    "nothing left, and this caller starts no sender",
)
def tiny_limits(host: Host) -> None:
    """Yes and one whole message, or no and nothing; never half of it."""
    for name, (kind, most) in LIMITS.items():
        for soft, hard in ((most, resource.getrlimit(kind)[1]), (most, most)):
            prepare = functools.partial(resource.setrlimit, kind, (soft, hard))
            done = host.submit(host.mallory, prepare=prepare)
            if done.returncode == 0:
                accepted(host)
            else:
                # Killed by the kernel, it may leave a body in tmp/, which nobody delivers.
                assert [] == host.mails(), name
            host.empty()


@attack(
    "All signals ignored or all blocked, an alarm and timers running, SIGCHLD ignored",
    "reset before Python starts",
)
def odd_signals(host: Host) -> None:
    """The program begins with no signal ignored, blocked or on its way."""

    def confuse() -> None:
        for number in set(range(1, 65)) - {9, 19, 32, 33}:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
        signal.setitimer(signal.ITIMER_PROF, 0.001)
        # Already pending when the program begins: it must not strike when it is unblocked.
        os.kill(os.getpid(), signal.SIGTERM)

    with WaitingQueue(host, confuse) as waiting:
        status = waiting.status()
        assert 0 == int(status["SigBlk"], 16)
        stopping = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
        python = {signal.SIGPIPE, signal.SIGXFSZ}
        ignored = int(status["SigIgn"], 16)
        assert stopping | python == {n for n in signal.valid_signals() if ignored >> (n - 1) & 1}
        assert 0 == waiting.finish(MESSAGE, ENVELOPE)
    accepted(host)


@attack(
    "Timer slack, oom_score_adj, idle I/O class, one CPU, nice value",
    "reset for the program and for the sender, as far as root may",
)
def hand_down(host: Host) -> None:
    """Neither the program nor the sender, which works for everybody, has them from the caller."""

    def burden() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which a change of user has cleared
        libc.prctl(29, 10**9, 0, 0, 0)  # PR_SET_TIMERSLACK
        libc.syscall(IOPRIO[0], 1, 0, 3 << 13)  # this process, idle
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("900")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.nice(10)

    with WaitingQueue(host) as waiting:
        usual = inheritance(waiting.pid)
    with WaitingQueue(host, burden) as waiting:
        assert usual == inheritance(waiting.pid)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host.setting("relayip", f"127.0.0.1:{silent.getsockname()[1]}")
        assert 0 == host.submit(host.mallory, prepare=burden).returncode
        found = silent.accept()[0]
        (sender,) = host.processes()
        try:
            assert usual == inheritance(sender)
            assert host.owner.pw_uid == os.stat(f"/proc/{sender}").st_uid
            files = [os.readlink(f"/proc/{sender}/fd/{one}") for one in range(4)]
            assert [*["/dev/null"] * 3, f"{host.home.spool}/sender.lock"] == files
        finally:
            found.close()
    accepted(host)


# The numbers of ioprio_set(2) and ioprio_get(2).
IOPRIO = (251, 252) if os.uname().machine == "x86_64" else (30, 31)


def inheritance(pid: int) -> dict[str, object]:
    """What a process has that its parent could have changed, and that root may set."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/timerslack_ns", encoding="ascii") as file:
        slack = int(file.read())
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        # Root of a container may not lower it.
        kills = min(int(file.read()), 900)
    return {
        "timer slack": slack,
        "oom_score_adj": kills if kills >= 900 else "usual",
        "I/O priority": libc.syscall(IOPRIO[1], 1, pid),
        "CPUs": os.sched_getaffinity(pid),
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
    }


# --- The running program -------------------------------------------------------------------------


@attack(
    "Stop or kill the running program, by kill(2) or from the user's terminal (SIGTSTP)",
    "a stopped program holds nothing that others need; a killed one has accepted nothing",
)
def kill_it(host: Host) -> None:
    """The program is the user's own; the sender, which it has started, is not."""
    with WaitingQueue(host) as waiting:
        # As the terminal would: by the kernel, to the whole foreground group.
        os.kill(waiting.pid, signal.SIGTSTP)
        assert 0 == as_mallory(host, functools.partial(os.kill, waiting.pid, signal.SIGSTOP))
        wait_until(lambda: waiting.status()["State"].startswith("T"), "it is stopped", SECONDS)
        assert 0 == host.submit(host.alice).returncode
        wait_until(lambda: os.path.exists(f"{host.home.spool}/relay-down"), "a sender", SECONDS)
        alices = accepted(host, host.alice)
        for suffix in (BODY, SIDECAR):
            os.unlink(f"{host.home.spool}/{alices.state}/{alices.id}{suffix}")
        assert 0 == as_mallory(host, functools.partial(os.kill, waiting.pid, signal.SIGCONT))
        assert 0 == waiting.finish(MESSAGE, ENVELOPE)
    accepted(host)
    host.empty()
    with WaitingQueue(host) as waiting:
        assert 0 == as_mallory(host, functools.partial(os.kill, waiting.pid, signal.SIGKILL))
        wait_until(lambda: waiting.status()["State"].startswith("Z"), "it is dead", SECONDS)
    assert [] == host.mails()


@attack(
    "ptrace(2) of the running program; /proc/PID/environ, mem, maps, fd, cwd, root, stack, auxv",
    "EPERM and EACCES: the program has changed its group for good",
)
def look_into_it(host: Host) -> None:
    """What the process has and is stays its own."""
    libc = ctypes.CDLL(None, use_errno=True)

    def trace(pid: int) -> None:
        if libc.ptrace(PTRACE_ATTACH, pid, None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def read(path: str) -> None:
        os.read(os.open(path, os.O_RDONLY), 9)

    with WaitingQueue(host) as waiting:
        proc = f"/proc/{waiting.pid}"
        assert as_mallory(host, lambda: trace(waiting.pid)) in DENIED
        for name in ("environ", "mem", "maps", "auxv", "stack", "syscall"):
            assert as_mallory(host, functools.partial(read, f"{proc}/{name}")) in DENIED
        assert as_mallory(host, lambda: os.listdir(f"{proc}/fd")) in DENIED
        for name in ("cwd", "root", "exe", "fd/0"):
            assert as_mallory(host, functools.partial(os.readlink, f"{proc}/{name}")) in DENIED
        ids = [str(host.mallory.uid)] * 4, [str(host.drop_owner.pw_gid)] * 4
        status = waiting.status()
        assert ids == (status["Uid"].split(), status["Gid"].split())
        assert [] == status["Groups"].split()
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert 0 == int(status[name], 16)


@attack(
    "Make the program dump core",
    "RLIMIT_CORE is 0: no core file ever holds mail",
)
def dump_core(host: Host) -> None:
    """The limit is set, soft and hard, whatever the caller's was."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    with WaitingQueue(
        host, lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    ) as waiting:
        with open(f"/proc/{waiting.pid}/limits", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("Max core file size"))
        assert ["0", "0", "bytes"] == line.split()[-3:]


@attack(
    "Extra supplementary groups on the process, a nice value of 19",
    "it has no supplementary group; the nice value is 0 if root may set it",
)
def odd_groups(host: Host) -> None:
    """What the caller's process had besides is not the program's."""
    with WaitingQueue(host, groups=(host.alice.gid, 4, 27)) as waiting:
        assert [] == waiting.status()["Groups"].split()
    with WaitingQueue(host, lambda: os.nice(19)) as waiting:
        assert 0 == os.getpriority(os.PRIO_PROCESS, waiting.pid)


@attack(
    "No argument at all (argc 0), 100 KB of arguments, argv[0] of `-`, `../../x` or "
    "control characters",
    "ignored",
)
def argument_games(host: Host) -> None:
    """The arguments change nothing."""
    helper = f"{host.mallory.directory}/bare"
    source = f"{helper}.c"
    with open(source, "w", encoding="utf-8") as file:
        file.write(
            "#include <unistd.h>\nint main(int c, char **v) { char *none[] = { 0 };\n"
            "(void) c; execve(v[1], none, none); return 99; }\n"
        )
    subprocess.run(["cc", "-o", helper, source], check=True, timeout=SECONDS)
    os.chmod(host.mallory.directory, 0o755)
    assert 0 == host.run_as(host.mallory, [helper, host.queue]).returncode
    accepted(host)
    host.empty()
    names = ("-", "../../x", "\x1b[2J\n", "", "-c", "sendmail")
    for words in (*([name] for name in names), ["qmail-queue", "-c", "import os", "x" * 100_000]):
        done = run_named(host, words)
        assert 0 == done.returncode, words
        accepted(host)
        host.empty()


def run_named(host: Host, words: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Submit as mallory with these words as the whole of argv."""
    helper = f"{host.mallory.directory}/named"
    if not os.path.exists(helper):
        with open(f"{helper}.c", "w", encoding="utf-8") as file:
            file.write(
                "#include <unistd.h>\nint main(int c, char **v) { char *none[] = { 0 };\n"
                "(void) c; execve(v[1], v + 2, none); return 99; }\n"
            )
        subprocess.run(["cc", "-o", helper, f"{helper}.c"], check=True, timeout=SECONDS)
    return host.run_as(host.mallory, [helper, host.queue, *words])


@attack(
    "Start it where set-id has no effect: no_new_privs, a user namespace of the user",
    "it runs without rights and says so (61), or ends (81); nothing is accepted",
)
def without_rights(host: Host) -> None:
    """It never takes itself for what it is not."""
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs = 38
    done = host.submit(host.mallory, prepare=lambda: libc.prctl(no_new_privs, 1, 0, 0, 0))
    refused(host, 61, done)
    assert b"no_new_privs" in done.stderr

    done = host.run_as(host.mallory, ["/usr/bin/unshare", "--map-root-user", host.queue])
    if done.returncode:  # Where users may make no namespace it is an ordinary submission.
        assert done.returncode in (61, 81)
        assert [] == host.files()


# --- The program in the user's hands --------------------------------------------------------------


def as_queue(host: Host, act: Callable[[], object]) -> int:
    """Do something with exactly the rights of the program that takes mallory's mail: its errno."""
    part = host.part_of(host.mallory)
    pid = os.fork()
    if not pid:
        status = 255
        try:
            os.chdir(part)
            os.setgroups([])
            os.setresgid(*[host.drop_owner.pw_gid] * 3)
            os.setresuid(*[host.mallory.uid] * 3)
            act()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@attack(
    "Take over the program that takes the user's mail, to list, read, alter or delete mail of "
    "others, in the spool or on its way there, or to read `relaypass`",
    "EACCES: it has the user's own uid, and reaches the user's own part of the drop only",
)
def take_it_over(host: Host) -> None:
    """Arbitrary code with exactly the credentials of the running program."""
    with WaitingQueue(host) as waiting:
        status = waiting.status()
        assert [str(host.mallory.uid)] * 4 == status["Uid"].split()
        assert [str(host.drop_owner.pw_gid)] * 4 == status["Gid"].split()
        assert [] == status["Groups"].split()
    host.setting("relaypass", "secret")
    assert 0 == host.init().returncode
    try:
        assert 0 == host.submit(host.alice).returncode
        mails = [accepted(host, host.alice)]
        host.setting("sendatonce", "off")
        assert 0 == host.submit(host.alice).returncode
        mails += [mail for mail in host.mails() if mail.state.startswith(DROP)]
        assert 2 == len(mails)
        password = f"{host.home.control}/relaypass"
        assert as_queue(host, functools.partial(os.open, password, os.O_RDONLY)) in DENIED
        theirs = [host.home.spool, *(f"{host.home.spool}/{one}" for one in (*DIRECTORIES, DROP))]
        theirs += [host.part_of(host.alice), f"{host.part_of(host.alice)}/new", "..", "../.."]
        theirs += [f"../{host.alice.uid}", f"../{host.alice.uid}/new"]
        for place in theirs:
            in_place: tuple[Callable[[], object], ...] = (
                functools.partial(os.listdir, place),
                functools.partial(os.open, f"{place}/x", os.O_CREAT | os.O_WRONLY),
                functools.partial(os.mkdir, f"{place}/x"),
                functools.partial(os.rename, "new", f"{place}/x"),
            )
            for act in in_place:
                assert as_queue(host, act) in DENIED, place
        for mail in mails:
            for suffix in (BODY, SIDECAR):
                names = [f"{host.home.spool}/{mail.state}/{mail.id}{suffix}"]
                if mail.state.startswith(DROP):
                    names.append(f"../{host.alice.uid}/new/{mail.id}{suffix}")
                for name in names:
                    on_mail: tuple[Callable[[], object], ...] = (
                        functools.partial(os.open, name, os.O_RDONLY),
                        functools.partial(os.open, name, os.O_WRONLY),
                        functools.partial(os.stat, name),
                        functools.partial(os.truncate, name, 0),
                        functools.partial(os.chmod, name, 0o666),
                        functools.partial(os.unlink, name),
                        functools.partial(os.rename, name, "new/mine"),
                        functools.partial(os.link, name, "new/mine"),
                    )
                    for act in on_mail:
                        assert as_queue(host, act) in DENIED, name
        # Nor anything of its own part that root has made.
        on_own: tuple[Callable[[], object], ...] = (
            functools.partial(os.rename, "new", "old"),
            functools.partial(os.symlink, "/etc", "x"),
            functools.partial(os.rmdir, "tmp"),
            functools.partial(os.kill, 1, 0),
        )
        for act in on_own:
            assert as_queue(host, act) in DENIED
    finally:
        os.unlink(f"{host.home.control}/relaypass")


def clutter(directory: str) -> None:
    """Put things there that are no mail."""
    os.symlink("/etc/shadow", f"{directory}/9.link{SIDECAR}")
    os.mkfifo(f"{directory}/9.fifo{SIDECAR}")
    os.mkfifo(f"{directory}/9.both{BODY}")
    os.mkdir(f"{directory}/9.directory{SIDECAR}")
    for number in range(300):
        with open(f"{directory}/x{number}", "wb"):
            pass


@attack(
    "Take over that program, to leave anything in the user's part of the drop: a sidecar with "
    "forged keys or addresses, links, FIFOs, directories, a huge file, names without number",
    "sender and recipients are checked as at submission, all else is ignored or put aside with the "
    "reason; mail of others goes on",
)
def poison_the_drop(host: Host) -> None:
    """Whoever collects takes nothing from there that did not come from the directory's user."""
    host.setting("sendatonce", "off")
    assert 0 == host.submit(host.mallory).returncode
    (mail,) = host.mails()
    new = f"{host.part_of(host.mallory)}/new"
    body = mail.body

    def leave(number: int, body: bytes, **keys: object) -> str:
        stem = f"{1_700_000_000 + number}.M1P1Q1Rabc.host.example"
        own = body.replace(mail.id.encode(), stem.encode(), 1)
        record = {**mail.record, "id": stem, "size": len(own), "crc32": crc32(own), **keys}
        for suffix, data in ((BODY, own), (SIDECAR, json.dumps(record).encode())):
            with open(f"{new}/{stem}{suffix}", "wb") as file:
                file.write(data)
            os.chown(file.name, host.mallory.uid, host.owner.pw_gid)
        return stem

    forged = leave(1, body, origin={"uid": 0}, held=True, report_of="x", attempts=7, dropped=0)
    bad = {
        leave(2, body.replace(f"uid {host.mallory.uid}".encode(), b"uid 0", 1)): "first line",
        leave(3, body, recipients=[{"address": "a\r\nDATA", "state": "pending"}]): "recipient",
        leave(4, body, size=10): "body",
        leave(5, body, version=99): "version",
        leave(6, body, id="7.x"): "another message",
    }
    grown = leave(7, body)
    os.truncate(f"{new}/{grown}{SIDECAR}", 1 << 30)
    bad[grown] = "larger"
    lone = leave(8, body)
    os.unlink(f"{new}/{lone}{BODY}")
    os.symlink("/etc/shadow", f"{new}/{lone}{BODY}")
    bad[lone] = "body is missing"
    clutter(new)
    host.remove_setting("sendatonce")
    try:
        assert 0 == host.submit(host.alice).returncode
        wait_until(lambda: not host.processes(), "the sender ends", SECONDS)
        found = {one.rpartition("/")[2] for one in host.files() if not one.startswith(DROP)}
        for stem, reason in bad.items():
            path = f"{host.home.spool}/{UNDELIVERED}/{stem}"
            with open(path + RESULT, "rb") as file:
                assert reason.encode() in file.read()
            with open(path + SIDECAR, "rb") as file:
                assert file.readline().startswith(b"not taken from the drop: ")
        taken = {forged: host.mallory, mail.id: host.mallory}
        for one in (name.removesuffix(SIDECAR) for name in found if name.endswith(SIDECAR)):
            if one not in bad and not one.startswith("9."):
                states = [
                    state for state in (NEW, CUR) if f"{state}/{one}{SIDECAR}" in host.files()
                ]
                path = f"{host.home.spool}/{states[0]}/{one}{SIDECAR}"
                with open(path, "rb") as file:
                    record = json.load(file)
                owner = taken.pop(one, host.alice)
                assert owner.uid == record["origin"]["uid"] == record["dropped"]
                assert record["attempts"] < 2
                assert (False, None) == (record["held"], record.get("report_of")), record
        assert {} == taken
        left = {one for one in host.files() if one.startswith(DROP) and one.endswith(BODY)}
        assert {f"{DROP}/{host.mallory.uid}/new/9.both{BODY}"} == left
    finally:
        os.rmdir(f"{new}/9.directory{SIDECAR}")


@attack(
    "Start `bin/qmail-start`, the program that starts the sender",
    "EACCES: only a program that takes mail has its group",
)
def start_the_sender(host: Host) -> None:
    """Whoever took such a program over may start it; then it is a sender as any other."""
    starter = f"{host.home.bin}/qmail-start"
    execute = functools.partial(os.execv, starter, [starter])
    assert as_mallory(host, execute) in DENIED
    assert 0 == host.submit(host.mallory).returncode
    accepted(host)
    assert 0 == as_queue(host, execute)


# --- More than his share -------------------------------------------------------------------------


@attack(
    "Submit a message larger than `databytes`",
    "exit 31, nothing left",
)
def too_large(host: Host) -> None:
    """Refused for good."""
    host.setting("databytes", "1000")
    refused(host, 31, host.submit(host.mallory, message=b"x" * 1000))


@attack(
    "Submit an envelope without an end, or with millions of recipients",
    "exit 31 at 4 MiB: no sidecar becomes too large for its readers",
)
def endless_envelope(host: Host) -> None:
    """Refused for good, long before the memory is gone."""
    envelope = b"Fa@example.org\0" + b"Tb@example.net\0" * 400_000
    done = host.submit(host.mallory, envelope=envelope)
    refused(host, 31, done)
    assert b"envelope" in done.stderr


@attack(
    "Submit a message with more recipients than `recipientlimit`",
    "exit 31, nothing left",
)
def many_recipients(host: Host) -> None:
    """10,000 without the setting."""
    envelope = b"Fa@example.org\0" + b"Tb@example.net\0" * 10_001 + b"\0"
    done = host.submit(host.mallory, envelope=envelope)
    refused(host, 31, done)
    assert b"recipientlimit" in done.stderr
    host.setting("recipientlimit", "1")
    assert 0 == host.submit(host.mallory).returncode
    accepted(host)


@attack(
    "Submit mail as a user whom `submitters` does not name",
    "exit 31, nothing left; those whom it names, and members of its groups, can submit",
)
def no_submitter(host: Host) -> None:
    """Users by name or number, groups after an @."""
    host.setting("submitters", f"root\n{host.alice.name}")
    done = host.submit(host.mallory)
    refused(host, 31, done)
    assert b"submitters" in done.stderr
    assert 0 == host.submit(host.alice).returncode
    accepted(host, host.alice)
    for name in (host.mallory.name, str(host.mallory.uid), f"@{host.mallory.name}"):
        host.empty()
        host.setting("submitters", name)
        assert 0 == host.submit(host.mallory).returncode
        accepted(host)


@attack(
    "Submit more messages in an hour than `userlimit`",
    "exit 71 for this user; other users can still submit",
)
def too_many(host: Host) -> None:
    """The limit is each user's own."""
    host.setting("userlimit", "2")
    for _ in range(2):
        assert 0 == host.submit(host.mallory).returncode
        accepted(host)
        for name in host.files():
            os.unlink(f"{host.home.spool}/{name}")
    refused(host, 71, host.submit(host.mallory))
    assert 0 == host.submit(host.alice).returncode
    accepted(host, host.alice)


@attack(
    "Fill the disk: leave less than `minfree`, also while a message is being written",
    "exit 53, nothing left",
)
def fill_the_disk(host: Host) -> None:
    """Checked before the first octet, and again for every megabyte."""
    with small_spool(host, megabytes=8):
        host.setting("minfree", str(4 << 20))
        refused(host, FULL, host.submit(host.mallory, message=b"x" * (6 << 20)))
        assert 0 == host.submit(host.alice).returncode
        accepted(host, host.alice)


@attack(
    "Submit to a full disk",
    "exit 53, nothing left; messages accepted before stay whole",
)
def full_disk(host: Host) -> None:
    """There is no yes without room for it."""
    host.setting("minfree", "0")
    with small_spool(host, megabytes=1):
        assert 0 == host.submit(host.alice).returncode
        done = host.submit(host.mallory, message=b"x" * (2 << 20))
        assert FULL == done.returncode
        accepted(host, host.alice)


class small_spool:  # noqa: N801 - a verb, used in a with statement
    """A small file system in the place of the spool, for a while."""

    def __init__(self, host: Host, *, megabytes: int) -> None:
        self._host = host
        self._options = (
            f"size={megabytes}m,mode=0700,uid={host.owner.pw_uid},gid={host.owner.pw_gid}"
        )

    def __enter__(self) -> None:
        spool = self._host.home.spool
        command = ["mount", "-t", "tmpfs", "-o", self._options, "picoqmail-trial", spool]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            import pytest

            pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
        for name in DIRECTORIES:
            os.mkdir(f"{spool}/{name}", 0o700)
            os.chown(f"{spool}/{name}", self._host.owner.pw_uid, self._host.owner.pw_gid)
        os.mkdir(f"{spool}/{DROP}")
        os.chown(f"{spool}/{DROP}", 0, self._host.owner.pw_gid)
        os.chmod(f"{spool}/{DROP}", 0o750)

    def __exit__(self, *_: object) -> None:
        try:
            wait_until(lambda: not self._host.processes(), "the senders end", SECONDS)
        finally:
            # Lazily, so that the place is free again whatever went wrong.
            command = ["umount", "--lazy", self._host.home.spool]
            subprocess.run(command, check=True, timeout=SECONDS)


# --- Secrets -------------------------------------------------------------------------------------


@attack(
    "Read the relay's password: `control/relaypass`, `picoqmail config`, /proc/PID/cmdline",
    "only the spool's owner can read the file (0600); no program that the user can run shows it",
)
def read_the_password(host: Host) -> None:
    """Init hands the file to the spool's owner, however it was left."""
    secret = b"correct horse battery staple"
    host.setting("relaypass", secret.decode())
    try:
        done = host.init()
        assert (0, True) == (done.returncode, "repaired" in done.stdout)
        path = f"{host.home.control}/relaypass"
        found = os.stat(path)
        assert (host.owner.pw_uid, 0o600) == (found.st_uid, stat.S_IMODE(found.st_mode))
        assert as_mallory(host, lambda: os.open(path, os.O_RDONLY)) in DENIED
        environ = {"PATH": "/usr/bin:/bin", "PICOQMAIL_HOME": host.home.root}
        for words in (["config"], ["config", "--json"], ["check"], ["status"]):
            command = [f"{host.bin}/picoqmail", *words]
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environ,
                user=host.mallory.uid,
                group=host.mallory.gid,
                extra_groups=[],
                cwd="/",
            ) as process:
                assert secret not in process.communicate(timeout=SECONDS)[0]
        with WaitingQueue(host) as waiting, open(f"/proc/{waiting.pid}/cmdline", "rb") as file:
            assert secret not in file.read()
    finally:
        os.unlink(f"{host.home.control}/relaypass")


def table() -> str:
    """The rows for docs/security.md, in MyST's Markdown."""
    lines = ["| What a user tries | Outcome |", "|---|---|"]
    lines += [f"| {one.what} | {one.outcome} |" for one in ATTACKS]
    return "\n".join(lines)
