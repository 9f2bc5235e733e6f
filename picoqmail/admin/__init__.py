"""What an administrator asks and does: status, explain, check, retry, hold, delete.

What may live here: reading and changing one home and its spool, for the command line and Python.
What may not: arguments and printing, which are cli's. Imports: delivery and what lies below it.
"""
