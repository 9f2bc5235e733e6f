"""What an administrator does about a relay that cannot be used, by stage. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from picoqmail.ledger.routes import Outage

REMEDIES = {
    "lookup": "see the name in relayip, and /etc/resolv.conf",
    "connect": "see host and port in relayip, and whether a firewall is between",
    "tls": "see the settings tls, tlsca and tlsfingerprint",
    "session": "see the setting that is named above",
    "ehlo": "see the settings helohost and me",
    "auth": "see the user in relayip, relaypass and authmechanisms",
}
# At these stages the relay has spoken: it does not come right by waiting.
_NEEDS_SOMEBODY = frozenset(("tls", "ehlo", "auth", "session"))


def needs_somebody(outages: Mapping[str, Outage]) -> str:
    """Return what has to be done before mail can go, "" if waiting is enough."""
    found = [
        f"Waiting does not help with {name}, somebody has to act: {REMEDIES[one.stage]}. "
        "picoqmail check tries it."
        for name, one in outages.items()
        if one.stage in _NEEDS_SOMEBODY
    ]
    return " ".join(found)


def why_not_sent(outages: Mapping[str, Outage]) -> str:
    """Return why no relay has seen a message that was just tried."""
    if not outages:
        return "no relay has taken it"
    return "; ".join(
        f"the relay {name} refused the login: {one.reason}"
        if one.stage == "auth"
        else f"the relay {name} cannot be used ({one.stage}): {one.reason}"
        for name, one in outages.items()
    )
