"""Settings: what a home says, what is wrong with it, and how well a password is kept."""

from __future__ import annotations

import os
import pickle
import select
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.errors import ConfigurationError
from picoqmail.home import page, settings, values
from picoqmail.home import secret as relay_password
from picoqmail.home.limits import MOST_SECONDS
from picoqmail.home.paths import Home
from picoqmail.home.secret import PasswordUnavailableError, RelayPassword
from picoqmail.home.values import RateLimit, Route
from picoqmail.log.choice import LogChoice
from picoqmail.smtp.relay_address import Relay

if TYPE_CHECKING:
    from pathlib import Path

# Contract of the outside: these names, no fewer.
NAMES = [
    "me",
    "relayip",
    "relaypass",
    "helohost",
    "idhost",
    "defaulthost",
    "defaultdomain",
    "plusdomain",
    "smtproutes",
    "senderroutes",
    "tls",
    "tlsca",
    "tlscert",
    "tlsfingerprint",
    "timeoutconnect",
    "timeoutremote",
    "concurrencyremote",
    "queuelifetime",
    "retryschedule",
    "runlifetime",
    "databytes",
    "minfree",
    "bouncefrom",
    "bouncehost",
    "doublebounceto",
    "bounces",
    "rewritefrom",
    "adminaddr",
    "sourceip",
    "ratelimit",
    "log",
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home whose settings are `me` alone."""
    (tmp_path / "control").mkdir()
    write(tmp_path, "me", "mail.example.org\n")
    return Home(str(tmp_path))


def write(root: Path | str, name: str, text: str, mode: int = 0o644) -> str:
    """Write a control file and return its path."""
    path = f"{root}/control/{name}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def test_every_setting_is_known() -> None:
    """All settings that users may rely on exist, and each says what it means and allows."""
    assert set(NAMES) <= set(settings.SPECS)
    for spec in settings.SPECS.values():
        assert spec.meaning
        assert spec.allowed


def test_defaults(home: Home) -> None:
    """With `me` alone, hosts follow it, and numbers are those of qmail-control(5)."""
    loaded = settings.load(home)
    for name in ("helohost", "idhost", "defaulthost", "defaultdomain", "plusdomain", "bouncehost"):
        assert getattr(loaded, name) == "mail.example.org"
    assert (loaded.timeoutconnect, loaded.timeoutremote) == (60, 1200)
    assert (loaded.queuelifetime, loaded.runlifetime) == (604800, 1800)
    assert (loaded.databytes, loaded.minfree, loaded.concurrencyremote) == (0, 0, 20)
    assert (loaded.retryschedule, loaded.tls, loaded.bounces) == (None, "may", True)
    assert (loaded.relayip, loaded.relaypass, loaded.ratelimit) == ((), None, None)
    assert LogChoice("auto", "", "info") == loaded.log
    assert {"me": f"{home.control}/me:1"} == loaded.origins


def test_relays_in_order_with_comments(home: Home) -> None:
    """Each line of relayip is a relay; comments and trailing blanks do not count."""
    write(home.root, "relayip", "# ours\nmx1.example.org  \n\nsmtps://joe@mx2.example.org\n")
    assert (
        Relay("smtp", "mx1.example.org", 25),
        Relay("smtps", "mx2.example.org", 465, "joe"),
    ) == settings.load(home).relayip


def test_minivars_and_files(home: Home) -> None:
    """In minivars any setting stands in upper case; a file of its own wins; origins tell."""
    write(home.root, "minivars", "TIMEOUTREMOTE=5\nBOUNCES='off' # no\nHELOHOST=\"out.example\"\n")
    write(home.root, "timeoutremote", "7m\n")
    loaded = settings.load(home)
    assert (loaded.timeoutremote, loaded.bounces, loaded.helohost) == (420, False, "out.example")
    assert f"{home.control}/timeoutremote:1" == loaded.origins["timeoutremote"]
    assert f"{home.control}/minivars:2" == loaded.origins["bounces"]


def test_empty_file_says_none(home: Home) -> None:
    """An empty file takes back what minivars gives, where "none" is a possible value."""
    write(home.root, "minivars", "RELAYIP=mx.example.org\nSOURCEIP=127.0.0.1\n")
    write(home.root, "relayip", "")
    write(home.root, "sourceip", "\n")
    loaded = settings.load(home)
    assert (loaded.relayip, loaded.sourceip) == ((), None)


@pytest.mark.parametrize(
    ("name", "text", "line", "hint"),
    [
        ("me", "two words\n", 1, "host name"),
        ("me", "mäil.example\n", 1, "xn--"),
        ("relayip", "good.example\nmx:99999\n", 2, "65535"),
        ("relayip", "http://mx\n", 1, "smtps"),
        ("smtproutes", "# c\nno colon\n", 2, "colon"),
        ("senderroutes", "a b@c:mx\n", 1, "cannot stand"),
        ("tls", "always\n", 1, "fingerprint"),
        ("tlsfingerprint", "ab:cd\n", 1, "SHA-256"),
        ("tlsca", "relative.pem\n", 1, "absolute"),
        ("tlsca", "/nowhere/ca.pem\n", 1, "/nowhere/ca.pem"),
        ("timeoutconnect", "0\n", 1, "at least 1"),
        ("timeoutremote", "20 parsecs\n", 1, "units"),
        ("concurrencyremote", "256\n", 1, "1 to 255"),
        ("queuelifetime", "-1\n", 1, "whole number"),
        ("queuelifetime", "٣\n", 1, "whole number"),
        ("retryschedule", "5m 0\n", 1, "pause"),
        ("databytes", "1" * 5000 + "\n", 1, "too large"),
        ("bouncefrom", "a@b\n", 1, "@"),
        ("bounces", "maybe\n", 1, "on, off"),
        ("adminaddr", "@example.org\n", 1, "user@host"),
        ("adminaddr", "joe\n", 1, "user@host"),
        ("rewritefrom", "joe:ann@example.org\nno rule\n", 2, "PATTERN"),
        ("sourceip", "localhost\n", 1, "IPv6"),
        ("ratelimit", "14\n", 1, "period"),
        ("log", "somewhere\n", 1, "syslog"),
        ("log", "\n", 0, "empty"),
    ],
)
def test_wrong_value(home: Home, name: str, text: str, line: int, hint: str) -> None:
    """A wrong value is one error that names file and line, and says what is allowed."""
    path = write(home.root, name, text)
    with pytest.raises(ConfigurationError) as caught:
        settings.load(home)
    assert (f"{path}:{line}" if line else path) == caught.value.where
    assert hint in str(caught.value)
    assert "allowed" in str(caught.value).lower()
    assert caught.value.sysexit == 78
    assert caught.value.qmail_status == 55


def test_missing_me(home: Home) -> None:
    """Without `me` there is no sending, and the error says how to get it."""
    os.unlink(f"{home.control}/me")
    with pytest.raises(ConfigurationError, match=r"control/me: .*picoqmail init"):
        settings.load(home)


def test_not_utf8(home: Home) -> None:
    """A file that is not UTF-8 is an error with its line, and no traceback."""
    with open(f"{home.control}/helohost", "wb") as file:
        file.write(b"# ok\n\xff\xfe\n")
    with pytest.raises(ConfigurationError, match=r"helohost:2: .*UTF-8"):
        settings.load(home)


def test_all_wrong_values_are_found(home: Home) -> None:
    """examine() tells everything that is wrong, and keeps the rest."""
    write(home.root, "timeoutconnect", "soon\n")
    write(home.root, "minivars", "TLS=perhaps\nDATABYTES=100\n")
    found = settings.examine(home)
    assert [f"{home.control}/minivars:1", f"{home.control}/timeoutconnect:1"] == sorted(
        error.where for error in found.errors
    )
    assert found.settings is None
    assert [entry.value for entry in found.entries if entry.name == "databytes"] == [100]


def test_unknown_names_are_warnings(home: Home) -> None:
    """A qmail home holds files of other programs: they are told, and disturb nothing."""
    write(home.root, "rcpthosts", "example.org\n")
    write(home.root, "timeoutremote", "5\n6\n")
    write(home.root, "minivars", "RELAY_IP=mx\n")
    warnings = "\n".join(settings.examine(home).warnings)
    assert "rcpthosts: is not a setting" in warnings
    assert "minivars:1: RELAY_IP is not a setting" in warnings
    assert "timeoutremote:2: is not used" in warnings
    assert settings.load(home).timeoutremote == 5


def test_fingerprint_mode_needs_a_fingerprint(home: Home) -> None:
    """Tls fingerprint alone would trust nobody or everybody: it is refused."""
    write(home.root, "tls", "fingerprint\n")
    with pytest.raises(ConfigurationError, match="tlsfingerprint"):
        settings.load(home)
    write(home.root, "tlsfingerprint", "SHA256:" + ":".join(["AB"] * 32) + "\n")
    assert settings.load(home).tlsfingerprint == "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qmail", None),
        ("300", (300,)),
        ("5m 10m 1h", (300, 600, 3600)),
        ("5m,10m, 1d", (300, 600, 86400)),
        ("1w", (604800,)),
    ],
)
def test_retry_schedule(home: Home, text: str, expected: tuple[int, ...] | None) -> None:
    """A schedule is qmail's, or a list of pauses, seconds if there is no unit."""
    write(home.root, "retryschedule", text + "\n")
    assert expected == settings.load(home).retryschedule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("14/s", RateLimit(14, 1)),
        ("300/5m", RateLimit(300, 300)),
        ("10000 / d", RateLimit(10000, 86400)),
        ("0", None),
    ],
)
def test_rate_limit(text: str, expected: RateLimit | None) -> None:
    """A rate is so many messages in a period."""
    assert expected == values.rate_limit(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stderr", LogChoice("stderr", "", "info")),
        ("syslog debug", LogChoice("syslog", "", "debug")),
        ("/var/log/my mail", LogChoice("file", "/var/log/my mail", "info")),
        ("/var/log/my mail  error", LogChoice("file", "/var/log/my mail", "error")),
        ("json", LogChoice("json", "", "info")),
        ("json /var/x warning", LogChoice("json", "/var/x", "warning")),
    ],
)
def test_log_choice(text: str, expected: LogChoice) -> None:
    """A log is a sink and a level; a path may hold blanks."""
    assert expected == values.log_choice(text)


