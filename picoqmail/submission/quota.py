"""What a user of this host may submit to a spool that all users share. Hot; builtins only.

Checked only for mail that comes through the set-id program, so that one user can neither fill the
shared spool nor overload the programs that read it. One small file a user in the spool's `users/`
has the hour, and the count in it. It is no record of mail, so it is not made durable: at worst an
hour counts twice.
"""

from __future__ import annotations

from picoqmail import durable
from picoqmail.errors import (
    QUEUE_SPOOL,
    QUEUE_TRY_LATER,
    MessageTooLargeError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.home.control import Control, number_of
from picoqmail.home.limits import MOST_MESSAGES
from picoqmail.layout import USERS
from picoqmail.spool.locks import LockedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home

HOUR_SECONDS = 3600
# For mail of users other than the spool's owner. Every run of the sender reads whole sidecars: one
# with millions of recipients, from one user, would cost each run gigabytes.
MOST_ENVELOPE_OCTETS = 4 << 20


class OverQuotaError(PicoqmailError):
    """This user has submitted as much as the setting userlimit allows in an hour."""

    qmail_status = QUEUE_TRY_LATER


def charge(home: Home, uid: int, now: float) -> None:
    """Count one message of a user. Raises OverQuotaError, ConfigurationError, SpoolError."""
    limit = number_of(Control(home.control).read("userlimit"), 0, "userlimit", MOST_MESSAGES)
    if not limit:
        return
    hour = int(now) // HOUR_SECONDS
    path = f"{home.spool}/{USERS}/{uid}"
    try:
        durable.make_directory(f"{home.spool}/{USERS}")
        with LockedFile(path) as file:
            counted, _, count_in_it = file.read().partition(b" ")
            # What is no number was cut by a crash: the hour begins anew.
            same_hour = counted.isdigit() and int(counted) == hour
            count = int(count_in_it) if same_hour and count_in_it.strip().isdigit() else 0
            if count >= limit:
                raise OverQuotaError(
                    f"user {uid} has submitted {count} messages in this hour, and the setting "
                    f"userlimit allows {limit}; try again later"
                )
            file.rewrite(b"%d %d\n" % (hour, count + 1))
    except OSError as exc:
        raise SpoolError("count in", path, exc, QUEUE_SPOOL) from exc


def check_envelope(octets: int) -> None:
    """Refuse an envelope that has become too large. Raises MessageTooLargeError."""
    if octets > MOST_ENVELOPE_OCTETS:
        raise MessageTooLargeError(
            f"the envelope is larger than {MOST_ENVELOPE_OCTETS} bytes; send the message several "
            "times, each to some of its recipients"
        )
