"""picoqmail-queue: the qmail-queue interface to the byte, and every exit code of it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from installation import Installation
from picoqmail.layout import DIRECTORIES, NEW
from rig.waiting import wait_until
from temporary_home import MESSAGE
from trial import ENVELOPE, make_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trial import Trial

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOBODY = 65534
QUICKLY = 20


def vectors() -> list[dict[str, Any]]:
    """What the real qmail-queue did, recorded case by case.

    Those of other users have a test of their own, in_the_open.
    """
    with open(f"{HERE}/vectors/queue-vectors.json", encoding="utf-8") as file:
        return [case for case in json.load(file) if "user" not in case]


# Where we differ on purpose: an address that no relay could be told is refused for good (31),
# where qmail leaves that to its later parts.
DIFFERENT = {
    "q-envelope-010": "recipient without a domain",
    "q-envelope-013": "addresses that are not UTF-8",
    "q-length-001": "sender without a domain",
    "q-length-004": "recipient without a domain",
    "q-length-006": "recipient without a domain",
}


def is_ours_to_refuse(case: dict[str, Any]) -> bool:
    """Say whether an address of the case is one that cannot be sent."""
    expect = case["expect"]
    if not expect["queued"]:
        return False
    addresses = [expect["sender"], *expect["recipients"]]
    senders = ("", "#@[]")
    return any(
        "@" not in one or (not one.isascii() and case["id"] == "q-envelope-013")
        for one in addresses
        if one not in senders
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in vectors()])
def test_it_does_what_qmail_queue_did(trial: Trial, case: dict[str, Any]) -> None:
    """Exit code, envelope and message of every recorded case, however the descriptors look."""
    message, envelope = (base64.b64decode(case[key]) for key in ("message", "envelope"))
    expect = case["expect"]
    ran = run_with(trial, case.get("fd0", "file"), case.get("fd1", "file"), message, envelope)
    refused = is_ours_to_refuse(case)
    assert refused == (case["id"] in DIFFERENT)
    assert (31 if refused else expect["exit"]) == ran.returncode, ran.stderr
    if refused or not expect["queued"]:
        assert [] == trial.files()
        assert ran.stderr.startswith(b"picoqmail-queue: ")
        return
    (message_id,) = trial.ids(NEW)
    record = trial.sidecar(message_id)
    # The recorded texts are octets shown as Latin-1.
    sender, *recipients = (
        one.encode("latin-1").decode() for one in (expect["sender"], *expect["recipients"])
    )
    assert sender == record["sender"]
    assert recipients == [one["address"] for one in record["recipients"]]
    assert message == trial.body(message_id).partition(b"\n")[2]


def test_the_differences_are_all_there() -> None:
    """No recorded case was renamed away."""
    assert set(DIFFERENT) <= {case["id"] for case in vectors()}


def run_with(
    trial: Trial, zero: str, one: str, message: bytes, envelope: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Run it with descriptors 0 and 1 of these kinds: file, pipe, closed, dir, wronly."""
    redirections = {
        "closed": ("<&-", ">&-"),
        "dir": ("</", "1</"),
        "wronly": (">/dev/null", ">/dev/null"),
    }
    script, options = 'exec "$0"', dict[str, Any]()
    for number, (kind, data) in enumerate(((zero, message), (one, envelope))):
        name = ("stdin", "stdout")[number]
        if kind in redirections:
            text = redirections[kind][number]
            script += f" {number if text[0] in '<>' else ''}{text}"
            options[name] = os.open(os.devnull, os.O_RDWR)
        elif kind == "pipe":
            options[name], writing = os.pipe()
            os.set_blocking(writing, False)
            # As much as a pipe holds: these messages are small.
            assert len(data) == os.write(writing, data)
            os.close(writing)
        else:
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.seek(0)
                options[name] = os.dup(file.fileno())
    try:
        return subprocess.run(
            ["/bin/sh", "-c", script, trial.installed.program("queue")],
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=trial.variables(),
            **options,
        )
    finally:
        for descriptor in options.values():
            os.close(descriptor)


