"""A home that an older version left behind is taken over: nothing lost, nothing sent twice.

The archive was made by that version's own programs; tests/fixtures/make_home.py says how, and
which message plays which part.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import picoqmail
from fixtures.make_home import GOOD, LATER, MANY, NEVER, message
from installation import CHECKOUT
from picoqmail.errors import KeyReusedError
from picoqmail.home.paths import Home
from picoqmail.home.values import RateLimit
from picoqmail.layout import CUR, NEW, TMP, UNDELIVERED
from picoqmail.ledger.rate_limit import SLICES, RateLimiter
from picoqmail.ledger.routes import DirectoryRoutes
from picoqmail.relay import breaker
from picoqmail.submission import quota
from rig.hostile import HostileRelay
from trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from installation import Installation
    from rig.received import Received

    Command = Callable[..., subprocess.CompletedProcess[str]]
    # Part, envelope sender, recipients.
    Delivery = tuple[str, str, tuple[str, ...]]

ARCHIVE = os.path.join(CHECKOUT, "tests", "fixtures", "home-0.1.tar.gz")
DOWN = "127.0.0.1:1"
FAST = [f"fast-{number}" for number in range(8)]
# Where each part was left. Those of tmp/ are no messages: nobody was ever told yes.
STATES = {
    **dict.fromkeys(("failed", "digested", "null-failed", "damaged"), UNDELIVERED),
    **dict.fromkeys(("deferred", "warned", "double", "verp", "routes", "telling", "held"), CUR),
    **dict.fromkeys(("scheduled", "report", *FAST[:6]), CUR),
    **dict.fromkeys(("down", "doubt", "progress", *FAST[6:]), NEW),
    **dict.fromkeys(("new", "null", "twice", "utf8", "inject", "sendmail"), NEW),
    **dict.fromkeys(("key-waits", "key-published"), NEW),
    **dict.fromkeys(("prepared", "parked", "key-on-its-way"), TMP),
}
A = "a@here.test"
# What the first runs must bring to the relay, each once.
FIRST: list[Delivery] = [
    ("deferred", A, (LATER,)),
    ("warned", "w@here.test", (LATER,)),
    # On the wire the sender of a double bounce is nobody, as that of a bounce.
    ("double", "", (LATER,)),
    ("verp", "list-later=there.test@here.test", (LATER,)),
    *((part, A, (f"{number}@fast.test",)) for number, part in enumerate(FAST)),
    ("doubt", A, ("x@doubt.test",)),
    ("progress", A, tuple(MANY[100:200])),
    ("progress", A, tuple(MANY[200:])),
    ("new", A, (GOOD,)),
    ("null", "", (GOOD,)),
    ("twice", A, (GOOD, GOOD)),
    ("utf8", "jörg@here.test", ("üser@bücher.test",)),
    ("inject", A, (GOOD,)),
    ("sendmail", A, (GOOD,)),
    ("key-waits", A, (GOOD,)),
    ("key-published", A, (GOOD,)),
    ("scheduled", A, (GOOD,)),
    # Of `failed`, which the old relay deferred; of `telling`, which was only announced; the digest.
    ("report", "", (A,)),
    ("report", "", ("c@here.test",)),
    ("report", "", (A,)),
]
ROUTE_DOWN: list[Delivery] = [("routes", A, ("one@down.test",)), ("down", A, ("two@down.test",))]


def part_of(content: bytes) -> str:
    """The part that a message plays: its subject; every report plays the same."""
    head = content.partition(b"\n\n")[0].decode()
    (subject,) = [line[9:] for line in head.split("\n") if line.startswith("Subject: ")]
    return subject if subject in STATES else "report"


def delivery(received: Received) -> Delivery:
    """What arrived, as the lists above have it."""
    return part_of(received.unix), received.sender, received.recipients


def parts(trial: Trial) -> dict[str, str]:
    """The parts that lie in the spool, by ID."""
    found = {}
    for state in (TMP, NEW, CUR, UNDELIVERED):
        for name in trial.names(state):
            if name.endswith(".json"):
                with open(f"{trial.spool}/{state}/{name[:-5]}.eml", "rb") as file:
                    content = file.read()
                # The body of the damaged one was cut before its subject.
                found[name[:-5]] = part_of(content) if b"\n\n" in content else "damaged"
    return found


def an_id(trial: Trial, part: str) -> str:
    """The ID of the message that plays a part."""
    (found,) = [one for one, name in parts(trial).items() if name == part]
    return found


@pytest.fixture
def strict() -> HostileRelay:
    """The relay of today, which takes everything and complains of every slip."""
    return HostileRelay()


@pytest.fixture
def old(
    tmp_path: Path, installed: Installation, rig: Callable[..., Any], strict: HostileRelay
) -> Trial:
    """The home as it was found; only its relays are others, but for the one that is down."""
    rig(strict)
    command = [
        "tar",
        "-xpf",
        ARCHIVE,
        "--no-same-owner",
        "--warning=no-timestamp",
        "-C",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=60)
    trial = Trial(str(tmp_path / "home"), installed)
    trial.setting("relayip", strict.address)
    trial.setting("smtproutes", f"down.test:{DOWN}")
    trial.setting("log", f"json {trial.root}/log debug")
    return trial


def without_time(document: Any) -> Any:
    """What a command printed but for the ages, which grow."""
    if isinstance(document, list):
        return [without_time(one) for one in document]
    return {key: value for key, value in document.items() if key != "age"}


def as_before(documents: list[Any], before: list[Any]) -> list[Any]:
    """The keys that were printed before: a new version may say more of a message."""
    pairs = zip(documents, before, strict=True)
    return [{key: one[key] for key in was} for one, was in pairs]


def test_every_state_is_in_the_archive(old: Trial) -> None:
    """What this test is worth: whatever an older version can leave behind lies there."""
    found = parts(old)
    assert sorted(STATES) == sorted(found.values())
    for message_id, part in found.items():
        assert os.path.exists(f"{old.spool}/{STATES[part]}/{message_id}.json"), part
    assert len(old.outcomes(an_id(old, "deferred"))) == 2
    assert old.sidecar(an_id(old, "held"))["held"] is True
    assert "telling" in old.sidecar(an_id(old, "telling"))
    assert "warned" in old.sidecar(an_id(old, "warned"))
    assert "report_of" in old.sidecar(an_id(old, "report"))
    assert old.sidecar(an_id(old, "digested"))["recipients"][0]["told"] == "digest"
    assert old.sidecar(an_id(old, "failed"))["recipients"][0]["told"] == an_id(old, "report")
    assert "550 5.1.1 No such user" in old.result(an_id(old, "failed"))
    assert os.path.exists(old.path(NEW, an_id(old, "progress"), ".progress"))
    assert os.stat(old.path(NEW, an_id(old, "doubt"), ".eml")).st_mode & 0o100
    assert {"connect", "pace"} == {one.stage for one in DirectoryRoutes(old.spool).read().values()}
    keys = os.listdir(f"{old.spool}/idempotency")
    bits = [os.stat(f"{old.spool}/idempotency/{one}").st_mode & 0o100 for one in keys]
    assert Counter({0o100: 2, 0: 2}) == Counter(bits)
    assert {"rate", "counters", "purged", "users", "reports"} <= set(os.listdir(old.spool))


@pytest.mark.slow
def test_what_is_seen_of_it(old: Trial, picoqmail: Command, tmp_path: Path) -> None:
    """`list` and `show` print what the old version's printed; `explain` and `check` are right."""
    seen = json.loads((tmp_path / "seen.json").read_bytes())
    listed = json.loads(picoqmail(old, "list", "--json").stdout)
    assert without_time(seen["list"]) == without_time(as_before(listed, seen["list"]))
    shown = [json.loads(picoqmail(old, "show", "--json", one["id"]).stdout) for one in listed]
    assert without_time(seen["show"]) == without_time(as_before(shown, seen["show"]))

    def explained(part: str) -> str:
        ran = picoqmail(old, "explain", an_id(old, part))
        assert (0, "") == (ran.returncode, ran.stderr)
        return ran.stdout

    assert "451 4.3.0 Not now" in explained("deferred")
    assert "picoqmail release" in explained("held")
    assert "550 5.1.1 No such user" in explained("failed")
    assert "40 octets" in explained("damaged")
    assert DOWN in explained("down")

    ran = picoqmail(old, "check", "--json", "--deep", "--no-relay")
    found = json.loads(ran.stdout)
    levels: dict[str, int] = {}
    for one in found["findings"]:
        levels[one["name"]] = max(levels.get(one["name"], 0), one["level"])
    wrong = {name: level for name, level in levels.items() if level}
    # All of it has waited since the year of the archive, and cron has not run since then.
    assert {"messages": 1, "leftovers": 1, "queue": 2, "relay": 2, "cron": 1} == wrong
    figures = found["figures"]
    waiting = [part for part, state in STATES.items() if state in (NEW, CUR)]
    assert (len(waiting), 1) == (figures["waiting"], figures["held"])
    assert {"delivered": 3, "deferred": 13, "failed": 3, "damaged": 1, "bounced": 3} == figures[
        "totals"
    ]


