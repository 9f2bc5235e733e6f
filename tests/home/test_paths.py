"""Where everything is: the order in which homes are looked for, and what privilege ignores."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

import pytest

from picoqmail.home import paths as home
from picoqmail.home.paths import Home, locate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def no_qmail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A host on which the place of qmail's home is empty; returns that place."""
    place = str(tmp_path / "qmail")
    monkeypatch.setattr(home, "QMAIL_HOME", place)
    return place


def paths(found: Home) -> tuple[str, str, str, str]:
    """All paths of a home."""
    return found.root, found.control, found.spool, found.bin


def test_the_variable_names_the_home(tmp_path: Path) -> None:
    """PICOQMAIL_HOME goes before every other place."""
    root = str(tmp_path)
    assert (root, f"{root}/control", f"{root}/spool", f"{root}/bin") == paths(
        locate({"PICOQMAIL_HOME": root})
    )


def test_two_directories_may_lie_elsewhere() -> None:
    """PICOQMAIL_CONTROL and PICOQMAIL_SPOOL override theirs."""
    environ = {"PICOQMAIL_HOME": "/h", "PICOQMAIL_CONTROL": "/c/", "PICOQMAIL_SPOOL": "/s/x//"}
    assert ("/h", "/c", "/s/x", "/h/bin") == paths(locate(environ))


def test_relative_values_are_of_the_current_directory() -> None:
    """A program that changes its directory later still finds the same home."""
    environ = {"PICOQMAIL_HOME": "h", "PICOQMAIL_SPOOL": "s", "PICOQMAIL_CONTROL": "c"}
    here = os.getcwd()
    assert (f"{here}/h", f"{here}/c", f"{here}/s", f"{here}/h/bin") == paths(locate(environ))


def test_qmail_has_its_place_if_it_is_set_up(no_qmail: str) -> None:
    """/var/qmail counts only with a control/me, so that a bare directory misleads nobody."""
    environ = {"XDG_STATE_HOME": "/x"}
    os.makedirs(f"{no_qmail}/control")
    assert "/x/picoqmail" == locate(environ).root
    with open(f"{no_qmail}/control/me", "w", encoding="utf-8") as file:
        file.write("me.test\n")
    assert no_qmail == locate(environ).root


@pytest.mark.usefixtures("no_qmail")
@pytest.mark.parametrize("value", ["", "relative/path"])
def test_the_last_resort_is_the_users_own(value: str) -> None:
    """XDG base directories: unset or relative means ~/.local/state."""
    environ = {"XDG_STATE_HOME": value, "HOME": "/home/joe/"}
    assert "/home/joe/.local/state/picoqmail" == locate(environ).root


@pytest.mark.usefixtures("no_qmail")
@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "joe"}])
def test_without_a_home_the_password_file_is_asked(environ: dict[str, str]) -> None:
    """Cron jobs and containers may have no HOME at all."""
    directory = pwd.getpwuid(os.getuid()).pw_dir
    assert f"{directory}/.local/state/picoqmail" == locate(environ).root


def test_the_environment_is_that_of_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A long-lived process that changes its environment is believed."""
    monkeypatch.setenv("PICOQMAIL_HOME", str(tmp_path))
    assert str(tmp_path) == locate().root


def test_privilege_ignores_the_caller(no_qmail: str) -> None:
    """A set-id program cannot be led to another home by any variable."""
    environ = {
        "PICOQMAIL_HOME": "/evil",
        "PICOQMAIL_CONTROL": "/evil/control",
        "PICOQMAIL_SPOOL": "/evil/spool",
        "XDG_STATE_HOME": "/evil",
        "HOME": "/evil",
    }
    found = locate(environ, privileged=True)
    assert (no_qmail, f"{no_qmail}/control", f"{no_qmail}/spool", f"{no_qmail}/bin") == paths(found)


def test_we_are_not_privileged_here() -> None:
    """The real and effective ids of an ordinary process are the same."""
    assert not home.is_privileged()


def test_the_package_of_debian_has_its_places() -> None:
    """Settings are in /etc, mail in /var/spool, programs below /usr; variables still override."""
    root = home.PACKAGED_HOME
    expected = (root, "/etc/picoqmail", "/var/spool/picoqmail", f"{root}/bin")
    assert expected == paths(Home(root)) == paths(locate({"PICOQMAIL_HOME": root}))
    found = locate({"PICOQMAIL_HOME": root, "PICOQMAIL_SPOOL": "/s"})
    assert ("/etc/picoqmail", "/s") == (found.control, found.spool)


def test_an_installed_package_goes_before_ones_own_home(
    no_qmail: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everybody on such a host uses its mailer; a home in /var/qmail goes before both."""
    package = str(tmp_path / "packaged")
    monkeypatch.setattr(home, "PACKAGED_HOME", package)
    environ = {"XDG_STATE_HOME": "/x"}
    assert "/x/picoqmail" == locate(environ).root
    os.makedirs(f"{package}/bin")
    with open(f"{package}/bin/qmail-queue", "w", encoding="utf-8"):
        pass
    assert package == locate(environ).root == locate(environ, privileged=True).root
    os.makedirs(f"{no_qmail}/control")
    with open(f"{no_qmail}/control/me", "w", encoding="utf-8") as file:
        file.write("me.test\n")
    assert no_qmail == locate(environ).root
