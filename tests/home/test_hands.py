"""Whose hands a home is in: what was found good is judged again as soon as it is something else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from picoqmail.home.hands import HandsError, check_way

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def opened(place: Path) -> None:
    """Let everybody write there."""
    place.chmod(0o777)


def replaced(place: Path) -> None:
    """Put another directory there, which everybody may write to."""
    place.rename(f"{place}.old")
    place.mkdir()
    place.chmod(0o777)


def linked(place: Path) -> None:
    """Put a link there, to a directory in one that everybody may write to."""
    place.rename(f"{place}.old")
    others = place.parent / "others"
    others.mkdir()
    others.chmod(0o777)
    (others / "home").mkdir(mode=0o700)
    (others / "home" / "control").mkdir(mode=0o700)
    place.symlink_to(others / "home")


@pytest.mark.parametrize("change", [opened, replaced, linked])
def test_a_way_that_was_good_is_judged_again(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """In the same process, whichever step of it has changed."""
    control = tmp_path / "home" / "control"
    control.mkdir(parents=True, mode=0o700)
    control.parent.chmod(0o700)
    for _ in range(3):
        check_way(str(control), os.geteuid())
    change(control.parent)
    for _ in range(2):
        with pytest.raises(HandsError, match="can be changed by everybody"):
            check_way(str(control), os.geteuid())


def test_what_was_not_there_is_judged_when_it_comes(tmp_path: Path) -> None:
    """A way that ended early is not taken for all of it."""
    control = tmp_path / "control"
    for _ in range(2):
        check_way(str(control), os.geteuid())
    control.mkdir()
    control.chmod(0o777)
    with pytest.raises(HandsError, match="can be changed by everybody"):
        check_way(str(control), os.geteuid())


def test_what_was_good_and_has_gone_is_no_error(tmp_path: Path) -> None:
    """As it is for a home that was never there."""
    control = tmp_path / "control"
    control.mkdir(mode=0o700)
    check_way(str(control), os.geteuid())
    control.rmdir()
    check_way(str(control), os.geteuid())
