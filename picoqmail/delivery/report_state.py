"""Who gets a report on a message, and which failures were reported already. Pure.

Each failure of a recipient is reported once. Three keys of the sidecars see to that: `told` of the
recipient names the report that reported it, `telling` of the message names the report that is being
made, and `report_of` of a report names its message. With these no crash makes a report twice, and
none is forgotten; report.py has the order. `warned` of the message and `doubt_told` of a recipient
name the reports that came before: of a delay, and of copies that may have arrived.
"""

from __future__ import annotations

from picoqmail.layout import DOUBLE_BOUNCE
from picoqmail.smtp import dsn
from picoqmail.smtp.address import plain_sender
from picoqmail.spool.message import FAILED, PENDING, draft_of, settled
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from picoqmail.spool.message import Indexes, Message
    from picoqmail.spool.recipient import Recipient

TOLD = "told"
TELLING = "telling"
REPORT_OF = "report_of"
WARNED = "warned"
DOUBT_TOLD = "doubt_told"

# What a report is about.
KIND_FAILED = "failed"
KIND_DELAYED = "delayed"
KIND_IN_DOUBT = "in_doubt"

ACTIONS = {KIND_FAILED: "failed", KIND_DELAYED: "delayed", KIND_IN_DOUBT: "delayed"}
"""The Action of RFC 3464 2.3.3 by kind: no other is true before a message is given up."""


class Addressee(Value):
    """The address that gets a report, and the envelope sender of the report."""

    __slots__ = ("address", "sender")

    def __init__(self, address: str, sender: str = "") -> None:
        self.address: Final = address
        self.sender: Final = sender


def addressee_of(message: Message, double_bounces_to: str) -> Addressee | None:
    """Return who gets the report on a message, None if nobody does.

    A message without a sender may be a report itself. The report on it goes to the address of the
    setting doublebounceto, with the sender `#@[]`. A message with that sender is never reported
    (qmail-send(8)).
    """
    if message.sender == DOUBLE_BOUNCE:
        return None
    if message.sender == "":
        if not double_bounces_to:
            return None
        return Addressee(double_bounces_to, DOUBLE_BOUNCE)
    address = plain_sender(message.sender)
    # Without a local part and an @ it is nothing that mail could be sent to.
    return Addressee(address) if address.rpartition("@")[0] else None


def wants_report(message: Message, kind: str) -> bool:
    """Say whether the sender wants a report on `FAILURE` or `DELAY` (RFC 3461 4.1).

    Without NOTIFY failures are reported, and delays if the setting delaywarning says so.
    """
    words = dsn.notify(message.unknown.get("dsn"))
    return not words or kind in words


def unreported(message: Message) -> Indexes:
    """Return the indexes of the recipients whose failure was not reported yet."""
    recipients = message.recipients
    if not isinstance(recipients, tuple):
        return recipients.indexes_in(FAILED, lambda one: TOLD not in one.unknown)
    return tuple(
        [
            index
            for index, one in enumerate(recipients)
            if one.state == FAILED and TOLD not in one.unknown
        ]
    )


def untold_doubts(message: Message) -> tuple[int, ...]:
    """Return the indexes of suspended recipients whose doubt was not reported yet."""
    recipients = message.recipients
    return tuple([i for i in message.suspended if DOUBT_TOLD not in recipients[i].unknown])


def not_suspended(message: Message) -> Indexes:
    """Return the indexes of the recipients that wait for their next attempt."""
    recipients = message.recipients
    if not message.suspended:
        return message.pending
    if not isinstance(recipients, tuple):
        return recipients.indexes_in(PENDING, lambda one: not one.suspended_until)
    return tuple([i for i in message.pending if not recipients[i].suspended_until])


def doubt_told(message: Message, indexes: Iterable[int], report: str) -> Message:
    """Return the message once a report has told the doubt about these recipients."""
    recipients = draft_of(message.recipients)
    for index in indexes:
        one = recipients[index]
        recipients[index] = evolve(one, unknown={**one.unknown, DOUBT_TOLD: report})
    return evolve(message, recipients=settled(recipients))


def reported(message: Message, indexes: Iterable[int], report: str) -> Message:
    """Return the message once the report of this ID has reported these recipients."""
    recipients = draft_of(message.recipients)
    for index in indexes:
        one = recipients[index]
        recipients[index] = evolve(one, unknown={**one.unknown, TOLD: report})
    unknown = {key: value for key, value in message.unknown.items() if key != TELLING}
    return evolve(message, recipients=settled(recipients), unknown=unknown)


def announced(message: Message, report: str) -> Message:
    """Return the message while the report of this ID is being made."""
    return evolve(message, unknown={**message.unknown, TELLING: report})


def not_reported(recipient: Recipient) -> Recipient:
    """Return a recipient that is to be reported again if it fails again."""
    unknown = {key: value for key, value in recipient.unknown.items() if key != TOLD}
    return evolve(recipient, unknown=unknown)
