"""The list of messages for people, as `picoqmail list` and `sendmail -bp` print it."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from picoqmail.admin import selection
from picoqmail.admin.opening import open_whole_home
from picoqmail.admin.words import count, last_reply, path, printable, size, when_next
from picoqmail.errors import ConfigurationError, SpoolError
from picoqmail.home.paths import locate
from picoqmail.home.values import rough_duration
from picoqmail.layout import CUR, NEW
from picoqmail.spool.message import DELIVERED, PENDING
from picoqmail.store.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from picoqmail.admin.selection import Entry

_RECIPIENTS_SHOWN = 5
_DENIED = (errno.EACCES, errno.EPERM)


def mailq() -> Iterator[str]:
    """Yield what waits in this process's home, as monitoring reads it. Raises PicoqmailError.

    The line of a message is that of nullmailer's mailq; the last two lines are those of Sendmail
    and of Postfix. Nagios's check_mailq reads all three forms.
    """
    try:
        store = open_store(open_whole_home())
        entries = selection.select(store, selection.Filter(kinds=(NEW, CUR)))
        messages = octets = 0
        for entry in entries:
            messages += 1
            octets += entry.message.size if entry.message else 0
            yield from _waiting(entry)
    except SpoolError as exc:
        if not isinstance(exc.__cause__, PermissionError) and exc.errno not in _DENIED:
            raise
        raise ConfigurationError(
            locate().spool,
            "you may not list the mail of this host",
            "its owner and root may: sudo mailq",
        ) from exc
    yield f"                Total Requests: {messages}"
    if messages:
        noun = "Request" if messages == 1 else "Requests"
        yield f"-- {-(-octets // 1024)} Kbytes in {messages} {noun}."
    else:
        yield "Mail queue is empty"


def _waiting(entry: Entry) -> Iterator[str]:
    message = entry.message
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.created))
    if message is None:
        yield f"{begun} 0 bytes from <> {entry.id}"
        yield f"    (cannot be read: {printable(entry.damage)})"
        return
    what = "  held" if message.held else "  in doubt" if entry.is_suspended else ""
    yield f"{begun} {message.size} bytes from {printable(path(message.sender))}  {entry.id}{what}"
    reply = last_reply(message)
    if reply:
        yield f"    ({printable(reply)})"
    pending = [one for one in message.recipients if one.state == PENDING]
    for one in pending[:_RECIPIENTS_SHOWN]:
        yield f"    to {printable(path(one.address))}"
    more = len(pending) - _RECIPIENTS_SHOWN
    if more > 0:
        yield f"    and {count(more, 'recipient')} more"


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
