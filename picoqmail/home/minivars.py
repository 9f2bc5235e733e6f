"""Reading `control/minivars`: the assignments that a shell understands, without the shell. Pure.

Apart from control.py, because few homes have that file and each mail reads control files.
"""

from __future__ import annotations

from picoqmail.errors import ConfigurationError

_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_MINIVARS_BLANKS = " \t\r\n\f\v"


def parse_minivars(path: str, text: str) -> dict[str, list[tuple[str, int]]]:
    """Return the lines of each variable, with their numbers; a later assignment wins.

    Understood: blank lines, `#` comments, an `export` in front, single and double quotes, a
    backslash. A value may go on over several lines inside quotes; each is a line of the setting.
    An expansion (`$`, a backquote) is an error: it would not be what a shell makes of it.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    position, line = 0, 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        stripped = text[position:end].strip(_MINIVARS_BLANKS)
        if not stripped or stripped[0] == "#":
            position, line = end + 1, line + 1
            continue
        start = position + text[position:end].index(stripped[0])
        if stripped.startswith("export "):
            start += len("export ")
            while text[start] in " \t":
                start += 1
        equals = text.find("=", start, end)
        name = text[start:equals] if equals >= 0 else ""
        if not name or not _NAME_CHARACTERS.issuperset(name):
            raise ConfigurationError(
                f"{path}:{line}", "is not NAME=value", "names are upper case, no blanks around ="
            )
        begin = position
        value, position = _shell_word(path, text, equals + 1, line)
        found[name] = [
            (part.rstrip(_MINIVARS_BLANKS), line + offset)
            for offset, part in enumerate(value.split("\n"))
            if part.strip(_MINIVARS_BLANKS)
        ]
        line += text.count("\n", begin, position)
    return found


def _shell_word(path: str, text: str, position: int, line: int) -> tuple[str, int]:
    """Return one word as a shell reads it, without expansion, and where the next line begins."""
    where = f"{path}:{line}"
    word: list[str] = []
    while position < len(text) and text[position] not in _MINIVARS_BLANKS:
        if text[position] == "'":
            piece, position = _single_quoted(where, text, position)
        elif text[position] == '"':
            piece, position = _double_quoted(where, text, position)
        elif text[position] == "\\":
            escaped = text[position + 1 : position + 2]
            piece, position = "" if escaped == "\n" else escaped or "\\", position + 2
        else:
            piece, position = _plain(where, text[position]), position + 1
        word.append(piece)
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    rest = text[position:end].strip(_MINIVARS_BLANKS)
    if rest and rest[0] != "#":
        # Not quoted: it may be the second half of a password.
        raise ConfigurationError(where, "has more words after the value", "put the value in quotes")
    return "".join(word), end + 1


def _plain(where: str, char: str) -> str:
    if char in "$`":
        raise ConfigurationError(
            where, f"{char} is not expanded here", "put the value in single quotes"
        )
    return char


def _single_quoted(where: str, text: str, position: int) -> tuple[str, int]:
    end = text.find("'", position + 1)
    if end < 0:
        raise ConfigurationError(where, "the quote ' is never closed")
    return text[position + 1 : end], end + 1


def _double_quoted(where: str, text: str, position: int) -> tuple[str, int]:
    word: list[str] = []
    position += 1
    while position < len(text):
        char = text[position]
        if char == '"':
            return "".join(word), position + 1
        if char == "\\":
            escaped = text[position + 1 : position + 2]
            # Before anything else the backslash stays (POSIX shell, 2.2.3).
            kept = "" if escaped in '"\\$`\n' else char
            word.append(kept + escaped.replace("\n", ""))
            position += 2
        else:
            word.append(_plain(where, char))
            position += 1
    raise ConfigurationError(where, 'the quote " is never closed')
