"""Keeping addresses out of the log, as the setting logprivacy asks. Pure."""

from __future__ import annotations

import re

from picoqmail.layout import VERP_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHOICES = ("off", "local", "all")
_ADDRESSES = frozenset({"sender", "recipient", "recipients", "to"})
# Each match takes all that it can, so that a long text costs one pass, whatever is in it. They are
# compiled when first needed, because most logs mask nothing.
_ADDRESS_WORDS = r"[^\s<>\"'(),;:\[\]=]+"
_DOMAIN_LITERAL = r"\[[^\]\s]{0,255}\]"


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
        return _without_addresses(value, how)
    _, at, domain = value.removesuffix(VERP_END).rpartition("@")
    return _hidden(domain if at else "", how)


def _without_addresses(text: str, how: str) -> str:
    """Return a text in which every address is masked; linear in its length."""
    parts: list[str] = []
    done = 0
    for found in re.finditer(_ADDRESS_WORDS, text):
        word = found[0]
        if "@" not in word:
            continue
        start, end = found.span()
        local, _, domain = word.rpartition("@")
        if not domain and (literal := re.compile(_DOMAIN_LITERAL).match(text, end)):
            domain, end = literal[0], literal.end()
        if not local:
            start = _opening_quote(text, start, done) if domain else -1
            if start < 0:
                continue
        parts += (text[done:start], _hidden(domain, how))
        done = end
    return "".join((*parts, text[done:]))


def _opening_quote(text: str, end: int, least: int) -> int:
    """Return where the quoted string that ends before `end` begins, -1 if none does."""
    if text[end - 1 : end] != '"' or _is_escaped(text, end - 1, least):
        return -1
    start = text.rfind('"', least, end - 1)
    while start >= 0 and _is_escaped(text, start, least):
        start = text.rfind('"', least, start)
    return start


def _is_escaped(text: str, place: int, least: int) -> bool:
    first = place
    while first > least and text[first - 1] == "\\":
        first -= 1
    return (place - first) % 2 == 1


def _hidden(domain: str, how: str) -> str:
    return f"*@{domain}" if domain and how == "local" else "*"
