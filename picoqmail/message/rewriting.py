"""Mapping whole addresses to others: the settings rewritefrom and adminaddr.

Pure: what the settings say comes in as arguments. Imported only where one of the two is set.
"""

from __future__ import annotations

from picoqmail.errors import ConfigurationError
from picoqmail.layout import DOUBLE_BOUNCE, VERP_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


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
    `rules` are such lines, each with where it stands, as `file:line`. Raises ConfigurationError.
    """

    __slots__ = ("_local", "_rules")

    def __init__(self, rules: Iterable[tuple[str, str]], local: LocalNames) -> None:
        self._local = local
        self._rules: list[tuple[bytes, bytes]] = []
        for line, where in rules:
            pattern, colon, target = line.partition(":")
            if not colon:
                pattern, target = "*", line
            box, at, host = target.strip().rpartition("@")
            if not at or not host or set(host + box) & set(" \t<>,\r\n\0"):
                raise ConfigurationError(
                    where,
                    f"{line!a} is not a rule of rewritefrom",
                    "PATTERN:user@host or PATTERN:@host is allowed; PATTERN is user@host, @host, "
                    "user, @ (all users of this host) or * (everything)",
                )
            found = pattern.strip().lower()
            self._rules.append((found.encode(), f"{box}@{host}".encode()))

    def __bool__(self) -> bool:
        """Say whether there is anything to rewrite."""
        return bool(self._rules)

    def apply(self, address: bytes) -> bytes:
        """Return what stands for the raw address; the null sender and `#@[]` stay.

        A VERP sender (`x-@host-@[]`) is only given another host: with another user its bounces
        could no longer be distinguished.
        """
        if address in (b"", DOUBLE_BOUNCE.encode()):
            return address
        verp = VERP_END.encode()
        suffix = verp if address.endswith(verp) else b""
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


def admin_address(text: str, where: str) -> bytes:
    """Return the address that the setting adminaddr has, b"" for an empty one.

    `where` is the setting's place, for the error. Raises ConfigurationError.
    """
    if not text:
        return b""
    box, at, host = text.rpartition("@")
    if not at or not box or not host or set(text) & set(" \t<>,\0"):
        raise ConfigurationError(
            where, f"adminaddr is {text!a}", "one address user@host is allowed"
        )
    return text.encode()


def to_admin(recipients: list[bytes], admin: bytes, local: LocalNames) -> list[bytes]:
    """Return the recipients with those of this host replaced by `admin`, once."""
    found = []
    has_admin = False
    for recipient in recipients:
        if not local.user_of(recipient):
            found.append(recipient)
        elif not has_admin:
            has_admin = True
            found.append(admin)
    return found
