"""Events for the people who run the host: one line each.

What may live here: rendering, and the places that lines go to. What may not: settings, which
come in as values. Imports: ground only.
"""
