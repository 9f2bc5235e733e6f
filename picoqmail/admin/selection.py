"""Choosing messages: what an administrator can ask for, and the lazy walk over the spool for it.

What may live here: reading, without a lock and without changing anything. Names are sorted before
any file is opened, so the first of a hundred thousand messages is shown at once. Only what a
question needs is read: state and age are in the names.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.errors import DamagedMessageError, NoSuchMessageError
from picoqmail.layout import CUR, DOUBLE_BOUNCE, NEW, UNDELIVERED, accepted_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.spool.message import Message
    from picoqmail.store.protocol import Store

HELD = "held"
DAMAGED = "damaged"
IN_DOUBT = "in_doubt"
KINDS = (NEW, CUR, UNDELIVERED, HELD, IN_DOUBT, DAMAGED)
"""What `Filter.kinds` may name: the three states, and kinds of message within them.

Of the kind `in_doubt` are those that doubtlimit keeps from being sent again.
"""

_KINDS_INSIDE = frozenset((HELD, IN_DOUBT, DAMAGED))


@frozen
class Entry:
    """One message at a glance.

    `message` is None where its sidecar cannot be read: `damage` says why.
    """

    id: str
    state: str
    message: Message | None
    damage: str = ""

    @property
    def created(self) -> int:
        """When the message was accepted, Unix seconds: the name has it always."""
        return accepted_at(self.id)

    @property
    def put_aside(self) -> bool:
        """Whether it lies in undelivered/ though no relay refused it: it could not be sent."""
        return self.state == UNDELIVERED and (self.message is None or bool(self.message.pending))

    @property
    def is_suspended(self) -> bool:
        """Whether it waits, and doubtlimit keeps it from being sent again to some recipients."""
        waits = self.state != UNDELIVERED and self.message is not None
        return waits and bool(self.message and self.message.suspended)


@frozen
class Filter:
    """Conditions that a message must all meet; an empty one sets no condition.

    `sender` and `recipient` are an address, `@domain`, or a pattern with `*` and `?`; case does
    not matter, and `<>` is the null sender. `error` is a part of what a relay said.
    `older_than` and `younger_than` are seconds of age.
    """

    kinds: tuple[str, ...] = ()
    sender: str = ""
    recipient: str = ""
    error: str = ""
    older_than: int | None = None
    younger_than: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every message meets it."""
        return self == Filter()

    @property
    def needs_reading(self) -> bool:
        """Whether a name is not enough to decide."""
        asks_inside = self.sender or self.recipient or self.error
        return bool(asks_inside or not _KINDS_INSIDE.isdisjoint(self.kinds))

    def may_match(self, state: str, created: int, now: float) -> bool:
        """Say whether a message of this state and age can meet the conditions."""
        if self.older_than is not None and now - created < self.older_than:
            return False
        if self.younger_than is not None and now - created > self.younger_than:
            return False
        if not self.kinds or state in self.kinds:
            return True
        return not _KINDS_INSIDE.isdisjoint(self.kinds)

    def matches(self, entry: Entry) -> bool:
        """Say whether a message that `may_match` meets the rest of the conditions."""
        message = entry.message
        if self.kinds and entry.state not in self.kinds:
            held = HELD in self.kinds and message is not None and message.held
            in_doubt = IN_DOUBT in self.kinds and message is not None and entry.is_suspended
            damaged = DAMAGED in self.kinds and (message is None or entry.put_aside)
            if not held and not in_doubt and not damaged:
                return False
        if message is None:
            return not (self.sender or self.recipient or self.error)
        if self.sender and not _fits(self.sender, message.sender):
            return False
        if self.recipient and not any(
            _fits(self.recipient, one.address) for one in message.recipients
        ):
            return False
        return not self.error or self._said(message)

    def _said(self, message: Message) -> bool:
        wanted = self.error.casefold()
        if any(one.reply and wanted in one.reply.casefold() for one in message.recipients):
            return True
        return any(wanted in str(entry.get("reply", "")).casefold() for entry in message.history)


def entry_of(spool: Store, message_id: str, hint: str = "") -> Entry:
    """Return one message; `hint` is where to look first. Raises NoSuchMessageError, SpoolError."""
    try:
        state, message = spool.read(message_id, hint)
    except DamagedMessageError as exc:
        found = spool.where(message_id)
        if not found:
            raise NoSuchMessageError(f"{message_id}: no such message in {spool.location}") from None
        return Entry(message_id, found[0], None, str(exc))
    return Entry(message_id, state, message)


def walk(spool: Store, wanted: Filter, *, newest_first: bool = False) -> Iterator[tuple[str, str]]:
    """Yield ID and state of messages that can meet the conditions, oldest first.

    Names alone are read, and a bounded number of them is held. Raises SpoolError.
    """
    now = spool.clock()
    for stem, state in spool.walk(newest_first=newest_first):
        if wanted.may_match(state, accepted_at(stem), now):
            yield stem, state


def candidates(spool: Store, wanted: Filter) -> dict[str, str]:
    """Return the states by ID of messages that can meet the conditions, oldest first.

    Raises SpoolError.
    """
    now = spool.clock()
    every = spool.names().items()
    return {stem: state for stem, state in every if wanted.may_match(state, accepted_at(stem), now)}


def select(
    spool: Store, wanted: Filter, *, found: dict[str, str] | None = None, newest_first: bool = False
) -> Iterator[Entry]:
    """Yield the messages that meet the conditions, oldest first, each read when it is asked for.

    `found` are candidates that the caller has already, in the order wanted. What is delivered
    meanwhile is left out. Raises SpoolError.
    """
    names = walk(spool, wanted, newest_first=newest_first) if found is None else found.items()
    for message_id, state in names:
        try:
            entry = entry_of(spool, message_id, state)
        except NoSuchMessageError:
            continue
        if wanted.matches(entry):
            yield entry


def select_ids(spool: Store, wanted: Filter) -> list[str]:
    """Return IDs of the messages that meet the conditions; open no file if names are enough."""
    found = candidates(spool, wanted)
    if not wanted.needs_reading:
        return list(found)
    return [entry.id for entry in select(spool, wanted, found=found)]


def _fits(pattern: str, address: str) -> bool:
    pattern, address = pattern.casefold(), address.casefold()
    if pattern == "<>":
        return address in ("", DOUBLE_BOUNCE)
    if pattern.startswith("@") and "*" not in pattern:
        return address.endswith(pattern)
    return fnmatch.fnmatchcase(address, pattern)
