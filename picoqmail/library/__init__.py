"""The Python library behind `picoqmail.enqueue()`.

What may live here: the calls that programs make, their arguments and results. What may not: a
framework; Django, asyncio and logging have faces of their own above. Imports: admin and what lies
below it.
"""
