"""From settings to conversations: the engine's lanes for a run, with what they need to log in.

The glue between delivery, which knows messages, and the engine, which knows sockets.
"""

from __future__ import annotations

from functools import partial

from picoqmail.relay.engine import Engine
from picoqmail.relay.lane_options import LaneOptions
from picoqmail.relay.lookup import Endpoint
from picoqmail.relay.rate_limit import RATE, RateLimiter
from picoqmail.relay.tls_plan import TlsPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.delivery.deliver import Outbox
    from picoqmail.home.settings import Settings
    from picoqmail.log.logger import Log
    from picoqmail.relay.lane_options import LaneSummary
    from picoqmail.smtp.relay_address import Relay


class Lanes:
    """The lanes of one run; calling it drives the outboxes until they are empty."""

    def __init__(self, settings: Settings, log: Log, spool: str) -> None:
        """Nothing is opened before there is mail for it. `spool`: where the pace is kept."""
        self._settings = settings
        self._rate_limit = None
        if settings.ratelimit is not None:
            self._rate_limit = RateLimiter(f"{spool}/{RATE}", settings.ratelimit)
        self._log = log
        self._engine: Engine | None = None
        self._stopped = False
        self.shares = 1
        """How many processes share the connections that this one would be allowed."""
        self.is_orphan: Callable[[], bool] = bool
        """Whether the process that this one works for is gone; who works for itself has none."""

    def stop(self) -> None:
        """End soon: what is under way is finished, nothing new is begun. Safe in a handler."""
        self._stopped = True
        if self._engine is not None:
            self._engine.stop()

    def is_stopped(self) -> bool:
        """Say whether `stop` was called, or who gave us work is gone."""
        return self._stopped or self.is_orphan()

    def __call__(self, outboxes: Sequence[Outbox]) -> Sequence[LaneSummary]:
        """Serve each outbox by a lane of its own; the summaries are in the same order."""
        on_event = partial(self._log.event, level="debug")
        self._engine = Engine([self._lane(one) for one in outboxes], on_event=on_event)
        if self._stopped:
            self._engine.stop()
        return self._engine.serve()

    def _lane(self, outbox: Outbox) -> LaneOptions:
        settings = self._settings
        return LaneOptions(
            name=outbox.name,
            endpoints=tuple(endpoint_of(relay, settings) for relay in outbox.relays),
            source=outbox,
            helo=settings.helohost,
            concurrency=max(1, settings.concurrencyremote // self.shares),
            timeout_connect=settings.timeoutconnect,
            timeout_remote=settings.timeoutremote,
            source_ip=settings.sourceip or "",
            cleartext_auth=settings.cleartextauth,
            probe=outbox.is_probe,
            was_throttled=outbox.was_throttled,
            rate_limit=self._rate_limit,
        )


def endpoint_of(relay: Relay, settings: Settings) -> Endpoint:
    """A relay with what the settings have for it: TLS, and a password if it is given a user."""
    credentials = None
    if relay.user and settings.relaypass is not None:
        from picoqmail.smtp.sasl import Credentials

        credentials = Credentials(relay.user, settings.relaypass)
    policy = TlsPolicy(
        mode=settings.tls,
        ca=settings.tlsca or "",
        certificate=settings.tlscert or "",
        fingerprints=(settings.tlsfingerprint,) if settings.tlsfingerprint else (),
    )
    return Endpoint(relay, policy, credentials)
