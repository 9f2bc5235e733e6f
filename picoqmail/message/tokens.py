"""RFC 822 address tokens, cut, listed and written as qmail does it.

Only pure functions over `bytes` may live here: no file, no environment, no knowledge of which
header field a line is. Every function takes any bytes, never raises on them, and needs time and
memory proportional to their length.

A token is a pair `(kind, text)`; `text` is empty for the one-character kinds. The dialect is
that of qmail's addresses(5) and qmail-header(5): a superset of RFC 822 where blanks between words
separate addresses, and where lists are read from right to left.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Token = tuple[int, bytes]
    Rewrite = Callable[[list[Token]], None]

ATOM, QUOTE, LITERAL, COMMENT, LEFT, RIGHT, AT, DOT, COMMA, SEMICOLON, COLON = range(1, 12)

LINE_WIDTH = 80
"""Columns that a rewritten field may fill before it is folded after a comma (qmail's value)."""

WORDS = (ATOM, QUOTE, LITERAL)
_TEXTS = (ATOM, QUOTE, LITERAL, COMMENT)
_PHRASE = (COMMENT, ATOM, QUOTE, AT, DOT)

_SIGNS = {
    LEFT: b"<",
    RIGHT: b">",
    AT: b"@",
    DOT: b".",
    COMMA: b",",
    SEMICOLON: b";",
    COLON: b":",
}
_SINGLES: dict[int, Token] = {sign[0]: (kind, b"") for kind, sign in _SIGNS.items()}
_COMMA_TOKEN: Token = (COMMA, b"")

_BACKSLASH = 0x5C
_WHITE_SPACE = b" \t\r\n"
_MARK = b"\x01"


def _marks(stops: bytes) -> bytes:
    """Make a table for `bytes.translate` that leaves a mark at each of `stops`.

    Finding the next mark runs in C; a Python loop over the characters of a long field would not.
    """
    table = bytearray(256)
    for byte in stops:
        table[byte] = 1
    return bytes(table)


_ATOM_STOPS = _marks(b' \t\r\n(["<>;:@,.\\')
_COMMENT_STOPS = _marks(b"()\\")
_QUOTE_STOPS = _marks(b'"\\')
_LITERAL_STOPS = _marks(b"]\\")

# What an atom may hold unquoted; the other octets turn it into a quoted string.
_ATOM_PLAIN = bytes(range(32, 127)).translate(None, b")]\\")

# The octets that get a backslash when a word or a comment is written.
_ESCAPED = b'"[]()\\\r\n'
_BOX_ESCAPED = b'\r\n"\\'
_BOX_PLAIN = b"!#$%&'*+-./0123456789=?ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz{|}~"


def _enclosed(data: bytes, marks: bytes, position: int, opening: int) -> tuple[bytes, int]:
    """Return the text that starts at `position` and the place after its end, -1 if it has none.

    `opening` is the byte that nests, or -1 where nothing does. Nested brackets are dropped from
    the text, as qmail drops them.
    """
    pieces = []
    level = 1
    while True:
        mark = marks.find(_MARK, position)
        if mark < 0:
            return b"", -1
        pieces.append(data[position:mark])
        position = mark + 1
        byte = data[mark]
        if byte == _BACKSLASH:
            if position >= len(data):
                return b"", -1
            pieces.append(data[position : position + 1])
            position += 1
        elif byte == opening:
            level += 1
        else:
            level -= 1
            if not level:
                return b"".join(pieces), position


def _atom(data: bytes, marks: bytes, position: int) -> tuple[Token, int]:
    """Return the atom at `position` and the place after it."""
    pieces = []
    search = position
    while True:
        mark = marks.find(_MARK, search)
        if mark < 0:
            pieces.append(data[position:])
            position = len(data)
            break
        pieces.append(data[position:mark])
        position = mark
        if data[mark] != _BACKSLASH:
            break
        position = mark + 1
        # Whatever follows a backslash is plain text, also a stop.
        search = mark + 2
    text = b"".join(pieces)
    return (QUOTE if text.translate(None, _ATOM_PLAIN) else ATOM, text), position


def parse(data: bytes) -> list[Token] | None:
    """Cut `data` into tokens; None if a bracket or quote is unbalanced.

    Blanks only separate. A backslash quotes the next byte anywhere. `)` and `]` are errors at
    the start of a token, and ordinary characters inside an atom, which they turn into a quoted
    string (so do control characters and bytes above 126). Follows qmail's addresses(5).
    """
    tokens: list[Token] = []
    atom_marks = data.translate(_ATOM_STOPS)
    enclosed_marks: dict[int, bytes] = {}
    position = 0
    size = len(data)
    while position < size:
        byte = data[position]
        single = _SINGLES.get(byte)
        if single is not None:
            tokens.append(single)
            position += 1
        elif byte in _WHITE_SPACE:
            position += 1
        elif byte in b")]":
            return None
        elif byte in b'("[':
            kind, stops, opening = _ENCLOSURES[byte]
            marks = enclosed_marks.get(byte)
            if marks is None:
                marks = enclosed_marks[byte] = data.translate(stops)
            text, position = _enclosed(data, marks, position + 1, opening)
            if position < 0:
                return None
            tokens.append((kind, text))
        else:
            token, position = _atom(data, atom_marks, position)
            tokens.append(token)
    return tokens


_ENCLOSURES = {
    ord("("): (COMMENT, _COMMENT_STOPS, ord("(")),
    ord('"'): (QUOTE, _QUOTE_STOPS, -1),
    ord("["): (LITERAL, _LITERAL_STOPS, -1),
}
_BRACKETS = {QUOTE: (b'"', b'"'), LITERAL: (b"[", b"]"), COMMENT: (b"(", b")")}


def _escape(text: bytes, specials: bytes) -> bytes:
    """Put a backslash before each of `specials` in `text`."""
    if len(text.translate(None, specials)) == len(text):
        return text
    out = bytearray()
    for byte in text:
        if byte in specials:
            out.append(_BACKSLASH)
        out.append(byte)
    return bytes(out)


def _space_between(before: int, after: int) -> bool:
    """Say whether a blank stands between tokens of these kinds in a written field."""
    return (
        before in (COLON, COMMA)
        or (after == LEFT and before != 0)
        or (before in _TEXTS and after in _TEXTS)
    )


def unparse(tokens: list[Token], width: int = LINE_WIDTH) -> bytes:
    r"""Write the tokens as one header field, ended by a newline.

    Lines are broken only after commas, with two blanks at the start of the next, so that no line
    with more than one address fills more than `width` - 2 columns.
    """
    segments = []
    pieces = []
    before = 0
    for kind, text in tokens:
        if _space_between(before, kind):
            pieces.append(b" ")
        before = kind
        if kind in _TEXTS:
            opening, closing = _BRACKETS.get(kind, (b"", b""))
            pieces.append(opening + _escape(text, _ESCAPED) + closing)
        else:
            pieces.append(_SIGNS[kind])
            if kind == COMMA:
                segments.append(b"".join(pieces))
                pieces.clear()
    segments.append(b"".join(pieces))

    lines = []
    line = segments[:1]
    used = len(segments[0])
    for segment in segments[1:]:
        # The room for a fold is counted even where none is made: that is where qmail breaks.
        if used + 2 + len(segment) <= width:
            line.append(segment)
            used += len(segment)
        else:
            lines.append(b"".join(line))
            line = [b" ", segment]
            used = 1 + len(segment)
    lines.append(b"".join(line))
    return b"\n".join(lines) + b"\n"


def unquote(tokens: list[Token]) -> bytes:
    """Return the tokens of one address as the raw address, without quotes and comments."""
    pieces = []
    for kind, text in tokens:
        if kind == LITERAL:
            pieces.append(b"[" + text + b"]")
        elif kind in WORDS:
            pieces.append(text)
        elif kind != COMMENT:
            pieces.append(_SIGNS[kind])
    return b"".join(pieces)


class _Listing:
    """The output of one walk through an address list, from right to left."""

    __slots__ = ("address", "out", "rewrite")

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite = rewrite
        self.out: list[Token] = []
        self.address: list[Token] = []

    def finish(self) -> None:
        """Rewrite the address gathered so far, even an empty one, and put it out."""
        self.rewrite(self.address)
        self.out.extend(self.address)
        self.address.clear()

    def flush(self, *, comma: bool = False) -> None:
        """Finish the address gathered so far, if there is one; `comma`: and separate it."""
        if self.address:
            self.finish()
            if comma:
                self.out.append(_COMMA_TOKEN)


def address_list(tokens: list[Token], rewrite: Rewrite, start: int = 2) -> list[Token] | None:
    """Call `rewrite` for each address of a list, last address first; return the new field.

    `rewrite` gets the tokens of one address **in reverse** and changes that list in place.
    `tokens[:start]` (a field's name and its colon) are kept as they are. None means that the
    list is no list (a colon or semicolon that belongs to no group, a `>` without `<`); the
    addresses to the right of the error have been rewritten by then, as with qmail.
    """
    listing = _Listing(rewrite)
    out = listing.out
    in_group = False
    word_ok = True
    at = len(tokens) - 1
    while at >= start:
        kind = tokens[at][0]
        if kind in WORDS:
            if not word_ok:
                listing.flush(comma=True)
            word_ok = False
            listing.address.append(tokens[at])
        elif kind == COMMENT:
            # Lexically a blank: it neither ends an address nor starts one.
            out.append(tokens[at])
        elif kind == COMMA:
            listing.flush()
            word_ok = True
            out.append(tokens[at])
        elif kind == SEMICOLON:
            listing.flush(comma=True)
            if in_group:
                return None
            in_group = word_ok = True
            out.append(tokens[at])
        elif kind == COLON:
            listing.flush()
            if not in_group:
                return None
            in_group = False
            word_ok = True
            at = _group_name(tokens, at, start, out)
            continue
        elif kind == RIGHT:
            listing.flush(comma=True)
            at = _angle(tokens, at, start, listing)
            if at < 0:
                return None
            word_ok = False
            continue
        else:
            word_ok = True
            listing.address.append(tokens[at])
        at -= 1
    listing.flush()
    out.extend(reversed(tokens[:start]))
    out.reverse()
    return out


def parts_by_blanks(tokens: list[Token], listed: list[Token]) -> bool:
    """Say whether only blanks part some addresses: `address_list` has put commas there."""
    return listed.count(_COMMA_TOKEN) > tokens.count(_COMMA_TOKEN)


def _group_name(tokens: list[Token], at: int, start: int, out: list[Token]) -> int:
    """Copy the name of a group, from its colon to the comma before it; return what is next."""
    while at >= start:
        out.append(tokens[at])
        at -= 1
        if out[-1][0] == COMMA:
            break
    return at


def _angle(tokens: list[Token], at: int, start: int, listing: _Listing) -> int:
    """Rewrite `<address>` and copy the phrase before it; return what is next, -1 on an error."""
    out = listing.out
    out.append(tokens[at])
    at -= 1
    while at >= start and tokens[at][0] != LEFT:
        listing.address.append(tokens[at])
        at -= 1
    listing.finish()
    if at < start:
        return -1
    out.append(tokens[at])
    at -= 1
    while at >= start and tokens[at][0] in _PHRASE:
        out.append(tokens[at])
        at -= 1
    return at


def needs_quotes(box: bytes) -> bool:
    """Say whether the raw local part `box` can only be written as a quoted string."""
    return (
        not box
        or bool(box.translate(None, _BOX_PLAIN))
        or box.startswith(b".")
        or box.endswith(b".")
        or b".." in box
    )


def quote_address(address: bytes) -> bytes:
    """Return the raw `address` as it is written in a header or an SMTP command (RFC 5321 4.1.2).

    Only what is before the last `@` is quoted, and only if it must be. The empty address stays
    empty.
    """
    if not address:
        return address
    box, at, host = address.rpartition(b"@")
    if not at:
        box, host = host, b""
    if needs_quotes(box):
        box = b'"' + _escape(box, _BOX_ESCAPED) + b'"'
    return box + at + host