def test_every_message_is_delivered_once(
    old: Trial, picoqmail: Command, strict: HostileRelay
) -> None:
    """init, then cron: all that was promised arrives, whole, and nothing else ever does."""
    ran = picoqmail(old, "init")
    assert (0, "") == (ran.returncode, ran.stderr)
    queue = old.installed.program("queue")
    assert os.path.samefile(queue, f"{old.root}/bin/qmail-queue")

    # As if its relay had failed a moment ago: the breaker that was left there is obeyed.
    now = int(time.time())
    DirectoryRoutes(old.spool, [DOWN, "another"]).change(
        DOWN, lambda one: breaker.failed(one, now=now, stage="connect", reason="refused")
    )
    before = old.sidecar(an_id(old, "down"))
    for _ in range(2):
        old.cron()
    assert Counter(FIRST) == Counter(map(delivery, strict.messages))
    assert before == old.sidecar(an_id(old, "down"))
    assert [] == old.names(TMP)

    old.setting("smtproutes", f"down.test:{strict.address}")
    os.unlink(f"{old.spool}/relay-down")
    for _ in range(2):
        old.cron()
    assert Counter(FIRST + ROUTE_DOWN) == Counter(map(delivery, strict.messages))

    held: list[Delivery] = [("held", A, (GOOD,))]
    assert picoqmail(old, "release", an_id(old, "held")).returncode == 0
    old.cron()
    assert Counter(FIRST + ROUTE_DOWN + held) == Counter(map(delivery, strict.messages))
    assert [] == old.ids(NEW) + old.ids(CUR)

    # What failed stays, with what the relay said, until it gets a new life.
    failed = {"failed", "digested", "null-failed", "damaged", "telling"}
    assert failed == set(parts(old).values())
    again: list[Delivery] = [("failed", A, (NEVER,))]
    assert picoqmail(old, "requeue", an_id(old, "failed")).returncode == 0
    old.cron()
    assert Counter(FIRST + ROUTE_DOWN + held + again) == Counter(map(delivery, strict.messages))

    assert [] == strict.complaints
    for one in strict.messages:
        part = part_of(one.unix)
        _received, _, content = one.unix.partition(b"\n")
        if part == "report":
            assert b"550 5.1.1 No such user" in content
        elif part in ("inject", "sendmail"):
            # These programs complete a header.
            assert content.endswith({"inject": b"\n\n.\n..\n", "sendmail": b"ends this\n"}[part])
        else:
            assert message(part) == content
    (doubt,) = old.events("in_doubt")
    (again_sent,) = [one for one in strict.messages if part_of(one.unix) == "doubt"]
    assert doubt["id"].encode() in again_sent.unix
    totals = json.loads(picoqmail(old, "status", "--json").stdout)["totals"]
    assert totals["delivered"] > 3


