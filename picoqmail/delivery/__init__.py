"""Delivery: claim, converse, judge, record, report.

What may live here: code that knows both the spool and the relay. Imports: relay, submission and
the rooms below them.

A *run* is what a sending program does in its life. It *delivers* messages: it claims each, puts its
*parts* into the *outboxes* of their routes, and records what becomes of it. A long run is shared
among *workers*, which are processes.
"""
