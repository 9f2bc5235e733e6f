"""Addresses of the envelope: from qmail's raw form to the path of a command.

The rule of this module: it never changes whom an address means. What cannot be written as a path
is refused, with words for the person who has to correct it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from picoqmail.layout import DOUBLE_BOUNCE, VERP_END

# Written by what is not in it: that compiles ten times faster than sets that reach beyond ASCII.
_ATOM = r"""[^\x00-\x20\x7f()<>\[\]:;@\\,."]+"""
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
# Compiled when first needed, which is seldom.
_XTEXT = rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*"
_NOT_XTEXT = rb"[^!-*,-<>-~]"


class UnsendableAddressError(ValueError):
    """This address cannot be written in an SMTP command; the text says why."""


@lru_cache(maxsize=256)
def wire_path(address: str) -> str:
    """Return the path of RFC 5321 4.1.2, angle brackets included, for a raw address.

    The local part is quoted only where it must be; qmail keeps addresses unquoted. The null sender
    becomes ``<>``, and so does the double bounce, which is no path of RFC 5321.

    Raises UnsendableAddressError for a control character, a missing local part, or a domain that
    is empty or holds a blank, ``<``, ``>``.
    """
    if address in ("", DOUBLE_BOUNCE):
        return "<>"
    if _has_control(address):
        raise UnsendableAddressError(f"the address {address!a} holds a control character")
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    if not local:
        raise UnsendableAddressError(f"the address {address!a} has nothing before the @")
    if at and (not domain or any(c.isspace() or c in "<>@" for c in domain)):
        raise UnsendableAddressError(
            f"the domain of the address {address!a} is missing or holds a blank, < or >"
        )
    if not _DOT_ATOM.fullmatch(local):
        local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"<{local}{at}{domain}>"


def _has_control(address: str) -> bool:
    """Say whether it holds a control character, a line end of Unicode's, or half a character."""
    # isprintable is quick, and true of nearly all addresses; only the others are searched.
    return not address.isprintable() and any(
        c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" or "\ud800" <= c <= "\udfff"
        for c in address
    )


def needs_smtputf8(address: str) -> bool:
    """Return whether this address can be sent only with SMTPUTF8 (RFC 6531)."""
    return not address.isascii()


@lru_cache(maxsize=256)
def ascii_form(address: str) -> str:
    """Return an address with its domain in ASCII (`xn--`, IDNA 2008), for a relay of ASCII alone.

    It stays as it is where its local part is not ASCII, or its domain is no name of IDNA.
    """
    local, at, domain = address.rpartition("@")
    if domain.isascii() or not local.isascii():
        return address
    # Seldom needed, and large.
    try:
        import idna
    except ImportError:
        return address
    try:
        return local + at + idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        return address


def to_xtext(raw: str) -> str:
    """Return a value in the xtext of RFC 3461 4; what is xtext already stays as it is."""
    octets = raw.encode("utf-8", "surrogateescape")
    if not re.fullmatch(_XTEXT, octets):
        octets = re.sub(_NOT_XTEXT, lambda found: b"+%02X" % found[0][0], octets)
    return octets.decode("ascii")


def is_verp(sender: str) -> bool:
    """Return whether this sender stands for one of its own for each recipient."""
    return sender.endswith(VERP_END)


def expand_verp(sender: str, recipient: str) -> str:
    """Return the sender of a VERP message for one recipient (qmail-inject(8), QMAILINJECT r).

    `pre-@host-@[]` becomes `pre-user=domain@host`; any other sender stays.
    """
    local, at, host = sender.removesuffix(VERP_END).rpartition("@")
    if not at or not is_verp(sender):
        return sender
    user, _, domain = recipient.rpartition("@")
    return f"{local}{user}={domain}@{host}"


def plain_sender(sender: str) -> str:
    """Return the address that reports go to: of a VERP sender the one without a recipient."""
    return sender.removesuffix(VERP_END)
