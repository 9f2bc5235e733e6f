"""What the administrator's commands print: plain text for people, JSON for programs.

What may live here: the two ways of printing, and the escaping that keeps a text which came from a
file or a relay from driving the terminal.
"""

from __future__ import annotations

import json
import os
import sys


def print_json(document: object) -> None:
    """Print one JSON document on standard output; what JSON does not know is printed as text."""
    print(json.dumps(document, indent=2, ensure_ascii=True, default=str))


def printable(text: str) -> str:
    """Return a text with everything escaped that would move a cursor or change a colour."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def is_terminal() -> bool:
    """Whether a person is at both ends: questions may be asked and answers seen."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def bold(text: str) -> str:
    """Return a text in bold where standard output is a terminal that wants it (no-color.org)."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[1m{text}\x1b[0m"
    return text
