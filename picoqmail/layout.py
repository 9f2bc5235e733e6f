"""The shape of the spool: names and states. Hot, pure; no file is touched here.

How a message gets from one state to another is in transitions.py.
"""

from __future__ import annotations

TMP = "tmp"
NEW = "new"
CUR = "cur"
UNDELIVERED = "undelivered"
DIRECTORIES = (TMP, NEW, CUR, UNDELIVERED)
# Where a sidecar makes a message exist. The order is that of recovery: what a message was moved
# to last comes first, so that at equal revision the newer of two sidecars wins.
STATES = (UNDELIVERED, CUR, NEW)

BODY = ".eml"
SIDECAR = ".json"
RESULT = ".result"
PROGRESS = ".progress"

# Files of the spool itself.
SENDER_LOCK = "sender.lock"
CRON_LOCK = "cron.lock"
BREAKER = "relay-down"
USERS = "users"
# A directory of it, made when somebody first gives a key (idempotency.py).
IDEMPOTENCY = "idempotency"
# A directory of it, made when somebody is first told of a failure (governor.py).
REPORTS = "reports"
# Its time is that of the last look for messages older than keepundelivered.
PURGED = "purged"

FORMAT_VERSION = 1
PRIVATE_FILE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
# The execute bit on a body: its end of data went to a relay whose answer was not yet recorded.
# One fchmod sets it; it survives kill -9, is kept by renames and never makes the body readable
# to anybody else.
IN_DOUBT_BIT = 0o100

# The queue program gives up by itself before anybody may sweep what it writes: 24 h < 36 h.
QUEUE_TIME_LIMIT_SECONDS = 86400
LEFTOVER_AGE_SECONDS = 129600

TRANSACTION_RECIPIENTS = 100
HISTORY_LENGTH = 20
DEFAULT_QUEUE_LIFETIME_SECONDS = 604800

# As itertools.count(1), which is one more module to import; safe in threads too.
_sequence = iter(range(1, 1 << 62))
_ID_CHARACTERS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_\\=+~%:[]"
)
_HOST_OCTETS_IN_ID = 100


def make_id(host: str, pid: int, now_ns: int, entropy: bytes) -> str:
    r"""A Maildir unique name, `seconds.MusecPpidQnRrandom.host`, sorted by time.

    `entropy` are at least 8 random octets: in containers every process has number 1. In the host
    `/` and `:` become `\057` and `\072`, as the Maildir specification wants; whatever else is
    unusual in a file name becomes `_`.
    """
    seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
    safe = host.replace("/", "\\057").replace(":", "\\072")[:_HOST_OCTETS_IN_ID]
    if not _ID_CHARACTERS.issuperset(safe):
        safe = "".join(c if c in _ID_CHARACTERS else "_" for c in safe)
    count = next(_sequence)
    return f"{seconds}.M{nanoseconds // 1000:06}P{pid}Q{count}R{entropy.hex()}.{safe}"


def is_id(text: str) -> bool:
    """Say whether a file's stem can be an ID: nothing that leaves its directory or hides."""
    return 0 < len(text) <= 240 and text[0] in "0123456789" and _ID_CHARACTERS.issuperset(text)


def accepted_at(message_id: str) -> int:
    """When a message was accepted, Unix seconds, by its ID; 0 for a name that we never gave."""
    digits = message_id.partition(".")[0]
    return int(digits) if digits.isdecimal() and digits.isascii() else 0