@pytest.mark.parametrize("zero", ["file", "closed", "dir", "wronly"])
@pytest.mark.parametrize("one", ["closed", "dir", "wronly"])
def test_an_unreadable_descriptor_is_54(trial: Trial, zero: str, one: str) -> None:
    """Closed, a directory, open for writing only: nothing is accepted, and nothing else is hit."""
    ran = run_with(trial, zero, one, MESSAGE, ENVELOPE)
    which = b"envelope" if zero == "file" else b"message"
    assert (54, True) == (ran.returncode, which in ran.stderr)
    assert [] == trial.files()


def test_all_standard_descriptors_closed_is_54(trial: Trial) -> None:
    """No file of the spool may get the number 0, 1 or 2 and be taken for something else."""
    command = ["/bin/sh", "-c", 'exec "$0" <&- >&- 2>&-', trial.installed.program("queue")]
    ran = subprocess.run(command, env=trial.variables(), timeout=60, check=False)
    assert 54 == ran.returncode
    assert [] == trial.files()


def test_no_standard_error_is_no_trouble(trial: Trial) -> None:
    """Accepted all the same, and nothing of ours is written into the message."""
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as zero:
        one.write(ENVELOPE)
        zero.write(MESSAGE)
        one.seek(0)
        zero.seek(0)
        command = ["/bin/sh", "-c", 'exec "$0" 2>&-', trial.installed.program("queue")]
        ran = subprocess.run(
            command, stdin=zero, stdout=one, env=trial.variables(), timeout=60, check=False
        )
    assert 0 == ran.returncode
    (message_id,) = trial.ids(NEW)
    assert MESSAGE == trial.body(message_id).partition(b"\n")[2]


REFUSALS = [
    (b"", 54),
    (b"Fa@b\0Tc@d\0", 54),
    (b"F\0", 54),
    (b"Xa@b\0\0", 91),
    (b"Fa@b\0Xc@d\0\0", 91),
    (b"F" + b"a" * 1003 + b"\0Tc@d\0\0", 11),
    (b"Fa@b\0T" + b"c" * 1003 + b"\0\0", 11),
    (b"Fa@b\0T\0\0", 31),
    (b"Fa@b\0Tc\0\0", 31),
    (b"Fa@b\0Tc@\0\0", 31),
    (b"Fa@b\0Tc@d> SIZE=1\0\0", 31),
    (b"Fa@b\0Tc@d e\0\0", 31),
    (b"Fa@b\0Tc@.\0\0", 31),
    (b"Fa@b\0Tc@d..net\0Te@f\0\0", 31),
    (b"Fa@b..net\0Tc@d\0\0", 31),
    (b"Fa@b\0Tc\r@d\0\0", 31),
    (b"Fa@b\0Tc\nRCPT TO:<x@y>@d\0\0", 31),
    (b"Fa@b\0Tc\x01@d\0\0", 31),
    (b"Fa@b\0T\xff@d\0\0", 31),
    (b"Fa\n@b\0Tc@d\0\0", 31),
    (b"Fa@b\0Tgood@d\0Tbad\0Tgood@e\0\0", 31),
]


@pytest.mark.parametrize(("envelope", "status"), REFUSALS)
def test_a_bad_envelope_has_its_code_and_leaves_nothing(
    trial: Trial, envelope: bytes, status: int
) -> None:
    """One line on standard error, which no address can forge."""
    ran = trial.queue(envelope=envelope)
    assert status == ran.returncode
    assert ran.stderr.startswith(b"picoqmail-queue: ")
    assert 1 == ran.stderr.count(b"\n")
    assert ran.stderr[:-1].decode().isprintable()
    assert [] == trial.files()


def test_no_recipient_is_a_yes_without_a_message(trial: Trial) -> None:
    """As qmail has it in effect; the message is read to its end before that."""
    with tempfile.TemporaryFile() as one:
        one.write(b"Fa@example.org\0\0")
        one.seek(0)
        process = trial.start("queue", stdin=subprocess.PIPE, stdout=one)
        # Far more than a pipe holds: it goes through only if somebody reads.
        process.communicate(b"x" * 1_000_000, timeout=60)
    assert 0 == process.returncode
    assert [] == trial.files()


