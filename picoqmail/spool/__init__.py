"""The spool: the directory store, its states, locks and keys.

What may live here: everything that makes, moves or removes a message. What may not: knowledge of
relays. Imports: home and what lies below it.
"""
