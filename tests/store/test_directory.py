"""The spool's verbs: claims that cannot be fooled, quarantine that stops nobody, sweeping."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import NoSuchMessageError
from picoqmail.layout import (
    BODY,
    CUR,
    DIRECTORIES,
    IN_DOUBT_BIT,
    LEFTOVER_AGE_SECONDS,
    NEW,
    PROGRESS,
    RESULT,
    SIDECAR,
    TMP,
    UNDELIVERED,
)
from picoqmail.spool.files import SpoolFiles
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, Event
from picoqmail.store.directory import DirectoryStore
from picoqmail.value import evolve
from temporary_home import age

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.spool.claim import Damage
    from picoqmail.store.protocol import ClaimedMessage
    from rig.hostile import HostileRelay
    from trial import Trial

OLD = LEFTOVER_AGE_SECONDS + 60


@pytest.fixture
def damages() -> list[Damage]:
    """What the spool told of damage."""
    return []


@pytest.fixture
def spool(trial: Trial, damages: list[Damage]) -> DirectoryStore:
    """The spool of the trial."""
    return DirectoryStore(trial.spool, on_damage=damages.append)


def claimed(spool: DirectoryStore, message_id: str) -> ClaimedMessage:
    """A claim that must be given."""
    claim = spool.claim(message_id)
    assert claim is not None
    return claim


# --- Claims -----------------------------------------------------------------------------------


def test_a_claim_has_what_delivery_must_know(trial: Trial, spool: DirectoryStore) -> None:
    """The message, its state, its octets, its lines, and whether they are 8-bit."""
    plain = claimed(spool, trial.accepted(message=b"a\nb\n"))
    assert (NEW, 3, False, False) == (
        plain.state,
        plain.newlines,
        plain.eight_bit,
        plain.was_in_doubt,
    )
    body = b"".join(plain.blocks())
    assert body.endswith(b"\na\nb\n")
    assert len(body) == plain.size
    large = claimed(spool, trial.accepted(message="ü\n".encode() * 300_000))
    assert large.eight_bit
    blocks = list(large.blocks())
    assert (large.size, True) == (sum(map(len, blocks)), len(blocks) > 1)
    plain.release()
    large.release()


def test_only_one_has_a_message(trial: Trial, spool: DirectoryStore) -> None:
    """Until it is released; also against another process's lock, by whatever name it was opened."""
    message_id = trial.accepted()
    first = claimed(spool, message_id)
    assert None is spool.claim(message_id)
    first.release()
    with open(trial.path(NEW, message_id, BODY), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert None is spool.claim(message_id)
    claimed(spool, message_id).release()


def test_many_claimers_deliver_each_message_once(trial: Trial, spool: DirectoryStore) -> None:
    """Threads that all go through the same list: each message is somebody's, once."""
    ids = [trial.accepted() for _ in range(100)]
    removed: list[str] = []

    def take() -> None:
        own = DirectoryStore(trial.spool)
        for message_id in ids:
            claim = own.claim(message_id)
            if claim is not None:
                own.remove(claim)
                removed.append(message_id)
                claim.release()
        own.flush()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ids == sorted(removed)
    assert [] == trial.files()
    assert [] == [one for one in ids if spool.claim(one) is not None]


def test_a_lock_on_an_unlinked_body_is_no_claim(
    trial: Trial, spool: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, then the message was delivered by another, then locked: it is not sent again.

    Also where a file of the same name lies there again.
    """
    message_id = trial.accepted()
    path = trial.path(NEW, message_id, BODY)
    opened = SpoolFiles.open_body

    def then_it_goes(self: SpoolFiles, stem: str) -> int:
        descriptor = opened(self, stem)
        os.unlink(path)
        return descriptor

    monkeypatch.setattr(SpoolFiles, "open_body", then_it_goes)
    assert None is spool.claim(message_id)

    def then_it_is_another(self: SpoolFiles, stem: str) -> int:
        descriptor = opened(self, stem)
        os.rename(path, path + ".old")
        with open(path, "wb") as file:
            file.write(b"another")
        return descriptor

    with open(path, "wb") as file:
        file.write(b"x")
    monkeypatch.setattr(SpoolFiles, "open_body", then_it_is_another)
    assert None is spool.claim(message_id)


def test_a_claim_that_waited_through_a_move_reads_the_sidecar_again(
    trial: Trial, spool: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved to cur/ with one recipient served while we opened: what counts is what it says now."""
    message_id = trial.accepted(recipients=["a@b", "c@d"])
    opened = SpoolFiles.open_body

    def then_it_moves(self: SpoolFiles, stem: str) -> int:
        descriptor = opened(self, stem)
        monkeypatch.setattr(SpoolFiles, "open_body", opened)
        other = DirectoryStore(trial.spool)
        claim = claimed(other, message_id)
        one, two = claim.message.recipients
        served = (evolve(one, state=DELIVERED), two)
        moved = evolve(claim.message, recipients=served, revision=1)
        other.record(claim, moved, CUR)
        claim.release()
        return descriptor

    monkeypatch.setattr(SpoolFiles, "open_body", then_it_moves)
    claim = claimed(spool, message_id)
    assert (CUR, (1,)) == (claim.state, claim.message.pending)
    claim.release()


def test_what_is_not_there_or_elsewhere_is_none(trial: Trial, spool: DirectoryStore) -> None:
    """No such message; one that has failed; a body without a sidecar."""
    assert None is spool.claim("1.M1P1Q1R1.none")
    message_id = trial.accepted()
    for suffix in (BODY, SIDECAR):
        os.rename(trial.path(NEW, message_id, suffix), trial.path(UNDELIVERED, message_id, suffix))
    assert None is spool.claim(message_id)
    claim = spool.claim(message_id, (UNDELIVERED,))
    assert claim is not None
    claim.release()
    os.unlink(trial.path(UNDELIVERED, message_id))
    assert None is spool.claim(message_id, (UNDELIVERED,))


def test_no_descriptor_is_left(trial: Trial, spool: DirectoryStore) -> None:
    """Whatever became of the claim."""
    message_id = trial.accepted()
    damaged = trial.accepted()
    trial.edit(damaged, crc32=1)
    before = sorted(os.listdir("/proc/self/fd"))
    claim = claimed(spool, message_id)
    assert None is spool.claim(message_id)
    assert None is spool.claim(damaged)
    assert None is spool.claim("1.none")
    claim.release()
    assert before == sorted(os.listdir("/proc/self/fd"))


# --- Names ------------------------------------------------------------------------------------


def test_a_message_is_found_by_id_or_path(trial: Trial, spool: DirectoryStore) -> None:
    """As people type or complete it; never outside of the spool."""
    message_id = trial.accepted()
    for name in (message_id, message_id + BODY, trial.path(NEW, message_id), f"./{message_id}"):
        assert message_id == spool.find(name)
    for name in ("", "1.none", "../control/me", "/etc/passwd", message_id + "x"):
        with pytest.raises(NoSuchMessageError, match="no such message"):
            spool.find(name)


# --- Recording ---------------------------------------------------------------------------------


def test_a_record_replaces_the_sidecar_and_sets_the_hint(
    trial: Trial, spool: DirectoryStore
) -> None:
    """In another state the whole message moves; a held one is dated far off."""
    message_id = trial.accepted()
    claim = claimed(spool, message_id)
    due = int(time.time()) + 1000
    claim = spool.record(claim, evolve(claim.message, next_attempt=due, revision=1), CUR, "said\n")
    assert (CUR, due, "said\n") == (
        trial.state(message_id),
        trial.sidecar(message_id)["next_attempt"],
        trial.result(message_id),
    )
    assert due == os.stat(trial.path(CUR, message_id)).st_mtime
    assert [message_id + BODY, message_id + SIDECAR] == trial.names(CUR)
    held = claim.message.with_event(Event(due, "", "held", ""), held=True, revision=2)
    claim = spool.record(claim, held, CUR, "more\n")
    assert os.stat(trial.path(CUR, message_id)).st_mtime > time.time() + 10**9
    assert "said\nmore\n" == trial.result(message_id)
    spool.remove(claim)
    claim.release()
    spool.flush()
    assert [] == trial.files()


def test_the_result_is_bounded_and_keeps_the_latest(trial: Trial, spool: DirectoryStore) -> None:
    """A message that is tried for a week does not fill the disk with transcripts."""
    message_id = trial.accepted()
    claim = claimed(spool, message_id)
    for number in range(20):
        text = f"{number} " + "x" * 8000 + "\n"
        claim = spool.record(claim, evolve(claim.message, revision=number + 1), CUR, text)
    claim.release()
    result = trial.result(message_id)
    assert len(result) < 70_000
    assert result.startswith("[...]\n")
    assert result.splitlines()[-1].startswith("19 ")


def test_doubt_survives_and_is_taken_back(trial: Trial, spool: DirectoryStore) -> None:
    """One bit on the body: set before the end of data, found after a crash, gone once counted."""
    message_id = trial.accepted()
    claim = claimed(spool, message_id)
    claim.mark_in_doubt()
    assert os.stat(trial.path(NEW, message_id, BODY)).st_mode & 0o777 == 0o600 | IN_DOUBT_BIT
    claim.release()
    claim = claimed(spool, message_id)
    assert claim.was_in_doubt
    # As an administrator's command, which knows nothing of it.
    spool.record(claim, evolve(claim.message, revision=1), CUR)
    claim.release()
    claim = claimed(spool, message_id)
    counted = claim.doubt_counted()
    spool.record(counted, evolve(claim.message, revision=2), CUR)
    claim.release()
    claim = claimed(spool, message_id)
    assert not claim.was_in_doubt
    claim.release()


def test_progress_counts_for_its_revision_only(trial: Trial, spool: DirectoryStore) -> None:
    """Of several transactions: what was noted is not sent again; a cut line was never relied on."""
    message_id = trial.accepted(recipients=[f"r{number}@d" for number in range(5)])
    claim = claimed(spool, message_id)
    claim = spool.note_progress(claim, {0: ("delivered", "250"), 1: ("failed", "550 no")})
    claim = spool.note_progress(claim, {2: ("delivered", "250")})
    claim.release()
    path = trial.path(NEW, message_id, PROGRESS)
    with open(path, "ab") as file:
        file.write(b'[7, [[3, "delivered", "250"]]]\n[0, [[99, "delivered", "250"]]]\n')
        file.write(b'[0, [[4, "deliv')
    claim = claimed(spool, message_id)
    assert [DELIVERED, FAILED, DELIVERED, PENDING, PENDING] == [
        one.state for one in claim.message.recipients
    ]
    assert claim.has_progress
    spool.record(claim, evolve(claim.message, revision=1), CUR)
    claim.release()
    assert not os.path.exists(path)
    assert 0 == len([name for name in trial.names(CUR) if name.endswith(PROGRESS)])


# --- Quarantine --------------------------------------------------------------------------------


def rewrite(path: str, data: bytes) -> None:
    """Put other octets into a file, its time as it was."""
    found = os.stat(path)
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, (found.st_mtime, found.st_mtime))


def damage_sidecar(change: Callable[[dict[str, object]], object]) -> Callable[[Trial, str], None]:
    """Damage by a change of the sidecar's object."""

    def act(trial: Trial, message_id: str) -> None:
        record = trial.sidecar(message_id)
        changed = change(record)
        text = changed if isinstance(changed, str) else json.dumps(changed)
        rewrite(trial.path(trial.state(message_id), message_id), text.encode())

    return act


def damage_body(change: Callable[[bytes], bytes]) -> Callable[[Trial, str], None]:
    """Damage by a change of the body's octets."""

    def act(trial: Trial, message_id: str) -> None:
        path = trial.path(trial.state(message_id), message_id, BODY)
        rewrite(path, change(trial.body(message_id)))

    return act


def nested(levels: int) -> str:
    """A text of lists in lists."""
    return "[" * levels + "]" * levels


DAMAGE: dict[str, tuple[Callable[[Trial, str], None], str]] = {
    "sidecar cut": (damage_sidecar(lambda r: json.dumps(r)[:-9]), "not JSON"),
    "sidecar empty": (damage_sidecar(lambda _: ""), "not JSON"),
    "sidecar of zeros": (damage_sidecar(lambda _: "\0" * 400), "not JSON"),
    "sidecar deep": (damage_sidecar(lambda _: nested(50_000)), "not JSON"),
    "key deep": (
        damage_sidecar(lambda r: json.dumps(r)[:-1] + ', "x": ' + nested(400) + "}"),
        "nested too deeply",
    ),
    "version 2": (damage_sidecar(lambda r: {**r, "version": 2}), "newer picoqmail"),
    "another's id": (damage_sidecar(lambda r: {**r, "id": "1.x"}), "another message"),
    "NaN": (damage_sidecar(lambda r: {**r, "expires": float("nan")}), "NaN"),
    "infinite": (
        damage_sidecar(lambda r: json.dumps({**r, "created": 1}).replace(": 1,", ": 1e999,")),
        "sidecar",
    ),
    "huge number": (damage_sidecar(lambda r: {**r, "next_attempt": 10**300}), "next_attempt"),
    "recipients of text": (damage_sidecar(lambda r: {**r, "recipients": ["a@b"]}), "recipient"),
    "no recipients": (damage_sidecar(lambda r: {**r, "recipients": []}), "no recipient"),
    "history of text": (damage_sidecar(lambda r: {**r, "history": ["x"]}), "history"),
    "body short": (damage_body(lambda body: body[:-1]), "octets"),
    "body long": (damage_body(lambda body: body + b"x"), "octets"),
    "body altered": (damage_body(lambda body: body[:-2] + b"X\n"), "CRC-32"),
    "body empty": (damage_body(lambda _: b""), "octets"),
    "body gone": (
        lambda trial, one: os.unlink(trial.path(trial.state(one), one, BODY)),
        "body is missing",
    ),
}


@pytest.mark.parametrize("state", [NEW, CUR])
def test_damaged_messages_are_put_aside_and_the_rest_is_delivered(
    trial: Trial, strict_relay: HostileRelay, state: str
) -> None:
    """One run over all kinds of damage: each told with its reason, none sent, none lost."""
    trial.setting("relayip", strict_relay.address)
    make = trial.accepted if state == NEW else trial.deferred
    damaged, sound = {}, []
    for name, (act, _) in DAMAGE.items():
        sound.append(make())
        message_id = make()
        act(trial, message_id)
        damaged[name] = message_id
        sidecar = trial.path(state, message_id)
        with open(sidecar, "rb") as file:
            damaged[name + " before"] = file.read().hex()
    assert 0 == trial.run("cron").returncode
    delivered = [message.content for message in strict_relay.messages]
    for message_id in sound:
        assert 1 == sum(f"id {message_id};".encode() in content for content in delivered)
    assert len(sound) == len(delivered)
    told = {event["id"]: event["reason"] for event in trial.events("damaged")}
    for name, (_, reason) in DAMAGE.items():
        message_id = damaged[name]
        assert UNDELIVERED == trial.state(message_id), name
        assert reason in told[message_id], name
        assert reason in trial.result(message_id), name
        with open(trial.path(UNDELIVERED, message_id), "rb") as file:
            assert damaged[name + " before"] == file.read().hex(), name
    assert [] == trial.names(NEW) + trial.names(CUR) + trial.names(TMP)


def test_what_we_never_made_stops_nobody(trial: Trial, strict_relay: HostileRelay) -> None:
    """Directories, links and pipes under the names of messages: the sound one is delivered."""
    trial.setting("relayip", strict_relay.address)
    for number, state in enumerate((NEW, CUR)):
        odd = f"{number}.M1P1Q1R1.odd"
        os.mkdir(trial.path(state, odd, BODY))
        os.mkdir(trial.path(state, odd))
        piped = f"{number}.M2P1Q1R1.pipe"
        os.mkfifo(trial.path(state, piped, BODY))
        os.mkfifo(trial.path(state, piped))
        linked = f"{number}.M3P1Q1R1.link"
        os.symlink("/etc/passwd", trial.path(state, linked, BODY))
        os.symlink("/etc/passwd", trial.path(state, linked))
        for name in ("x", ".hidden", "no number.json", "no number.eml", "ü.json"):
            with open(f"{trial.spool}/{state}/{name}", "wb"):
                pass
    message_id = trial.accepted()
    ran = trial.run("cron")
    assert 0 == ran.returncode, ran.stderr
    (message,) = strict_relay.messages
    assert f"id {message_id};".encode() in message.content


def test_a_half_restored_message_is_not_put_aside_too_early(
    trial: Trial, spool: DirectoryStore, damages: list[Damage]
) -> None:
    """Its body lies in another directory, as after a crash: it is found there."""
    message_id = trial.accepted()
    os.rename(trial.path(NEW, message_id), trial.path(CUR, message_id))
    claim = claimed(spool, message_id)
    assert (CUR, []) == (claim.state, damages)
    claim.release()


# --- Sweeping ------------------------------------------------------------------------------------


def test_the_sweep_takes_what_is_old_and_nobodys(trial: Trial) -> None:
    """After 36 hours, unlocked, of no message; and it is told."""
    message_id = trial.deferred(next_attempt=int(time.time()) + 9999)
    old = [f"{TMP}/1.a.eml", f"{TMP}/1.a.json", f"{NEW}/2.b.eml", f"{CUR}/3.c.eml",
           f"{UNDELIVERED}/4.d.eml", f"{UNDELIVERED}/5.e.result"]  # fmt: skip
    young = [f"{TMP}/6.f.eml", f"{NEW}/7.g.eml"]
    for path in (*old, *young):
        with open(f"{trial.spool}/{path}", "wb"):
            pass
    for path in old:
        age(f"{trial.spool}/{path}", OLD)
    age(trial.path(CUR, message_id, BODY), OLD)
    held = f"{TMP}/8.h.eml"
    with open(f"{trial.spool}/{held}", "wb") as file:
        age(file.name, OLD)
        fcntl.flock(file, fcntl.LOCK_EX)
        trial.cron()
    kept = [*young, held, f"{CUR}/{message_id}{BODY}", f"{CUR}/{message_id}{SIDECAR}"]
    assert sorted(kept) == sorted(trial.files())
    swept = [os.path.relpath(event["path"], trial.spool) for event in trial.events("swept")]
    assert sorted(old) == sorted(swept)


def test_nothing_is_ever_promoted(trial: Trial, strict_relay: HostileRelay) -> None:
    """A whole message in tmp/, body and sidecar, was never accepted: it goes, unsent."""
    trial.setting("relayip", strict_relay.address)
    message_id = trial.accepted()
    for suffix in (BODY, SIDECAR):
        os.rename(trial.path(NEW, message_id, suffix), trial.path(TMP, message_id, suffix))
        age(trial.path(TMP, message_id, suffix), OLD)
    trial.cron()
    assert ([], []) == (trial.files(), strict_relay.messages)


def test_the_sweep_looks_again_under_the_lock(trial: Trial, spool: DirectoryStore) -> None:
    """What has become a message since the look stays, with its result."""
    message_id = trial.deferred()
    body = trial.path(CUR, message_id, BODY)
    result = trial.path(UNDELIVERED, message_id, RESULT)
    with open(result, "wb"):
        pass
    spool.sweep([body, result])
    assert os.path.exists(body)
    assert os.path.exists(result)


def test_every_directory_is_needed(trial: Trial) -> None:
    """A spool that lacks one is told of, and nothing is made in its place."""
    for name in DIRECTORIES[1:]:
        os.rename(f"{trial.spool}/{name}", f"{trial.spool}/{name}-away")
        ran = trial.run("cron")
        assert (74, True) == (ran.returncode, f"{trial.spool}/{name}".encode() in ran.stderr)
        os.rename(f"{trial.spool}/{name}-away", f"{trial.spool}/{name}")