def test_what_follows_the_final_nul_is_ignored(trial: Trial) -> None:
    """As by qmail."""
    message_id = trial.queued(envelope=ENVELOPE + b"Tx@y\0\0junk")
    assert ["b@example.net"] == [one["address"] for one in trial.sidecar(message_id)["recipients"]]


def test_arguments_are_ignored(trial: Trial) -> None:
    """qmail-queue takes none, and callers that pass some never hear of it."""
    with tempfile.TemporaryFile() as one:
        one.write(ENVELOPE)
        one.seek(0)
        process = trial.start("queue", "--help", "-x", stdin=subprocess.DEVNULL, stdout=one)
        assert 0 == process.wait(60)
    assert 1 == len(trial.ids(NEW))


def test_the_sidecar_says_where_it_came_from(trial: Trial) -> None:
    """The real uid, the process, the program."""
    record = trial.sidecar(trial.queued())
    assert os.getuid() == record["origin"]["uid"]
    assert "picoqmail-queue" == record["origin"]["program"]
    assert f"P{record['origin']['pid']}Q" in record["id"]


# --- Configuration, home and spool -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [("me", ""), ("me", "a b"), ("databytes", "lots"), ("minfree", "-1"), ("minivars", "A=$B")],
)
def test_a_wrong_setting_is_55(trial: Trial, name: str, text: str) -> None:
    """The text names the file."""
    trial.setting(name, text)
    if name == "minivars":
        # minivars is read where a setting has no file of its own, as databytes here.
        assert not os.path.exists(f"{trial.root}/control/databytes")
    ran = trial.queue()
    assert (55, True) == (ran.returncode, f"{trial.root}/control/{name}".encode() in ran.stderr)
    assert [] == trial.files()


def test_a_missing_home_is_61(trial: Trial) -> None:
    """Nothing is made in its place."""
    elsewhere = evolve(trial, root=f"{trial.root}-gone")
    ran = elsewhere.queue()
    assert 61 == ran.returncode
    assert not os.path.exists(elsewhere.root)


def test_a_bad_address_is_31_also_without_a_root(trial: Trial) -> None:
    """Where control and spool lie elsewhere, a missing PICOQMAIL_HOME is no reason to lie."""
    environ = {
        "PICOQMAIL_CONTROL": f"{trial.root}/control",
        "PICOQMAIL_SPOOL": trial.spool,
    }
    elsewhere = evolve(trial, environ={**environ, "PICOQMAIL_HOME": f"{trial.root}-gone"})
    assert 31 == elsewhere.queue(envelope=b"Fa@b\0Tc\0\0").returncode
    assert 0 == elsewhere.queue().returncode
    assert 2 == len(trial.files())


@pytest.mark.parametrize(("missing", "status"), [("", 62), ("tmp", 62), ("new", 65)])
def test_a_missing_spool_directory_has_its_code(trial: Trial, missing: str, status: int) -> None:
    """62 for the spool, or the code of the file that could not be made."""
    shutil.rmtree(f"{trial.spool}/{missing}")
    ran = trial.queue()
    assert (status, True) == (ran.returncode, trial.spool.encode() in ran.stderr)


def test_a_message_over_databytes_is_31(trial: Trial) -> None:
    """For good: it will not get smaller. One that fits is taken."""
    trial.setting("databytes", "1000")
    assert 31 == trial.queue(message=b"x" * 1000).returncode
    assert [] == trial.files()
    trial.queued(message=b"x" * 500)


