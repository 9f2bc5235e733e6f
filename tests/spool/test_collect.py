"""Taking mail from the drop: everything once, and nothing that is not what was accepted."""

from __future__ import annotations

import fcntl
import json
import os
import time
import tracemalloc
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from picoqmail.home.limits import MOST_RECIPIENTS, Limits
from picoqmail.layout import DIRECTORIES, DROP_FILE_MODE
from picoqmail.spool import drop
from picoqmail.spool.collect import MOST_SIDECAR_OCTETS, sweep
from picoqmail.spool.incoming import Incoming
from picoqmail.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from picoqmail.spool.claim import Damage

UID = 4321
LIMITS = Limits("me.test", queuelifetime=1000)


class Shared:
    """A spool with a drop, and what its collector reported."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.damages: list[Damage] = []
        self.troubles: list[str] = []
        self.store = DirectoryStore(path, on_damage=self.damages.append)
        self.new = f"{path}/drop/{UID}/new"

    def submit(
        self,
        text: bytes = b"Subject: x\n\nbody\n",
        uid: int = UID,
        recipients: Sequence[str] = ("c@d.test", "c@d.test"),
    ) -> str:
        """Accept a message in the drop, as the program of a user does."""
        part = f"{self.path}/drop/{uid}"
        for name in ("tmp", "new"):
            os.makedirs(f"{part}/{name}", exist_ok=True)
        incoming = Incoming(
            part, LIMITS, program="picoqmail-queue", uid=uid, pid=7, mode=DROP_FILE_MODE
        )
        incoming.write(text)
        return incoming.commit("a@b.test", list(recipients))

    def names(self, state: str) -> list[str]:
        """The files in a directory of the spool."""
        return sorted(os.listdir(f"{self.path}/{state}"))

    def collect(self, most: int = 100) -> list[str]:
        """Collect."""
        return self.store.collect(LIMITS, most, self.troubles.append)

    def files(self) -> list[str]:
        """All files of messages, in spool and drop."""
        places = [*DIRECTORIES, *(os.path.relpath(part, self.path) for _, part in self.parts())]
        found = []
        for place in places:
            for directory, _, names in os.walk(f"{self.path}/{place}"):
                found += [os.path.relpath(f"{directory}/{name}", self.path) for name in names]
        return sorted(found)

    def parts(self) -> list[tuple[int, str]]:
        """The parts of the drop."""
        return drop.parts(self.path)

    def record(self, state: str, message_id: str) -> dict[str, Any]:
        """A sidecar."""
        with open(f"{self.path}/{state}/{message_id}.json", encoding="utf-8") as file:
            found = json.load(file)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    """An empty spool with an empty drop."""
    for name in (*DIRECTORIES, "drop"):
        os.mkdir(tmp_path / name, 0o700)
    return Shared(str(tmp_path))


def test_a_message_leaves_the_drop_for_the_spool(shared: Shared) -> None:
    """Under its ID, whole, the owner's; the directory says whose it was."""
    message_id = shared.submit()
    assert DROP_FILE_MODE == os.stat(f"{shared.new}/{message_id}.eml").st_mode & 0o777
    assert drop.is_waiting(shared.path)
    assert [message_id] == shared.collect()
    assert [f"new/{message_id}.eml", f"new/{message_id}.json"] == shared.files()
    assert not drop.is_waiting(shared.path)
    record = shared.record("new", message_id)
    assert {"uid": UID, "pid": 7, "program": "picoqmail-queue"} == record["origin"]
    assert (UID, "a@b.test", ["c@d.test"] * 2) == (
        record["dropped"],
        record["sender"],
        [one["address"] for one in record["recipients"]],
    )
    assert 0o600 == os.stat(f"{shared.path}/new/{message_id}.eml").st_mode & 0o777
    claim = shared.store.claim(message_id)
    assert claim is not None
    assert b"".join(claim.blocks()).endswith(b"\nSubject: x\n\nbody\n")
    claim.release()


def test_each_user_has_a_share(shared: Shared) -> None:
    """Of a user with many messages only so many are taken at once, the oldest first."""
    many = sorted(shared.submit() for _ in range(5))
    one = shared.submit(uid=9)
    assert {*many[:2], one} == set(shared.collect(2))
    assert many[2:4] == shared.collect(2)
    assert many[4:] == shared.collect(2)
    assert [] == shared.collect(2)


