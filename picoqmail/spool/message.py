"""The message as delivery sees it: frozen values around the sidecar's record. Pure.

Nothing here knows a file, a socket or the time; what becomes of a message is policy.py.
"""

from __future__ import annotations

from picoqmail.layout import FORMAT_VERSION, HELD_UNTIL, HISTORY_LENGTH, SUSPENDED_FRACTION
from picoqmail.spool import sidecar, sidecar_reading
from picoqmail.spool.sidecar import DELIVERED, FAILED, NOT_BEFORE, PENDING, RECIPIENT_STATES
from picoqmail.value import EMPTY, Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

__all__ = ["DELIVERED", "FAILED", "PENDING", "Event", "Message", "Recipient"]

DOUBTS = "doubts"
"""The key of a recipient whose message was sent as a whole, without a reply: how many times."""

SUSPENDED_UNTIL = "suspended_until"
"""The key of a recipient that gets no more copies by itself: until when, in Unix seconds."""

UNTIL_RETRY = int(HELD_UNTIL)
"""The value of SUSPENDED_UNTIL that only `retry` ends."""


class Recipient(Value):
    """One recipient; named twice in the envelope, it is two of these.

    `reply` is the last reply that concerned it, or None; `unknown` are keys that a newer
    picoqmail wrote.
    """

    __slots__ = ("address", "state", "reply", "unknown")

    def __init__(
        self,
        address: str,
        state: str = PENDING,
        reply: str | None = None,
        unknown: Mapping[str, Any] = EMPTY,
    ) -> None:
        self.address: Final = address
        self.state: Final = state
        self.reply: Final = reply
        self.unknown: Final = unknown

    @property
    def doubts(self) -> int:
        """How many copies it may have without a reply of the relay; 0 for what is no number."""
        return _count(self.unknown.get(DOUBTS))

    @property
    def suspended_until(self) -> int:
        """Until when it gets no more copies by itself, in Unix seconds; 0 if it is not suspended.

        Only a recipient that still waits is suspended.
        """
        return _count(self.unknown.get(SUSPENDED_UNTIL)) if self.state == PENDING else 0


def _count(number: object) -> int:
    return number if type(number) is int and number > 0 else 0


class Event(Value):
    """One entry of a message's history.

    `when` in Unix seconds; `outcome` is delivered, deferred, failed, in_doubt, relay_fault,
    expired, held, released, resumed, requeued or damaged.
    """

    __slots__ = ("when", "relay", "outcome", "reply")

    def __init__(self, when: int, relay: str, outcome: str, reply: str) -> None:
        self.when: Final = when
        self.relay: Final = relay
        self.outcome: Final = outcome
        self.reply: Final = reply


