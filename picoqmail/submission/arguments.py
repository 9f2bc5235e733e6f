"""Addresses in the arguments of sendmail: text of RFC 5322, as in a header. Hot, pure.

Every sendmail but qmail's reads them so: `a@x,b@x` (cron's MAILTO) is two recipients, `<>` is the
null sender, names and comments are none of the address, and `"a b"@x` is the local part `a b`.
"""

from __future__ import annotations

from picoqmail.message.completion import (
    UnparsableError,
    drop_route,
    is_understood,
    raw_address,
)
from picoqmail.message.tokens import AT, ATOM, COLON, address_list, parse, parts_by_blanks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.message.tokens import Token

# address_list reads the field of a header.
_FIELD = ((ATOM, b"To"), (COLON, b""))


def recipients_of(argument: bytes) -> list[bytes]:
    """Return the raw addresses of one argument, in order and at least one; not completed yet.

    Raises UnparsableError for text that is not understood to its last octet.
    """
    found, lacks_host, parted_by_blanks = _addresses(argument)
    if not found or b"" in found or (lacks_host and parted_by_blanks):
        # Blanks part complete addresses, as they do in a header; `Joe Public` is not two users.
        raise _not_understood(argument)
    return found


def sender_of(argument: bytes) -> bytes:
    """Return the raw address of -f or -r, "" for the null sender. Raises UnparsableError."""
    found, _, _ = _addresses(argument)
    if len(found) > 1 or (not found and argument.strip()):
        raise _not_understood(argument)
    return found[0] if found else b""


def _addresses(argument: bytes) -> tuple[list[bytes], bool, bool]:
    """Return the addresses, whether one of them has no host, and whether only blanks part some."""
    tokens = parse(argument)
    found: list[bytes] = []
    hosts: list[bool] = []

    def take(address: list[Token]) -> None:
        if address and address[-1][0] == AT:
            drop_route(address)
        if address and not is_understood(address):
            raise _not_understood(argument)
        hosts.append((AT, b"") in address)
        found.append(raw_address(address))

    listed = None if tokens is None else address_list([*_FIELD, *tokens], take)
    if tokens is None or listed is None or _has_controls(argument):
        raise _not_understood(argument)
    found.reverse()
    return found, False in hosts, parts_by_blanks(tokens, listed)


def _has_controls(argument: bytes) -> bool:
    return any(octet < 32 and octet != 9 for octet in argument)


def _not_understood(argument: bytes) -> UnparsableError:
    shown = argument.decode("utf-8", "backslashreplace")
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)
    return UnparsableError(
        f"the argument '{shown}' is not a list of addresses; write user@host, separate several "
        "with commas, and put a local part with blanks in double quotes"
    )
