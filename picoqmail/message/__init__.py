"""The message and its envelope: headers, addresses, dates (RFC 5322). Pure.

What may live here: grammar and text. What may not: files, sockets, settings. Imports: ground only.
"""
