"""Would this relay take mail? Look up its name, connect, greet, start TLS, log in, and quit.

The engine that sends mail does it, with the same settings, so that what works here works there.
No message is offered: the engine is stopped as soon as the relay is ready for one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define, frozen

from picoqmail.delivery.lanes import endpoint_of
from picoqmail.relay.engine import Engine
from picoqmail.relay.lane_options import LaneOptions
from picoqmail.smtp.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.home.settings import Settings
    from picoqmail.smtp.relay_address import Relay
    from picoqmail.smtp.transaction import Verdict


@frozen
class Probe:
    """What one relay did. `stage` and `reason` are empty if it was ready for mail.

    `tls` is the version of TLS, "" without; `verified` how its certificate was checked;
    `certificate_ends` Unix seconds or None; `logged_in` whether a password was used.
    """

    relay: str
    address: str
    stage: str
    reason: str
    tls: str
    verified: str
    certificate_ends: int | None
    logged_in: bool
    seconds: float

    @property
    def is_up(self) -> bool:
        """Whether it would take mail."""
        return not self.stage


class _NoBody:
    """The body of the message that is never sent."""

    size = 0
    newlines = 0
    eight_bit = False

    def blocks(self) -> Iterator[bytes]:
        """Yield nothing."""
        return iter(())


class _OneThatIsNeverTaken:
    """A source with one message: the engine connects to no relay without one."""

    def __init__(self) -> None:
        self._given = False

    def take(self) -> Transaction | None:
        """Return it once."""
        if self._given:
            return None
        self._given = True
        return Transaction("", ("",), _NoBody(), dsn=None, key=None, mark_in_doubt=_never)

    def backlog(self) -> int:
        """Count it until it was returned."""
        return 0 if self._given else 1

    def done(self, transaction: Transaction, verdict: Verdict) -> None:
        """Do nothing: it was not sent."""


def _never() -> None:
    """Take the place of what marks a message in doubt."""
    raise AssertionError("a probe sends nothing")


@define
class _Notes:
    engine: Engine | None = None
    address: str = ""
    let_in: bool = False
    tls: str = ""
    verified: str = ""
    certificate_ends: int | None = None

    def __call__(self, name: str, **facts: object) -> None:
        if name == "connected":
            self.address = str(facts.get("address"))
        elif name == "tls":
            self.tls = str(facts.get("version"))
            self.verified = str(facts.get("verified"))
            end = facts.get("certificate_ends")
            self.certificate_ends = int(str(end)) if end else None
        elif name == "relay_greeted" and self.engine is not None:
            self.let_in = True
            self.engine.stop()


def probe(relay: Relay, settings: Settings) -> Probe:
    """Try one relay. Blocks, bounded by the settings timeoutconnect and timeoutremote."""
    endpoint = endpoint_of(relay, settings)
    notes = _Notes()
    lane = LaneOptions(
        name=str(relay),
        endpoints=(endpoint,),
        source=_OneThatIsNeverTaken(),
        helo=settings.helohost,
        concurrency=1,
        timeout_connect=settings.timeoutconnect,
        timeout_remote=settings.timeoutremote,
        source_ip=settings.sourceip or "",
        cleartext_auth=settings.cleartextauth,
        mechanisms=settings.authmechanisms or (),
    )
    notes.engine = Engine([lane], on_event=notes)
    began = time.monotonic()
    (summary,) = notes.engine.serve()
    fault = None if notes.let_in else summary.fault
    stage = "" if notes.let_in else fault.stage if fault else "session"
    return Probe(
        relay=str(relay),
        address=notes.address,
        stage=stage,
        reason=fault.text if fault else "" if notes.let_in else "the relay was not ready for mail",
        tls=notes.tls,
        verified=notes.verified,
        certificate_ends=notes.certificate_ends,
        logged_in=notes.let_in and endpoint.credentials is not None,
        seconds=time.monotonic() - began,
    )
