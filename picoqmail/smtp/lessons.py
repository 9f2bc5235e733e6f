"""What a relay offers and does not do, as its connections find out.

The rule of this module: one value for one relay, shared by all conversations with it in a run. A
conversation reads it before it uses an extension, and adds to it. Nothing here knows a file.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.smtp.transaction import RelayFault

LONE_DOT = "pipelining"
"""Nothing may follow the final dot before the reply to it."""

NO_BDAT = "chunking"
"""CHUNKING is offered, but BDAT does not work."""

LOGINS = "login"
"""The mechanisms that fail, with blanks between."""

ADDRESS = "address"
"""The address that served, where it is not the first one that a lookup gives."""

SERVED = "served"
"""It took a message; the value is the user that we had logged in as, "" without a login."""


class Lessons:
    """What was learnt of one relay.

    ``facts`` maps the names above to what is known, and ``news`` has what was learnt since they
    were read. The others are for this run alone. ``mail_limit`` is after how many messages the
    relay hangs up (0: not known). ``tried`` are the mechanisms that failed for a user, and
    ``refusals`` what a whole round of logins came to. ``logging_in`` are the users whose first
    login is under way on some connection, ``logged_in`` those that the relay has let in.
    ``serves`` says whether a message was accepted, ``chunks`` whether one was by BDAT.
    """

    __slots__ = (
        "chunks",
        "facts",
        "logged_in",
        "logging_in",
        "mail_limit",
        "news",
        "refusals",
        "serves",
        "tried",
    )

    def __init__(self, facts: Iterable[tuple[str, str]] = ()) -> None:
        self.facts = dict(facts)
        self.news: dict[str, str] = {}
        self.mail_limit = 0
        self.tried: dict[str, set[str]] = {}
        self.refusals: dict[str, RelayFault] = {}
        self.logging_in: set[str] = set()
        self.logged_in: set[str] = set()
        self.serves = False
        self.chunks = False

    def learn(self, name: str, value: str = "") -> None:
        """Note a fact."""
        if self.facts.get(name) != value:
            self.facts[name] = self.news[name] = value

    def knows(self, name: str) -> bool:
        """Return whether a fact is known."""
        return name in self.facts

    @property
    def bad_logins(self) -> frozenset[str]:
        """The mechanisms that failed where another one let us in, in this run or before."""
        return frozenset(self.facts.get(LOGINS, "").split())
