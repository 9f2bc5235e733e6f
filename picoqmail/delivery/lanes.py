"""From settings to sessions with relays: a lane for each outbox, and the login that it needs.

The rule of this module: it joins delivery, which knows messages, to the engine, which knows
sockets, and decides nothing.
"""

from __future__ import annotations

import time
from functools import partial

from picoqmail.errors import SpoolError
from picoqmail.relay.engine import Engine
from picoqmail.relay.lane_options import LaneOptions
from picoqmail.relay.lookup import Endpoint
from picoqmail.relay.tls_plan import TlsPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.delivery.deliver import Outbox
    from picoqmail.home.settings import Settings
    from picoqmail.log.logger import Log
    from picoqmail.relay.lane_options import LaneSummary
    from picoqmail.smtp.lessons import Lessons
    from picoqmail.smtp.relay_address import Relay
    from picoqmail.store.protocol import Store


class Lanes:
    """The lanes of one run, and what is known of their relays."""

    def __init__(self, settings: Settings, log: Log, store: Store) -> None:
        """Nothing is opened before there is mail. `store` keeps the pace, and what was learnt."""
        self._settings = settings
        self._rate_limit: Callable[[], float] | None = None
        if settings.ratelimit is not None:
            self._rate_limit = store.pace(settings.ratelimit)
        self._log = log
        self._notes = store.notes
        self._lessons: dict[str, Lessons] | None = None
        self._engine: Engine | None = None
        self._stopped = False
        self.look: Callable[[], bool] | None = None
        """Gives the outboxes what has come meanwhile, and returns whether that was anything."""
        self.is_shared = False
        """Whether several users submit mail."""
        self.shares = 1
        """How many processes share the connections that the settings allow."""
        self.is_orphan: Callable[[], bool] = bool
        """Whether the parent of this process is gone, if it is a worker of another; else False."""

    def stop(self) -> None:
        """End soon: finish what is under way, begin nothing new. A signal handler may call this."""
        self._stopped = True
        if self._engine is not None:
            self._engine.stop()

    def is_stopped(self) -> bool:
        """Say whether `stop` was called, or the parent that gave us work is gone."""
        return self._stopped or self.is_orphan()

    def serve(self, outboxes: Sequence[Outbox]) -> Sequence[LaneSummary]:
        """Send the mail of each outbox over a lane of its own; return how these ended, in order."""
        on_event = partial(self._log.event, level="debug")
        lanes = [self._options(one) for one in outboxes]
        self._engine = Engine(lanes, on_event=on_event, look=self.look, is_shared=self.is_shared)
        if self._stopped:
            self._engine.stop()
        try:
            return self._engine.serve()
        finally:
            self._remember()

    @property
    def _known(self) -> dict[str, Lessons]:
        """What is known of the relays; read when first needed, and kept for all of the run."""
        if self._lessons is None:
            self._lessons = self._notes.load(time.time())
        return self._lessons

    def _remember(self) -> None:
        """Keep what was learnt of the relays for later runs."""
        try:
            learnt = self._notes.save(self._known, time.time())
        except SpoolError as exc:
            # It is learnt again, which costs a detour and no mail.
            self._log.event("error", level="error", error=str(exc))
            return
        for relay, words in learnt:
            self._log.event("relay_learnt", relay=relay, lesson=words)

    def _options(self, outbox: Outbox) -> LaneOptions:
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
            use_pipelining=settings.pipelining,
            use_chunking=settings.chunking,
            mechanisms=settings.authmechanisms or (),
            lessons=self._known,
        )


def endpoint_of(relay: Relay, settings: Settings) -> Endpoint:
    """Return a relay with its settings: TLS, and the password if the relay is given a user."""
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
