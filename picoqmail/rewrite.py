"""Completing and mapping single addresses: defaulthost and its kin, rewritefrom, adminaddr.

Pure: what the settings say comes in as arguments. Addresses are raw octets, or the tokens of one
address in reverse order, as `tokens.address_list` hands them out. Follows qmail-header(5).
"""

from __future__ import annotations

from picoqmail.errors import QUEUE_REFUSED, ConfigurationError, EnvelopeError
from picoqmail.tokens import (
    AT,
    ATOM,
    COLON,
    DOT,
    LITERAL,
    parse,
    quote_address,
    unquote,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.control import Value
    from picoqmail.tokens import Token

VERP_SUFFIX = b"-@[]"
"""Ends a sender that is expanded for each recipient (addresses(5)); also the double bounce's."""


class UnparsableError(EnvelopeError):
    """An address or a header field that is none, where qmail-inject refuses the message."""

    qmail_status = QUEUE_REFUSED

    def __init__(self, line: bytes, hint: str = "") -> None:
        """`line` is shown as it came; `hint` says where it came from, if that is not obvious."""
        text = "unable to parse this line:\n" + line.decode("utf-8", "surrogateescape")
        if hint:
            text = f"{text}\nthis comes from {hint}"
        super().__init__(text)


def reversed_tokens(text: bytes, hint: str = "") -> list[Token]:
    """Return the tokens of `text`, last first. Raises UnparsableError, which names `hint`."""
    found = parse(text)
    if found is None:
        raise UnparsableError(text, hint)
    found.reverse()
    return found


class Completion:
    """How an address gets the host and the domain that it lacks.

    `default_host`, `default_domain` and `plus_domain` are the values of the settings of these
    names, without the `@` or dot in front. Raises UnparsableError.
    """

    __slots__ = ("_default_domain", "_default_host", "_plus_domain")

    def __init__(self, default_host: bytes, default_domain: bytes, plus_domain: bytes) -> None:
        self._default_domain = reversed_tokens(b"." + default_domain, "defaultdomain")
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
            _drop_route(address)
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
            error = UnparsableError(quoted)
            if what:
                shown = address.decode("utf-8", "surrogateescape")
                error.args = (f"{what}: {shown}",)
            raise error
        found.reverse()
        self.complete(found)
        return raw_address(found)


def raw_address(address: list[Token]) -> bytes:
    """Return the raw form of one address, given as reversed tokens."""
    return unquote(address[::-1])


def _drop_route(address: list[Token]) -> None:
    """Drop `@host,@host:` from the front of an address; all of it, if no colon ends the route."""
    while address:
        kind, _ = address.pop()
        if kind == COLON:
            return


def _is_qualified(address: list[Token]) -> bool:
    """Tell whether the host has a dot or is a literal, and so needs no defaultdomain."""
    for kind, _ in address:
        if kind in (DOT, LITERAL):
            return True
        if kind == AT:
            return False
    return False


class LocalNames:
    """The hosts whose users are users of this host; compared without regard to case."""

    __slots__ = ("_hosts",)

    def __init__(self, hosts: list[bytes]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts if host)

    def user_of(self, address: bytes) -> bytes:
        """Return the local part if the address is one of ours, else b""."""
        box, at, host = address.rpartition(b"@")
        if not at:
            return address
        return box if host.lower() in self._hosts else b""


class SenderRules:
    """The setting rewritefrom: rules, the first that fits an address decides.

    A rule is one line, `PATTERN:ADDRESS`, or an address alone for `*:ADDRESS`. Patterns:
    `user@host` that address; `@host` every address there; `user` that user of this host; `@` every
    user of this host; `*` everything. ADDRESS is `user@host`, or `@host`, which keeps the user.
    Raises ConfigurationError.
    """

    __slots__ = ("_local", "_rules")

    def __init__(self, value: Value | None, local: LocalNames) -> None:
        self._local = local
        self._rules: list[tuple[bytes, bytes]] = []
        for index, (line, _) in enumerate(value.lines if value else ()):
            pattern, colon, target = line.rpartition(":")
            box, at, host = target.strip().rpartition("@")
            if not at or not host or set(host + box) & set(" \t<>,\r\n\0"):
                raise ConfigurationError(
                    value.where(index) if value else "rewritefrom",
                    f"{line!a} is no rule of rewritefrom",
                    "PATTERN:user@host or PATTERN:@host is allowed; PATTERN is user@host, @host, "
                    "user, @ (all users of this host) or * (everything)",
                )
            found = pattern.strip().lower() if colon else "*"
            self._rules.append((found.encode(), f"{box}@{host}".encode()))

    def __bool__(self) -> bool:
        """Tell whether there is anything to rewrite."""
        return bool(self._rules)

    def apply(self, address: bytes) -> bytes:
        """Return what stands for the raw address; the null sender and `#@[]` stay.

        A VERP sender (`x-@host-@[]`) is only given another host: with another user its bounces
        could no longer be told apart.
        """
        if address in (b"", b"#@[]"):
            return address
        suffix = VERP_SUFFIX if address.endswith(VERP_SUFFIX) else b""
        plain = address[: len(address) - len(suffix)]
        box, _, host = plain.rpartition(b"@")
        user = self._local.user_of(plain).lower()
        names = (plain.lower(), b"@" + host.lower(), b"*") + ((user, b"@") if user else ())
        for pattern, target in self._rules:
            if pattern in names:
                if target[:1] == b"@":
                    return box + target + suffix
                return address if suffix else target
        return address


def admin_address(value: Value | None) -> bytes:
    """Return the setting adminaddr, b"" where it is not set. Raises ConfigurationError."""
    if value is None or not value.text:
        return b""
    box, at, host = value.text.rpartition("@")
    if not at or not box or not host or set(value.text) & set(" \t<>,\0"):
        raise ConfigurationError(
            value.where(), f"adminaddr is {value.text!a}", "one address user@host is allowed"
        )
    return value.text.encode()


def to_admin(recipients: list[bytes], admin: bytes, local: LocalNames) -> list[bytes]:
    """Return the recipients with those of this host replaced by `admin`, who gets one copy."""
    found = []
    told = False
    for recipient in recipients:
        if not local.user_of(recipient):
            found.append(recipient)
        elif not told:
            told = True
            found.append(admin)
    return found
