"""The home: where it is, what is set in it, how it is made.

What may live here: `control/` and everything about it, the units and links that `init` makes.
What may not: the spool. Imports: message, smtp, log and the ground.
"""
