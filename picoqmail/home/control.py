"""Reading control files and minivars: the text of a setting and where it stands, no meaning.

One value a file under `control/`, as in qmail: lines whose first character is `#` are comments,
trailing blanks and blank lines are ignored. The same name in upper case may stand in
`control/minivars` as `NAME=value`; a file of its own wins. Nothing is ever executed.

What others could have written is not read: hands.py says who others are. Files are judged by the
descriptor that they are read from.
"""

from __future__ import annotations

import errno
import posix

from picoqmail.errors import ConfigurationError
from picoqmail.home.hands import check_hands, check_way, is_plain_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MINIVARS = "minivars"
# Settings whose values may hold a password: their files are private.
SECRETS = ("relaypass", "spool")
SECRET = "relaypass"  # noqa: S105 - the name of the setting
READ_AT_ONCE = 4096
MOST_CONTROL_OCTETS = 16 << 20
"""A control file may hold so many; one without an end would take all memory."""
_BLANK_CHARACTERS = " \t\r\n\f\v"


class ControlValue:
    """What stands in one setting: `lines` are pairs of text and its line number, in order."""

    __slots__ = ("lines", "mode", "path")

    def __init__(self, path: str, lines: list[tuple[str, int]], mode: int = 0o600) -> None:
        """`path` is the file that the lines were read from, and `mode` is its st_mode."""
        self.path = path
        self.lines = lines
        self.mode = mode

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
    """The control directory of one home; each file is read at most once, and only if needed."""

    __slots__ = ("_is_checked", "_minivars", "_trusted", "_uid", "_values", "directory")

    def __init__(
        self, directory: str, trusted: Iterable[int] = (), *, is_checked: bool = False
    ) -> None:
        """`directory` is `Home.control`.

        `trusted` are users who may own files in it, besides root and the user of this process.
        `is_checked`: the way to it was judged just now, for the user of this process.
        """
        self.directory = directory
        self._minivars: dict[str, ControlValue] | None = None
        self._values: dict[str, ControlValue] = {}
        self._uid = posix.geteuid()
        self._trusted = {0, self._uid, *trusted}
        self._is_checked = is_checked

    def read(self, name: str) -> ControlValue | None:
        """Return the setting `name` (lower case), or None where neither file nor variable gives it.

        Raises ConfigurationError for a file that cannot be read, is not UTF-8, or could have been
        written by others.
        """
        if name in self._values:
            return self._values[name]
        found = self._read(name)
        if found is None:
            return self.minivars().get(name.upper())
        text, mode = found
        value = ControlValue(f"{self.directory}/{name}", plain_lines(text), mode)
        self._values[name] = value
        return value

    def text(self, name: str) -> str | None:
        """Return the text of one file, None if there is none. Raises as `read` does."""
        found = self._read(name)
        return None if found is None else found[0]

    def minivars(self) -> dict[str, ControlValue]:
        """Return all of `control/minivars`, by upper-case name; empty if there is no such file."""
        if self._minivars is None:
            found = self._read(MINIVARS)
            path = f"{self.directory}/{MINIVARS}"
            self._minivars = {} if found is None else _parse_minivars(path, *found)
        return self._minivars

    def _read(self, name: str) -> tuple[str, int] | None:
        """Return text and mode of a file, None if there is none."""
        path = f"{self.directory}/{name}"
        descriptor, is_link = _open_setting(path)
        try:
            if not self._is_checked:
                # Also if there is no file: others could have removed it.
                _check_way_of(self.directory, self._uid)
                self._is_checked = True
            if descriptor < 0:
                return None
            status = _status_of(path, descriptor)
            if not is_plain_file(status):
                raise ConfigurationError(
                    path, "cannot be read: it is no plain file", "move it away"
                )
            if name == SECRET:
                if is_link:
                    raise ConfigurationError(
                        path,
                        "is a link, and no secret is read through one",
                        "write it there itself, or a command that prints it: !cat /path",
                    )
                _check_owner_of_secret(path, status, self._trusted)
            else:
                check_hands(path, status, self._uid, self._trusted)
                if is_link:
                    _check_way_of(path, self._uid)
            return _read_to_end(path, descriptor), status.st_mode
        finally:
            if descriptor >= 0:
                posix.close(descriptor)


def _status_of(path: str, descriptor: int) -> posix.stat_result:
    try:
        return posix.fstat(descriptor)
    except OSError as exc:
        raise ConfigurationError(path, f"cannot be examined: {exc.strerror}") from exc


def read_text(path: str) -> str | None:
    """Return the text of a file, None if there is none. Raises ConfigurationError."""
    descriptor, _ = _open_setting(path)
    if descriptor < 0:
        return None
    try:
        return _read_to_end(path, descriptor)
    finally:
        posix.close(descriptor)


def _check_way_of(path: str, uid: int) -> None:
    try:
        check_way(path, uid)
    except OSError as exc:
        raise ConfigurationError(path, f"cannot be examined: {exc.strerror}") from exc


def _check_owner_of_secret(path: str, status: posix.stat_result, trusted: set[int]) -> None:
    """Raise ConfigurationError for a secret of another user's; its mode is judged by the reader."""
    if status.st_uid not in trusted:
        raise ConfigurationError(
            path,
            f"holds a password, and belongs to user {status.st_uid}",
            f"it must belong to user {posix.geteuid()}, who sends, or to root",
        )


_READING = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOCTTY | posix.O_NONBLOCK


def _open_setting(path: str) -> tuple[int, bool]:
    """Open a file for reading; return its descriptor, and whether a link led to it.

    -1 if there is none. Raises ConfigurationError.
    """
    try:
        return posix.open(path, _READING | posix.O_NOFOLLOW), False
    except FileNotFoundError:
        return -1, False
    except OSError as exc:
        problem = exc
    try:
        if problem.errno == errno.ELOOP:
            return posix.open(path, _READING), True
    except FileNotFoundError:
        return -1, True
    except OSError as exc:
        problem = exc
    raise ConfigurationError(path, f"cannot be opened: {problem.strerror}") from problem


def _read_to_end(path: str, descriptor: int) -> str:
    octets = b""
    try:
        blocks = []
        size = 0
        while block := posix.read(descriptor, READ_AT_ONCE):
            blocks.append(block)
            size += len(block)
            if size > MOST_CONTROL_OCTETS:
                raise ConfigurationError(
                    path, f"has more than {MOST_CONTROL_OCTETS} bytes", "shorten it"
                )
        octets = b"".join(blocks)
        return octets.decode()
    except OSError as exc:
        raise ConfigurationError(path, f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        line = octets[: exc.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}:{line}", "is not UTF-8 text") from exc


def plain_lines(text: str) -> list[tuple[str, int]]:
    """Return the lines of a control file that say something, with their numbers from 1."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip(_BLANK_CHARACTERS + "\0")  # noqa: PLW2901 - the stripped line is the line
        if line and line[0] != "#":
            found.append((line, number))
    return found


def _parse_minivars(path: str, text: str, mode: int) -> dict[str, ControlValue]:
    from picoqmail.importing import importing

    with importing:
        from picoqmail.home.minivars import parse_minivars
    found = parse_minivars(path, text)
    return {name: ControlValue(path, lines, mode) for name, lines in found.items()}


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
