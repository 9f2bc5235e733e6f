"""No content of a file in the spool ends a run: the mail beside it is delivered.

Sidecars, progress, results, keys, reports and state files get every wrong value at every place of
their structure, and real runs meet them.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.layout import make_id
from picoqmail.spool.message import PENDING
from proof.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proof.kill_sweep import Stage

# What stands for a value; a text that JSON cannot say is put in afterwards.
_DEEP: Any = []
for _ in range(60):
    _DEEP = [_DEEP]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**70,
    1e300,
    "",
    "x",
    "\0",
    "a\0b@x.test",
    "\ud800",
    "a\r\nb@x.test",
    "../../../etc/passwd",
    "reports/../sender.lock",
    "x" * 100_000,
    [],
    ["x", None, {}],
    {},
    {"a": {"b": [None]}},
    [{"when": "x", "outcome": 5, "reply": []}],
    [None],
    _DEEP,
]
RAW = [b"NaN", b"Infinity", b"1e999", b"-0", b'"\\ud800\\u0000"', b"{", b"\xff", b""]
ABSENT = object()
PLACES: list[tuple[str | int, ...]] = [
    ("version",),
    ("id",),
    ("sender",),
    ("recipients",),
    ("recipients", 0),
    ("recipients", 0, "address"),
    ("recipients", 0, "state"),
    ("recipients", 0, "reply"),
    ("recipients", 0, "told"),
    ("created",),
    ("next_attempt",),
    ("expires",),
    ("attempts",),
    ("size",),
    ("crc32",),
    ("held",),
    ("history",),
    ("history", 0),
    ("history", 0, "when"),
    ("history", 0, "relay"),
    ("history", 0, "outcome"),
    ("history", 0, "reply"),
    ("origin",),
    ("origin", "uid"),
    ("origin", "program"),
    ("revision",),
    ("not_before",),
    ("telling",),
    ("report_of",),
    ("warned",),
    ("dsn",),
    ("dsn", "notify"),
    ("dsn", "ret"),
    ("dsn", "envid"),
    ("unknown",),
]
STATES_OF_RECIPIENTS = [("pending",), ("failed",), ("delivered",), ("pending", "failed")]


def _changed(record: dict[str, Any], place: tuple[str | int, ...], value: object) -> Any:
    """Return a copy with another value at that place."""
    copy: Any = json.loads(json.dumps(record))
    at = copy
    for step in place[:-1]:
        if isinstance(step, str) and step not in at:
            at[step] = {}
        at = at[step]
    if value is ABSENT:
        if isinstance(at, dict):
            at.pop(place[-1], None)
    else:
        at[place[-1]] = value
    return copy


def hostile_sidecars(record: dict[str, Any]) -> Iterator[bytes]:
    """Yield sidecars that are wrong in one place, or odd as a whole."""
    for place in PLACES:
        for value in (ABSENT, *VALUES):
            yield json.dumps(_changed(record, place, value)).encode()
        for raw in RAW:
            marked = json.dumps(_changed(record, place, "@RAW@")).encode()
            yield marked.replace(b'"@RAW@"', raw)
    whole = json.dumps(record).encode()
    yield from (b"", b"[]", b"null", b"{}", whole[:-1], whole * 2, b"\0" * 50, b"[" * 100_000)
    for states in STATES_OF_RECIPIENTS:
        histories: list[list[Any]] = [[], record["history"]]
        for history in histories:
            recipients = [{"address": f"r{n}@x.test", "state": s} for n, s in enumerate(states)]
            yield json.dumps({**record, "recipients": recipients, "history": history}).encode()


def _template(number: int) -> dict[str, Any]:
    """Return the sidecar of a message that was deferred once."""
    now = int(time.time())
    return {
        "version": 1,
        "id": make_id("host.test", number, time.time_ns(), os.urandom(8)),
        "sender": "s@x.test",
        "recipients": [{"address": "r@x.test", "state": PENDING, "reply": None}],
        "created": now - 600,
        "next_attempt": now - 60,
        "expires": now + 86400,
        "attempts": 1,
        "size": 10,
        "crc32": 0,
        "held": False,
        "history": [{"when": now - 600, "relay": "r", "outcome": "deferred", "reply": "451 x"}],
        "origin": {"uid": 1, "pid": 1, "program": "inject"},
        "revision": 1,
    }


def plant_sidecars(world: World, state: str) -> int:
    """Put every hostile sidecar into the spool, each with a whole body; return how many."""
    from zlib import crc32

    body = b"Subject: x\n\nx\n"
    count = 0
    for data in hostile_sidecars(_template(0)):
        record = _template(count)
        stem = record["id"]
        here = data.replace(_id_of(data), stem.encode())
        here = here.replace(b'"size": 10,', b'"size": %d,' % len(body))
        here = here.replace(b'"crc32": 0,', b'"crc32": %d,' % crc32(body))
        for name, octets in ((f"{stem}.eml", body), (f"{stem}.json", here)):
            with open(f"{world.spool}/{state}/{name}", "wb") as file:
                file.write(octets)
        count += 1
    return count


def _id_of(data: bytes) -> bytes:
    """Return the ID in a sidecar's text, or something that is not in it."""
    start = data.find(b'"id": "')
    if start < 0:
        return b"@no ID@"
    return data[start + 7 : data.find(b'"', start + 7)] or b"@no ID@"


