"""`picoqmail config`: print what the settings are, where they came from and what they mean."""

from __future__ import annotations

import difflib
import sys
import textwrap
from typing import TYPE_CHECKING

from picoqmail.admin.words import printable
from picoqmail.cli.output import bold, print_json
from picoqmail.errors import EX_CONFIG, EX_USAGE
from picoqmail.home import page, settings
from picoqmail.home.owner import become_owner
from picoqmail.home.paths import locate

if TYPE_CHECKING:
    import argparse

    from picoqmail.home.settings import Examination, SettingEntry

WIDTH = 88


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the names of settings, and --markdown."""
    parser.add_argument("name", nargs="*", metavar="NAME", help="only these settings")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the manual page of all settings instead, in Markdown",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the settings. Returns 0, 64 for an unknown name, 78 if a value is wrong."""
    if arguments.markdown:
        print(page.document(), end="")
        return 0
    names = [name.lower() for name in arguments.name]
    for name in names:
        if name not in settings.SPECS:
            close = difflib.get_close_matches(name, settings.SPECS, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see picoqmail config"
            print(f"picoqmail config: {name!r} is not a setting; {hint}", file=sys.stderr)
            return EX_USAGE
    home = locate()
    # As the sender sees it: a password that only root can read is none for the sender.
    become_owner(home)
    found = settings.examine(home)
    entries = [entry for entry in found.entries if not names or entry.name in names]
    if arguments.json:
        print_json(_document(found, entries))
    else:
        for entry in entries:
            _print(entry)
    for error in found.errors:
        print(f"picoqmail config: {printable(str(error))}", file=sys.stderr)
    for warning in found.warnings:
        print(f"picoqmail config: warning: {printable(warning)}", file=sys.stderr)
    return EX_CONFIG if found.errors else 0


def _document(found: Examination, entries: list[SettingEntry]) -> dict[str, object]:
    return {
        "settings": {
            entry.name: {
                "value": page.shown_value(entry),
                "source": entry.where or "default",
                "meaning": entry.spec.meaning,
                "allowed": entry.spec.allowed,
                "default": entry.spec.default or None,
                "follows": entry.spec.follows or None,
                "unit": entry.spec.unit or None,
                "error": None if entry.error is None else str(entry.error),
            }
            for entry in entries
        },
        "errors": [
            {"where": error.where, "problem": error.problem, "remedy": error.remedy}
            for error in found.errors
        ],
        "warnings": list(found.warnings),
    }


def _print(entry: SettingEntry) -> None:
    source = entry.where or (f"as {entry.spec.follows}" if entry.spec.follows else "default")
    if entry.error is not None:
        value = "(wrong)" if entry.where else "(missing)"
    else:
        value = " | ".join(page.shown_lines(entry)) or "(not set)"
        if entry.spec.unit and entry.value is not None and value.isdigit():
            value += f" {entry.spec.unit}"
    print(f"{bold(entry.name)} = {printable(value)}    [{printable(source)}]")
    text = f"{entry.spec.meaning} Allowed: {entry.spec.allowed}."
    print(textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    "))