def test_routes(home: Home) -> None:
    """Routes are qmail's lines, with several relays, exceptions, and senders."""
    write(home.root, "smtproutes", "Example.ORG:mx:26 smtps://b@mx2\n.example.net:\n:[::1]:2525\n")
    write(home.root, "senderroutes", "Joe@example.org:mx3\n@example.net:mx4\n<>:mx5\n")
    loaded = settings.load(home)
    assert (
        Route("example.org", (Relay("smtp", "mx", 26), Relay("smtps", "mx2", 465, "b"))),
        Route(".example.net", ()),
        Route("", (Relay("smtp", "::1", 2525),)),
    ) == loaded.smtproutes
    assert [r.pattern for r in loaded.senderroutes] == ["joe@example.org", "example.net", "<>"]


# --- the password --------------------------------------------------------------------------------


def test_password_stays_hidden(home: Home) -> None:
    """The value shows itself only to who calls reveal()."""
    write(home.root, "relaypass", "hunter2\n", 0o600)
    loaded = settings.load(home)
    assert loaded.relaypass is not None
    assert loaded.relaypass.reveal() == "hunter2"
    assert not loaded.relaypass.oauth2
    examined = settings.examine(home)
    for shown in (repr(loaded), str(loaded), repr(examined), f"{loaded.relaypass}"):
        assert "hunter2" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(loaded.relaypass)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_password_that_others_can_read(home: Home, mode: int) -> None:
    """A password in a file that others can read or change is refused, wherever it stands."""
    write(home.root, "relaypass", "hunter2\n", mode)
    with pytest.raises(ConfigurationError, match=r"chmod 600") as caught:
        settings.load(home)
    assert "hunter2" not in str(caught.value)
    os.unlink(f"{home.control}/relaypass")
    write(home.root, "minivars", "RELAYPASS=hunter2\n", mode)
    with pytest.raises(ConfigurationError, match=r"chmod 600 .*minivars"):
        settings.load(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_password_of_another_user(home: Home) -> None:
    """A password file that belongs to somebody else is refused: they could change it."""
    os.chown(write(home.root, "relaypass", "hunter2\n", 0o600), 12345, -1)
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        settings.load(home)


def test_wrong_password_setting_is_not_quoted(home: Home) -> None:
    """Nothing of the value shows in an error about it, nor in its traceback."""
    write(home.root, "relaypass", "!open 'quote hunter2\n", 0o600)
    with pytest.raises(ConfigurationError) as caught:
        settings.load(home)
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown
    assert "quote" in shown


def test_password_with_a_blank_is_not_quoted(home: Home) -> None:
    """A password in minivars that lacks its quotes does not show in the error about that."""
    write(home.root, "minivars", "ME=a.example\nRELAYPASS=half hunter2\n", 0o600)
    with pytest.raises(ConfigurationError, match=r"minivars:2: .*quotes") as caught:
        settings.load(home)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    write(home.root, "minivars", "RELAYPASS='half hunter2 '\n", 0o600)
    loaded = settings.load(home)
    assert loaded.relaypass is not None
    assert loaded.relaypass.reveal() == "half hunter2"


def test_command_runs_once_and_late(home: Home, tmp_path: Path) -> None:
    """A command runs when first asked for, and once, however often it is asked for."""
    script = tmp_path / "get password"
    script.write_text(f"#!/bin/sh\necho run >> '{tmp_path}/runs'\nprintf 'to ken\\nmore\\n'\n")
    script.chmod(0o700)
    write(home.root, "relaypass", f"oauth2!'{script}' x\n", 0o600)
    secret = settings.load(home).relaypass
    assert secret is not None
    assert secret.oauth2
    assert not (tmp_path / "runs").exists()
    assert [secret.reveal(), secret.reveal()] == ["to ken", "to ken"]
    assert (tmp_path / "runs").read_text() == "run\n"


def test_password_of_odd_characters(home: Home) -> None:
    """The ways that the manual names for passwords which look like something else."""
    write(home.root, "relaypass", "!printf '%s' '!secret '\n", 0o600)
    loaded = settings.load(home)
    assert loaded.relaypass is not None
    assert loaded.relaypass.reveal() == "!secret "
    os.unlink(f"{home.control}/relaypass")
    write(home.root, "minivars", "RELAYPASS='#secret'\n", 0o600)
    loaded = settings.load(home)
    assert loaded.relaypass is not None
    assert loaded.relaypass.reveal() == "#secret"


def test_no_shell() -> None:
    """The command is executed as it stands: no variable, no pipe, no wildcard."""
    assert RelayPassword("!echo '$HOME' * '|' ; '`x`'").reveal() == "$HOME * | ; `x`"


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("!false", "exit code 1"),
        ("!sh -c 'echo hunter2; exit 3'", "exit code 3"),
        ("!sh -c 'echo hunter2; kill -9 $$'", "signal 9"),
        ("!true", "printed nothing"),
        ("!/no/such/program", "No such file"),
        ("!printf 'hunter2\\377'", "UTF-8"),
        ("!yes hunter2", "more than"),
    ],
)
def test_command_that_fails(command: str, what: str) -> None:
    """A command that fails is the relay's trouble; its output shows nowhere; it runs once."""
    secret = RelayPassword(command, "/c/relaypass:1")
    with pytest.raises(PasswordUnavailableError, match=what) as caught:
        secret.reveal()
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in str(caught.value)
    assert "/c/relaypass:1" in str(caught.value)
    assert "hunter2\n" not in shown
    assert not caught.value.permanent
    with pytest.raises(PasswordUnavailableError) as again:
        secret.reveal()
    assert again.value is caught.value


