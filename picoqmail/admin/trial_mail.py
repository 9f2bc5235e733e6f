"""One mail to find out whether mail is delivered: accepted, sent at once, and followed."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.admin.remedies import why_not_sent
from picoqmail.delivery.run import Run
from picoqmail.errors import EnvelopeError, NoSuchMessageError
from picoqmail.home.limits import read_limits
from picoqmail.message.dates import header_date
from picoqmail.message.envelope import check_recipients

if TYPE_CHECKING:
    from picoqmail.home.paths import Home
    from picoqmail.home.settings import Settings


@frozen
class TrialResult:
    """What became of the mail: a sentence for people."""

    is_delivered: bool
    text: str


def send(home: Home, settings: Settings, address: str) -> TrialResult:
    """Send a mail from postmaster to `address`, past an open breaker. Raises SpoolError."""
    try:
        check_recipients([address])
    except EnvelopeError as exc:
        return TrialResult(is_delivered=False, text=str(exc))
    sender = f"postmaster@{settings.me}"
    uid, pid = os.getuid(), os.getpid()
    run = Run(home, "picoqmail")
    with run.spool.incoming(
        read_limits(home), program="picoqmail-check", uid=uid, pid=pid
    ) as incoming:
        incoming.write(
            f"Date: {header_date(time.time())}\nFrom: <{sender}>\nTo: <{address}>\n"
            f"Subject: Trial of the mail system of {settings.me}\n"
            f"Message-ID: <{incoming.id}.check@{settings.me}>\nAuto-Submitted: auto-generated\n\n"
            "picoqmail check sent this mail, to see whether mail goes through.\n"
            "It needs no answer.\n".encode()
        )
        # No report is wanted: the result is printed.
        message_id = incoming.commit(sender, [address], {"dsn": {"notify": "NEVER"}})
    run.deliver([message_id], forced=True)
    try:
        state, message = run.spool.read(message_id)
    except NoSuchMessageError:
        return TrialResult(
            is_delivered=True, text=f"the relay took a mail for {address}: {message_id}"
        )
    said = message.recipients[0].reply or why_not_sent(run.spool.routes().read())
    return TrialResult(is_delivered=False, text=f"{message_id} lies in {state}/: {said}")