def test_a_message_that_somebody_has_locked_waits(shared: Shared) -> None:
    """That is the program that accepts it, or another collector."""
    message_id = shared.submit()
    with open(f"{shared.new}/{message_id}.eml", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [] == shared.collect()
    assert [message_id] == shared.collect()


@pytest.mark.parametrize("verb", ["claim", "destroy"])
def test_a_collector_that_died_leaves_no_second_message(shared: Shared, verb: str) -> None:
    """Whoever has the message next removes it from the drop before it can leave the spool."""
    message_id = shared.submit()
    both = [shared.new, f"{shared.path}/new"]
    for suffix in (".eml", ".json"):
        os.link(f"{both[0]}/{message_id}{suffix}", f"{shared.path}/{message_id}{suffix}")
    assert [message_id] == shared.collect()
    for suffix in (".eml", ".json"):
        os.rename(f"{shared.path}/{message_id}{suffix}", f"{both[0]}/{message_id}{suffix}")
    # Another process: this one knows that it has removed it.
    other = DirectoryStore(shared.path)
    if verb == "claim":
        claim = other.claim(message_id)
        assert claim is not None
        assert [] == os.listdir(shared.new)
        other.remove(claim)
        claim.release()
    else:
        assert other.destroy(message_id)
    other.flush()
    assert [] == shared.files()
    assert [] == shared.collect()


def test_what_the_spool_has_is_only_removed(shared: Shared) -> None:
    """A message in both is not taken a second time."""
    message_id = shared.submit()
    for suffix in (".eml", ".json"):
        os.link(f"{shared.new}/{message_id}{suffix}", f"{shared.path}/cur/{message_id}{suffix}")
    assert [message_id] == shared.collect()
    assert [f"cur/{message_id}.eml", f"cur/{message_id}.json"] == shared.files()


def test_a_message_that_power_loss_has_halved_is_taken_once_more(shared: Shared) -> None:
    """Of what was taken only the sidecar's name is there; the body that counts is in the drop."""
    message_id = shared.submit()
    both = [f"drop/{UID}/new/{message_id}.eml", f"drop/{UID}/new/{message_id}.json"]
    for suffix in (".eml", ".json"):
        os.link(f"{shared.new}/{message_id}{suffix}", f"{shared.path}/{message_id}{suffix}")
    assert [message_id] == shared.collect()
    for suffix in (".eml", ".json"):
        os.rename(f"{shared.path}/{message_id}{suffix}", f"{shared.new}/{message_id}{suffix}")
    os.unlink(f"{shared.path}/new/{message_id}.eml")
    # Another process, which did not take it, and finds it before a collector does.
    other = DirectoryStore(shared.path)
    assert other.claim(message_id) is None
    assert [*both, f"new/{message_id}.json"] == shared.files()
    assert [message_id] == shared.collect()
    assert [f"new/{message_id}.eml", f"new/{message_id}.json"] == shared.files()
    claim = other.claim(message_id)
    assert claim is not None
    assert b"".join(claim.blocks()).endswith(b"\nSubject: x\n\nbody\n")
    claim.release()


def test_half_a_message_that_the_drop_has_not_is_put_aside(shared: Shared) -> None:
    """Nobody can complete it."""
    message_id = shared.submit()
    assert [message_id] == shared.collect()
    os.unlink(f"{shared.path}/new/{message_id}.eml")
    assert DirectoryStore(shared.path).claim(message_id) is None
    expected = [f"undelivered/{message_id}.json", f"undelivered/{message_id}.result"]
    assert expected == shared.files()


def test_leftovers_of_a_collector_are_in_nobodys_way(shared: Shared) -> None:
    """Files in tmp/, and a body in new/ that had no sidecar yet."""
    message_id = shared.submit()
    for path in (f"tmp/{message_id}.eml", f"tmp/{message_id}.json", f"new/{message_id}.eml"):
        with open(f"{shared.path}/{path}", "wb") as file:
            file.write(b"a part")
    assert [message_id] == shared.collect()
    assert [f"new/{message_id}.eml", f"new/{message_id}.json"] == shared.files()
    claim = shared.store.claim(message_id)
    assert claim is not None
    claim.release()


def test_after_power_loss_the_body_is_found_in_tmp(shared: Shared) -> None:
    """As in the spool: that name is removed last."""
    message_id = shared.submit()
    os.rename(f"{shared.new}/{message_id}.eml", f"{shared.new}/../tmp/{message_id}.eml")
    assert [message_id] == shared.collect()
    assert shared.store.claim(message_id) is not None


def forge(shared: Shared, message_id: str, **keys: object) -> None:
    """Change a sidecar in the drop."""
    path = f"{shared.new}/{message_id}.json"
    with open(path, encoding="utf-8") as file:
        record = {**json.load(file), **keys}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)


