"""Sockets and TLS under the SMTP conversation, and what is remembered of each relay.

What may live here: connections, failover, limits of speed, and the breaker. What may not: messages
of the spool. Imports: ledger (what is noted of a route), and the rooms below it.

An *engine* drives *lanes*, one for each route that has mail. A lane has a list of relays, and
opens *connections* to them. On each connection there is one SMTP session, which the *conversation*
holds. The *throttle* slows a lane down when its relay asks for it, the *rate limit* when the
settings do, and the *breaker* keeps later runs away from a relay that is down.
"""
