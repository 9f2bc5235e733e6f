"""Fixtures of the package's tests: the package itself, and systems of Debian to install it in."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from debian import system
from debian.system import Debian
from rig import certificates
from rig.recording import RecordingRelay

if TYPE_CHECKING:
    from collections.abc import Iterator

# 12 or 13; packaging/test-deb sets it.
RELEASE = os.environ.get("DEBIAN_RELEASE", "12")
USER, PASSWORD = "joe@example.org", "#a password of two words"
# What the transitions install, fetched once.
OTHERS = ("exim4-daemon-light", "postfix", "nullmailer", "msmtp-mta")


@pytest.fixture(scope="session", autouse=True)
def _possible() -> None:
    """Skip all where Debian's tools are missing."""
    reason = system.missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the package, built once from this checkout."""
    return system.build_package(str(tmp_path_factory.mktemp("package")))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh minimal system, with the certificates of the rig's authority to be trusted."""
    directory = str(tmp_path_factory.mktemp("base") / "root")
    system.make_base(system.SUITES[RELEASE], directory)
    authority = f"{directory}/usr/local/share/ca-certificates"
    os.makedirs(authority)
    shutil.copy(certificates.default().trusted, f"{authority}/rig.crt")
    return directory


@pytest.fixture(scope="session")
def ready(base: str, package: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with what the package depends on, and with the other mailers fetched."""
    changes = str(tmp_path_factory.mktemp("ready") / "changes")
    with Debian(base, changes) as made:
        made.apt("update")
        shutil.copy(package, f"{made.path}/root/picoqmail.deb")
        made.apt("install", "/root/picoqmail.deb", "ca-certificates", "cron", "bsd-mailx")
        made.apt("purge", "picoqmail")
        for other in OTHERS:
            made.apt("install", "--download-only", other, "bsd-mailx")
    return f"{changes}/upper:{base}"


@pytest.fixture
def fresh(base: str, package: str) -> Iterator[Debian]:
    """A minimal system with the package lying in /root."""
    with Debian(base) as made:
        shutil.copy(package, f"{made.path}/root/picoqmail.deb")
        yield made


@pytest.fixture
def debian(ready: str) -> Iterator[Debian]:
    """A system that has what the package needs, which lies in /root."""
    with Debian(ready) as made:
        yield made


@pytest.fixture
def login_relay() -> Iterator[RecordingRelay]:
    """A relay that wants STARTTLS and a login."""
    with RecordingRelay(tls="starttls-required", users={USER: PASSWORD}) as relay:
        yield relay
