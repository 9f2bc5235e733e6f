"""Which relays a recipient goes to: relayip, or what senderroutes and smtproutes say. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.home.values import Route
    from picoqmail.smtp.relay_address import Relay

Relays = tuple["Relay", ...]


def name_of(relays: Relays) -> str:
    """Return the name of a route, for the log, the breaker and the history: its relays."""
    return " ".join(str(relay) for relay in relays)


def _table(routes: Iterable[Route], default: Relays) -> dict[str, Relays]:
    # The first of equal patterns wins, as in a file read from its top.
    found: dict[str, Relays] = {}
    for route in routes:
        found.setdefault(route.pattern.lower(), route.relays or default)
    return found


class Routing:
    """The rules of one home. `relays_for` remembers what it found for a domain."""

    def __init__(
        self, default: Relays, by_recipient: dict[str, Relays], by_sender: dict[str, Relays]
    ) -> None:
        """Patterns in lower case; `default` is for what none of them matches."""
        self.default = default
        self.by_recipient = by_recipient
        self.by_sender = by_sender
        self._known: dict[str, Relays] = {}

    @classmethod
    def of(
        cls, relayip: Relays, smtproutes: Iterable[Route], senderroutes: Iterable[Route]
    ) -> Routing:
        """Make the rules from the settings of these names."""
        return cls(relayip, _table(smtproutes, relayip), _table(senderroutes, relayip))

    @property
    def is_single(self) -> bool:
        """Whether all mail goes the same way."""
        return not self.by_recipient and not self.by_sender

    def all(self) -> list[Relays]:
        """Return every route that there is, each once, the default first."""
        ways = (self.default, *self.by_recipient.values(), *self.by_sender.values())
        return [way for way in dict.fromkeys(ways) if way]

    def relays_for(self, sender: str, recipient: str) -> Relays:
        """Return the relays for one recipient, in the order in which to try them.

        Rules for the sender come before rules for the recipient. Among these the order is: address,
        host, `.domain` (the longest first), then the rule without a pattern.
        """
        if self.by_sender:
            way = _match(self.by_sender, sender.lower() if sender else "<>")
            if way is not None:
                return way
        if not self.by_recipient:
            return self.default
        domain = recipient.rpartition("@")[2].lower()
        way = self._known.get(domain)
        if way is None:
            way = self._known[domain] = _match(self.by_recipient, domain) or self.default
        return way


def _match(table: dict[str, Relays], address: str) -> Relays | None:
    if address in table:
        return table[address]
    domain = address.rpartition("@")[2]
    if domain != address and domain in table:
        return table[domain]
    while domain:
        domain = domain.partition(".")[2]
        if domain and "." + domain in table:
            return table["." + domain]
    return table.get("")
