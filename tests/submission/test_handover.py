"""Where a message goes: QMAILQUEUE, else the spool, else the home's bin/qmail-queue."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import PicoqmailError
from picoqmail.home.paths import Home
from picoqmail.submission import queue_program as queue_program_module
from picoqmail.submission.handover import hand_over, may_spool
from picoqmail.submission.queue_program import judge

if TYPE_CHECKING:
    from trial import Trial

MAIL = b"From: a@f.test\nTo: t@t.test\n\nbody\n"
NOBODY = 65534
SAVER = "#!/bin/sh\ncat <&0 >'{0}/message'\ncat <&1 >'{0}/envelope'\n{1}\n"


def queue_program(directory: Path, then: str = "exit 0", name: str = "saver") -> str:
    """Write a queue program that keeps what it gets in `directory`, and return its path."""
    path = directory / name
    path.write_text(SAVER.format(directory, then))
    path.chmod(0o755)
    return str(path)


def test_the_program_of_qmailqueue_gets_message_and_envelope(mailer: Trial, tmp_path: Path) -> None:
    """Over the qmail-queue interface; our spool stays empty."""
    program = queue_program(tmp_path)
    ran = mailer.run("inject", message=MAIL, environ={"QMAILQUEUE": program})
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert b"Fjoe@me.test\0Tt@t.test\0\0" == (tmp_path / "envelope").read_bytes()
    assert (tmp_path / "message").read_bytes().endswith(b"To: t@t.test\n\nbody\n")
    assert [] == mailer.everything()


def test_our_own_queue_program_may_stand_behind(mailer: Trial) -> None:
    """inject, QMAILQUEUE and picoqmail-queue together spool what inject alone spools."""
    environ = {"QMAILQUEUE": mailer.installed.program("queue")}
    spooled = mailer.accepts("inject", message=MAIL, environ=environ)
    assert ["t@t.test"] == spooled.recipients


def test_the_program_runs_in_the_home(mailer: Trial, tmp_path: Path) -> None:
    """A relative name is one in the home, as for qmail's programs."""
    program = queue_program(tmp_path, f"pwd >'{tmp_path}/where'")
    os.symlink(program, os.path.join(mailer.root, "bin", "other-queue"))
    ran = mailer.run("inject", message=MAIL, environ={"QMAILQUEUE": "bin/other-queue"})
    assert 0 == ran.returncode
    assert f"{mailer.root}\n" == (tmp_path / "where").read_text()


@pytest.mark.parametrize(
    ("then", "status", "said"),
    [
        ("exit 31", 100, "permanently rejected message (#5.3.0)"),
        ("exit 11", 100, "envelope address too long for qq (#5.1.3)"),
        ("exit 40", 100, "qq permanent problem (#5.3.0)"),
        ("exit 41", 111, "qq temporary problem (#4.3.0)"),
        ("exit 53", 111, "qq write error or disk full (#4.3.0)"),
        ("exit 75", 111, "qq temporary problem (#4.3.0)"),
        ("kill -9 $$", 111, "qq crashed (#4.3.0)"),
        ("printf 'Dno such list (#5.1.1)' >&6; exit 82", 100, "fatal: no such list (#5.1.1)"),
        ("printf 'Zlater (#4.7.1)' >&6; exit 82", 111, "fatal: later (#4.7.1)"),
        ("printf 'Qwhat' >&6; exit 82", 111, "qq temporary problem (#4.3.0)"),
        ("exit 82", 111, "qq temporary problem (#4.3.0)"),
        ("printf 'Dnot asked for' >&6; exit 53", 111, "qq write error"),
    ],
)
def test_the_verdict_of_the_program_is_told(
    mailer: Trial, tmp_path: Path, then: str, status: int, said: str
) -> None:
    """11 to 40 are permanent, 82 explains itself on descriptor 6, all else is temporary."""
    program = queue_program(tmp_path, then)
    assert said in mailer.refuses(
        "inject", message=MAIL, status=status, environ={"QMAILQUEUE": program}
    )


