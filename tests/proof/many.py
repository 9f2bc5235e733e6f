"""A program of the library, to be struck: many.py [COPY], several messages in one enqueue_many.

Standard input is a JSON list of messages, each a list: body (latin-1), sender, recipients, key or
null. What became of each is told at once in the end, as a JSON list on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading

# More than there is: no helper thread can be started, and strace sees all that is done.
_NO_STACK_OCTETS = 1 << 46


def main() -> int:
    """Hand in the messages and return an exit code."""
    if sys.argv[1:]:
        sys.path.insert(0, sys.argv[1])
    # By name, for the copy need not be the package that this file belongs to.
    picoqmail = importlib.import_module("picoqmail")
    threading.stack_size(_NO_STACK_OCTETS)
    with open(0, "rb") as file:
        handed = json.load(file)
    mails = [
        picoqmail.Mail(body.encode("latin-1"), sender, recipients, idempotency_key=key)
        for body, sender, recipients, key in handed
    ]
    # The data of other programs would keep the group from syncing them with its own.
    os.sync()
    try:
        outcomes = picoqmail.enqueue_many(mails)
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


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
