"""The settings that acceptance needs, read quickly. Hot; builtins only.

settings.py has the same settings, with their documentation, for all other code.
"""

from __future__ import annotations

from picoqmail.home.control import Control, number_of, own_host_name
from picoqmail.layout import DEFAULT_QUEUE_LIFETIME_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.home.paths import Home

MOST_OCTETS = 2**63 - 1
# Ten years: longer than any sane lifetime, short enough that now + delay stays a plausible date.
MOST_SECONDS = 10 * 365 * 86400
MOST_MESSAGES = 2**31 - 1
OFF_WORDS = ("off", "no", "false", "0")
# Of one message of a user who shares the spool with others.
DEFAULT_RECIPIENTS = 10_000
MOST_RECIPIENTS = 100_000


class Limits:
    """This host's name and the limits of acceptance; sizes in octets, times in seconds."""

    __slots__ = ("databytes", "host", "minfree", "queuelifetime")

    def __init__(
        self,
        host: str,
        *,
        databytes: int = 0,
        minfree: int = 0,
        queuelifetime: int = DEFAULT_QUEUE_LIFETIME_SECONDS,
    ) -> None:
        """`host` is the setting `me`; 0 means no limit for `databytes` and `minfree`."""
        self.host = host
        self.databytes = databytes
        self.minfree = minfree
        self.queuelifetime = queuelifetime


def read_limits(home: Home, control: Control | None = None) -> Limits:
    """Read the limits from the control files of a home. Raises ConfigurationError.

    `control` is that of the home if the caller reads other settings, too: the way to it is checked
    once.
    """
    control = control or Control(home.control)
    return Limits(
        own_host_name(control),
        databytes=number_of(control.read("databytes"), 0, "databytes", MOST_OCTETS),
        minfree=number_of(control.read("minfree"), 0, "minfree", MOST_OCTETS),
        queuelifetime=number_of(
            control.read("queuelifetime"),
            DEFAULT_QUEUE_LIFETIME_SECONDS,
            "queuelifetime",
            MOST_SECONDS,
        ),
    )
