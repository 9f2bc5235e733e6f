"""The package's files, judged by the tools that Debian has for them and by real programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import attrs
import pytest

from installation import CHECKOUT
from picoqmail import __version__
from picoqmail.admin import metrics, status
from picoqmail.admin.relay_probe import Probe
from picoqmail.ledger.routes import Outage
from picoqmail.store.directory import DirectoryStore
from rig.recording import RecordingRelay
from rig.waiting import wait_until
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path

    from debian.system import Debian

MONITORING = f"{CHECKOUT}/monitoring"
SECONDS = 120


def tool(name: str, package: str) -> str:
    """The path of a tool; skips where it is missing."""
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        pytest.skip(f"needs {name} (Debian: {package})")
    return path


def judged(*command: str, **options: str) -> str:
    """Run a tool that must be content, and return what it printed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert 0 == done.returncode, done.stdout
    text: str = done.stdout
    return text


def test_lintian_is_content(package: str) -> None:
    """No error and no warning but those that debian/picoqmail.lintian-overrides has reasons for."""
    lintian = tool("lintian", "lintian")
    said = judged(lintian, "--allow-root", "--fail-on", "error,warning", package)
    assert [] == [line for line in said.splitlines() if line.startswith(("E:", "W:"))]


def test_one_version_everywhere() -> None:
    """debian/changelog names the version of the program."""
    with open(f"{CHECKOUT}/debian/changelog", encoding="utf-8") as file:
        assert f"picoqmail ({__version__})" == file.readline().partition(" unstable")[0]


def test_the_profile_of_apparmor_is_understood() -> None:
    """Parsed as a whole, with Debian's abstractions; a kernel with AppArmor would enforce it."""
    parser = tool("apparmor_parser", "apparmor")
    judged(parser, "--skip-kernel-load", "--skip-cache", f"{CHECKOUT}/debian/apparmor/picoqmail")


def test_completion_is_understood_by_each_shell(debian: Debian) -> None:
    """Each of the three shells reads its file; bash completes a command and a word of it."""
    debian.apt("install", "/root/picoqmail.deb")
    completions = {
        "bash": "/usr/share/bash-completion/completions/picoqmail",
        "zsh": "/usr/share/zsh/vendor-completions/_picoqmail",
        "fish": "/usr/share/fish/vendor_completions.d/picoqmail.fish",
    }
    for shell, path in completions.items():
        assert "requeue" in debian.read(path)
        if shutil.which(shell):
            judged(shell, "-n", debian.path + path)
    script = (
        f"source {debian.path}{completions['bash']}; COMP_WORDS=(picoqmail req); COMP_CWORD=1;"
        '_picoqmail; echo "${COMPREPLY[@]}"'
    )
    assert "requeue\n" == judged("bash", "-c", script)


