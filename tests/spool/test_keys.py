"""Idempotency keys: once, whoever calls, whatever dies, and not for ever."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import picoqmail
from library.test_api import made
from picoqmail import durable
from picoqmail.delivery.sender import Sender
from picoqmail.home.paths import Home as HomePaths
from picoqmail.layout import LEFTOVER_AGE_SECONDS, TMP
from picoqmail.spool import keys as idempotency
from picoqmail.store.directory import DirectoryStore
from temporary_home import FROM_A_TO_B, TemporaryHome


def keys(home: TemporaryHome) -> list[str]:
    """The files of the records."""
    try:
        names = os.listdir(f"{home.spool}/idempotency")
    except FileNotFoundError:
        return []
    return sorted(one for one in names if not one.startswith("."))


def enqueue(key: str = "key", message: Any = b"Subject: x\n\nbody\n", **more: Any) -> Any:
    """Enqueue with a key."""
    return picoqmail.enqueue(message, **{**FROM_A_TO_B, **more}, idempotency_key=key)


def test_a_key_enqueues_once(home: TemporaryHome) -> None:
    """The second time the receipt is that of the first, and nothing else happens."""
    first, second = enqueue(), enqueue()
    assert (False, True) == (first.repeated, second.repeated)
    assert (first.id, first.size, first.created) == (second.id, second.size, second.created)
    assert [first.id] == home.ids()
    assert 2 == len(home.files())
    assert enqueue("other").id != first.id


def test_a_key_holds_after_delivery(home: TemporaryHome) -> None:
    """A message that is gone from the spool was enqueued all the same."""
    first = enqueue()
    for suffix in ("json", "eml"):
        os.unlink(f"{home.spool}/new/{first.id}.{suffix}")
    assert first.id == enqueue().id
    assert [] == home.files()


@pytest.mark.parametrize(
    "changed",
    [
        {"message": b"Subject: x\n\nBody\n"},
        {"message": b"Subject: y\n\nbody\n"},
        {"sender": ""},
        {"recipients": ["b@example.net", "b@example.net"]},
        {"recipients": ["c@example.net"]},
    ],
)
def test_another_message_under_the_same_key_is_an_error(
    home: TemporaryHome, changed: dict[str, Any]
) -> None:
    """Another body, header or envelope is refused, also before anything is prepared."""
    first = enqueue()
    with pytest.raises(picoqmail.KeyReusedError, match=str(first.id)) as caught:
        enqueue(**changed)
    assert caught.value.permanent
    arguments = {"message": b"Subject: x\n\nbody\n", **FROM_A_TO_B, **changed}
    with pytest.raises(picoqmail.KeyReusedError):
        picoqmail.prepare(**arguments, idempotency_key="key")
    assert [first.id] == home.ids()
    assert 2 == len(home.files())


@pytest.mark.usefixtures("home")
def test_a_message_made_anew_is_the_same() -> None:
    """Date, Message-ID and the boundaries of an object do not count, for a retry makes new ones."""
    receipts = []
    for number in range(3):
        message = made()
        message["Date"] = f"Mon, {number + 1} Jan 2024 00:00:00 +0000"
        message["Message-ID"] = f"<{number}@example.org>"
        receipts.append(picoqmail.enqueue(message, idempotency_key="k"))
    assert {receipts[0].id} == {one.id for one in receipts}
    raw = [b"Date: %d\nFrom: a@b\nTo: c@d\n\nx" % number for number in range(2)]
    first = picoqmail.enqueue(raw[0], idempotency_key="raw")
    again = picoqmail.enqueue(io.BytesIO(raw[1]), idempotency_key="raw")
    assert first.id == again.id
    with pytest.raises(picoqmail.KeyReusedError):
        picoqmail.enqueue(raw[1] + b"Date: in the body", idempotency_key="raw")


@pytest.mark.parametrize("key", ["k", "\u00fc" * 500, "\ud800", "a/../../b", "\0", 'x"\n'])
def test_any_text_may_be_a_key(home: TemporaryHome, key: str) -> None:
    """A key is hashed before it names a file; no text leads out of its directory."""
    assert enqueue(key).id == enqueue(key).id
    (name,) = keys(home)
    assert 64 == len(name)
    # The execute bit: the message has arrived.
    assert 0o700 == os.stat(f"{home.spool}/idempotency/{name}").st_mode & 0o777


@pytest.mark.parametrize("key", ["", "\u00fc" * 600, b"bytes", 5])
def test_what_can_be_no_key_is_refused(home: TemporaryHome, key: Any) -> None:
    """An empty, endless or binary key is a ValueError before any file exists."""
    with pytest.raises(ValueError, match="idempotency key"):
        enqueue(key)
    assert [] == home.files()


def test_many_callers_at_the_same_instant(home: TemporaryHome) -> None:
    """Fifty threads, and eight processes of threads, with one key: one message, one receipt."""
    code = """
