"""A program that uses the library, for the sweeps: many.py COPY [--prepared | --within URL].

It calls enqueue_many once; with --prepared it prepares each message, and then commits them, the
first one alone; with --within it enqueues them in one transaction of its own. COPY is a copy of the
package; "" stands for the installed one.

Standard input is a JSON list of messages. Each is a list: body (latin-1), sender, recipients, key
or null. The outcomes go to standard output at the end, as one JSON list.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Any

# More memory than there is: no helper thread can be started, so strace sees every call.
_NO_STACK_OCTETS = 1 << 46


def main() -> int:
    """Submit the messages, and return an exit code."""
    copy, *flags = sys.argv[1:]
    if copy:
        sys.path.insert(0, copy)
    # Imported by name, because the copy may be another package than the one of this file.
    picoqmail = importlib.import_module("picoqmail")
    threading.stack_size(_NO_STACK_OCTETS)
    with open(0, "rb") as file:
        handed = json.load(file)
    mails = [
        picoqmail.Mail(body.encode("latin-1"), sender, recipients, idempotency_key=key)
        for body, sender, recipients, key in handed
    ]
    # Otherwise unwritten data of other programs could prevent the use of syncfs.
    os.sync()
    try:
        if flags[:1] == ["--within"]:
            outcomes = within(picoqmail, mails, flags[1])
        else:
            outcomes = prepared(picoqmail, mails) if flags else picoqmail.enqueue_many(mails)
    except picoqmail.PicoqmailError as exc:
        outcomes = [exc]
    errors = [one for one in outcomes if not isinstance(one, picoqmail.Receipt)]
    told = [isinstance(one, picoqmail.Receipt) for one in outcomes]
    for one in errors:
        if not isinstance(one, picoqmail.PicoqmailError):
            raise one
    if errors:
        sys.stderr.write(f"picoqmail-many: {errors[0]}\n")
    os.write(1, json.dumps(told).encode())
    return errors[0].sysexit if errors else 0


def prepared(picoqmail: Any, mails: list[Any]) -> list[Any]:
    """Prepare messages, park every other one, and commit those that could be prepared.

    What is not committed in the end is taken back.
    """
    spool = picoqmail.Spool()
    outcomes: list[Any] = []
    for mail in mails:
        try:
            outcomes.append(
                spool.prepare(
                    mail.message,
                    mail.sender,
                    mail.recipients,
                    idempotency_key=mail.idempotency_key,
                )
            )
        except picoqmail.PicoqmailError as exc:
            outcomes.append(exc)
    pending = [n for n, one in enumerate(outcomes) if isinstance(one, picoqmail.Pending)]
    for number in pending[1::2]:
        try:
            outcomes[number].park()
        except picoqmail.PicoqmailError as exc:
            outcomes[number].abort()
            outcomes[number] = exc
    pending = [number for number in pending if isinstance(outcomes[number], picoqmail.Pending)]
    for some in (pending[:1], pending[1:]):
        waiting = [outcomes[number] for number in some]
        try:
            told = spool.commit_many(waiting)
        except picoqmail.PicoqmailError as exc:
            told = [exc] * len(some)
        for one in waiting:
            one.abort()
        for number, outcome in zip(some, told, strict=True):
            outcomes[number] = outcome
    return outcomes


def within(picoqmail: Any, mails: list[Any], url: str) -> list[Any]:
    """Enqueue messages in a transaction of our own; what the driver raises ends the program."""
    import psycopg

    with psycopg.connect(url) as connection:
        return [
            picoqmail.enqueue(one.message, one.sender, one.recipients, connection=connection)
            for one in mails
        ]


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
