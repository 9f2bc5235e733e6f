"""A program that uses the library, for the sweeps: many.py [COPY] calls enqueue_many once.

Standard input is a JSON list of messages. Each is a list: body (latin-1), sender, recipients, key
or null. The outcomes go to standard output at the end, as one JSON list.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading

# More memory than there is: no helper thread can be started, so strace sees every call.
_NO_STACK_OCTETS = 1 << 46


def main() -> int:
    """Submit the messages, and return an exit code."""
    if sys.argv[1:]:
        sys.path.insert(0, sys.argv[1])
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
