"""The list of messages for people, as `picoqmail list` and `sendmail -bp` print it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from picoqmail.admin import selection
from picoqmail.admin.words import count, last_reply, path, printable, size, when_next
from picoqmail.home.opening import open_home
from picoqmail.home.values import rough_duration
from picoqmail.spool.message import DELIVERED
from picoqmail.spool.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from picoqmail.admin.selection import Entry

_RECIPIENTS_SHOWN = 5


def everything() -> Iterator[str]:
    """Yield the list of all messages of this process's home. Raises PicoqmailError."""
    store = Store(open_home().spool)
    yield from lines(selection.select(store, selection.Filter()), time.time())


def lines(
    entries: Iterable[Entry], now: float, *, emphasize: Callable[[str], str] = str
) -> Iterator[str]:
    """Yield the lines for messages, and one for all of them together.

    `now` is Unix seconds. `emphasize` is applied to the IDs.
    """
    messages = octets = 0
    for entry in entries:
        messages += 1
        octets += entry.message.size if entry.message else 0
        yield emphasize(entry.id)
        yield from _facts(entry, now)
    yield f"{count(messages, 'message')}, {size(octets)}"


def _facts(entry: Entry, now: float) -> Iterator[str]:
    message = entry.message
    age = f"{rough_duration(now - entry.created)} old"
    if message is None:
        yield f"    {entry.state}  {age}  cannot be read: {printable(entry.damage)}"
        return
    facts = (
        entry.state,
        age,
        size(message.size),
        count(message.attempts, "attempt"),
        when_next(entry, now),
    )
    yield "    " + "  ".join(facts)
    yield f"    from {printable(path(message.sender))}"
    waiting = [one for one in message.recipients if one.state != DELIVERED]
    for one in (waiting or message.recipients)[:_RECIPIENTS_SHOWN]:
        reply = f": {printable(one.reply)}" if one.reply else ""
        yield f"    to {printable(path(one.address))} {one.state}{reply}"
    more = len(waiting or message.recipients) - _RECIPIENTS_SHOWN
    if more > 0:
        yield f"    and {count(more, 'recipient')} more"
    reply = last_reply(message)
    if reply and not any(one.reply and one.reply in reply for one in message.recipients):
        yield f"    {message.history[-1].get('outcome')}: {printable(reply)}"
