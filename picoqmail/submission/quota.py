"""What a user of this host may submit to a spool that all users share. Hot; builtins only.

Checked only for mail that comes through the set-id program or sudo, so that one user can neither
fill the shared spool nor overload the programs that read it. One small file a user in `users/`, of
the spool or of the user's part of the drop, has the hour, and the count in it. It is no record of
mail, so it is not made durable: at worst an hour counts twice.
"""

from __future__ import annotations

from picoqmail import durable
from picoqmail.errors import (
    QUEUE_REFUSED,
    QUEUE_SPOOL,
    QUEUE_TRY_LATER,
    MessageTooLargeError,
    PicoqmailError,
    SpoolError,
)
from picoqmail.home.control import Control, number_of
from picoqmail.home.limits import DEFAULT_RECIPIENTS, MOST_MESSAGES, MOST_RECIPIENTS
from picoqmail.home.owner import groups_of
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


class NoSubmitterError(PicoqmailError):
    """The setting submitters names neither this user nor a group of this user."""

    qmail_status = QUEUE_REFUSED


class Share:
    """What one user may submit."""

    __slots__ = ("_control", "_uid", "recipients")

    def __init__(self, home: Home, uid: int) -> None:
        """Raises ConfigurationError for a wrong setting, NoSubmitterError."""
        self._control = Control(home.control)
        self._uid = uid
        value = self._control.read("recipientlimit")
        self.recipients = number_of(value, DEFAULT_RECIPIENTS, "recipientlimit", MOST_RECIPIENTS)
        submitters = self._control.read("submitters")
        if submitters is not None and uid != 0:
            names = [text for text, _ in submitters.lines]
            if not is_submitter(uid, names):
                raise NoSubmitterError(
                    f"user {uid} may not submit mail on this host: the setting submitters "
                    f"({submitters.path}) names neither this user nor a group of this user"
                )

    def charge(self, spool: str, now: float) -> None:
        """Count one message, in `spool`. Raises OverQuotaError, ConfigurationError, SpoolError."""
        limit = number_of(self._control.read("userlimit"), 0, "userlimit", MOST_MESSAGES)
        if not limit:
            return
        hour = int(now) // HOUR_SECONDS
        path = f"{spool}/{USERS}/{self._uid}"
        try:
            durable.make_directory(f"{spool}/{USERS}")
            with LockedFile(path) as file:
                counted, _, count_in_it = file.read().partition(b" ")
                # What is no number was cut by a crash: the hour begins anew.
                same_hour = counted.isdigit() and int(counted) == hour
                count = int(count_in_it) if same_hour and count_in_it.strip().isdigit() else 0
                if count >= limit:
                    raise OverQuotaError(
                        f"user {self._uid} has submitted {count} messages in this hour, and the "
                        f"setting userlimit allows {limit}; try again later"
                    )
                file.rewrite(b"%d %d\n" % (hour, count + 1))
        except OSError as exc:
            raise SpoolError("count in", path, exc, QUEUE_SPOOL) from exc

    def check_envelope(self, octets: int, recipients: int) -> None:
        """Refuse an envelope that has become too large. Raises MessageTooLargeError."""
        if octets > MOST_ENVELOPE_OCTETS:
            raise MessageTooLargeError(
                f"the envelope is larger than {MOST_ENVELOPE_OCTETS} bytes; send the message "
                "several times, each to some of its recipients"
            )
        if recipients > self.recipients:
            raise MessageTooLargeError(
                f"the envelope has more than {self.recipients} recipients (setting "
                "recipientlimit); send the message several times, each to some of them"
            )


def is_submitter(uid: int, names: list[str]) -> bool:
    """Say whether one of these is the user, by name or number, or `@` and a group of the user."""
    import pwd

    if str(uid) in names:
        return True
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    if user.pw_name in names:
        return True
    wanted = {name[1:] for name in names if name.startswith("@")}
    if not wanted:
        return False
    import grp

    for gid in groups_of(uid, user.pw_gid):
        try:
            if str(gid) in wanted or grp.getgrgid(gid).gr_name in wanted:
                return True
        except KeyError:
            continue  # A group without a name.
    return False
