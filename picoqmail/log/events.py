"""Every event that is written to the log: its name, its keys, what it says. Pure; data only.

Names and keys are stable: programs may rely on them. The manual is made from this table, and a
test compares it with the sources.
"""

from __future__ import annotations

EVENTS = {
    "queued": (
        "A message that was accepted is now known to a sender; told with the first outcome.",
        ("id", "sender", "recipients", "size", "uid", "origin", "waited_seconds"),
    ),
    "attempt": (
        "A message is offered to a relay (level debug).",
        ("id", "relay", "sender", "recipients"),
    ),
    "delivered": (
        "A relay took a message for these recipients; maybe_duplicate after an in_doubt.",
        ("id", "relay", "sender", "recipients", "reply", "maybe_duplicate"),
    ),
    "deferred": (
        "A message was not taken yet, for a reason of its own; it is tried again.",
        ("id", "relay", "sender", "recipients", "reply", "reason", "attempts", "next_attempt"),
    ),
    "failed": (
        "A message failed for good for one recipient; expired if it had grown too old.",
        ("id", "relay", "sender", "recipient", "reply", "expired"),
    ),
    "bounced": (
        "A report was made: of failure (kind failed), of delay (delayed), or a digest of many.",
        ("id", "report", "kind", "to", "recipients", "failures"),
    ),
    "in_doubt": (
        "A message was sent as a whole and no answer came: the relay may have it.",
        ("id", "relay", "sender"),
    ),
    "damaged": ("A message cannot be sent as it is, and was put aside.", ("id", "reason")),
    "recovered": ("What a crash left half told was finished.", ("id", "report")),
    "swept": (
        "A leftover of a program that died was removed, or a damaged copy of a body that is whole.",
        ("path",),
    ),
    "purged": ("Messages of undelivered/ reached the age of keepundelivered.", ("messages",)),
    "relay_down": (
        "No relay of a route could be used; nothing is charged to any message.",
        ("relay", "stage", "reason", "failures", "look_again"),
    ),
    "relay_up": ("A route that was down serves again.", ("relay", "down_seconds")),
    "connected": ("A connection to a relay was made (level debug).", ("relay", "address")),
    "relay_greeted": ("A relay let us in (level debug).", ("relay", "address")),
    "tls": (
        "TLS was started with a relay (level debug).",
        ("relay", "address", "version", "cipher", "verified", "certificate_ends"),
    ),
    "pace": ("A relay asked us to be slower (level debug).", ("relay", "address")),
    "connection_lost": (
        "A connection ended in a fault (level debug).",
        ("relay", "address", "stage", "text"),
    ),
    "error": ("Something went wrong that a person should know of.", ("id", "error", "messages")),
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

Each fact is one event with a name and keys, one line. The setting `log` says where to and from
which level on: standard error, syslog, the journal, a file, JSON lines. Without it events go to
syslog if the host has one, else to the file `log` in the spool. A log that cannot be written never
stops mail: what is lost is counted, and said in the next line that can be written. Passwords and
tokens never appear.

`logprivacy` keeps addresses out: `local` writes `*@example.org` for `joe@example.org`, `all` writes
`*`, also where a relay quotes an address in its answer. Message IDs stay, so
`picoqmail explain ID` still finds the rest.

Every line begins with a time (UTC, in JSON the key `timestamp`) and a level; `program` and `pid`
stand where the place does not add them itself. Times among the keys are Unix seconds. A key that
has nothing to say is left out. Names and keys stay as they are from one version to the next; new
ones may be added.

| event | what it says | keys |
|---|---|---|
"""