def test_keys_still_stand_for_their_messages(old: Trial, strict: HostileRelay) -> None:
    """A key that was used is used; one whose message never left tmp/ is free again."""
    spool = picoqmail.Spool(old.root, send=False)
    before = parts(old)

    def repeat(part: str) -> picoqmail.Receipt:
        return spool.enqueue(message(part), A, [GOOD], idempotency_key=part)

    for part in ("key-waits", "key-published"):
        receipt = repeat(part)
        assert (an_id(old, part), True) == (receipt.id, receipt.repeated)
    assert repeat("key-sent").repeated
    assert before == parts(old)
    # What the version before noted of a message cannot be compared: the key alone decides.
    assert spool.enqueue(message("another"), A, [GOOD], idempotency_key="key-waits").repeated
    assert before == parts(old)
    receipt = repeat("key-on-its-way")
    assert not receipt.repeated
    assert receipt.id in old.ids(NEW)
    with pytest.raises(KeyReusedError):
        spool.enqueue(message("another"), A, [GOOD], idempotency_key="key-on-its-way")

    old.cron()
    came = Counter(delivery(one)[0] for one in strict.messages)
    assert [1, 1, 1, 0] == [
        came[part] for part in ("key-waits", "key-published", "key-on-its-way", "key-sent")
    ]


def test_quotas_and_the_pace_go_on_counting(old: Trial) -> None:
    """The counts of both are read as they were left: they are not begun anew."""
    path = f"{old.spool}/users/4321"
    hour, count = (int(word) for word in read(path).split())
    quota.Share(Home(old.root), 4321).charge(old.spool, hour * 3600)
    assert f"{hour} {count + 1}\n" == read(path)
    ((number, begun),) = json.loads(read(f"{old.spool}/rate"))["slices"]
    limit = RateLimit(10000, 86400)
    limiter = RateLimiter(f"{old.spool}/rate", limit, lambda: number * limit.seconds / SLICES)
    assert 0.0 == limiter()
    assert [[number, begun + 1]] == json.loads(read(f"{old.spool}/rate"))["slices"]


def read(path: str) -> str:
    """A small file."""
    with open(path, encoding="ascii") as file:
        return file.read()
