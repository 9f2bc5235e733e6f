"""keepundelivered: failures go when they have lain long enough, once an hour, nothing else does."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import BODY, CUR, NEW, SIDECAR, UNDELIVERED
from picoqmail.spool.retention import is_purge_due, note_purge
from picoqmail.store.directory import DirectoryStore
from temporary_home import age

if TYPE_CHECKING:
    from trial import Trial

DAY = 86400


def failed(trial: Trial, days_ago: float = 0) -> str:
    """Put a message, accepted so long ago, into undelivered/ now."""
    message_id = trial.deferred()
    seconds, _, rest = message_id.partition(".")
    older = f"{int(seconds) - int(days_ago * DAY)}.{rest}"
    trial.edit(message_id, id=older)
    for suffix in (BODY, SIDECAR):
        os.rename(trial.path(CUR, message_id, suffix), trial.path(UNDELIVERED, older, suffix))
    return older


def test_what_has_just_failed_stays(trial: Trial) -> None:
    """A message that failed after a month in the queue is kept as long as any other."""
    message_id = failed(trial, days_ago=30)
    assert 0 == DirectoryStore(trial.spool).purge(7 * DAY)
    assert [message_id] == trial.ids(UNDELIVERED)


def test_what_has_lain_long_enough_goes(trial: Trial) -> None:
    """Only from undelivered/, and with all its files."""
    failed(trial)
    waiting = trial.accepted()
    later = DirectoryStore(trial.spool, clock=lambda: time.time() + 8 * DAY)
    assert 1 == later.purge(7 * DAY)
    assert [f"{NEW}/{waiting}{BODY}", f"{NEW}/{waiting}{SIDECAR}"] == trial.files()


def test_all_that_has_lain_long_enough_goes(trial: Trial) -> None:
    """Whatever lies between: younger messages, results, and one that another process has."""
    old = [failed(trial) for _ in range(5)]
    young = [failed(trial, days_ago=-7) for _ in range(5)]
    later = DirectoryStore(trial.spool, clock=lambda: time.time() + 8 * DAY)
    claim = DirectoryStore(trial.spool).claim(old[2], (UNDELIVERED,))
    assert claim is not None
    assert 4 == later.purge(7 * DAY)
    assert sorted([old[2], *young]) == sorted(trial.ids(UNDELIVERED))
    claim.release()
    assert 1 == later.purge(7 * DAY)
    assert sorted(young) == sorted(trial.ids(UNDELIVERED))


@pytest.mark.parametrize(
    ("seconds", "due"), [(0, False), (3599.5, False), (3600, True), (-0.5, True)]
)
def test_a_search_is_due_an_hour_after_the_last(
    trial: Trial,
    seconds: float,
    due: bool,  # noqa: FBT001 - a table
) -> None:
    """Or where the clock was set back since."""
    now = 1_700_000_000.0
    assert not is_purge_due(trial.home, now)
    trial.setting("keepundelivered", "1")
    assert is_purge_due(trial.home, now)
    note_purge(trial.spool, now)
    assert 0o600 == os.stat(f"{trial.spool}/purged").st_mode & 0o777
    assert due == is_purge_due(trial.home, now + seconds)


def test_cron_looks_once_an_hour(trial: Trial) -> None:
    """With the setting; without it nothing is looked at, and an idle run stays one."""
    stamp = f"{trial.spool}/purged"
    trial.cron()
    assert not os.path.exists(stamp)
    trial.setting("keepundelivered", "1")
    trial.cron()
    first = os.stat(stamp).st_mtime_ns
    trial.cron()
    assert first == os.stat(stamp).st_mtime_ns
    age(stamp, 3700)
    trial.cron()
    assert first < os.stat(stamp).st_mtime_ns
