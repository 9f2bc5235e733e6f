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
        """Return the setting `name` (lower case), or None where neither file nor variable gives it.

        Raises ConfigurationError for a file that cannot be read or is not UTF-8.
        """
        path = f"{self.directory}/{name}"
        text = read_text(path)
        if text is not None:
            return ControlValue(path, plain_lines(text))
        return self.minivars().get(name.upper())

    def minivars(self) -> dict[str, ControlValue]:
        """Return all of `control/minivars`, by upper-case name; empty if there is no such file."""
        if self._minivars is None:
            path = f"{self.directory}/{MINIVARS}"
            text = read_text(path)
            self._minivars = {} if text is None else _parse_minivars(path, text)
        return self._minivars


def read_text(path: str) -> str | None:
    """Return the text of a control file, None if there is none. Raises ConfigurationError."""
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
    """Return the lines of a control file that say something, with their numbers from 1."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip(_BLANK_CHARACTERS + "\0")  # noqa: PLW2901 - the stripped line is the line
        if line and line[0] != "#":
            found.append((line, number))
    return found


def _parse_minivars(path: str, text: str) -> dict[str, ControlValue]:
    from picoqmail.importing import importing

    with importing:
        from picoqmail.home.minivars import parse_minivars
    found = parse_minivars(path, text)
    return {name: ControlValue(path, lines) for name, lines in found.items()}


def number_of(value: ControlValue | None, default: int, name: str, most: int) -> int:
    """Return the value as a whole number from 0 to `most`. Raises ConfigurationError."""
    if value is None:
        return default
    text = value.text
    # Python would refuse to convert absurd lengths in its own way, so they are refused before.
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most)) + 20
    if not is_number or int(text) > most:
        raise ConfigurationError(
            value.where(), f"{name} is {text[:60]!a}", f"a whole number from 0 to {most} is allowed"
        )
    return int(text)


def own_host_name(control: Control) -> str:
    """Return the mandatory setting `me`: this host's name. Raises ConfigurationError.

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