def test_too_little_free_space_is_53(trial: Trial) -> None:
    """For now: somebody may tidy up."""
    trial.setting("minfree", str(2**62))
    ran = trial.queue()
    assert (53, True) == (ran.returncode, b"minfree" in ran.stderr)
    assert [] == trial.files()


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system, which takes root")
@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_full_disk_is_53_and_leaves_nothing(trial: Trial, size: int) -> None:
    """Wherever the last block is missing; what was half written is gone again."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", trial.spool]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        for name in DIRECTORIES:
            os.mkdir(f"{trial.spool}/{name}")
        ran = trial.queue(message=b"x" * size)
        assert (53, True) == (ran.returncode, b"No space left" in ran.stderr)
        assert [] == trial.files()
        trial.queued()
    finally:
        subprocess.run(["umount", trial.spool], check=True)


# --- Other users -----------------------------------------------------------------------------


def python_for_all() -> str:
    """An interpreter of our version that every user may run."""
    version = "{}.{}".format(*sys.version_info)
    for path in (os.path.realpath(sys.executable), f"/usr/bin/python{version}"):
        ran = subprocess.run(
            ["/bin/sh", "-c", 'exec "$0" -c pass', path],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
        if not ran.returncode:
            return path
    pytest.skip("no Python here that another user may run")


def open_to_all(directory: str) -> None:
    """Let every user look into a directory."""
    os.chmod(directory, 0o755)


@pytest.fixture
def in_the_open(trial: Trial) -> Iterator[Trial]:
    """A home and programs that every user can reach; below pytest's own directory none can."""
    if os.getuid() != 0:
        pytest.skip("becomes another user, which takes root")
    directory = tempfile.mkdtemp(prefix="picoqmail-open-")
    open_to_all(directory)
    try:
        environment = os.path.dirname(trial.installed.bin)
        shutil.copytree(environment, f"{directory}/environment", symlinks=True)
        open_to_all(f"{directory}/environment")
        bin_ = f"{directory}/environment/bin"
        # Ours may lie in root's own directory; the launcher takes the one beside it.
        os.unlink(f"{bin_}/python3")
        os.symlink(python_for_all(), f"{bin_}/python3")
        os.unlink(f"{bin_}/picoqmail")
        home = make_trial(f"{directory}/home", Installation(bin_, f"{bin_}/python3"))
        open_to_all(home.root)
        open_to_all(f"{home.root}/control")
        yield home
    finally:
        shutil.rmtree(directory)


def test_anybody_may_hand_in_where_the_spool_allows_it(in_the_open: Trial) -> None:
    """The Received line and the sidecar name the caller's uid."""
    for name in ("", *DIRECTORIES):
        os.chown(f"{in_the_open.spool}/{name}", NOBODY, NOBODY)
    ran = in_the_open.queue(user=NOBODY, group=NOBODY, extra_groups=[])
    assert (0, b"") == (ran.returncode, ran.stderr)
    (message_id,) = in_the_open.ids(NEW)
    assert b"invoked by uid 65534)" in in_the_open.body(message_id).partition(b"\n")[0]
    assert NOBODY == in_the_open.sidecar(message_id)["origin"]["uid"]


@pytest.mark.parametrize(
    ("spool_mode", "control_mode", "status"),
    [(0o755, 0o755, 63), (0o700, 0o755, 62), (0o755, 0o700, 55)],
)
def test_a_spool_of_somebody_else_takes_nothing(
    in_the_open: Trial, spool_mode: int, control_mode: int, status: int
) -> None:
    """Not even to look into: each has its code, and the text says what and where."""
    os.chmod(in_the_open.spool, spool_mode)
    os.chmod(f"{in_the_open.root}/control", control_mode)
    ran = in_the_open.queue(user=NOBODY, group=NOBODY, extra_groups=[])
    assert (status, True) == (ran.returncode, b"Permission denied" in ran.stderr)
    assert [] == in_the_open.files()


# --- Explanations on descriptor 6 ------------------------------------------------------------


def explained(trial: Trial, envelope: bytes, *, message: bytes = MESSAGE) -> tuple[int, bytes]:
    """Run it with a pipe on descriptor 6; returns its exit code and what came there."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as zero, tempfile.TemporaryFile() as one, open(
        reading, "rb"
    ) as pipe:  # fmt: skip
        zero.write(message)
        one.write(envelope)
        zero.seek(0)
        one.seek(0)
        # A shell of Debian's takes one digit only for the number of a descriptor.
        to_six = "import os, sys; os.dup2(int(sys.argv[1]), 6); os.execv(sys.argv[2], sys.argv[2:])"
        queue = trial.installed.program("queue")
        command = [sys.executable, "-c", to_six, str(writing), queue]
        ran = subprocess.run(
            command,
            stdin=zero,
            stdout=one,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            env=trial.variables(),
            timeout=60,
            check=False,
        )
        os.close(writing)
        return ran.returncode, pipe.read()


def test_a_pipe_on_6_hears_why(trial: Trial) -> None:
    """Notqmail's code 82: D for permanent, Z for temporary, then one line."""
    status, text = explained(trial, b"Fa@b\0Tc\0\0")
    assert (82, b"D") == (status, text[:1])
    assert b"recipient 1 'c' cannot be sent" in text
    status, text = explained(trial, b"Fa@b\0Tc@d\0")
    assert (82, b"Z") == (status, text[:1])
    assert b"\n" not in text
    trial.setting("me", "")
    status, text = explained(trial, ENVELOPE)
    assert (82, b"Z") == (status, text[:1])


