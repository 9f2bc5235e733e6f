"""Making a home: everything that is wanted, nothing that is not ours touched, and once more."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from picoqmail import layout
from picoqmail.errors import EX_CONFIG
from picoqmail.home import make, settings
from picoqmail.home.paths import Home

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ME = ["--me", "mail.example.org"]
LINKS = {
    "minismtpq",
    "minismtpsend",
    "minisendcron",
    "qmail-queue",
    "qmail-inject",
    "sendmail",
    "mailq",
    "newaliases",
}


def run_init(
    home: Path | str,
    *words: str,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `picoqmail init` for a home, as a user would, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "picoqmail.cli.main", "init", *words],
        env={**os.environ, "PICOQMAIL_HOME": str(home), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def listing(root: Path) -> dict[str, tuple[int, int, str]]:
    """Return mode, modification time and content or target of everything under a directory."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = path.read_text()
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def mode_of(path: Path) -> int:
    """Return the permission bits of a path itself."""
    return stat.S_IMODE(path.lstat().st_mode)


def test_makes_a_home(tmp_path: Path) -> None:
    """One command makes directories, settings and links, private, and says what is next."""
    home = tmp_path / "not there" / "home"
    done = run_init(home, *ME, "--relay", "smtps://joe@mx.example.org", "--relay", "mx2:26")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("", "control", "bin", "spool", *(f"spool/{d}" for d in layout.DIRECTORIES)):
        assert (home / name).is_dir()
        assert mode_of(home / name) == 0o700
        assert (home / name).stat().st_uid == os.geteuid()
    assert (home / "control/me").read_text() == "mail.example.org\n"
    assert (home / "control/relayip").read_text() == "smtps://joe@mx.example.org\nmx2:26\n"
    assert mode_of(home / "control/relayip") == 0o600
    assert {path.name for path in (home / "bin").iterdir()} == LINKS
    for link in (home / "bin").iterdir():
        assert os.access(link, os.X_OK)
        assert os.path.basename(os.readlink(link)) == make.LINKS[link.name]
    assert "* * * * * PICOQMAIL_HOME=" in done.stdout
    assert "relaypass" in done.stdout
    assert [path for path in home.rglob("*") if ".new" in path.name] == []


def test_again_changes_nothing(tmp_path: Path) -> None:
    """A second run finds everything right, and leaves even the times as they are."""
    assert run_init(tmp_path / "h", *ME, "--relay", "mx").returncode == 0
    before = listing(tmp_path / "h")
    again = run_init(tmp_path / "h", *ME, "--relay", "mx")
    assert (again.returncode, again.stderr) == (0, "")
    assert listing(tmp_path / "h") == before
    assert run_init(tmp_path / "h").returncode == 0
    assert listing(tmp_path / "h") == before


def test_completes_and_repairs(tmp_path: Path) -> None:
    """What got lost is made again, and modes that were opened are closed."""
    assert run_init(tmp_path, *ME).returncode == 0
    (tmp_path / "spool/cur").rmdir()
    (tmp_path / "bin/sendmail").unlink()
    (tmp_path / "control").chmod(0o755)
    (tmp_path / "spool/new").chmod(0o777)
    done = run_init(tmp_path, "--json")
    assert done.returncode == 0
    outcomes = {
        os.path.relpath(step["path"], tmp_path): step["outcome"]
        for step in json.loads(done.stdout)["steps"]
    }
    assert (outcomes["spool/cur"], outcomes["bin/sendmail"]) == ("made", "made")
    assert (outcomes["control"], outcomes["spool/new"]) == ("repaired", "repaired")
    assert mode_of(tmp_path / "control") == mode_of(tmp_path / "spool/new") == 0o700


