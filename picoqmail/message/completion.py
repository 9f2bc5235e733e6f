"""Completing single addresses: defaulthost, defaultdomain, plusdomain.

Pure: what the settings say comes in as arguments. Addresses are raw octets, or the tokens of one
address in reverse order, as `tokens.address_list` hands them out. Follows qmail-header(5).
"""

from __future__ import annotations

from picoqmail.errors import QUEUE_REFUSED, EnvelopeError
from picoqmail.message.tokens import (
    AT,
    ATOM,
    COLON,
    DOT,
    LITERAL,
    WORDS,
    parse,
    quote_address,
    unquote,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.message.tokens import Token

_ADDRESS = frozenset((*WORDS, DOT, AT))


class UnparsableError(EnvelopeError):
    """An address or a header field that is none, where qmail-inject refuses the message."""

    qmail_status = QUEUE_REFUSED

    @classmethod
    def of_line(cls, line: bytes, hint: str = "") -> UnparsableError:
        """`line` is shown as it came; `hint` says where it came from, if that is not obvious."""
        text = "unable to parse this line:\n" + line.decode("utf-8", "surrogateescape")
        return cls(f"{text}\nthis comes from {hint}" if hint else text)


def reversed_tokens(text: bytes, hint: str = "") -> list[Token]:
    """Return the tokens of `text`, last first. Raises UnparsableError, which names `hint`."""
    found = parse(text)
    if found is None:
        raise UnparsableError.of_line(text, hint)
    found.reverse()
    return found


class Completion:
    """How an address gets the host and the domain that it lacks.

    `default_host`, `default_domain` and `plus_domain` are the values of the settings of these
    names, without the `@` or dot in front. Raises UnparsableError.
    """

    __slots__ = ("_default_domain", "_default_host", "_plus_domain")

    def __init__(
        self, default_host: bytes, default_domain: bytes | None, plus_domain: bytes
    ) -> None:
        """`default_domain` None completes no host."""
        domain = b"" if default_domain is None else b"." + default_domain
        self._default_domain = reversed_tokens(domain, "defaultdomain")
        self._default_host = reversed_tokens(b"@" + default_host, "defaulthost")
        self._plus_domain = reversed_tokens(b"." + plus_domain, "plusdomain")

    def complete(self, address: list[Token]) -> None:
        """Change the reversed tokens of one address in place.

        A source route is dropped, one dot or `@` too many at the end too; no `@`: `@defaulthost`
        is appended; a host that ends with `+`: plusdomain; a host without a dot: defaultdomain.
        The empty address and `x@[]` stay as they are.
        """
        if not address or (
            address[0] == (LITERAL, b"") and len(address) > 1 and address[1][0] == AT
        ):
            return
        if address[-1][0] == AT:
            drop_route(address)
        for superfluous in (DOT, AT):
            if address and address[0][0] == superfluous:
                del address[0]
        if not address:
            return
        if all(kind != AT for kind, _ in address):
            address[:0] = self._default_host
        kind, text = address[0]
        if kind == ATOM and text.endswith(b"+"):
            address[0] = (ATOM, text[:-1])
            address[:0] = self._plus_domain
        if not _is_qualified(address):
            address[:0] = self._default_domain

    def complete_raw(self, address: bytes, *, what: str = "") -> bytes:
        """Complete a raw address, such as an argument; commas and blanks in it are its own.

        Raises UnparsableError, with `what` as the whole message's beginning if given.
        """
        quoted = quote_address(address)
        found = parse(quoted)
        if found is None:
            if what:
                shown = address.decode("utf-8", "surrogateescape")
                raise UnparsableError(f"{what}: {shown}")
            raise UnparsableError.of_line(quoted)
        found.reverse()
        self.complete(found)
        return raw_address(found)


def raw_address(address: list[Token]) -> bytes:
    """Return the raw form of one address, given as reversed tokens."""
    return unquote(address[::-1])


def is_understood(address: list[Token]) -> bool:
    """Say whether the reversed tokens of one address, without a route, are those of RFC 5322.

    `complete` makes an address of anything, as qmail does: it glues `<a b@x>`, and gives `a@.` a
    host. What VERP expands has a second host, `@[]`.
    """
    kinds = [kind for kind, _ in address]
    at_signs = kinds.count(AT) - (address[:1] == [(LITERAL, b"")])
    glued = any(kind in WORDS and kinds[at - 1] in WORDS for at, kind in enumerate(kinds) if at)
    has_empty_host = kinds[0] == AT or kinds[:2] == [DOT, AT]
    return at_signs <= 1 and not glued and not has_empty_host and _ADDRESS.issuperset(kinds)


def drop_route(address: list[Token]) -> None:
    """Drop `@host,@host:` from the front of an address; all of it, if no colon ends the route."""
    while address:
        kind, _ = address.pop()
        if kind == COLON:
            return


def _is_qualified(address: list[Token]) -> bool:
    """Say whether the host has a dot or is a literal, and so needs no defaultdomain."""
    for kind, _ in address:
        if kind in (DOT, LITERAL):
            return True
        if kind == AT:
            return False
    return False
