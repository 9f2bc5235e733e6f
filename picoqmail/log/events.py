"""Every event of the log: its name, its meaning and its keys. Pure; data only.

Names and keys are stable, so programs may rely on them. The manual is made from this table, and a
test compares the table with the sources.
"""

from __future__ import annotations

EVENTS = {
    "queued": (
        "A sender has found an accepted message. Logged together with its first outcome.",
        ("id", "sender", "recipients", "size", "uid", "origin", "waited_seconds"),
    ),
    "attempt": (
        "A message is offered to a relay (level debug).",
        ("id", "relay", "sender", "recipients"),
    ),
    "delivered": (
        "A relay accepted a message for these recipients. maybe_duplicate follows an in_doubt.",
        ("id", "relay", "sender", "recipients", "reply", "maybe_duplicate"),
    ),
    "deferred": (
        "A message was not accepted yet, for a reason of its own. It is tried again.",
        ("id", "relay", "sender", "recipients", "reply", "reason", "attempts", "next_attempt"),
    ),
    "failed": (
        "A message failed for good for one recipient. expired if it was too old.",
        ("id", "relay", "sender", "recipient", "reply", "expired"),
    ),
    "bounced": (
        "A report was made. kind is failed, delayed, in_doubt, or digest (many failures).",
        ("id", "report", "kind", "to", "recipients", "failures"),
    ),
    "in_doubt": (
        "A message was sent as a whole, but no reply came. The relay may have it.",
        ("id", "relay", "sender"),
    ),
    "run_died": (
        (
            "A run died while it had this message in hand. It is tried after all others; if it"
            " happened before, it waits until next_attempt."
        ),
        ("id", "next_attempt"),
    ),
    "suspended": (
        (
            "As many copies of a message as doubtlimit allows may have arrived, without a reply of"
            " the relay. It is not sent again by itself; next_attempt is when it is looked at."
        ),
        ("id", "relay", "sender", "recipients", "copies", "next_attempt"),
    ),
    "damaged": ("A message is damaged, and was put aside.", ("id", "reason")),
    "recovered": ("A report that a crash had interrupted was completed.", ("id", "report")),
    "swept": (
        "A leftover of a program that died was removed, or the damaged copy of a whole body.",
        ("path",),
    ),
    "purged": ("Messages of undelivered/ reached the age of keepundelivered.", ("messages",)),
    "relay_down": (
        "No relay of a route could be used. This counts against no message.",
        ("relay", "stage", "reason", "failures", "look_again"),
    ),
    "relay_up": ("A route that was down works again.", ("relay", "down_seconds")),
    "relay_learnt": (
        (
            "A relay offers something that does not work, or serves at another address. This is"
            " remembered in the file relay-notes of the spool."
        ),
        ("relay", "lesson"),
    ),
    "connected": ("A connection to a relay was made (level debug).", ("relay", "address")),
    "relay_greeted": ("A relay is ready for mail (level debug).", ("relay", "address")),
    "tls": (
        "TLS was started with a relay (level debug).",
        ("relay", "address", "version", "cipher", "verified", "certificate_ends"),
    ),
    "pace": ("A relay asked us to be slower (level debug).", ("relay", "address")),
    "connection_lost": (
        "A connection ended in a fault (level debug).",
        ("relay", "address", "stage", "text"),
    ),
    "error": ("An error that the administrator should know of.", ("id", "error", "messages")),
}


def document() -> str:
    """Return the page docs/log.md, in Markdown."""
    rows = [
        f"| `{name}` | {text} | {', '.join(f'`{key}`' for key in keys)} |"
        for name, (text, keys) in EVENTS.items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


_HEAD = """\
# Log

Each event is one line with a name and keys. The setting `log` chooses the place (standard error,
syslog, the journal, a file, JSON lines) and the lowest level that is written. Without it, events go
to standard error if that is a terminal, else to syslog if the host has one, else to the file `log`
in the spool. A log that cannot be written never stops mail. Lost events are counted, and the next
line that can be written says how many were lost. Passwords and tokens never appear.

A file of the setting `log` is a plain file with one name, or a pipe, and belongs to root or to the
user who sends. Devices, `/dev/stdout`, `/dev/stderr` and `/dev/fd/N` are allowed, too. Nothing is
written through any other link.

`logprivacy` keeps addresses out. `local` writes `*@example.org` for `joe@example.org`, and `all`
writes `*`, also where a relay quotes an address in its reply. Message IDs stay, so
`picoqmail explain ID` still finds the rest.

Every line begins with a time (UTC; in JSON the key `timestamp`) and a level. `program` and `pid`
follow if the place does not add them itself. Times among the keys are Unix seconds. A key without
a value is left out. Names and keys stay the same in later versions; new ones may be added.
`recipients` has at most 1000 addresses. If there are more, the event has several lines.

| event | meaning | keys |
|---|---|---|
"""
