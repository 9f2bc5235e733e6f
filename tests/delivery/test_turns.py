"""In a home for many users nobody's thousands of messages keep another's single one waiting."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from picoqmail.home.limits import Limits
from picoqmail.layout import DROP, DROP_FILE_MODE, NEW, TMP
from picoqmail.spool.incoming import Incoming
from rig.hostile import HostileRelay
from temporary_home import MESSAGE
from trial import Trial, make_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from installation import Installation
    from rig.faults import Fault, Line

    Rig = Callable[[HostileRelay], HostileRelay]

MANY_UID, ONE_UID = 4321, 4322
MANY = 2000
# So many of the others' messages may go first: two turns of one user, and what is on its way.
BEHIND = 120
# When the other user's message is submitted, in the middle of the run.
MIDDLE = 700
EARLY, LATE = "early@one.example", "late@one.example"


@pytest.fixture
def quick(installed: Installation) -> Iterator[Trial]:
    """A home in memory, where a sync costs nothing: the order is meant, not the disk."""
    directory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="picoqmail-turns-", dir=directory) as root:
        yield make_trial(f"{root}/home", installed)


def submit(trial: Trial, uid: int, recipient: str) -> None:
    """Accept a message in the drop, as the program of a user does."""
    part = f"{trial.spool}/{DROP}/{uid}"
    for name in (TMP, NEW):
        os.makedirs(f"{part}/{name}", exist_ok=True)
    incoming = Incoming(
        part, Limits("me.test"), program="picoqmail-queue", uid=uid, pid=7, mode=DROP_FILE_MODE
    )
    incoming.write(MESSAGE)
    incoming.commit("a@example.org", [recipient])


@pytest.mark.slow
def test_a_single_message_overtakes_thousands(quick: Trial, rig: Rig) -> None:
    """One user has 2,000 waiting, another submits one behind them, and one in the middle.

    Measured by the order in which the relay gets them: each goes out within one turn of the other
    user's mail, and not behind all of it.
    """

    def submit_late(line: Line, ordinary: bytes) -> bool:
        submit(quick, ONE_UID, LATE)
        line.send(ordinary)
        return True

    middle: Fault = submit_late
    relay = rig(HostileRelay({f"RCPT <{MIDDLE}@many.example>": [middle]}))
    quick.setting("relayip", relay.address)
    for number in range(MANY):
        submit(quick, MANY_UID, f"{number}@many.example")
    submit(quick, ONE_UID, EARLY)
    assert 0 == quick.send()
    order = [message.recipients[0] for message in relay.messages]
    assert MANY + 2 == len(order)
    assert order.index(EARLY) <= BEHIND
    assert order.index(LATE) - order.index(f"{MIDDLE}@many.example") <= BEHIND
