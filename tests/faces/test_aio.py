"""The library under asyncio."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

import picoqmail
from picoqmail import aio
from temporary_home import FROM_A_TO_B, TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path

    from rig.recording import RecordingRelay


@pytest.fixture
def home(tmp_path: Path) -> TemporaryHome:
    """A home."""
    return TemporaryHome(str(tmp_path / "home")).make()


def test_a_slow_message_does_not_block_the_loop(home: TemporaryHome) -> None:
    """While a message dribbles in by a pipe, the loop goes on."""

    async def run() -> tuple[picoqmail.Receipt, int]:
        read, write = os.pipe()
        with open(read, "rb", buffering=0) as stream:  # noqa: ASYNC230 - a pipe, open already
            task = asyncio.create_task(
                aio.enqueue(stream, "a@example.org", "b@example.net", home=home.root, send=False)
            )
            started = time.monotonic()
            while not home.files() and time.monotonic() < started + 30:  # noqa: ASYNC110
                await asyncio.sleep(0)
            # The body is begun and waits for the pipe; the loop does not.
            turns = 0
            for _ in range(100):
                await asyncio.sleep(0)
                turns += 1
            assert not task.done()
            os.write(write, b"late\n")
            os.close(write)
            return await task, turns

    receipt, turns = asyncio.run(run())
    assert 100 == turns
    assert b"late\n" == home.message(receipt.id)


def test_many_at_once(home: TemporaryHome) -> None:
    """A hundred awaited together, and many in one call."""

    async def run() -> list[picoqmail.Receipt]:
        return await asyncio.gather(
            *(aio.enqueue(b"%d" % n, **FROM_A_TO_B, home=home.root, send=False) for n in range(100))
        )

    receipts = asyncio.run(run())
    assert {one.id for one in receipts} == set(home.ids())
    mails = [picoqmail.Mail(b"x", **FROM_A_TO_B)] * 3
    results = asyncio.run(aio.enqueue_many(mails, home=home.root, send=False))
    assert 103 == len(home.ids())
    assert all(isinstance(one, picoqmail.Receipt) for one in results)


def test_errors_come_through(home: TemporaryHome) -> None:
    """What is wrong is told to who awaits."""
    with pytest.raises(picoqmail.AddressError):
        asyncio.run(aio.enqueue(b"", "a@example.org", "bob", home=home.root))


async def story(home: str, relay: str) -> tuple[str, list[str]]:
    """Every call once, the way a program would use them."""
    spool = aio.Spool(home, send=False)
    first = await spool.enqueue(b"Subject: 1\n\nx\n", **FROM_A_TO_B)
    async with await aio.prepare(
        b"Subject: 2\n\nx\n", **FROM_A_TO_B, home=home, send=False
    ) as pending:
        second = await pending.commit()
        assert second.id == pending.id
    async with await spool.prepare(b"", **FROM_A_TO_B):
        pass
    gone = await spool.prepare(b"", **FROM_A_TO_B)
    await gone.abort()
    several = [await spool.prepare(b"%d" % n, **FROM_A_TO_B) for n in range(3)]
    committed = await spool.commit_many(several)
    committed.raise_for_errors()
    many = await spool.enqueue_many([picoqmail.Mail(b"x", **FROM_A_TO_B)])
    many += await aio.enqueue_many([picoqmail.Mail(b"x", **FROM_A_TO_B)], home=home, send=False)
    assert 2 == len(many.receipts)
    await aio.enqueue(b"", **FROM_A_TO_B, home=home, send=False, add_missing=True)
    listed = [entry.id async for entry in spool.list("new")]
    assert 8 == len(listed)
    assert first.id == (await spool.get(first.id)).id
    assert "was accepted" in await spool.explain(first.id)
    assert "done" == (await spool.hold(first.id)).result
    assert "done" == (await spool.release(first.id)).result
    assert 8 == (await spool.status()).waiting
    body = [block async for block in spool.body(second.id)]
    assert b"".join(body).endswith(b"Subject: 2\n\nx\n")
    assert "" == await spool.result(second.id)
    assert "done" == (await spool.delete(second.id)).result
    with pytest.raises(picoqmail.NoSuchMessageError):
        await spool.retry(second.id)
    with pytest.raises(picoqmail.NoSuchMessageError):
        await spool.requeue(second.id)
    with open(f"{home}/control/relayip", "w", encoding="ascii") as file:  # noqa: ASYNC230 - a test
        file.write(relay + "\n")
    events: list[str] = []
    summary = await spool.deliver(on_event=lambda name, _: events.append(name))
    assert 7 == summary.delivered
    return repr(spool), events


def test_every_call_under_asyncio(home: TemporaryHome, relay: RecordingRelay) -> None:
    """A spool with all its verbs, prepared messages, iterators."""
    shown, events = asyncio.run(story(home.root, relay.address))
    assert f"aio.Spool({home.root!r})" == shown
    assert "delivered" in events
    assert [] == home.files()


def test_every_call_under_trio(home: TemporaryHome, relay: RecordingRelay) -> None:
    """The same by anyio's threads."""
    trio = pytest.importorskip("trio", reason="needs trio (extra test-servers)")
    pytest.importorskip("anyio", reason="needs anyio (extra anyio)")
    _, events = trio.run(story, home.root, relay.address)
    assert "delivered" in events
    assert [] == home.files()


def test_another_loop_without_anyio(home: TemporaryHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install; any coroutine runner is another loop."""
    monkeypatch.setitem(sys.modules, "anyio", None)
    task = aio.enqueue(b"", **FROM_A_TO_B, home=home.root)
    with pytest.raises(picoqmail.ConfigurationError, match=r"pip install 'picoqmail\[anyio\]'"):
        task.send(None)
    assert [] == home.everything()


def test_a_cancelled_prepare_leaves_nothing(home: TemporaryHome) -> None:
    """Who is cancelled never commits, so the message goes."""

    async def run() -> None:
        async with await aio.prepare(b"", **FROM_A_TO_B, home=home.root):
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert [] == home.everything()