import sys, threading, picoqmail
out = []
go = threading.Event()
def work():
    go.wait()
    out.append(picoqmail.enqueue(
        b"Subject: x\\n\\nbody\\n", "a@example.org", ["b@example.net"], idempotency_key="key"
    ))
threads = [threading.Thread(target=work) for _ in range(10)]
[one.start() for one in threads]
print("ready", flush=True)
sys.stdin.readline()
go.set()
[one.join() for one in threads]
for one in out:
    print(one.id, one.repeated)
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(8)]
    receipts: list[Any] = []
    go = threading.Event()

    def work() -> None:
        go.wait(60)
        receipts.append(enqueue())

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for process in processes:
        assert process.stdout
        assert "ready\n" == process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    go.set()
    for thread in threads:
        thread.join()
    told = [(one.id, str(one.repeated)) for one in receipts]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        told += [tuple(line.split()) for line in out.splitlines()]
    assert 130 == len(told)
    assert 1 == len({one for one, _ in told})
    assert 1 == [repeated for _, repeated in told].count("False")
    assert [told[0][0]] == home.ids()
    assert 2 == len(home.files())


def test_a_key_twice_in_one_call(home: TemporaryHome) -> None:
    """In a list, too, a key counts once; callers with the same keys in another order get along."""
    mails = [
        picoqmail.Mail(b"%d" % (number % 5), **FROM_A_TO_B, idempotency_key=str(number % 5))
        for number in range(20)
    ]
    results: list[list[Any]] = []

    def work(part: list[picoqmail.Mail]) -> None:
        results.append(picoqmail.enqueue_many(part))

    threads = [threading.Thread(target=work, args=(mails[:: (-1) ** n],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flat = [one for part in results for one in part]
    assert all(isinstance(one, picoqmail.Receipt) for one in flat)
    assert 120 == len(flat)
    assert 5 == len({one.id for one in flat})
    assert 5 == sum(not one.repeated for one in flat)
    assert 5 == len(home.ids())


def test_two_prepared_messages_of_one_key(home: TemporaryHome) -> None:
    """Whoever commits first has it; the other's commit says so and takes its own back."""
    arguments: dict[str, Any] = {"message": b"x", **FROM_A_TO_B, "idempotency_key": "k"}
    one, two = picoqmail.prepare(**arguments), picoqmail.prepare(**arguments)
    first = two.commit()
    again = one.commit()
    assert (first.id, False, first.id, True) == (two.id, first.repeated, again.id, again.repeated)
    assert [first.id] == home.ids()
    assert 2 == len(home.files())


def test_a_key_expires_and_is_swept(home: TemporaryHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its lifetime a key is as if it had never been; cron unlinks it, at most hourly."""
    home.setting("idempotencylifetime", "50")
    enqueue()
    assert 1 == len(keys(home))
    assert 0 == idempotency.sweep(home.spool, time.time())
    now = time.time() + 60
    assert 0 == idempotency.sweep(home.spool, now), "swept a moment ago"
    os.unlink(f"{home.spool}/idempotency/.swept")
    assert 1 == idempotency.sweep(home.spool, now)
    assert [] == keys(home)
    enqueue()
    assert 2 == len(home.ids())
    monkeypatch.setattr(time, "time", lambda: now)
    enqueue()
    assert 3 == len(home.ids()), "expired, though not swept yet"


def test_the_setting_is_checked(home: TemporaryHome) -> None:
    """A lifetime that is no number names its file, and the message is not accepted."""
    home.setting("idempotencylifetime", "a day")
    with pytest.raises(picoqmail.ConfigurationError, match="idempotencylifetime:1"):
        enqueue()
    assert [] == home.files()


def test_cron_sweeps_keys(home: TemporaryHome) -> None:
    """A run of cron forgets what has expired."""
    enqueue()
    (name,) = keys(home)
    path = f"{home.spool}/idempotency/{name}"
    with open(path, "r+", encoding="utf-8") as file:
        text = file.read().replace('"expires": 1', '"expires": 0.1')
        file.seek(0)
        file.write(text)
    os.utime(path, (1, 1))
    for one in home.files():
        os.unlink(f"{home.spool}/{one}")
    Sender(HomePaths(home.root), "test").retry()
    assert [] == keys(home)


def test_a_key_in_hand_is_waited_for_and_not_swept(home: TemporaryHome) -> None:
    """Who has a key in hand is waited for, with a limit; the sweep leaves it alone."""
    durable.make_directory(f"{home.spool}/idempotency")
    held = idempotency.KeyRecord(home.spool, "key")
    with pytest.raises(picoqmail.SpoolError, match="has held it for too long") as caught:
        idempotency.KeyRecord(home.spool, "key", patience=0.01)
    assert not caught.value.permanent
    assert 0 == idempotency.sweep(home.spool, time.time() + 10**6)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(enqueue()))
    thread.start()
    held.close()
    thread.join()
    assert [got[0].id] == home.ids()


# --- Crashes ------------------------------------------------------------------------------------

CRASH = """
import os, signal, sys
import picoqmail
from picoqmail import durable
from picoqmail.library import groups
from picoqmail.spool import incoming, keys
point, count = sys.argv[1], int(sys.argv[2])
module, name = point.split(".")
target = {"durable": durable, "incoming": incoming, "keys": keys.KeyRecord}[module]
real = getattr(target, name)
calls = 0
def dying(*arguments, **named):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(target, name, dying)
if target is incoming:
    groups.publish = dying
picoqmail.enqueue(
    b"Subject: x\\n\\nbody\\n", "a@example.org", ["b@example.net"], idempotency_key="key"
)
print("lived")
"""
POINTS = [
    *(f"durable.{name} {count}" for name in ("sync", "rename", "write_all") for count in (1, 2, 3)),
    *(f"durable.sync_directory {count}" for count in (1, 2, 3, 4)),
    "incoming.publish 1",
    "keys.intend 1",
    "keys.arrived 1",
    "keys.close 1",
]


def crash(point: str) -> bool:
    """Enqueue in a process that kills itself at a step; False if it never came there."""
    ran = subprocess.run(
        [sys.executable, "-c", CRASH, *point.split()], capture_output=True, text=True, check=False
    )
    if ran.returncode == -signal.SIGKILL:
        return True
    assert "lived\n" == ran.stdout, ran.stderr
    return False


@pytest.mark.parametrize("then", ["at once", "delivered", "swept"])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_loses_nothing_and_repeats_nothing(
    home: TemporaryHome, point: str, then: str
) -> None:
    """Killed at any step, the caller's second try leaves one message, or one that is delivered.

    `delivered`: a sender has brought the message away before the second try; `swept`: two days
    have gone by, and cron has taken the leftovers.
    """
    died = crash(point)
    visible = home.ids()
    if not died:
        assert 1 == len(visible)
    for stem in visible if then == "delivered" else ():
        os.unlink(f"{home.spool}/new/{stem}.json")
        os.unlink(f"{home.spool}/new/{stem}.eml")
    if then == "swept":
        _let_time_pass(home)
    receipt = enqueue()
    delivered = visible if then == "delivered" else []
    assert 1 == len(home.ids()) + len(delivered)
    assert [receipt.id] == delivered + home.ids()
    assert receipt.repeated == bool(visible)
    assert receipt.id == enqueue().id


def _let_time_pass(home: TemporaryHome) -> None:
    """Make all leftovers old, and run what cron does to them."""
    old = time.time() - LEFTOVER_AGE_SECONDS - 60
    for name in os.listdir(f"{home.spool}/{TMP}"):
        os.utime(f"{home.spool}/{TMP}/{name}", (old, old))
    for name in os.listdir(f"{home.spool}/new"):
        if name.endswith(".eml") and name.removesuffix(".eml") not in home.ids():
            os.utime(f"{home.spool}/new/{name}", (old, old))
    home.setting("relayip", "127.0.0.1:9")
    sender = Sender(HomePaths(home.root), "test")
    sender._sweep_keys(time.time())
    from picoqmail.spool import scan

    sights = {state: sender.look(state) for state in ("new", "cur")}
    DirectoryStore(home.spool).sweep(scan.leftovers(home.spool, time.time(), sights))


def test_a_failed_acceptance_takes_its_promise_back(
    home: TemporaryHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the last fsync fails, neither the message nor the key is there, and a second try works."""
    real = durable.sync_directory

    def failing(path: str) -> None:
        if path.endswith("/new"):
            raise OSError(5, "I/O error")
        real(path)

    monkeypatch.setattr(durable, "sync_directory", failing)
    with pytest.raises(picoqmail.SpoolError):
        enqueue()
    assert [] == home.files()
    assert [] == keys(home)
    monkeypatch.undo()
    receipt = picoqmail.Spool(home.root, send=False).enqueue(
        b"Subject: x\n\nbody\n", **FROM_A_TO_B, idempotency_key="key"
    )
    assert not receipt.repeated
