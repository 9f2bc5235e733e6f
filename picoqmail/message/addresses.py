"""Addresses in text, read as RFC 5322 section 3.4 writes them: whole, or not at all.

A reader that finds only the first address of `a@x; b@y` loses the second in silence. So a text is
either understood to its last character or refused. Obsolete forms are understood: routes, empty
elements, dots in names, blanks and comments anywhere. Local parts with a dot too many (`a..b`) are
taken, because mailboxes of that kind exist. Pure.

qmail's own reading, where blanks separate addresses and a lone name gets a host, is in `tokens`.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from picoqmail.errors import AddressError, HeaderError
from picoqmail.layout import DOUBLE_BOUNCE, VERP_END
from picoqmail.message.tokens import quote_address

# Kinds of tokens: the special characters are themselves.
_WORD, _QUOTED, _LITERAL = "word", "quoted", "literal"
_TOKEN = re.compile(
    r"""(?P<word>[^ \t\r\n()<>\[\]@,;:.\\"\x00-\x1f\x7f]+)
      | "(?P<quoted>(?:[^"\\]|\\.)*)"
      | (?P<literal>\[(?:[^\[\]\\\s]|\\.)*\])
      | (?P<special>[<>@,;:.])
      | (?P<blank>[ \t\r\n]+)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK = re.compile(r"[()]|\\.", re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_ADDRESS = re.compile(
    r'[^\s()<>\[\]@,;:\\"\x00-\x1f\x7f]+@(?:[^\s()<>\[\]@,;:\\"]+|\[[^\[\]\s]*\])'
)
_QUOTED_ADDRESS = re.compile(r'"((?:[^"\\]|\\.)*)"@([^\s()<>@,;:\\"]+)', re.DOTALL)
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=")
# Zero-width joiners are part of some scripts' spelling; nowhere else.
_JOINERS = "\u200c\u200d"
_UNREADABLE = "\ufffd"
_UNSEEN = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))

Token = tuple[str, str]


def read_list(where: str, text: str) -> list[str]:
    """Return the raw addresses of a list, groups included. An address without a host stays without.

    Raises HeaderError, which names `where` ("header field To") and the text.
    """
    tokens = _tokens(text)
    found = None if tokens is None else _List(tokens).read()
    if found is None:
        raise not_understood(where, text)
    return seen(where, text, found)


def not_understood(where: str, text: str) -> HeaderError:
    """Return the error of a field that does not hold a list of addresses."""
    found = text.strip()[:200]
    return HeaderError(f"the {where} is not a list of addresses: {found!a}; correct it")


def seen(where: str, text: str, addresses: list[str]) -> list[str]:
    """Return the same addresses. Raises HeaderError if one holds an invisible character."""
    for one in addresses:
        stray = _unseen(one)
        if stray:
            raise HeaderError(
                f"the {where} has an address with a character that cannot be seen or read, "
                f"{stray!a}: {text.strip()[:200]!a}; correct it"
            )
    return addresses


def read_one(text: str, index: int | None = None) -> str:
    """Return the raw form of one address alone, without name, brackets, comments or outer blanks.

    A local part may be a quoted string. A text without `@` is returned as it is; so are senders
    of qmail's that are not addresses. Raises AddressError, with `index` of the recipient.
    """
    if "@" not in text or text == DOUBLE_BOUNCE or text.endswith(VERP_END):
        return text
    if _ADDRESS.fullmatch(text):
        raw = text
    elif quoted := _QUOTED_ADDRESS.fullmatch(text):
        raw = _QUOTED_PAIR.sub(r"\1", quoted[1]) + "@" + quoted[2]
    else:
        raise AddressError(_why_not_one(text), text, index)
    stray = _unseen(raw)
    if stray:
        raise AddressError(
            f"it holds a character that cannot be seen or read, {stray!a}", text, index
        )
    return raw


def write_one(raw: str) -> str:
    """Return the raw address as RFC 5321 section 4.1.2 writes it, quoted where it must be.

    `read_one` reads it back.
    """
    octets = raw.encode("utf-8", "surrogateescape")
    return quote_address(octets).decode("utf-8", "surrogateescape")


def _why_not_one(text: str) -> str:
    if text != text.strip():
        return "it has a blank before or behind it"
    if any(one in text for one in "<>()"):
        return "it is not an address alone: a name, brackets or a comment have no place here"
    return "it is not one address: one name, an @ and one domain; quote a name that needs it"