def test_command_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that never ends is killed with its children after its time."""
    monkeypatch.setattr(relay_password, "COMMAND_SECONDS", 0.3)
    pid_file = tmp_path / "pid"
    secret = RelayPassword(f"!sh -c 'sleep 600 & echo $! > {pid_file}; wait'")
    with pytest.raises(PasswordUnavailableError, match="still running"):
        secret.reveal()
    assert ends(int(pid_file.read_text()))


def ends(pid: int) -> bool:
    """Whether a process that was sent SIGKILL has ended, or does so within ten seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


# --- properties ----------------------------------------------------------------------------------

READERS = [spec.read for spec in settings.SPECS.values()]


@given(st.text(max_size=60), st.sampled_from(READERS))
def test_readers_answer_or_refuse(text: str, read: Any) -> None:
    """Whatever the text, a reader returns a value or raises ValueError."""
    reason = None
    try:
        read(text)
    except ValueError as error:
        reason = str(error)
    assert reason != ""


@given(st.integers(0, MOST_SECONDS))
def test_durations_have_two_directions(seconds: int) -> None:
    """A duration spelled for people adds up to itself."""
    spelled = values.spelled_duration(seconds)
    assert seconds == sum(values.duration(word) for word in spelled.split())


def test_every_setting_has_its_group_and_an_example_that_is_right() -> None:
    """The manual's examples are what a user copies: each alone is a value that is taken."""
    grouped = [name for group in page.GROUPS.values() for name in group]
    assert sorted(settings.SPECS) == sorted(grouped)
    for group in page.GROUPS.values():
        for name, lines in group.items():
            for line in lines:
                if not settings.SPECS[name].secret:
                    settings.SPECS[name].read(line)