def test_a_program_that_cannot_be_run_is_a_temporary_error(mailer: Trial) -> None:
    """The mail is not put anywhere else instead."""
    said = mailer.refuses(
        "inject", message=MAIL, status=111, environ={"QMAILQUEUE": "/nowhere/queue"}
    )
    assert "unable to exec qq" in said


def test_a_program_that_does_not_read_is_not_believed(mailer: Trial, tmp_path: Path) -> None:
    """Exit code 0 of a program that cannot have seen the message is an error."""
    path = tmp_path / "deaf"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    said = mailer.refuses(
        "inject",
        message=MAIL + b"x" * 1_000_000,
        status=111,
        environ={"QMAILQUEUE": str(path)},
    )
    assert "qq read error" in said


def test_a_program_may_leave_somebody_in_the_background(mailer: Trial, tmp_path: Path) -> None:
    """Whoever still holds descriptor 6 keeps no caller waiting."""
    program = queue_program(tmp_path, f"sleep 30 >/dev/null 2>&1 & echo $! >'{tmp_path}/pid'")
    try:
        ran = mailer.run("inject", message=MAIL, environ={"QMAILQUEUE": program})
        assert 0 == ran.returncode
        os.kill(int((tmp_path / "pid").read_text()), 0)  # it is still there
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_message_cut_short_reaches_no_queue(mailer: Trial) -> None:
    """If we fail in the middle, the program sees an end before the envelope, and keeps nothing."""
    program = mailer.installed.program("queue")
    message = b"From: (\nTo: t@t.test\n\nbody\n"
    mailer.refuses("inject", message=message, environ={"QMAILQUEUE": program})
    assert [] == mailer.everything()


def as_nobody(home: Home, said: Path) -> int:
    """Hand a message over in a process of another user; return its exit code.

    A fork, not a program: the interpreter may lie where that user cannot reach it.
    """
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            off = {b"PICOQMAIL_SEND": b"off"}
            hand_over(home, off, b"a@f.test", [b"t@t.test"], [MAIL])
            status = 0
        except PicoqmailError as exc:
            said.write_text(str(exc))
            status = exc.qmail_status
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_who_may_not_write_goes_through_the_home_s_queue() -> None:
    """Another user than the spool's goes through bin/qmail-queue; without one an error says so."""
    assert callable(queue_program_module.QueueProgram)  # it cannot be imported as that user
    with tempfile.TemporaryDirectory(prefix="handover-", dir="/tmp") as name:
        root = Path(name)
        for directory in ("bin", "control", "keep", "spool/tmp", "spool/new"):
            (root / directory).mkdir(parents=True)
        root.chmod(0o755)
        (root / "spool").chmod(0o700)
        (root / "control" / "me").write_text("me.test\n")
        (root / "keep").chmod(0o777)
        home = Home(name)
        assert 55 == as_nobody(home, root / "keep" / "said")
        assert "bin/qmail-queue" in (root / "keep" / "said").read_text()
        os.symlink(queue_program(root / "keep"), root / "bin" / "qmail-queue")
        assert 0 == as_nobody(home, root / "keep" / "said")
        assert b"Fa@f.test\0Tt@t.test\0\0" == (root / "keep" / "envelope").read_bytes()
        assert MAIL == (root / "keep" / "message").read_bytes()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may write everywhere")
def test_root_keeps_out_of_another_user_s_spool(mailer: Trial) -> None:
    """A file of root's there is one that its owner's sender could not read."""
    spool = os.path.join(mailer.root, "spool")
    assert may_spool(spool)
    os.chown(os.path.join(spool, "new"), NOBODY, NOBODY)
    assert not may_spool(spool)


def test_an_old_code_for_a_long_address_is_understood() -> None:
    """115 is what qmail-queue said before 11."""
    assert judge(115).permanent
    assert "too long" in str(judge(115))
