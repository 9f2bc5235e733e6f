"""Who is told that a message failed, and whether somebody was told already. Pure.

A recipient's failure is told once: the key `told` of the recipient names the report. `telling` of
the message names the report that is being made; `report_of` of a report names its message. With
the three no crash makes a report twice, and none is forgotten: report.py has the order.
"""

from __future__ import annotations

from picoqmail.smtp.address import DOUBLE_BOUNCE
from picoqmail.spool.message import FAILED
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from picoqmail.spool.message import Message, Recipient

TOLD = "told"
TELLING = "telling"
REPORT_OF = "report_of"
WARNED = "warned"

# What a report tells of.
KIND_FAILED = "failed"
KIND_DELAYED = "delayed"

HEADER_LIMIT_OCTETS = 65536

VERP_END = "-@[]"


class Addressee(Value):
    """Whom a report goes to, and the envelope sender that it has."""

    __slots__ = ("address", "sender")

    def __init__(self, address: str, sender: str = "") -> None:
        self.address: Final = address
        self.sender: Final = sender


def plain_sender(sender: str) -> str:
    """The address that bounces go to: of a VERP sender, the one without the recipient."""
    if sender.endswith(VERP_END) and sender != DOUBLE_BOUNCE:
        return sender.removesuffix(VERP_END)
    return sender


def addressee_of(message: Message, double_bounces_to: str) -> Addressee | None:
    """Whom to tell of a message's failure, None if nobody.

    A message that has no sender may be a report itself: it goes to whom the setting
    doublebounceto names, from `#@[]`, and what has that sender is never reported (qmail-send(8)).
    """
    if message.sender == DOUBLE_BOUNCE:
        return None
    if message.sender == "":
        if not double_bounces_to:
            return None
        return Addressee(double_bounces_to, DOUBLE_BOUNCE)
    address = plain_sender(message.sender)
    # What cannot be an address on the wire is nobody that could be told.
    return Addressee(address) if address.rpartition("@")[0] else None


def wants_report(message: Message, kind: str) -> bool:
    """Say whether who sent the message wants to hear of `FAILURE` or `DELAY` (RFC 3461 4.1).

    Without NOTIFY failures are told, and delays as the setting delaywarning has it.
    """
    dsn = message.unknown.get("dsn")
    notify = str(dsn.get("notify") or "") if isinstance(dsn, dict) else ""
    words = notify.upper().replace(" ", "").split(",")
    return words == [""] or kind in words


def to_tell(message: Message) -> tuple[int, ...]:
    """Indexes of the recipients that failed and of which nobody was told."""
    return tuple(
        index
        for index, one in enumerate(message.recipients)
        if one.state == FAILED and TOLD not in one.unknown
    )


def told(message: Message, indexes: Iterable[int], report: str) -> Message:
    """The message once the report of this ID has told of these recipients."""
    recipients = list(message.recipients)
    for index in indexes:
        one = recipients[index]
        recipients[index] = evolve(one, unknown={**one.unknown, TOLD: report})
    unknown = {key: value for key, value in message.unknown.items() if key != TELLING}
    return evolve(message, recipients=tuple(recipients), unknown=unknown)


def telling(message: Message, report: str) -> Message:
    """The message while the report of this ID is being made."""
    return evolve(message, unknown={**message.unknown, TELLING: report})


def untold(recipient: Recipient) -> Recipient:
    """A recipient that is to be told of again if it fails again."""
    unknown = {key: value for key, value in recipient.unknown.items() if key != TOLD}
    return evolve(recipient, unknown=unknown)
