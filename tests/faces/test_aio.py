"""The library under asyncio."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

import picoqmail
from picoqmail import aio
from temporary_home import FROM_A_TO_B, TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path


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
