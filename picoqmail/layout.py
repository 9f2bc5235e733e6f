"""The names, states and modes of the spool, and what else several rooms must have alike.

Hot and pure; no file is touched here. `spool/transitions.py` says how a message gets from one state
to another.
"""

from __future__ import annotations

TMP = "tmp"
NEW = "new"
CUR = "cur"
UNDELIVERED = "undelivered"
DIRECTORIES = (TMP, NEW, CUR, UNDELIVERED)
# The directories where a sidecar makes a message exist, in the order of recovery. A state that a
# message reaches later comes first, so that at equal revision the newer of two sidecars wins.
STATES = (UNDELIVERED, CUR, NEW)

BODY = ".eml"
SIDECAR = ".json"
RESULT = ".result"
PROGRESS = ".progress"

# Files of the spool itself.
SENDER_LOCK = "sender.lock"
CRON_LOCK = "cron.lock"
BREAKER = "relay-down"
# What the last run of cron complained of; none if it went well.
CRON_COMPLAINT = "cron-complaint"
# What the last complete look of cron found: nothing (spool/idle.py).
IDLE = "idle"
# What was learnt of the relays (relay/notes.py).
RELAY_NOTES = "relay-notes"
USERS = "users"
# In the spool of a home for many users: DROP/UID/ is a small spool of TMP, NEW and USERS, where a
# user's mail is accepted, and from where the spool's owner takes it (spool/drop.py).
DROP = "drop"
# The key of a sidecar that names the user whose mail it was.
DROPPED = "dropped"
# A directory, made when a caller first gives a key (spool/keys.py).
IDEMPOTENCY = "idempotency"
# A directory, made when the first failure is reported (ledger/report_limit.py).
REPORTS = "reports"
# Its time is until when no process of this host tries the database, which was away.
DATABASE_DOWN = "database-down"
# Its time is that of the last search for messages older than keepundelivered.
PURGED = "purged"

# Envelope senders with a meaning, as qmail writes them: that of a report on a report, and the end
# of a VERP sender, which stands for a sender of its own for each recipient.
DOUBLE_BOUNCE = "#@[]"
VERP_END = "-@[]"

FORMAT_VERSION = 1
PRIVATE_FILE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
# A directory of the drop hands its group, which is that of the spool's owner, on to its files.
DROP_FILE_MODE = 0o640
# The execute bit on a body: its end of data went to a relay whose reply is not yet recorded. One
# fchmod sets it. It survives kill -9 and renames, and never makes the body readable to others.
IN_DOUBT_BIT = 0o100
# On a body: a run has this message in hand. If nobody has the lock of such a body, that run died.
# Then SUSPECT_BIT takes its place, until an attempt comes to its end.
IN_HAND_BIT = 0o010
SUSPECT_BIT = 0o001

# The modification time of a held sidecar, so that no idle run opens it (2100-01-01).
HELD_UNTIL = 4102444800.0
# The fraction of a second in the modification time of a sidecar with a suspended recipient, so that
# such messages are counted without opening a file.
SUSPENDED_FRACTION = 0.5
# The queue program gives up by itself before the sweep may remove what it writes: 24 h < 36 h.
QUEUE_TIME_LIMIT_SECONDS = 86400
LEFTOVER_AGE_SECONDS = 129600

HISTORY_LENGTH = 20
DEFAULT_QUEUE_LIFETIME_SECONDS = 604800
DEFAULT_KEY_LIFETIME_SECONDS = 86400

# How much is read of a message at once, and of a pipe.
BLOCK_OCTETS = 262144
PIPE_BLOCK_OCTETS = 65536

# The month names of RFC 5322 and of syslog, whatever the locale.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Like itertools.count(1), without importing that module; also safe in threads.
_sequence = iter(range(1, 1 << 62))
_ID_CHARACTERS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_\\=+~%:[]"
)
_HOST_OCTETS_IN_ID = 100


def make_id(host: str, pid: int, now_ns: int, entropy: bytes) -> str:
    r"""Return a Maildir unique name, `seconds.MusecPpidQnRrandom.host`, sorted by time.

    `entropy` are at least 8 random octets, because in containers every process has number 1. In the
    host, `/` and `:` become `\057` and `\072`, as the Maildir specification requires. Other
    characters that are unusual in a file name become `_`.
    """
    seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
    safe = host.replace("/", "\\057").replace(":", "\\072")[:_HOST_OCTETS_IN_ID]
    if not _ID_CHARACTERS.issuperset(safe):
        safe = "".join(c if c in _ID_CHARACTERS else "_" for c in safe)
    count = next(_sequence)
    return f"{seconds}.M{nanoseconds // 1000:06}P{pid}Q{count}R{entropy.hex()}.{safe}"


def is_id(text: str) -> bool:
    """Say whether a file's stem can be an ID: no path, and no hidden name."""
    return 0 < len(text) <= 240 and text[0] in "0123456789" and _ID_CHARACTERS.issuperset(text)


def accepted_at(message_id: str) -> int:
    """Return when a message was accepted (Unix seconds), from its ID; 0 for a foreign name."""
    digits = message_id.partition(".")[0]
    return int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < 19 else 0
