"""The way in: from a caller to the spool (qmail-queue, qmail-inject, sendmail).

What may live here: the interfaces of the programs that take mail, and the start of the sender. What
may not: conversations with relays. Imports: spool and what lies below it.
"""
