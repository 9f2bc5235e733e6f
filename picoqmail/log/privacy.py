"""Keeping addresses out of the log, as the setting logprivacy asks. Pure."""

from __future__ import annotations

import re

from picoqmail.layout import VERP_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHOICES = ("off", "local", "all")
_ADDRESSES = frozenset({"sender", "recipient", "recipients", "to"})
_ANY_ADDRESS = re.compile(
    r"(?:\"(?:[^\"\\]|\\.)*\"|[^\s<>\"'(),;:\[\]=]+)@(\[[^\]\s]*\]|[^\s<>\"'(),;:\[\]=]+)"
)


def mask(facts: dict[str, Any], how: str) -> dict[str, Any]:
    """Return the facts of an event without local parts (`local`) or without addresses (`all`).

    The null sender stays, because it names nobody. In other texts, such as a relay's reply, every
    string that looks like an address is masked.
    """
    return {name: _masked(value, how, whole=name in _ADDRESSES) for name, value in facts.items()}


def _masked(value: object, how: str, *, whole: bool) -> object:
    if isinstance(value, list | tuple):
        return [_masked(one, how, whole=whole) for one in value]
    if not isinstance(value, str) or not value:
        return value
    if not whole:
        return _ANY_ADDRESS.sub(lambda found: _hidden(found[1], how), value)
    _, at, domain = value.removesuffix(VERP_END).rpartition("@")
    return _hidden(domain if at else "", how)


def _hidden(domain: str, how: str) -> str:
    return f"*@{domain}" if domain and how == "local" else "*"
