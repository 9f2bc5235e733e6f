"""The message as delivery sees it: frozen values around the sidecar's record. Pure.

Nothing here knows a file, a socket or the time; what becomes of a message is policy.py.
"""

from __future__ import annotations

from picoqmail.layout import FORMAT_VERSION, HELD_UNTIL, HISTORY_LENGTH, SUSPENDED_FRACTION
from picoqmail.spool import sidecar, sidecar_reading
from picoqmail.spool.recipient import recipients_of, record_of
from picoqmail.spool.sidecar import DELIVERED, FAILED, NOT_BEFORE, PENDING
from picoqmail.value import EMPTY, Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, BinaryIO, Final, TypeAlias

    from picoqmail.spool.many import ManyRecipients
    from picoqmail.spool.recipient import Recipient

    Recipients: TypeAlias = tuple[Recipient, ...] | ManyRecipients
    Indexes: TypeAlias = tuple[int, ...] | array[int]

__all__ = ["DELIVERED", "FAILED", "PENDING", "Event", "Message"]

FEW_RECIPIENTS = 1000
"""So many are a tuple. More are ManyRecipients (many.py) if the message was read."""

LARGE_OCTETS = 65536
"""A sidecar with more is read line by line."""


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
        recipients: Recipients,
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
    def from_sidecar(cls, source: bytes | BinaryIO, message_id: str) -> Message:
        """Read a sidecar: its octets, or a file if they are many. Raises DamagedMessageError."""
        if isinstance(source, bytes) and len(source) <= LARGE_OCTETS:
            record = sidecar_reading.decode(source, message_id)
        else:
            record = _read_large(source, message_id)
        recipients = record.pop("recipients")
        if type(recipients) is list:
            recipients = tuple(recipients_of(recipients))
        del record["version"], record["id"]
        return cls(
            id=message_id,
            recipients=recipients,
            sender=record.pop("sender"),
            created=record.pop("created"),
            next_attempt=record.pop("next_attempt"),
            expires=record.pop("expires"),
            attempts=record.pop("attempts"),
            size=record.pop("size"),
            crc32=record.pop("crc32"),
            held=record.pop("held"),
            history=tuple(record.pop("history")),
            origin=record.pop("origin"),
            revision=record.pop("revision"),
            unknown=record,
        )

    def to_sidecar(self) -> bytes:
        """Return the sidecar's octets; unknown keys are kept."""
        octets = self.sidecar_blocks()
        return octets if isinstance(octets, bytes) else b"".join(octets)

    def sidecar_blocks(self) -> bytes | Iterator[bytes]:
        """Return the same; in blocks, which need less memory, if there are many recipients."""
        if len(self.recipients) <= FEW_RECIPIENTS:
            return self._encode(self.recipients)
        return self._many_blocks()

    def _many_blocks(self) -> Iterator[bytes]:
        before, empty, after = self._encode(()).partition(b'\n"recipients": [')
        yield before + empty
        separator = b""
        for text in _many_of(self.recipients).texts():
            yield separator + text
            separator = sidecar.BETWEEN_OBJECTS
        yield after

    def _encode(self, recipients: Iterable[Recipient]) -> bytes:
        return sidecar.encode(
            {
                "version": FORMAT_VERSION,
                "id": self.id,
                "sender": self.sender,
                "recipients": [record_of(one) for one in recipients],
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
    def states(self) -> set[str]:
        """The states that its recipients have."""
        if not isinstance(self.recipients, tuple):
            return self.recipients.states
        return {one.state for one in self.recipients}

    @property
    def pending(self) -> Indexes:
        """Indexes of the recipients that still wait."""
        if not isinstance(self.recipients, tuple):
            return self.recipients.indexes_in(PENDING)
        return tuple([i for i, r in enumerate(self.recipients) if r.state == PENDING])

    @property
    def suspended(self) -> Indexes:
        """Indexes of the recipients that may have several copies, and get none by itself."""
        if not isinstance(self.recipients, tuple):
            return self.recipients.suspended
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


def draft_of(recipients: Recipients) -> list[Recipient] | ManyRecipients:
    """Return recipients of a message that may be replaced one by one, by index."""
    return list(recipients) if isinstance(recipients, tuple) else recipients.copy()


def settled(draft: list[Recipient] | ManyRecipients) -> Recipients:
    """Return a draft as the recipients of a message; it must not be changed any more."""
    return tuple(draft) if isinstance(draft, list) else draft


def _many_of(recipients: Recipients) -> ManyRecipients:
    if not isinstance(recipients, tuple):
        return recipients
    from picoqmail.importing import importing

    with importing:
        from picoqmail.spool.many import ManyRecipients

    return ManyRecipients(recipients)


def _read_large(source: bytes | BinaryIO, message_id: str) -> dict[str, Any]:
    from picoqmail.importing import importing

    with importing:
        from io import BytesIO

        from picoqmail.spool.many import read_large

    file = BytesIO(source) if isinstance(source, bytes) else source
    return read_large(file, message_id, few=FEW_RECIPIENTS)