def alter_body(shared: Shared, message_id: str, old: bytes, new: bytes) -> None:
    """Change a body in the drop, and its sidecar with it."""
    path = f"{shared.new}/{message_id}.eml"
    with open(path, "rb") as file:
        data = file.read().replace(old, new, 1)
    with open(path, "wb") as file:
        file.write(data)
    forge(shared, message_id, size=len(data), crc32=crc32(data))


def cut(shared: Shared, message_id: str) -> None:
    """Lose the end of a body."""
    path = f"{shared.new}/{message_id}.eml"
    os.truncate(path, os.stat(path).st_size - 3)


def lose(shared: Shared, message_id: str) -> None:
    """Put a link in the place of a body."""
    os.unlink(f"{shared.new}/{message_id}.eml")
    os.symlink("/etc/passwd", f"{shared.new}/{message_id}.eml")


BAD: dict[str, Callable[[Shared, str], None]] = {
    "first line": lambda s, i: alter_body(s, i, b"uid 4321", b"uid 0"),
    "is not what was accepted": cut,
    "body is missing": lose,
    "envelope": lambda s, i: forge(s, i, sender="a" * 2000),
    "version": lambda s, i: forge(s, i, version=99),
    "another message": lambda s, i: forge(s, i, id="7.x"),
    "larger": lambda s, i: os.truncate(f"{s.new}/{i}.json", 1 << 30),
    "not JSON": lambda s, i: os.truncate(f"{s.new}/{i}.json", 100),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_must_not_be_sent_is_put_aside(shared: Shared, reason: str) -> None:
    """With its octets and the reason, once; and the next message is taken."""
    message_id = shared.submit()
    with open(f"{shared.new}/{message_id}.eml", "rb") as file:
        body = file.read()
    BAD[reason](shared, message_id)
    good = shared.submit()
    assert {message_id, good} == set(shared.collect())
    (damage,) = shared.damages
    assert message_id == damage.id
    assert reason in damage.reason
    assert reason in shared.store.read_result(message_id)
    with open(f"{shared.path}/undelivered/{message_id}.json", "rb") as file:
        assert file.readline().startswith(b"not taken from the drop: ")
    if reason in ("version", "another message", "envelope", "not JSON"):
        with open(f"{shared.path}/undelivered/{message_id}.eml", "rb") as file:
            assert body == file.read()
    assert {"new", "undelivered"} == {one.partition("/")[0] for one in shared.files()}
    assert [] == shared.collect()


def test_nothing_but_the_envelope_is_believed(shared: Shared) -> None:
    """Other keys are not what they say."""
    message_id = shared.submit()
    forge(shared, message_id, origin={"uid": 0, "pid": -1}, held=True, report_of="x", attempts=9)
    shared.collect()
    record = shared.record("new", message_id)
    assert {"uid": UID, "pid": 0, "program": "picoqmail-queue"} == record["origin"]
    assert (False, 0) == (record["held"], record["attempts"])
    assert "report_of" not in record


def test_a_time_of_the_future_is_now(shared: Shared) -> None:
    """Otherwise a message would outlive all others."""
    message_id = shared.submit()
    later = "99" + message_id
    alter_body(shared, message_id, message_id.encode(), later.encode())
    forge(shared, message_id, id=later)
    for suffix in (".eml", ".json"):
        os.rename(f"{shared.new}/{message_id}{suffix}", f"{shared.new}/{later}{suffix}")
    assert [later] == shared.collect()
    assert [] == shared.damages
    assert shared.record("new", later)["expires"] <= time.time() + LIMITS.queuelifetime


def test_a_directory_that_cannot_be_read_stops_nobody(shared: Shared) -> None:
    """It is reported, and the mail of others is taken."""
    shared.submit()
    os.rename(shared.new, f"{shared.new}.away")
    with open(shared.new, "wb"):
        pass
    other = shared.submit(uid=9)
    assert [other] == shared.collect()
    (trouble,) = shared.troubles
    assert f"user {UID}" in trouble


def test_leftovers_of_the_drop_are_swept(shared: Shared) -> None:
    """What is old, in tmp/ or half a message, unless it is locked; a message never."""
    message_id = shared.submit()
    tmp = f"{shared.new}/../tmp"
    old = [f"{tmp}/1.eml", f"{tmp}/x", f"{shared.new}/1.a.eml", f"{shared.new}/.x"]
    for path in (*old, f"{tmp}/young", f"{tmp}/held"):
        with open(path, "wb"):
            pass
    os.symlink("/nowhere", f"{tmp}/link")
    for path in (*old, f"{tmp}/held", f"{shared.new}/{message_id}.eml"):
        os.utime(path, (1, 1))
    os.utime(f"{tmp}/link", (1, 1), follow_symlinks=False)
    with open(f"{tmp}/held", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        gone = sweep(drop.drop_leftovers(shared.path, time.time()))
    assert {os.path.realpath(os.path.dirname(one)) for one in gone} == {
        os.path.realpath(tmp),
        os.path.realpath(shared.new),
    }
    assert {"held", "young"} == set(os.listdir(tmp))
    assert {f"{message_id}.eml", f"{message_id}.json"} == set(os.listdir(shared.new))


def test_a_turn_is_also_bounded_by_its_octets(shared: Shared) -> None:
    """Copying large messages of one user keeps others waiting; so few of them are a turn."""
    large = [shared.submit(b"x" * (40 << 20)) for _ in range(3)]
    one = shared.submit(uid=UID + 1)
    assert {*large[:2], one} == set(shared.collect())
    assert large[2:] == shared.collect()


def test_more_than_databytes_waits(shared: Shared) -> None:
    """A file of any size costs nothing if it is sparse: it is not copied. Other mail goes on."""
    sparse, good = shared.submit(), shared.submit()
    os.truncate(f"{shared.new}/{sparse}.eml", 1 << 40)
    record = shared.record(f"drop/{UID}/new", sparse)
    with open(f"{shared.new}/{sparse}.json", "w", encoding="utf-8") as file:
        json.dump({**record, "size": 1 << 40}, file)
    limits = Limits("me.test", databytes=1000)
    assert [good] == shared.store.collect(limits, 100, shared.troubles.append)
    (trouble,) = shared.troubles
    assert "databytes allows 1000" in trouble
    assert shared.names("new") == [f"{good}.eml", f"{good}.json"]
    # An administrator who allows it again gets it.
    os.truncate(f"{shared.new}/{sparse}.eml", record["size"])
    with open(f"{shared.new}/{sparse}.json", "w", encoding="utf-8") as file:
        json.dump(record, file)
    assert [sparse] == shared.collect()


MUCH = {
    "lists": b'{\n"x": [' + b"[]," * 7_000_000 + b"[]]}",
    "texts": b'{\n"x": [' + b'"ab",' * 4_000_000 + b'"a"]}',
    "recipients": b'{\n"recipients": ['
    + b'{"address": "a@b.c", "state": "pending", "reply": null},\n  ' * 400_000
    + b'{"address": "a@b.c"}]}',
    "keys": b'{\n"recipients": ['
    + (b'{"address": ' + b'"a", "b": ' * 600 + b"[[[[]]]]},\n  ") * 3000
    + b'{"address": "a@b.c"}]}',
    "lines": b"\n" * 20_000_000,
}


@pytest.mark.parametrize("name", MUCH)
def test_a_sidecar_that_would_fill_the_memory_is_put_aside(shared: Shared, name: str) -> None:
    """Thirty times its size is what it takes to read the worst. It is not read."""
    bad, good = shared.submit(), shared.submit()
    path = f"{shared.new}/{bad}.json"
    with open(path, "wb") as file:
        file.write(MUCH[name])
    assert os.stat(path).st_size <= MOST_SIDECAR_OCTETS
    tracemalloc.start()
    try:
        assert good in shared.collect()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MOST_SIDECAR_OCTETS
    (damage,) = shared.damages
    assert (bad, True) == (damage.id, "more values" in damage.reason)


def test_the_largest_of_our_own_is_taken(shared: Shared) -> None:
    """As many recipients as any setting allows, with odd addresses, are taken as they are."""
    recipients = [f'"{{[,]}}{number}"@d.example' for number in range(MOST_RECIPIENTS)]
    message_id = shared.submit(recipients=recipients)
    assert [message_id] == shared.collect()
    assert recipients == [one["address"] for one in shared.record("new", message_id)["recipients"]]
