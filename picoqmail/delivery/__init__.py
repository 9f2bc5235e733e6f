"""Delivery: claim, converse, judge, record, report.

What may live here: code that knows both the spool and the relay. Imports: relay, submission and
the rooms below them.
"""
