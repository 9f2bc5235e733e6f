"""SMTP and LMTP as a client speaks them, without a socket, a file or a clock.

The rule of this room: everything here is a function of what it was given. A driver brings what a
relay sent, and takes what is to be sent. All rules of RFC 5321 and its extensions are here, and so
are its words: a *session* is one connection, a *transaction* one message, a *reply* what a relay
says to a command.
"""