def test_logcheck_passes_over_what_is_usual(debian: Debian) -> None:
    """Its rules know each line of mail that goes well, and none of mail that fails."""
    debian.apt("install", "/root/picoqmail.deb", "bsd-mailx")
    lines = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f"{debian.path}/dev/log")
        os.chmod(f"{debian.path}/dev/log", 0o666)

        def listen() -> None:
            while data := log.recv(65536):
                # As rsyslog writes it: without the priority, with the host's name.
                text = data.decode().partition(">")[2]
                lines.append(f"{text[:15]} host{text[15:]}")

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        with RecordingRelay(
            answers={
                "RCPT <later@example.net>": ["451 4.2.0 later"],
                "RCPT <never@example.net>": ["550 5.1.1 no"],
            }
        ) as relay:
            debian.run("picoqmail", "init", "--replace", "--relay", relay.address)
            for name in ("good", "later", "never"):
                debian.sh(f"echo body | mail -s trial {name}@example.net")
                debian.run("picoqmail-send", expect=None)
            wait_until(
                lambda: {"delivered", "deferred", "failed"} <= {event(line) for line in lines},
                "all outcomes are logged",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", f"{debian.path}/dev/log")
        listener.join(SECONDS)
    rules = f"{CHECKOUT}/debian/picoqmail.logcheck.ignore.server"
    shown = subprocess.run(
        ["grep", "-E", "-v", "-f", rules],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert {"failed", "bounced"} == {event(line) for line in shown.splitlines()}


def event(line: str) -> str:
    """The name of the event in a line of the log."""
    return line.partition("]: ")[2].partition(" ")[0]


def test_promtool_is_content() -> None:
    """The alerts of Prometheus are well formed, and fire when they are to."""
    promtool = tool("promtool", "prometheus")
    judged(promtool, "check", "rules", f"{MONITORING}/picoqmail.rules.yml")
    judged(promtool, "test", "rules", f"{MONITORING}/picoqmail.rules.test.yml")


def test_rules_and_dashboard_name_figures_that_are_written(tmp_path: Path) -> None:
    """Every name is one that check --prometheus writes, and the figures are well formed."""
    home = TemporaryHome(str(tmp_path / "home")).make()
    outage = Outage(1, 2, 1, "connect", "refused")
    now = status.gather(home.home, DirectoryStore(home.spool))
    totals = dict.fromkeys(now.totals, 1)
    now = attrs.evolve(now, outages={"relay:25": outage}, totals=totals)
    probe = Probe("relay:25", "127.0.0.1", "", "", "TLSv1.3", "name", 1, logged_in=False, seconds=1)
    text = metrics.render(now, cron_ran=1, level=0, probes=[probe])
    written = set(re.findall(r"^(picoqmail_[a-z_]+)", text, re.MULTILINE))
    for name in ("picoqmail.rules.yml", "picoqmail.grafana.json"):
        with open(f"{MONITORING}/{name}", encoding="utf-8") as file:
            used = set(re.findall(r"\bpicoqmail_[a-z_]+", file.read()))
        assert used
        assert used <= written
    promtool = shutil.which("promtool")
    if promtool:
        done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, check=False)
        assert 0 == done.returncode


def test_the_dashboard_is_one() -> None:
    """JSON with panels that have a place, a query and a title, none twice."""
    with open(f"{MONITORING}/picoqmail.grafana.json", encoding="utf-8") as file:
        board = json.load(file)
    panels = board["panels"]
    assert (
        len(panels) == len({one["title"] for one in panels}) == len({one["id"] for one in panels})
    )
    assert all(target["expr"] for one in panels for target in one["targets"])
    places = {(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels}
    assert len(panels) == len(places)


def test_the_package_tests_itself(debian: Debian) -> None:
    """The autopkgtest, run as autopkgtest would: as root in a system that has its dependencies."""
    debian.apt("install", "/root/picoqmail.deb", "python3-aiosmtpd")
    path = "/tmp/submit-and-deliver"
    shutil.copy(f"{CHECKOUT}/debian/tests/submit-and-deliver", debian.path + path)
    assert "PICOQMAIL OK" in debian.run(path).output


def test_what_the_units_name_is_there(debian: Debian) -> None:
    """The program that the service starts, its directories, and the page of the manual."""
    debian.apt("install", "/root/picoqmail.deb")
    service = debian.read("/usr/lib/systemd/system/picoqmail.service")
    (program,) = re.findall(r"^ExecStart=(\S+)$", service, re.MULTILINE)
    (directory,) = re.findall(r"^ConditionPathIsDirectory=(\S+)$", service, re.MULTILINE)
    (page, section) = re.findall(r"^Documentation=man:(\S+)\((\d)\)$", service, re.MULTILINE)[0]
    assert "User=picoqmail" in service
    debian.run("test", "-x", program)
    debian.run("test", "-d", directory)
    assert debian.has(f"/usr/share/man/man{section}/{page}.{section}.gz")
    assert "Unit=picoqmail.service" in debian.read("/usr/lib/systemd/system/picoqmail.timer")
    for name in ("man8/sendmail.8.gz", "man1/mailq.1.gz", "man1/newaliases.1.gz"):
        debian.run("test", "-e", f"/usr/share/man/{name}")
