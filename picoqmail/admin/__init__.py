"""What an administrator asks and does: status, explain, check, retry, hold, delete.

Imports: delivery and what lies below it.
"""
