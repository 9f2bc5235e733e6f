"""The Python library behind `picoqmail.enqueue()`.

Imports: admin and what lies below it.
"""