class Message(Value):
    """One message as its sidecar has it; times in Unix seconds, `size` in octets."""

    __slots__ = (
        "id",
        "sender",
        "recipients",
        "created",
        "next_attempt",
        "expires",
        "attempts",
        "size",
        "crc32",
        "held",
        "history",
        "origin",
        "revision",
        "unknown",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        *,
        id: str,  # noqa: A002 - the sidecar's name for it
        sender: str,
        recipients: tuple[Recipient, ...],
        created: int,
        next_attempt: int,
        expires: int,
        attempts: int,
        size: int,
        crc32: int,
        held: bool,
        history: tuple[Mapping[str, Any], ...],
        origin: Mapping[str, Any],
        revision: int = 0,
        unknown: Mapping[str, Any] = EMPTY,
    ) -> None:
        self.id: Final = id
        self.sender: Final = sender
        self.recipients: Final = recipients
        self.created: Final = created
        self.next_attempt: Final = next_attempt
        self.expires: Final = expires
        self.attempts: Final = attempts
        self.size: Final = size
        self.crc32: Final = crc32
        self.held: Final = held
        self.history: Final = history
        self.origin: Final = origin
        self.revision: Final = revision
        self.unknown: Final = unknown

    @classmethod
    def from_sidecar(cls, data: bytes, message_id: str) -> Message:
        """Read a sidecar. Raises DamagedMessageError."""
        record = sidecar_reading.decode(data, message_id)
        recipients = []
        # There may be very many: one object each, and no copy of a text that they share.
        states = {one: one for one in RECIPIENT_STATES}
        for one in record.pop("recipients"):
            address, state, reply = one.pop("address"), one.pop("state"), one.pop("reply", None)
            recipients.append(Recipient(address, states[state], reply, one or EMPTY))
        values = {name: record.pop(name) for name in _PLAIN}
        del record["version"], record["id"]
        return cls(
            id=message_id,
            recipients=tuple(recipients),
            history=tuple(record.pop("history")),
            unknown=record,
            **values,
        )

    def to_sidecar(self) -> bytes:
        """Return the sidecar's octets; unknown keys are kept."""
        if len(self.recipients) <= _RECIPIENTS_AT_ONCE:
            return self._encode(self.recipients)
        # All at once would take ten times as much memory as the octets do.
        before, empty, after = self._encode(()).partition(b'\n"recipients": [')
        blocks = [before, empty]
        for start in range(0, len(self.recipients), _RECIPIENTS_AT_ONCE):
            several = self.recipients[start : start + _RECIPIENTS_AT_ONCE]
            blocks.append(sidecar.encode_objects([_record(one) for one in several]))
            blocks.append(sidecar.BETWEEN_OBJECTS)
        blocks[-1] = after
        return b"".join(blocks)

    def _encode(self, recipients: tuple[Recipient, ...]) -> bytes:
        return sidecar.encode(
            {
                "version": FORMAT_VERSION,
                "id": self.id,
                "sender": self.sender,
                "recipients": [_record(one) for one in recipients],
                "created": self.created,
                "next_attempt": self.next_attempt,
                "expires": self.expires,
                "attempts": self.attempts,
                "size": self.size,
                "crc32": self.crc32,
                "held": self.held,
                "history": list(self.history),
                "origin": self.origin,
                "revision": self.revision,
                **self.unknown,
            }
        )

    @property
    def begins(self) -> int:
        """When its first attempt was or is due: `created`, unless it was given a time."""
        since = self.unknown.get(NOT_BEFORE)
        return max(self.created, since) if type(since) is int else self.created

    @property
    def pending(self) -> tuple[int, ...]:
        """Indexes of the recipients that still wait."""
        return tuple([i for i, r in enumerate(self.recipients) if r.state == PENDING])

    @property
    def suspended(self) -> tuple[int, ...]:
        """Indexes of the recipients that may have several copies, and get none by itself."""
        # Most recipients have no further keys, and then there is nothing to ask.
        return tuple([i for i, r in enumerate(self.recipients) if r.unknown and r.suspended_until])

    @property
    def due_hint(self) -> float:
        """The modification time of its sidecar: when to look at it again (INTERNALS.md)."""
        if self.held:
            return HELD_UNTIL
        return self.next_attempt + (SUSPENDED_FRACTION if self.suspended else 0)

    def with_event(self, event: Event, **changes: Any) -> Message:  # noqa: ANN401 - fields of any type
        """Return a copy whose history ends with `event`, bounded in length."""
        entry = {
            "when": event.when,
            "relay": event.relay,
            "outcome": event.outcome,
            "reply": event.reply,
        }
        return evolve(self, history=(*self.history, entry)[-HISTORY_LENGTH:], **changes)


def _record(one: Recipient) -> dict[str, Any]:
    return {"address": one.address, "state": one.state, "reply": one.reply, **one.unknown}


# So many are written as one text.
_RECIPIENTS_AT_ONCE = 1000
_PLAIN = (
    "sender",
    "created",
    "next_attempt",
    "expires",
    "attempts",
    "size",
    "crc32",
    "held",
    "origin",
    "revision",
)
