"""How times, sizes, addresses and messages are written for people, and messages as JSON. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from picoqmail.home.values import rough_duration
from picoqmail.layout import NEW, UNDELIVERED

if TYPE_CHECKING:
    from typing import Any

    from picoqmail.admin.selection import Entry
    from picoqmail.spool.message import Message

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_KIBI = 1024


def printable(text: str) -> str:
    """Return a text with everything escaped that would move a cursor or change a colour.

    A text of a file or a relay must not drive the terminal.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def size(octets: int) -> str:
    """Write `1.5 KiB`."""
    amount = float(octets)
    for unit in _UNITS:
        if amount < _KIBI or unit == _UNITS[-1]:
            return f"{octets} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= _KIBI
    raise AssertionError("the last unit takes everything")


def moment(seconds: float) -> str:
    """Write `2026-05-04 13:02:01 UTC`; a time that is in no calendar stays a number."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"Unix time {seconds}"


def count(number: int, noun: str) -> str:
    """Write `1 message`, `2 messages`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def path(address: str) -> str:
    """Write `<a@b>`."""
    return f"<{address}>"


def last_reply(message: Message) -> str:
    """Return the latest reply in a message's history, "" if there is none."""
    return str(message.history[-1].get("reply") or "") if message.history else ""


def when_next(entry: Entry, now: float) -> str:
    """Write when a message is tried next, or why it is not."""
    message = entry.message
    if message is None or entry.put_aside:
        return "put aside"
    if entry.state == UNDELIVERED:
        return "failed for good"
    if message.held:
        return "held"
    if len(message.suspended) == len(message.pending) > 0:
        return "in doubt: not sent again by itself"
    if entry.state == NEW or message.next_attempt <= now:
        return "due now"
    return f"next in {rough_duration(message.next_attempt - now)}"


def document(entry: Entry, now: float) -> dict[str, Any]:
    """Return a message for JSON, as `picoqmail list` has it."""
    found: dict[str, Any] = {
        "id": entry.id,
        "state": entry.state,
        "created": entry.created,
        "age": max(int(now) - entry.created, 0),
        "damage": entry.damage or None,
    }
    message = entry.message
    if message is None:
        return found
    return {
        **found,
        "sender": message.sender,
        "recipients": [
            {"address": one.address, "state": one.state, "reply": one.reply, **one.unknown}
            for one in message.recipients
        ],
        "size": message.size,
        "held": message.held,
        "in_doubt": entry.is_suspended,
        "attempts": message.attempts,
        "next_attempt": message.next_attempt,
        "expires": message.expires,
        "origin": dict(message.origin),
        "last": dict(message.history[-1]) if message.history else None,
    }
