"""Sockets and TLS under the conversation, and what is remembered of each relay.

What may live here: connections, failover, pace and the breaker. What may not: messages of the
spool. Imports: spool (its locks), home and the rooms below it.
"""