def test_home_of_qmail(tmp_path: Path) -> None:
    """In a home of qmail, its files and open modes stay; the rest is added, and the code is 73."""
    for name in ("control", "bin"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "control/me").write_text("old.example.org\n")
    (tmp_path / "bin/qmail-inject").write_text("#!/bin/sh\n")
    (tmp_path / "bin/sendmail").symlink_to("/usr/sbin/sendmail")
    before = listing(tmp_path)
    done = run_init(tmp_path, *ME)
    assert done.returncode == 73
    after = listing(tmp_path)
    for name in ("control/me", "bin/qmail-inject", "bin/sendmail"):
        assert after[name] == before[name]
        assert f"{tmp_path}/{name}: left alone" in done.stderr
    assert mode_of(tmp_path / "control") == mode_of(tmp_path / "bin") == 0o755
    assert os.path.basename(os.readlink(tmp_path / "bin/qmail-queue")) == "picoqmail-queue"
    assert (tmp_path / "spool/new").is_dir()


def test_setting_in_minivars_counts(tmp_path: Path) -> None:
    """A name that minivars gives is there already: no file is made over it."""
    (tmp_path / "control").mkdir()
    (tmp_path / "control/minivars").write_text("ME=mail.example.org\nRELAYIP=10.0.0.1\n")
    assert run_init(tmp_path, *ME).returncode == 0
    assert run_init(tmp_path, "--relay", "10.0.0.2").returncode == 73
    assert not (tmp_path / "control/me").exists()
    assert not (tmp_path / "control/relayip").exists()


