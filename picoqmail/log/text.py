"""Events as plain lines, for people and for grep. Pure.

The sender writes such lines. structlog makes the others (structured.py): importing it takes longer
than sending a mail.
"""

from __future__ import annotations

import functools
import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A value that contains one of these needs quotes.
_QUOTED = frozenset(' "=\\')
# A value that needs no quotes; one call recognises most values.
_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch


class PlainLines:
    """Renders each event as a line, and passes it on with its level."""

    def __init__(
        self, put: Callable[[str, str], None], bound: Mapping[str, object], *, stamped: bool
    ) -> None:
        """`bound` are facts of every event; `stamped` puts time and level before each line."""
        self._put = put
        self._bound = words(bound)
        self._stamped = stamped

    def write(self, level: str, event: str, facts: Mapping[str, object]) -> None:
        """Write one event. Raises what the place raises."""
        text = f"{event}{self._bound}{words(facts)}"
        if self._stamped:
            text = f"{_timestamp(time.time_ns())} {level:7} {text}"
        self._put(text, level)


def _timestamp(nanoseconds: int) -> str:
    """Return a moment (Unix time) as structlog does: ISO 8601, UTC, with microseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06}Z"


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    """Return the part that all lines of one second share, because a busy run writes thousands."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def words(facts: Mapping[str, object]) -> str:
    """Return ` name=value` for each fact; a value is quoted if it could be misread."""
    words = []
    for name, value in facts.items():
        if type(value) is int:
            words.append(f" {name}={value}")
        elif value is not None:
            text = value if type(value) is str else str(value)
            words.append(f" {name}={text if _is_plain(text) else _quoted(text)}")
    return "".join(words)


def _quoted(text: str) -> str:
    """Return a fact's text on one line, so that no outside text can forge a second line."""
    if text.isprintable():
        if text and _QUOTED.isdisjoint(text):
            return text  # plain, but beyond ASCII
        if '"' not in text and "\\" not in text:
            return f'"{text}"'
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def encodable(line: str) -> str:
    """Return a line without lone surrogates, which octets of unknown encoding leave in a str."""
    return line.encode(errors="backslashreplace").decode()