def test_a_pipe_on_6_hears_nothing_of_a_yes(trial: Trial) -> None:
    """Silence and 0."""
    assert (0, b"") == explained(trial, ENVELOPE)


def test_a_file_on_6_is_left_alone(trial: Trial) -> None:
    """A caller that has a file of its own there did not ask for an explanation."""
    path = f"{trial.root}/six"
    script = f'exec "$0" <"{trial.root}/control/me" 1</dev/null 6>"{path}"'
    ran = subprocess.run(
        ["/bin/sh", "-c", script, trial.installed.program("queue")],
        stderr=subprocess.PIPE,
        env=trial.variables(),
        timeout=60,
        check=False,
    )
    assert 54 == ran.returncode
    assert 0 == os.path.getsize(path)


# --- Time, size and signals ------------------------------------------------------------------


def test_after_24_hours_it_gives_up_with_52(trial: Trial) -> None:
    """The alarm clock rings in the middle of a message: nothing stays."""
    with tempfile.TemporaryFile() as one:
        process = trial.start("queue", stdin=subprocess.PIPE, stdout=one, stderr=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(b"Subject: slow\n")
        process.stdin.flush()
        wait_until(trial.files, "the body is begun", QUICKLY)
        process.send_signal(signal.SIGALRM)
        _, said = process.communicate(timeout=QUICKLY)
    assert (52, True) == (process.returncode, b"24 hours" in said)
    assert [] == trial.files()


def test_a_killed_queue_leaves_no_message(trial: Trial) -> None:
    """What it had begun lies in tmp/ for the sweep, and is locked only as long as it lived."""
    with tempfile.TemporaryFile() as one:
        one.write(ENVELOPE)
        one.seek(0)
        process = trial.start("queue", stdin=subprocess.PIPE, stdout=one)
        wait_until(trial.files, "the body is begun", QUICKLY)
        process.kill()
        process.communicate()
    (left,) = trial.files()
    assert left.startswith("tmp/")
    assert left.endswith(".eml")


def test_a_hundred_thousand_recipients(trial: Trial) -> None:
    """In envelope order, each once for each time that it was named."""
    addresses = [f"user{index % 99_999}@example.net" for index in range(100_000)]
    envelope = b"Fa@example.org\0" + b"".join(f"T{one}\0".encode() for one in addresses) + b"\0"
    record = trial.sidecar(trial.queued(envelope=envelope))
    assert addresses == [one["address"] for one in record["recipients"]]


def test_memory_does_not_grow_with_the_message(trial: Trial) -> None:
    """200 MB are streamed to the disk by a process of a few megabytes."""
    megabyte = b"A line of a long message, sixty-four octets with its line end..\n" * 16384
    with tempfile.TemporaryFile() as one:
        one.write(ENVELOPE)
        one.seek(0)
        process = trial.start("queue", stdin=subprocess.PIPE, stdout=one)
        assert process.stdin is not None
        for _ in range(200):
            process.stdin.write(megabyte)
        process.stdin.flush()
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        process.stdin.close()
        assert 0 == process.wait(60)
    assert peak < 40_000
    (message_id,) = trial.ids(NEW)
    record = trial.sidecar(message_id)
    path = trial.path(NEW, message_id, ".eml")
    assert record["size"] == os.path.getsize(path)
    with open(path, "rb") as file:
        received = len(file.readline())
    assert 200 * len(megabyte) == record["size"] - received
    os.unlink(path)