# --- Inside ------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Token] | None:
    """Return the text's tokens without blanks and comments; None if it cannot be cut."""
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        if text[position] == "(":
            position = _end_of_comment(text, position)
            if position < 0:
                return None
            continue
        found = _TOKEN.match(text, position)
        if found is None:
            return None
        position = found.end()
        kind = found.lastgroup or ""
        if kind == "special":
            tokens.append((found[0], found[0]))
        elif kind == "quoted":
            tokens.append((kind, _QUOTED_PAIR.sub(r"\1", found["quoted"])))
        elif kind != "blank":
            tokens.append((kind, found[0]))
    return tokens


def _end_of_comment(text: str, position: int) -> int:
    """Return the place behind the comment that begins here; -1 if it does not end."""
    depth = 0
    for mark in _COMMENT_MARK.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(mark[0], 0)
        if not depth:
            return mark.end()
    return -1


class _List:
    """One walk through the tokens of an address list, from left to right."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._found: list[str] = []

    def read(self) -> list[str] | None:
        """Return all addresses; None if it is not a list."""
        return self._found if self._elements(in_group=False) else None

    def _elements(self, *, in_group: bool) -> bool:
        """Read the elements between commas, some of them empty, to the end of the list or group."""
        while self._at < len(self._tokens):
            kind = self._tokens[self._at][0]
            if kind == ",":
                self._at += 1
            elif kind == ";":
                return in_group
            elif not self._element(in_group=in_group) or not self._ends():
                return False
        return not in_group

    def _ends(self) -> bool:
        """Say whether the element that was read ends here."""
        return self._at >= len(self._tokens) or self._tokens[self._at][0] in ",;"

    def _element(self, *, in_group: bool) -> bool:
        before = self._until("<:,;")
        ahead = self._tokens[self._at][0] if self._at < len(self._tokens) else ""
        if ahead == "<":
            self._at += 1
            return _is_phrase(before) and self._angle()
        if ahead == ":":
            self._at += 1
            if in_group or not before or not _is_phrase(before):
                return False
            if not self._elements(in_group=True):
                return False
            self._at += 1
            return True
        return self._address(before)

    def _angle(self) -> bool:
        """Return an address in angle brackets, behind the route that RFC 822 had."""
        inside = self._until(">")
        if self._at >= len(self._tokens):
            return False
        self._at += 1
        if inside and inside[0][0] == "@":
            colons = [n for n, one in enumerate(inside) if one[0] == ":"]
            if len(colons) != 1:
                return False
            return self._address(inside[colons[0] + 1 :])
        if not inside:
            self._found.append("")
            return True
        return self._address(inside)

    def _address(self, tokens: list[Token]) -> bool:
        at = [n for n, one in enumerate(tokens) if one[0] == "@"]
        if len(at) > 1 or not tokens:
            return False
        local = tokens[: at[0]] if at else tokens
        domain = tokens[at[0] + 1 :] if at else []
        if not local or not _is_dotted(local) or bool(at) != bool(domain):
            return False
        if len(domain) > 1 or (domain and domain[0][0] != _LITERAL):
            # No dot begins or ends it, and none follows another.
            kinds = [one[0] for one in domain]
            if kinds != [_WORD, *[".", _WORD] * (len(kinds) // 2)]:
                return False
        self._found.append("".join(text for _, text in tokens))
        # An encoded word is not part of an address (RFC 2047 section 5), and hides what is one.
        return not any(
            kind == _WORD and _ENCODED_WORD.search(text) for kind, text in (*local, *domain)
        )

    def _until(self, kinds: str) -> list[Token]:
        start = self._at
        while self._at < len(self._tokens) and self._tokens[self._at][0] not in kinds:
            self._at += 1
        return self._tokens[start : self._at]


def _is_phrase(tokens: list[Token]) -> bool:
    """Return whether they are the words of a name; dots among them are obsolete but common."""
    return all(kind in (_WORD, _QUOTED, ".") for kind, _ in tokens)


def _is_dotted(tokens: list[Token]) -> bool:
    """Return whether they are words with dots between, so that no two words are side by side."""
    words = [kind in (_WORD, _QUOTED) for kind, _ in tokens]
    return (
        any(words)
        and all(kind in (_WORD, _QUOTED, ".") for kind, _ in tokens)
        and not any(first and second for first, second in pairwise(words))
    )


def _unseen(address: str) -> str:
    """Return a blank or mark that nobody sees, or what stands for octets that nobody could read.

    Empty if there is none. ASCII's own are judged elsewhere.
    """
    if address.isprintable() and _UNREADABLE not in address:
        return ""
    for index, one in enumerate(address):
        if one == _UNREADABLE:
            return one
        if one.isascii() or unicodedata.category(one) not in _UNSEEN:
            continue
        around = address[index - 1 : index] + address[index + 1 : index + 2]
        joins = len(around) == 2 and not any(c.isascii() for c in around)
        if one not in _JOINERS or not joins:
            return one
    return ""