@pytest.mark.parametrize("name", ["control", "spool", "bin", "spool/new"])
def test_follows_no_link(tmp_path: Path, name: str) -> None:
    """A symbolic link in the place of a directory is refused, and nothing goes where it points."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home = tmp_path / "home"
    (home / name).parent.mkdir(parents=True)
    (home / name).symlink_to(elsewhere)
    done = run_init(home, *ME)
    assert done.returncode == 73
    assert f"{home}/{name}: is a symbolic link" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    """A dangling link in the place of a control file makes no file where it points."""
    (tmp_path / "control").mkdir()
    (tmp_path / "control/me").symlink_to(tmp_path / "victim")
    assert run_init(tmp_path, *ME).returncode == 73
    assert not (tmp_path / "victim").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away takes root")
def test_directory_of_another_user(tmp_path: Path) -> None:
    """A directory that belongs to somebody else is no place for our mail."""
    assert run_init(tmp_path, *ME).returncode == 0
    os.chown(tmp_path / "spool", 12345, -1)
    done = run_init(tmp_path)
    assert done.returncode == 73
    assert f"{tmp_path}/spool: belongs to user 12345" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["--me", "two words"], ["--me", ""], [*ME, "--relay", "ftp://x"], [*ME, "--relay", ""]],
)
def test_wrong_words_make_nothing(tmp_path: Path, words: list[str]) -> None:
    """A name or relay that cannot be is refused before anything is made."""
    done = run_init(tmp_path / "home", *words)
    assert done.returncode == 78
    assert "allowed" in done.stderr.lower()
    assert not (tmp_path / "home").exists()


def test_places_elsewhere(tmp_path: Path) -> None:
    """PICOQMAIL_CONTROL and PICOQMAIL_SPOOL are obeyed, and stand in the crontab line."""
    places = {
        "PICOQMAIL_CONTROL": str(tmp_path / "etc"),
        "PICOQMAIL_SPOOL": str(tmp_path / "var 50%"),
    }
    done = run_init(tmp_path / "h", *ME, "--json", environment=places)
    assert done.returncode == 0
    assert (tmp_path / "etc/me").is_file()
    assert (tmp_path / "var 50%/tmp").is_dir()
    assert not (tmp_path / "h/spool").exists()
    assert json.loads(done.stdout)["crontab"] == (
        f"* * * * * PICOQMAIL_HOME={tmp_path}/h PICOQMAIL_CONTROL={tmp_path}/etc "
        rf"PICOQMAIL_SPOOL='{tmp_path}/var 50\%' {tmp_path}/h/bin/minisendcron"
    )


def test_home_of_a_user(tmp_path: Path) -> None:
    """Without PICOQMAIL_HOME root is asked where; it would be a surprise in root's own files."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    environment.pop("PICOQMAIL_HOME", None)
    done = subprocess.run(
        [sys.executable, "-m", "picoqmail.cli.main", "init", *ME],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    made = (tmp_path / "picoqmail/control/me").exists()
    assert (made, done.returncode) == ((False, 64) if os.geteuid() == 0 else (True, 0))


def answers(home: Path, typed: bytes, **later: bytes) -> tuple[int, str]:
    """Run init on a terminal of its own, type, and return its exit code and what it showed.

    `later` is typed once the word that it is named by has been shown.
    """
    master, slave = pty.openpty()
    with open(master, "r+b", buffering=0) as person:
        with open(slave, "r+b", buffering=0) as terminal:
            process = subprocess.Popen(
                [sys.executable, "-m", "picoqmail.cli.main", "init"],
                env={**os.environ, "PICOQMAIL_HOME": str(home)},
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
            )
        person.write(typed)
        shown = b""
        # EIO is how Linux tells the end of a pseudo-terminal.
        with contextlib.suppress(OSError):
            while block := person.read(4096):
                shown += block
                due = [word for word in later if word.encode() in shown]
                person.writelines(later.pop(word) for word in due)
        return process.wait(60), shown.decode()


def test_asks_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal it asks for what it was not told, again if the answer cannot be."""
    code, shown = answers(
        tmp_path / "h",
        b"two words\nmail.example.org\nftp://x\nmx.example.org\n\nnot an address\n\n",
    )
    assert code == 0
    assert "This host's name" in shown
    assert shown.count("please try again") == 3
    assert (tmp_path / "h/control/me").read_text() == "mail.example.org\n"
    assert (tmp_path / "h/control/relayip").read_text() == "mx.example.org\n"
    assert ["defaultdomain", "me", "relayip"] == sorted(os.listdir(tmp_path / "h/control"))
    assert (tmp_path / "h/control/defaultdomain").read_text() == "example.org\n"


def test_asks_for_a_login_and_shows_no_password(tmp_path: Path) -> None:
    """User, password and administrator are asked for where a relay is given; nothing echoes."""
    code, shown = answers(
        tmp_path / "h",
        b"mail.example.org\nmx.example.org\njoe\n",
        password=b"s3cret\n",
        Address=b"a@example.org\n",
    )
    assert code == 0
    assert "s3cret" not in shown
    assert (tmp_path / "h/control/relayip").read_text() == "joe@mx.example.org\n"
    assert (tmp_path / "h/control/relaypass").read_text() == "s3cret\n"
    assert (tmp_path / "h/control/adminaddr").read_text() == "a@example.org\n"


def test_end_of_input_makes_nothing(tmp_path: Path) -> None:
    """Control-D at a question leaves everything as it was."""
    assert answers(tmp_path / "h", b"\x04")[0] == 130
    assert not (tmp_path / "h").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", range(0, 45, 3))
def test_killed_in_the_middle(tmp_path: Path, count: int) -> None:
    """Killed at any point, init leaves no half file, and the next run completes the home."""
    home = tmp_path / "h"
    code = (
        "import os, signal, sys\n"
        "left = int(sys.argv.pop())\n"
        "def watch(event, details):\n"
        "    global left\n"
        "    if event in ('os.mkdir', 'os.rename', 'os.link', 'os.remove', 'os.symlink') or (\n"
        f"        event == 'open' and str(details[0]).startswith({str(home)!r})\n"
        "    ):\n"
        "        left -= 1\n"
        "        if left < 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(watch)\n"
        "from picoqmail.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["init", *ME, "--relay", "mx.example.org"]
    killed = subprocess.run(
        [sys.executable, "-c", code, *words, str(count)],
        env={**os.environ, "PICOQMAIL_HOME": str(home)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    for name, content in (("me", "mail.example.org\n"), ("relayip", "mx.example.org\n")):
        path = home / "control" / name
        assert not path.exists() or path.read_text() == content
    done = run_init(home, *words[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (home / "bin").iterdir()} == LINKS
    assert (home / "control/relayip").read_text() == "mx.example.org\n"


def test_replaces_its_own_links(tmp_path: Path) -> None:
    """A link of ours to an installation that has moved is made to point to the new one."""
    home = Home(str(tmp_path / "h"))
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        for name in set(make.LINKS.values()):
            program = tmp_path / version / name
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
        programs = make.find_programs([str(tmp_path / version)])
        outcome = make.make_home(home, settings={"me": ["a.example"]}, programs=programs)
        assert outcome.refused == ()
    assert os.readlink(f"{home.bin}/sendmail") == f"{tmp_path}/2/picoqmail-sendmail"


def test_missing_program(tmp_path: Path) -> None:
    """An incomplete installation is told, with the places that were searched."""
    with pytest.raises(make.InitError, match=str(tmp_path)):
        make.find_programs([str(tmp_path)])


def run_init_with(home: Path, password: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `picoqmail init --password-stdin`."""
    return subprocess.run(
        [sys.executable, "-m", "picoqmail.cli.main", "init", "--password-stdin", *words],
        env={**os.environ, "PICOQMAIL_HOME": str(home)},
        input=password,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "password", ["plain", "two words", "#hash", "!bang", "end ", "oauth2!x", "ü"]
)
def test_takes_login_and_administrator(tmp_path: Path, password: str) -> None:
    """User, password and administrator's address are settings like any other; none is shown."""
    words = [*ME, "--relay", "smtps://mx", "--relay", "mx2:26", "--user", "joe@example.org"]
    done = run_init_with(tmp_path, password + "\n", *words, "--admin", "admin@example.org")
    assert (done.returncode, done.stderr) == (0, "")
    assert f" {password}\n" not in done.stdout
    chosen = settings.examine(Home(str(tmp_path))).settings
    assert chosen is not None
    assert ["joe@example.org"] * 2 == [relay.user for relay in chosen.relayip]
    assert "admin@example.org" == (tmp_path / "control/adminaddr").read_text().strip()
    assert chosen.relaypass is not None
    assert password == chosen.relaypass.reveal()
    assert mode_of(tmp_path / "control/relaypass") == 0o600


def test_replaces_when_asked_to(tmp_path: Path) -> None:
    """Another value is refused, without showing a secret, and written with --replace."""
    words = [*ME, "--relay", "joe@mx"]
    assert run_init_with(tmp_path, "#s3cret\n", *words).returncode == 0
    refused = run_init_with(tmp_path, "#two\n", *words, "--relay", "mx2")
    assert refused.returncode == make.EX_CANTCREAT
    assert "relayip" in refused.stderr
    assert "relaypass" in refused.stderr
    assert "s3cret" not in refused.stderr
    assert "#two" not in refused.stderr
    done = run_init_with(tmp_path, "#two\n", *ME, "--relay", "mx2", "--replace")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mx2\n" == (tmp_path / "control/relayip").read_text()
    assert "#=#two" in (tmp_path / "control/relaypass").read_text()


@pytest.mark.parametrize(
    ("words", "password", "named"),
    [
        (["--user", "joe"], "x\n", "--relay"),
        (["--relay", "mx", "--user", "a:b"], "x\n", "--relay"),
        (["--admin", "a b@example.org"], "x\n", "--admin"),
        (["--relay", "joe@mx"], "\n", "standard input"),
        (["--relay", "joe@mx"], "tab\there\n", "standard input"),
    ],
)
def test_refuses_what_cannot_be_used(
    tmp_path: Path, words: list[str], password: str, named: str
) -> None:
    """A wrong value is refused before anything is made, and names where it came from."""
    done = run_init_with(tmp_path / "h", password, *ME, *words)
    assert done.returncode == EX_CONFIG
    assert named in done.stderr
    assert not (tmp_path / "h").exists()
