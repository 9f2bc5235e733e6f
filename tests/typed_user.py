"""A user's program, which is never run: a type checker must understand it without a complaint."""

from __future__ import annotations

import datetime as dt
from email.headerregistry import Address
from email.message import EmailMessage
from email.mime.text import MIMEText
from typing import TYPE_CHECKING

import picoqmail
from picoqmail import aio, smtplib_compat
from picoqmail.logging_handler import MailHandler
from picoqmail.testing import TemporarySpool

if TYPE_CHECKING:
    import pathlib


def send(path: pathlib.Path) -> str:
    """Every form of a message, and what comes back."""
    message = EmailMessage()
    picoqmail.enqueue(message)
    picoqmail.enqueue(MIMEText("x"), sender="a@example.org", recipients=("b@example.net",))
    picoqmail.enqueue("text", "a@example.org", "b@example.net")
    with path.open("rb") as file:
        picoqmail.enqueue(file, idempotency_key="k", not_before=dt.timedelta(hours=1))
    with picoqmail.prepare(path) as pending:
        committed: picoqmail.Receipt = pending.commit()
    results = picoqmail.enqueue_many(
        [picoqmail.Mail(b"x", "a@example.org", ["b@example.net"]), b""]
    )
    good: list[picoqmail.Receipt] = [one for one in results if isinstance(one, picoqmail.Receipt)]
    sizes: list[int] = [one.size for one in good]
    results.raise_for_errors()
    first: picoqmail.Outcome = results[0]
    moment: picoqmail.Moment = dt.timedelta(hours=1)
    picoqmail.enqueue(b"", Address("", "a", "x"), {"b@example.net"}, not_before=moment)
    picoqmail.enqueue(b"", ("A", "a@x"), [("B", "b@y"), "c@z"], on_reuse="return", add_missing=True)
    assert isinstance(results.receipts[0], picoqmail.Receipt)
    return committed.id if sizes and isinstance(first, Exception) else results.receipts[0].id


def look() -> tuple[str, ...]:
    """The verbs."""
    spool = picoqmail.Spool("/var/qmail", databytes=10, send=False)
    outcome = spool.hold("1.x")
    told: list[tuple[str, dict[str, object]]] = []
    delivered: int = spool.deliver(
        on_event=lambda name, facts: told.append((name, facts))
    ).delivered
    senders = tuple(one.message.sender for one in spool.list("cur") if one.message is not None)
    return (*senders, outcome.detail, str(delivered))


async def later() -> int:
    """The same under asyncio."""
    receipt = await aio.enqueue(b"x", "a@example.org", ["b@example.net"])
    return receipt.size


def other() -> dict[str, tuple[int, bytes]]:
    """The rest of what is public."""
    MailHandler("a@example.org", ["b@example.net"]).close()
    with TemporarySpool() as spool:
        subject: str = spool.assert_one(to="b@example.net").subject
    try:
        with smtplib_compat.SMTP("host") as smtp:
            return smtp.sendmail("a@example.org", ["b@example.net"], subject)
    except picoqmail.AddressError as error:
        index: int | None = error.index
        return {} if index else {"x": (1, b"")}
