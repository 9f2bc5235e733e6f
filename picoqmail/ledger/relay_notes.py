"""What was learnt of the relays, kept from one run to the next.

That stands in a small JSON file in the spool, `relay-notes`. An administrator can read it, or
remove it to have everything learnt anew. What it says only saves detours: without it, or with half
of it, mail goes out all the same. So nothing that it holds is an error.
"""

from __future__ import annotations

import posix

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import RELAY_NOTES, TMP
from picoqmail.smtp.lessons import ADDRESS, LOGINS, LONE_DOT, NO_BDAT, SERVED, Lessons
from picoqmail.spool.json_reading import read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_NOTES_DAY = 86400
LIFETIMES = {
    LONE_DOT: 7 * _NOTES_DAY,
    NO_BDAT: 7 * _NOTES_DAY,
    LOGINS: 7 * _NOTES_DAY,
    SERVED: 7 * _NOTES_DAY,
    ADDRESS: _NOTES_DAY,
}
"""For how many seconds each fact is believed. A relay may be repaired."""

_NOTE_WORDS = {
    LONE_DOT: "takes nothing behind the final dot before it has replied to that",
    NO_BDAT: "offers CHUNKING, which does not work",
    LOGINS: "offers logins that do not work: {}",
    ADDRESS: "was reached at {}",
}
_NOTES_OCTETS = 1 << 20
_NOTE_CHARACTERS = 500


def _facts(facts: Any, now: float) -> dict[str, tuple[str, int]]:  # noqa: ANN401 - from a file
    kept = {}
    for name, lifetime in LIFETIMES.items():
        fact = facts.get(name) if isinstance(facts, dict) else None
        if not isinstance(fact, dict):
            continue
        value, learnt = fact.get("value"), fact.get("learnt")
        if (
            isinstance(value, str)
            and len(value) <= _NOTE_CHARACTERS
            and value.isprintable()
            and isinstance(learnt, int)
            # Learnt in the future: the clock was set back since.
            and now - lifetime < learnt <= now + 1
        ):
            kept[name] = value, int(learnt)
    return kept


class DirectoryNotes:
    """What was learnt of the relays of one spool."""

    __slots__ = ("_path", "_spool")

    def __init__(self, spool: str) -> None:
        """Nothing is opened."""
        self._spool = spool
        self._path = f"{spool}/{RELAY_NOTES}"

    def read(self, now: float) -> dict[str, dict[str, tuple[str, int]]]:
        """Return for each relay its facts, each with its value and when it was learnt.

        Times are Unix seconds. What is too old, or makes no sense, is left out. Raises nothing.
        """
        try:
            with open(self._path, "rb") as file:
                relays = read_json(file.read(_NOTES_OCTETS).decode())["relays"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        return believed(relays, now)

    def load(self, now: float) -> dict[str, Lessons]:
        """Return what is known of each relay, by its name."""
        return lessons_of(self.read(now))

    def save(self, lessons: Mapping[str, Lessons], now: float) -> list[tuple[str, str]]:
        """Add to the file what was learnt since it was read; no file is touched if that is nothing.

        Returns the name of each relay of which something worth mention was learnt, with a sentence.
        Raises SpoolError.
        """
        fresh = news_of(lessons)
        if not fresh:
            return []
        # Large, and most runs learn nothing.
        from picoqmail.importing import importing

        with importing:
            import json

        relays = self.read(now)
        for name, facts in fresh.items():
            known = relays.setdefault(name, {})
            known.update({fact: (value, int(now)) for fact, value in facts.items()})
        try:
            text = json.dumps({"relays": document_of(relays)}, indent=1) + "\n"
            # A name of its own for each process: several may learn something at the same moment.
            # What one of them overwrites is learnt again.
            scratch = f"{self._spool}/{TMP}/{RELAY_NOTES}.{posix.getpid()}"
            durable.replace(scratch, self._path, text.encode(), now)
        except OSError as exc:
            raise SpoolError("write", self._path, exc) from exc
        return sentences(fresh)


def believed(
    relays: Iterable[tuple[str, Any]], now: float
) -> dict[str, dict[str, tuple[str, int]]]:
    """Return the facts of relays that make sense and are not too old."""
    found = {name: _facts(facts, now) for name, facts in relays if name.isprintable()}
    return {name: facts for name, facts in found.items() if facts}


def lessons_of(relays: Mapping[str, Mapping[str, tuple[str, int]]]) -> dict[str, Lessons]:
    """Return the same as the conversations use it."""
    return {
        name: Lessons((fact, value) for fact, (value, _) in facts.items())
        for name, facts in relays.items()
    }


def news_of(lessons: Mapping[str, Lessons]) -> dict[str, dict[str, str]]:
    """Take what was learnt of each relay since it was loaded."""
    fresh = {name: dict(one.news) for name, one in lessons.items() if one.news}
    for name in fresh:
        lessons[name].news.clear()
    return fresh


def document_of(relays: Mapping[str, Mapping[str, tuple[str, int]]]) -> dict[str, Any]:
    """Return facts of relays as they are written."""
    return {
        name: {
            fact: {"value": value, "learnt": learnt}
            for fact, (value, learnt) in sorted(facts.items())
        }
        for name, facts in relays.items()
    }


def sentences(fresh: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return a sentence for each fact worth mention, with the name of its relay."""
    return [(name, words) for name, facts in fresh.items() for words in describe_notes(facts)]


def describe_notes(facts: Mapping[str, str]) -> list[str]:
    """Return what is known of a relay in words for people; facts of no interest are left out."""
    return [
        words.format(facts[name])
        for name, words in _NOTE_WORDS.items()
        if facts.get(name) or (name in facts and "{}" not in words)
    ]
