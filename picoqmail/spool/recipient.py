"""One recipient of a message, as its sidecar has it. Pure."""

from __future__ import annotations

from picoqmail.layout import HELD_UNTIL
from picoqmail.spool.sidecar import PENDING, RECIPIENT_STATES
from picoqmail.value import EMPTY, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

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


def record_of(one: Recipient) -> dict[str, Any]:
    """Return a recipient as an object of the sidecar."""
    return {"address": one.address, "state": one.state, "reply": one.reply, **one.unknown}


def recipients_of(objects: list[dict[str, Any]]) -> list[Recipient]:
    """Return recipients of the objects that a sidecar has; the objects are taken apart."""
    recipients = []
    for one in objects:
        address, state, reply = one.pop("address"), one.pop("state"), one.pop("reply", None)
        recipients.append(Recipient(address, _SHARED[state], reply, one or EMPTY))
    return recipients


# There may be many: no copy of a text that they share.
_SHARED = {state: state for state in RECIPIENT_STATES}
