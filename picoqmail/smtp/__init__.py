"""SMTP and LMTP as a client speaks them, without a socket, a file or a clock.

The rule of this package: everything here is a function of what it was given. The octets come from
and go to whoever drives it; the rules of RFC 5321 and its extensions are all here.
"""
