"""The programs: each parses its arguments, calls a function of a room, and returns its exit code.

What may live here: arguments, printing, and questions on a terminal. What may not: anything that a
Python program could want, too. Imports: every room.
"""
