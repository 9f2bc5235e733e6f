"""The PostgreSQL store: the same promises as the directory store, for any number of hosts.

What may live here: tables, statements, connections, leases. It is the only room that imports
psycopg. What may not: knowledge of relays, and what becomes of a message. Imports: ledger, spool
and the rooms below them.
"""
