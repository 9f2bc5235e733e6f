"""The log: events for the administrator, one line each.

What may live here: the events, their rendering, and the places that lines go to. What may not:
settings, which come in as values. Imports: ground only.
"""
