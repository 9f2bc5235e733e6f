"""Claims of what a crash, a copy or a restore left: whole bodies, damaged ones, marks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from attrs import define, field

from picoqmail.layout import (
    BODY,
    CUR,
    IN_DOUBT_BIT,
    NEW,
    SIDECAR,
    STATES,
    SUSPECT_BIT,
    TMP,
    UNDELIVERED,
)
from picoqmail.spool.claim import Claimer, RunDiedError
from picoqmail.spool.files import SpoolFiles

if TYPE_CHECKING:
    from picoqmail.spool.claim import Claim, Damage
    from temporary_home import TemporaryHome

NOW = 1_700_000_000.0


@define
class Claiming:
    """A spool, and what its claimer said of damage and of copies."""

    home: TemporaryHome
    damages: list[Damage] = field(factory=list)
    copies: list[str] = field(factory=list)

    def claim(self, message_id: str) -> Claim | None:
        """Claim by a claimer of its own, as another process would."""
        files = SpoolFiles(self.home.spool)
        claimer = Claimer(files, lambda: NOW, self.damages.append, self.copies.append)
        return claimer.claim(message_id, (NEW, CUR))

    def content(self, message_id: str) -> bytes | None:
        """Return what a claim has of the body; None if there is no claim."""
        claim = self.claim(message_id)
        if claim is None:
            return None
        try:
            return b"".join(claim.blocks())
        finally:
            claim.release()

    def body(self, state: str, message_id: str) -> str:
        """Return the path of a body."""
        return self.home.path(state, message_id, BODY)

    def whole_in_cur(self) -> tuple[str, bytes]:
        """Put a message into cur/; return its ID and the octets of its body."""
        message_id = self.home.deferred()
        with open(self.body(CUR, message_id), "rb") as file:
            return message_id, file.read()

    def put(self, state: str, message_id: str, content: bytes) -> str:
        """Put a body somewhere else, as a restore does; return its path."""
        path = self.body(state, message_id)
        with open(path, "wb") as file:
            file.write(content)
        return path


@pytest.fixture
def spool(home: TemporaryHome) -> Claiming:
    """An empty spool."""
    return Claiming(home)


def test_a_whole_body_behind_a_damaged_one_is_used(spool: Claiming) -> None:
    """The part of a body that a restore left where it is searched for first goes, all names of it.

    The whole one is locked then, too.
    """
    message_id, content = spool.whole_in_cur()
    part = spool.put(NEW, message_id, content[:7])
    second = spool.body(UNDELIVERED, message_id)
    os.link(part, second)
    claim = spool.claim(message_id)
    assert claim is not None
    assert content == b"".join(claim.blocks())
    assert (CUR, False) == (claim.state, claim.was_in_doubt)
    assert [part] == spool.copies
    assert not os.path.exists(part)
    assert [] == spool.damages
    assert not os.get_inheritable(claim._descriptor)
    assert spool.claim(message_id) is None
    claim.release()
    assert content == spool.content(message_id)


@pytest.mark.parametrize("change", ["shorter", "longer", "another octet"])
def test_each_damaged_body_in_the_way_goes(spool: Claiming, change: str) -> None:
    """Two different ones, before the whole one is found in the last place."""
    message_id, content = spool.whole_in_cur()
    damaged = {
        "shorter": content[:-1],
        "longer": content + b"x",
        "another octet": content[:-2] + b"?\n",
    }[change]
    paths = [spool.put(NEW, message_id, damaged)]
    os.rename(spool.body(CUR, message_id), spool.body(TMP, message_id))
    paths.append(spool.put(CUR, message_id, damaged))
    assert content == spool.content(message_id)
    assert paths == spool.copies
    assert not any(map(os.path.exists, paths))


def test_doubt_survives_a_damaged_copy(spool: Claiming) -> None:
    """The mark was on the body that was locked: it goes over to the whole one."""
    message_id, content = spool.whole_in_cur()
    part = spool.put(NEW, message_id, content[:7])
    os.chmod(part, 0o600 | IN_DOUBT_BIT)
    claim = spool.claim(message_id)
    assert claim is not None
    assert claim.was_in_doubt
    assert claim.is_marked
    assert os.stat(spool.body(CUR, message_id)).st_mode & IN_DOUBT_BIT
    claim.release()


def test_a_whole_body_that_another_process_has_is_left(spool: Claiming) -> None:
    """Then the message is busy, and nothing is unlinked or put aside."""
    message_id, content = spool.whole_in_cur()
    claim = spool.claim(message_id)
    assert claim is not None
    part = spool.put(NEW, message_id, content[:7])
    assert spool.claim(message_id) is None
    assert ([], []) == (spool.damages, spool.copies)
    assert os.path.exists(part)
    claim.release()
    assert content == spool.content(message_id)


def test_where_no_body_is_whole_all_are_kept(spool: Claiming) -> None:
    """A person may repair one of them. The message is put aside with the first."""
    message_id, content = spool.whole_in_cur()
    spool.put(NEW, message_id, content[:7])
    spool.put(CUR, message_id, content[:9])
    assert spool.claim(message_id) is None
    assert [message_id] == [one.id for one in spool.damages]
    assert [] == spool.copies
    kept = set()
    for state in STATES:
        path = spool.body(state, message_id)
        if os.path.exists(path):
            with open(path, "rb") as file:
                kept.add(file.read())
    assert {content[:7], content[:9]} == kept
    assert UNDELIVERED == spool.home.state(message_id)


@pytest.mark.parametrize("whole", [True, False])
def test_the_later_of_two_sidecars_stays(
    spool: Claiming,
    whole: bool,  # noqa: FBT001 - a table
) -> None:
    """With the body beside it, whole or not; the older sidecar and its name of the body go."""
    message_id = spool.home.accepted()
    shutil.copy(spool.home.path(NEW, message_id), spool.home.path(CUR, message_id))
    with open(spool.home.path(CUR, message_id), "r+", encoding="utf-8") as file:
        record = json.load(file) | {"revision": 1, "attempts": 7}
        file.seek(0)
        file.truncate()
        json.dump(record, file)
    if not whole:
        with open(spool.body(NEW, message_id), "ab") as body:
            body.write(b"more")
    claim = spool.claim(message_id)
    assert not os.path.exists(spool.home.path(NEW, message_id))
    if not whole:
        assert claim is None
        assert UNDELIVERED == spool.home.state(message_id)
        return
    assert claim is not None
    assert (CUR, 7) == (claim.state, claim.message.attempts)
    assert [message_id + BODY, message_id + SIDECAR] == spool.home.names(CUR)
    assert [] == spool.home.names(NEW)
    claim.release()


def test_of_equal_sidecars_the_one_further_on_stays(spool: Claiming) -> None:
    """A copy in cur/ wins over new/; a damaged sidecar loses to any that can be read."""
    message_id = spool.home.accepted()
    shutil.copy(spool.home.path(NEW, message_id), spool.home.path(CUR, message_id))
    claim = spool.claim(message_id)
    assert claim is not None
    assert CUR == claim.state
    claim.release()
    os.rename(spool.home.path(CUR, message_id), spool.home.path(NEW, message_id))
    with open(spool.home.path(CUR, message_id), "w", encoding="utf-8") as file:
        file.write("{")
    claim = spool.claim(message_id)
    assert claim is not None
    assert NEW == claim.state
    claim.release()


def test_who_does_not_say_so_takes_nothing_in_hand(spool: Claiming) -> None:
    """Nor what a run died of, perhaps."""
    message_id = spool.home.accepted()
    os.chmod(spool.body(NEW, message_id), 0o600 | SUSPECT_BIT)
    claim = spool.claim(message_id)
    assert claim is not None
    assert not claim.is_in_hand
    claim.release()
    claimer = Claimer(SpoolFiles(spool.home.spool), lambda: NOW, print, print)
    with pytest.raises(RunDiedError):
        claimer.claim(message_id, (NEW,), in_hand=True)


def test_what_was_collected_is_known_for_one_claim(spool: Claiming) -> None:
    """The next one makes sure again that it left the drop."""
    message_id = spool.home.accepted()
    claimer = Claimer(SpoolFiles(spool.home.spool), lambda: NOW, print, print)
    claimer.collected.add(message_id)
    claim = claimer.claim(message_id, (NEW,))
    assert claim is not None
    claim.release()
    assert set() == claimer.collected


def test_putting_off_leaves_no_descriptor(spool: Claiming) -> None:
    """Whether it was put off or not."""
    before = sorted(os.listdir("/proc/self/fd"))
    message_id = spool.home.accepted()
    claimer = Claimer(SpoolFiles(spool.home.spool), lambda: NOW, print, print)
    claimer.put_off(message_id, int(NOW))
    assert CUR == spool.home.state(message_id)
    os.unlink(spool.home.path(CUR, message_id))
    claimer.put_off(message_id, int(NOW))
    assert before == sorted(os.listdir("/proc/self/fd"))


WITHOUT_STDIN = """
import os, sys
from picoqmail.store.directory import DirectoryStore
store = DirectoryStore(sys.argv[1])
os.close(0)
claim = store.claim(sys.argv[2])
print(b"".join(claim.blocks()).endswith(b"body\\n"), claim._descriptor)
claim.release()
store.put_off(sys.argv[2], 1)
print(os.path.exists(f"{sys.argv[1]}/cur/{sys.argv[2]}.eml"))
"""


def test_a_run_without_standard_input(spool: Claiming) -> None:
    """The body gets descriptor 0, which is one like any other."""
    message_id = spool.home.accepted()
    command = [sys.executable, "-c", WITHOUT_STDIN, spool.home.spool, message_id]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    assert "True 0\nTrue\n" == ran.stdout


def test_a_body_that_appears_meanwhile(spool: Claiming, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a move, or a restore: then nothing is put aside, and no descriptor stays."""
    message_id = spool.home.accepted()
    body = spool.body(NEW, message_id)
    os.rename(body, f"{body}.away")
    before = sorted(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(SpoolFiles, "body_is_nowhere", lambda *_: False)
        assert spool.claim(message_id) is None
    assert ([], NEW) == (spool.damages, spool.home.state(message_id))
    assert spool.claim(message_id) is None
    assert [message_id] == [one.id for one in spool.damages]
    assert before == sorted(os.listdir("/proc/self/fd"))