@pytest.fixture
def world(stage: Stage) -> World:
    """Return a home whose relay takes everything."""
    made = World.begin(stage.path(), stage.good.address)
    made.setting("adminaddr", "admin@there.test")
    made.setting("delaywarning", "60")
    return made


def delivers_the_rest(stage: Stage, world: World) -> None:
    """Fail unless the good mail beside it goes, and every program understands what it meets."""
    world.accept()
    token = world.promises[-1].token
    for program in ("send", "cron", "cron"):
        status, said = stage.zygotes[0].run(world.root, program)
        assert "Traceback" not in said
        assert status in (0, 69, 75), (program, status, said[:300])
    arrived = stage.good.ledger.of(world.name)
    assert 1 == sum(token.encode() in one.content for one in arrived)
    assert [] == [line for line in world.events() if "cannot be handled" in line]
    for words in (["status"], ["list"], ["list", "--json"], ["check", "--no-relay"]):
        ran = world.run([*world.programs.command(""), *words])
        assert b"Traceback" not in ran.stderr, (words, ran.stderr[-2000:])


@pytest.mark.parametrize("state", ["new", "cur"])
def test_sidecars(stage: Stage, world: World, state: str) -> None:
    """Each wrong value at each place: sent, or put aside with the reason, or left with it."""
    assert plant_sidecars(world, state) > 500
    delivers_the_rest(stage, world)


OCTETS = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"x" * 1_000_000,
    b"1e999",
]


def lines(*wrong: object) -> list[bytes]:
    """Return each as a line of JSON, and what is no JSON."""
    return [*(json.dumps(one).encode() + b"\n" for one in wrong), *OCTETS]


PROGRESS_LINES = lines(
    [1, [[0, "delivered", "\ud800"]]],
    [1, [[-1, "delivered", "x"]]],
    [1, [["0", "delivered", "x"]]],
    [1, [[0, "delivered"]]],
    [1, {"0": "delivered"}],
    [None, [[2**70, "failed", None]]],
    [1, [[0, {}, []]]],
    [[1], [[0, "failed", "x\0y"]]],
)


@pytest.mark.parametrize("state", ["new", "cur"])
def test_progress(stage: Stage, world: World, state: str) -> None:
    """What no line says is sent again; a line that says nonsense says nothing."""
    stems = []
    for number, octets in enumerate(PROGRESS_LINES):
        stems.append(_plant_several(world, state, number))
        with open(f"{world.spool}/{state}/{stems[-1]}.progress", "wb") as file:
            file.write(octets)
    delivers_the_rest(stage, world)
    assert [] == [stem for stem in stems if os.path.exists(f"{world.spool}/{state}/{stem}.json")]


def _plant_several(world: World, state: str, number: int) -> str:
    """Put a message of two recipients there; return its ID."""
    from zlib import crc32

    body = b"Subject: x\n\nx\n"
    record = _template(number)
    record["recipients"] = [{"address": f"r{n}@x.test", "state": PENDING} for n in range(2)]
    record.update(size=len(body), crc32=crc32(body))
    stem = str(record["id"])
    for name, octets in ((f"{stem}.eml", body), (f"{stem}.json", json.dumps(record).encode())):
        with open(f"{world.spool}/{state}/{name}", "wb") as file:
            file.write(octets)
    return stem


