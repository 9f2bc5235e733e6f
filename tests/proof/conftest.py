"""Fixtures of several trials: a stage, and a spool in the three states that cron meets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proof.kill_sweep import Stage
from proof.spools import LATER
from proof.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Yield relays and zygotes, and a directory for the homes."""
    with Stage(str(tmp_path_factory.mktemp("stage"))) as started:
        yield started


@pytest.fixture
def world(stage: Stage) -> World:
    """Return a home with two mails in new/ and one, tried before, in cur/."""
    made = World.begin(stage.path(), stage.moody.address)
    made.accept([LATER])
    stage.zygotes[0].run(made.root, "send", offset=-7200)
    made.accept()
    made.accept(["a@there.test", "b@there.test"])
    return made
