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

# Set by packaging/test-deb: 12 or 13; a package to try instead of building one; a directory in
# which the systems that all tests begin with are kept for later runs.
RELEASE = os.environ.get("DEBIAN_RELEASE", "12")
PACKAGE = os.environ.get("DEBIAN_PACKAGE", "")
ROOTS = os.environ.get("DEBIAN_ROOTS", "")
USER, PASSWORD = "joe@example.org", "#a password of two words"
# What the transitions install, fetched once.
OTHERS = ("exim4-daemon-light", "postfix", "nullmailer", "msmtp-mta")


@pytest.fixture(scope="session", autouse=True)
def _possible() -> None:
    """Skip all unless they are asked for: they take minutes, and much from Debian's archive."""
    if "DEBIAN_RELEASE" not in os.environ:
        pytest.skip("installs whole systems: packaging/test-deb [12|13] runs these")
    reason = system.missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the package, built once from this checkout."""
    return PACKAGE or system.build_package(str(tmp_path_factory.mktemp("package")))


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of the systems that all tests begin with."""
    directory = f"{ROOTS}/{RELEASE}" if ROOTS else str(tmp_path_factory.mktemp("roots"))
    os.makedirs(directory, exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def base(roots: str) -> str:
    """A fresh minimal system."""
    directory = f"{roots}/base"
    if not os.path.exists(directory):
        system.make_base(system.SUITES[RELEASE], f"{directory}.new")
        os.rename(f"{directory}.new", directory)
    return directory


@pytest.fixture(scope="session")
def ready(roots: str, base: str, package: str) -> str:
    """The same with what the package depends on, and with the other mailers fetched."""
    changes = f"{roots}/ready"
    if not os.path.exists(changes):
        with Debian(base, f"{changes}.new") as made:
            made.apt("update")
            put(package, made)
            made.apt("install", "/root/picoqmail.deb", "ca-certificates", "cron", "bsd-mailx")
            made.apt("purge", "picoqmail")
            for other in OTHERS:
                made.apt("install", "--download-only", other, "bsd-mailx")
        os.rename(f"{changes}.new", changes)
    return f"{changes}/upper:{base}"


def put(package: str, debian: Debian) -> None:
    """Lay the package into /root, and what makes the relays of this session trusted."""
    shutil.copy(package, f"{debian.path}/root/picoqmail.deb")
    authority = f"{debian.path}/usr/local/share/ca-certificates"
    os.makedirs(authority, exist_ok=True)
    shutil.copy(certificates.default().trusted, f"{authority}/rig.crt")


@pytest.fixture
def fresh(base: str, package: str) -> Iterator[Debian]:
    """A minimal system with the package lying in /root."""
    with Debian(base) as made:
        put(package, made)
        yield made


@pytest.fixture
def debian(ready: str, package: str) -> Iterator[Debian]:
    """A system that has what the package needs, which lies in /root."""
    with Debian(ready) as made:
        put(package, made)
        yield made


@pytest.fixture
def login_relay() -> Iterator[RecordingRelay]:
    """A relay that wants STARTTLS and a login."""
    with RecordingRelay(tls="starttls-required", users={USER: PASSWORD}) as relay:
        yield relay