def test_results(stage: Stage, world: World) -> None:
    """What relays said before is kept, whatever its octets are."""
    world.relay(stage.moody.address)
    for number, octets in enumerate(OCTETS):
        stem = _plant_several(world, "cur", number)
        with open(f"{world.spool}/undelivered/{stem}.result", "wb") as file:
            file.write(octets)
    world.relay(stage.good.address)
    delivers_the_rest(stage, world)


STATE_FILES = [
    *("relay-down", "counters", "purged", "cron.lock", "cron-complaint", "idle", "rate"),
    "users/0",
]


@pytest.mark.parametrize("name", STATE_FILES)
def test_state_files(stage: Stage, world: World, name: str) -> None:
    """Each begins anew: breaker, totals, stamps, pace and quota."""
    world.setting("ratelimit", "1000/1s")
    path = f"{world.spool}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    for octets in OCTETS:
        world.accept()
        with open(path, "wb") as file:
            file.write(octets)
        for program in ("send", "cron"):
            status, said = stage.zygotes[0].run(world.root, program)
            assert (0, "") == (status, said), octets[:20]
    delivers_the_rest(stage, world)


@pytest.mark.parametrize("name", ["relay-down", "counters"])
def test_state_files_of_wrong_values(stage: Stage, world: World, name: str) -> None:
    """Each wrong value at each place of what a real one holds."""
    reals: dict[str, dict[str, Any]] = {
        "relay-down": {"version": 1, "routes": {"r": {"failures": 1, "until": 1, "stage": "x"}}},
        "counters": {"delivered": 1, "last": 1},
    }
    real = reals[name]
    for value in VALUES:
        for changed in (value, dict.fromkeys(real, value), {**real, "routes": {"r": value}}):
            with open(f"{world.spool}/{name}", "wb") as file:
                file.write(json.dumps(changed).encode())
            world.accept()
            for program in ("send", "cron"):
                status, said = stage.zygotes[0].run(world.root, program)
                assert ("", True) == (said, status in (0, 75)), (changed, status)
    delivers_the_rest(stage, world)


def test_reports(stage: Stage, world: World) -> None:
    """Files of reports that make no digest stay; the others become one."""
    os.mkdir(f"{world.spool}/reports")
    begun = int(time.time()) - 7200
    kept = {
        "what": "kept",
        "address": "s@x.test",
        "when": begun,
        "id": "1.x",
        "index": 0,
        "sender": "",
        "recipient": "r@x.test",
        "reply": "550 no",
    }
    number = 0
    for key in kept:
        for value in VALUES:
            number += 1
            with open(
                f"{world.spool}/reports/{number:032x}-{begun}", "w", encoding="utf-8"
            ) as file:
                file.write(json.dumps({**kept, key: value}) + "\n")
    for octets in OCTETS:
        number += 1
        with open(f"{world.spool}/reports/{number:032x}-{begun}", "wb") as raw:
            raw.write(octets)
    delivers_the_rest(stage, world)
    assert any(b"550 no" in one.content for one in stage.good.ledger.of(world.name))


def test_keys(stage: Stage, world: World) -> None:
    """A record that is none counts as none: the message with its key is accepted."""
    import picoqmail

    home = picoqmail.Spool(world.root)
    home.enqueue(b"Subject: x\n\nx\n", "a@x.test", ["b@x.test"], idempotency_key="key")
    (name,) = os.listdir(f"{world.spool}/idempotency")
    path = f"{world.spool}/idempotency/{name}"
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    for octets in (
        *OCTETS,
        *(json.dumps({**record, key: v}).encode() for key in record for v in VALUES),
    ):
        with open(path, "wb") as raw:
            raw.write(octets)
        os.chmod(path, 0o600)
        status, said = stage.zygotes[0].run(world.root, "cron")
        assert (0, "") == (status, said)
        try:
            home.enqueue(b"Subject: x\n\nx\n", "a@x.test", ["b@x.test"], idempotency_key="key")
        except picoqmail.KeyReusedError:
            # The record says that another message has the key.
            continue
    delivers_the_rest(stage, world)
