"""Mail that this host's directory took while the database was away is brought over, once.

For each message: lock it here, put it into the database under its ID, remove it here. The database
keeps a ledger of the IDs that arrived, and a row outlives its message. So there is no second copy
if a forwarder was killed between the two steps, and a worker delivered the message meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.errors import PicoqmailError, SpoolError
from picoqmail.layout import CUR, NEW
from picoqmail.spool import drop
from picoqmail.store.directory import DirectoryStore
from picoqmail.value import evolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.home.limits import Limits
    from picoqmail.home.paths import Home
    from picoqmail.spool.message import Message
    from picoqmail.store.protocol import ClaimedMessage, Store

_MOST_OF_A_USER = 10_000


def forward(
    home: Home, store: Store, limits: Limits, on_trouble: Callable[[str], None]
) -> list[str]:
    """Bring over what lies in the directories of a home; return the IDs that went.

    Messages in undelivered/ stay: they could not be read, or wait for an administrator.
    `on_trouble` gets a sentence about each message that could not be brought over. Raises
    SpoolError if the database cannot take any.
    """
    here = DirectoryStore(home.spool)
    try:
        if drop.is_waiting(home.spool):
            here.collect(limits, _MOST_OF_A_USER, on_trouble)
        waiting = [one for one, state in here.names().items() if state in (NEW, CUR)]
    except FileNotFoundError:
        return []
    except SpoolError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return []  # This host has no directory.
        raise
    gone = []
    for message_id in waiting:
        try:
            claim = here.claim(message_id, (NEW, CUR))
        except (PicoqmailError, OSError) as exc:
            on_trouble(f"{message_id}: cannot be brought over: {exc}")
            continue
        if claim is None:
            continue
        try:
            # It may be there, or may have been: if the answer to the first COMMIT was lost.
            bring_over(here, store, claim)
            gone.append(message_id)
        finally:
            claim.release()
    here.flush()
    return gone


def bring_over(source: Store, target: Store, claim: ClaimedMessage) -> None:
    """Put a claimed message into another store, then let it go here. Raises SpoolError."""
    result = source.read_result(claim.message.id)
    target.bring_in(_due_by(target, claim.message), claim.state, claim, result)
    source.hand_over(claim)


def _due_by(store: Store, message: Message) -> Message:
    """Return a message of this host's clock as it is due by the clock of its new store.

    What is due there and then is due now. A time that somebody gave stays.
    """
    if message.next_attempt > message.created:
        return message
    return evolve(message, next_attempt=min(message.next_attempt, int(store.clock())))
