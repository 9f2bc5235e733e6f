"""The layout: names that are safe, and transitions that keep the rules of durability."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail import layout
from picoqmail.layout import (
    LEFTOVER_AGE_SECONDS,
    QUEUE_TIME_LIMIT_SECONDS,
    is_id,
    make_id,
)
from picoqmail.spool.transitions import TRANSITIONS

Steps = tuple[tuple[str, ...], ...]
TABLE = pytest.mark.parametrize("steps", TRANSITIONS.values(), ids=TRANSITIONS.keys())


def test_the_queue_gives_up_before_the_sweep_may_take_its_files() -> None:
    """24 hours is less than 36, with hours to spare for a clock that runs away."""
    assert QUEUE_TIME_LIMIT_SECONDS + 3600 < LEFTOVER_AGE_SECONDS


def test_ids_of_one_process_differ_and_sort_by_time() -> None:
    """The Maildir unique name: seconds, microseconds, pid, counter, randomness, host."""
    early = make_id("me.test", 7, 1_700_000_000_000_005_000, b"\x00" * 8)
    late = make_id("me.test", 7, 1_700_000_000_000_006_000, b"\x00" * 8)
    assert early < late
    assert early != make_id("me.test", 7, 1_700_000_000_000_005_000, b"\x00" * 8)
    seconds, middle, host = early.split(".", 2)
    assert ("1700000000", "me.test") == (seconds, host)
    assert middle.startswith("M000005P7Q")
    assert middle.endswith("R" + "00" * 8)


@given(host=st.text(min_size=1, max_size=300), pid=st.integers(1, 2**22))
def test_every_id_is_a_safe_file_name(host: str, pid: int) -> None:
    """Whatever the host is called, the name stays in its directory and leaves room for suffixes."""
    name = make_id(host, pid, 1_700_000_000_000_000_000, b"\xff" * 8)
    assert is_id(name)
    assert name == os.path.basename(name)
    assert len(f"{name}{layout.PROGRESS}".encode()) <= 255


def test_a_colon_and_a_slash_are_escaped_as_in_a_maildir() -> None:
    """Two hosts that differ in such a character have different names."""
    name = make_id("a/b:c", 1, 1_700_000_000_000_000_000, b"\x00" * 8)
    assert name.endswith(".a\\057b\\072c")


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "1/x", "x", ".1", "1\n", "1\0", "1" * 241])
def test_what_leaves_the_directory_or_hides_is_no_id(text: str) -> None:
    """Names come from the command line: none of them may lead anywhere else."""
    assert not is_id(text)


@TABLE
def test_each_transition_counts_at_one_instant(steps: Steps) -> None:
    """There is exactly one commit."""
    assert 1 == [step[0] for step in steps].count("commit")


@TABLE
def test_nothing_is_half_visible(steps: Steps) -> None:
    """A file is written in tmp/ and synced before it gets a name that counts."""
    synced = set()
    for step in steps:
        if step[0] in ("create", "write"):
            assert step[1].startswith("tmp/")
        elif step[0] == "sync":
            synced.add(step[1])
        elif step[0] == "rename":
            assert step[1] in synced


@TABLE
def test_a_sidecar_is_durable_before_the_yes(steps: Steps) -> None:
    """After the last rename or link into a state, its directory is synced before the yes."""
    before = steps[: steps.index(("commit",))]
    entered = {step[2].split("/")[0] for step in before if step[0] in ("rename", "link")}
    for state in entered:
        last = max(
            i
            for i, step in enumerate(before)
            if step[0] in ("rename", "link") and step[2].startswith(state)
        )
        assert ("syncdir", state) in before[last:]


@TABLE
def test_the_source_goes_after_the_target_is_durable(steps: Steps) -> None:
    """In a move nothing is unlinked before the yes; in every transition the sidecar goes first."""
    unlinked = [step[1] for step in steps if step[0] == "unlink"]
    assert unlinked == sorted(unlinked, key=lambda path: path.endswith(".eml"))
    moves = any(step[0] == "link" for step in steps)
    if moves:
        first = min(i for i, step in enumerate(steps) if step[0] == "unlink")
        assert steps.index(("commit",)) < first
    # A message is removed durably; where nothing else of it is left, its body goes only after that.
    for path in [one for one in unlinked if one.endswith(".json")]:
        state = path.split("/")[0]
        synced = steps.index(("syncdir", state), steps.index(("unlink", path)))
        assert moves or synced < steps.index(("unlink", f"{state}/ID.eml"))
