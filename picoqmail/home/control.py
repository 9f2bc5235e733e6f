"""Reading control files and minivars: the text of a setting and where it stands, no meaning.

One value a file under `control/`, as in qmail: lines whose first character is `#` are comments,
trailing blanks and blank lines are ignored. The same name in upper case may stand in
`control/minivars` as `NAME=value`; a file of its own wins. Nothing is ever executed.
"""

from __future__ import annotations

import posix

from picoqmail.errors import ConfigurationError

MINIVARS = "minivars"
READ_AT_ONCE = 4096
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_BLANK_CHARACTERS = " \t\r\n\f\v"


class ControlValue:
    """What stands in one setting: `lines` are pairs of text and its line number, in order."""

    __slots__ = ("lines", "path")

    def __init__(self, path: str, lines: list[tuple[str, int]]) -> None:
        """`path` is the file that the lines were read from."""
        self.path = path
        self.lines = lines

    @property
    def text(self) -> str:
        """The first line, which is the whole value of most settings; "" if there is none."""
        return self.lines[0][0] if self.lines else ""

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each line with its `file:line`."""
        return [(text, f"{self.path}:{number}") for text, number in self.lines]

    def where(self, index: int = 0) -> str:
        """`file:line` of a line, for messages and for `picoqmail config`."""
        return f"{self.path}:{self.lines[index][1]}" if self.lines else self.path


class Control:
    """The control directory of one home; minivars is read at most once, and only if needed."""

    __slots__ = ("_minivars", "directory")

    def __init__(self, directory: str) -> None:
        """`directory` is `Home.control`."""
        self.directory = directory
        self._minivars: dict[str, ControlValue] | None = None

    def read(self, name: str) -> ControlValue | None:
        """The setting `name` (lower case), or None where neither file nor variable gives it.

        Raises ConfigurationError for a file that cannot be read or is not UTF-8.
        """
        path = f"{self.directory}/{name}"
        text = read_text(path)
        if text is not None:
            return ControlValue(path, plain_lines(text))
        return self.minivars().get(name.upper())

    def minivars(self) -> dict[str, ControlValue]:
        """All of `control/minivars`, by upper-case name; empty where there is no such file."""
        if self._minivars is None:
            path = f"{self.directory}/{MINIVARS}"
            text = read_text(path)
            self._minivars = {} if text is None else parse_minivars(path, text)
        return self._minivars


def read_text(path: str) -> str | None:
    """The text of a control file, None if there is none. Raises ConfigurationError."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigurationError(path, f"cannot be opened: {exc.strerror}") from exc
    try:
        try:
            blocks = []
            while block := posix.read(descriptor, READ_AT_ONCE):
                blocks.append(block)
        finally:
            posix.close(descriptor)
    except OSError as exc:
        raise ConfigurationError(path, f"cannot be read: {exc.strerror}") from exc
    try:
        return b"".join(blocks).decode()
    except UnicodeDecodeError as exc:
        line = b"".join(blocks)[: exc.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}:{line}", "is not UTF-8 text") from exc


def plain_lines(text: str) -> list[tuple[str, int]]:
    """The lines of a control file that say something, with their numbers from 1."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip(_BLANK_CHARACTERS + "\0")  # noqa: PLW2901 - the stripped line is the line
        if line and line[0] != "#":
            found.append((line, number))
    return found


def parse_minivars(path: str, text: str) -> dict[str, ControlValue]:
    """Parse shell-like assignments; a later one of the same name wins, as in a shell.

    Understood: blank lines, `#` comments, an `export` in front, single and double quotes, a
    backslash. A value may go on over several lines inside quotes; each is a line of the setting.
    An expansion (`$`, a backquote) is an error: it would not be what a shell makes of it.
    """
    found: dict[str, ControlValue] = {}
    position, line = 0, 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        stripped = text[position:end].strip(_BLANK_CHARACTERS)
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
        value, position = _shell_word(path, text, equals + 1, line)
        lines = [
            (part.rstrip(_BLANK_CHARACTERS), line + offset)
            for offset, part in enumerate(value.split("\n"))
            if part.strip(_BLANK_CHARACTERS)
        ]
        found[name] = ControlValue(path, lines)
        line = text.count("\n", 0, position) + 1
    return found


def _shell_word(path: str, text: str, position: int, line: int) -> tuple[str, int]:
    """One word as a shell would read it, without expansion; and where the next line begins."""
    where = f"{path}:{line}"
    word: list[str] = []
    while position < len(text) and text[position] not in _BLANK_CHARACTERS:
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
    rest = text[position:end].strip(_BLANK_CHARACTERS)
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


def number_of(value: ControlValue | None, default: int, name: str, most: int) -> int:
    """The value as a whole number from 0 to `most`. Raises ConfigurationError."""
    if value is None:
        return default
    text = value.text
    # Python refuses to convert absurd lengths in its own way, so they are told before.
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most)) + 20
    if not is_number or int(text) > most:
        raise ConfigurationError(
            value.where(), f"{name} is {text[:60]!a}", f"a whole number from 0 to {most} is allowed"
        )
    return int(text)


def own_host_name(control: Control) -> str:
    """The mandatory setting `me`: this host's name. Raises ConfigurationError.

    Checked here because it becomes part of file names and of header lines.
    """
    value = control.read("me")
    if value is None or not value.text:
        raise ConfigurationError(
            f"{control.directory}/me",
            "does not say this host's name",
            "write it there, or run: picoqmail init --me NAME",
        )
    try:
        return check_host(value.text)
    except ValueError as exc:
        raise ConfigurationError(value.where(), str(exc), "a host name in ASCII") from None


_LONGEST_HOST = 253
_LONGEST_LABEL = 63
_LABEL_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_LITERAL_CHARACTERS = frozenset("0123456789abcdefABCDEFIPv:.")


def check_host(text: str) -> str:
    """Return a host name, or an address literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]`.

    Raises ValueError: it stands in SMTP commands and header lines, where nothing else is legal
    (RFC 5321 4.1.2, 4.1.3). Names in other scripts are wanted in their `xn--` form.
    """
    if text[:1] == "[" and text[-1:] == "]" and _LITERAL_CHARACTERS.issuperset(text[1:-1]):
        return text
    if not text.isascii():
        raise ValueError(f"{text!r} is not ASCII: give the xn-- form of the name")
    name = text.removesuffix(".")
    if not 1 <= len(name) <= _LONGEST_HOST:
        raise ValueError(f"a host name has 1 to {_LONGEST_HOST} characters, this has {len(name)}")
    for label in name.split("."):
        if not 1 <= len(label) <= _LONGEST_LABEL:
            raise ValueError(f"{text!r} has an empty or overlong part between its dots")
        if not _LABEL_CHARACTERS.issuperset(label):
            raise ValueError(f"{text!r} holds a character that no host name has")
    return name
