"""The host of these tests, made once; without root or Debian's Python they are skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from privileges.host import SECONDS, make_host, missing
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privileges.host import Host


@pytest.fixture(scope="session")
def whole_host(wheel: str) -> Iterator[Host]:
    """A host whose spool is shared by its users, one for the session."""
    if lacking := missing():
        pytest.skip(lacking)
    with make_host(wheel) as host:
        yield host


@pytest.fixture
def host(whole_host: Host) -> Iterator[Host]:
    """That host with an empty spool, the settings `me` and a relay that nobody serves."""
    whole_host.empty()
    whole_host.setting("relayip", "127.0.0.1:9")
    before = {name: whole_host.read_setting(name) for name in whole_host.settings()}
    yield whole_host
    for name in whole_host.settings():
        if name not in before:
            whole_host.remove_setting(name)
        elif before[name] != whole_host.read_setting(name):
            whole_host.setting(name, before[name].removesuffix("\n"))
    wait_until(lambda: not whole_host.processes(), "the spool's owner is idle", SECONDS)
