"""Where mail is kept, whichever engine keeps it.

What may live here: the protocol that all stores obey, the directory store, the choice of the store,
and what moves mail from one to another. What may not: relays, and what becomes of a message.
Imports: ledger and the rooms below it.
"""
