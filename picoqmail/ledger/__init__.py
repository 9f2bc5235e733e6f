"""What runs leave for later runs, in small files of the spool beside the mail.

What may live here: routes that are down, the pace, what was learnt of relays, the limit of reports,
totals. What may not: messages, and decisions about them. Nothing here loses mail: without these
files, or with half of one, a run takes detours. Imports: spool and the rooms below it.
"""
