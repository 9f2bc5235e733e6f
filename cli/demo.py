"""`picoqmail demo`: print the story of admin/demo.py as it happens, in colour on a terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import textwrap
from typing import TYPE_CHECKING

from picoqmail.admin import demo
from picoqmail.admin.words import printable
from picoqmail.cli.output import print_json
from picoqmail.errors import PicoqmailError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

EX_TERMINATED = 143  # what a shell reports for a program that SIGTERM ended
_WIDEST = 100
_TITLE, _COMMAND, _FILE, _PROVED, _WRONG = "1;36", "1", "2", "32", "1;31"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --keep."""
    parser.epilog = "It takes a few seconds, needs no network and leaves nothing behind."
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="make this directory, run the demo in it, and leave everything there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play the story. Return 0, 69 without the extra `demo`, 70 if a step went wrong."""
    narrator = _Recorder() if arguments.json else _Printer()
    # An exception, so that the temporary home is removed and the relay ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EX_TERMINATED))
    try:
        demo.play(narrator, arguments.keep)
    except PicoqmailError as exc:
        if not isinstance(narrator, _Recorder):
            raise
        print(f"picoqmail demo: {exc}", file=sys.stderr)
        print_json({"ok": False, "error": str(exc), "steps": narrator.steps})
        return exc.sysexit
    narrator.end()
    return 0


class _Printer:
    """Prints the story for people."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._width = min(shutil.get_terminal_size().columns - 2, _WIDEST)
        self._count = 0

    def step(self, title: str) -> None:
        self._count += 1
        print()
        self._print(_TITLE, f"{self._count}. {title}")

    def say(self, text: str) -> None:
        print(textwrap.fill(text, self._width))

    def command(self, words: Sequence[str], given: str, code: int, output: str) -> None:
        prefix = ""
        if given:
            prefix = f"printf {shlex.quote(given.replace('%', '%%'))} | ".replace("\n", "\\n")
        self._print(_COMMAND, f"  $ {prefix}{shlex.join(words)}")
        for line in output.splitlines():
            print(f"    {printable(line)}")
        print(f"    exit code {code}")

    def state(self, lines: Sequence[str]) -> None:
        self._block("the spool", lines)

    def lines(self, title: str, lines: Sequence[str]) -> None:
        self._block(title, lines)

    def proved(self, fact: str) -> None:
        self._print(_PROVED, f"  ok: {fact}")

    def end(self) -> None:
        print()
        self._print(_PROVED, "Every step went as described; nothing was lost.")
        print("Your own home: picoqmail init --me NAME --relay RELAY")

    def _block(self, title: str, lines: Sequence[str]) -> None:
        print(f"  {title}:")
        for line in lines:
            self._print(_FILE, f"    | {printable(line)}")

    def _print(self, colour: str, text: str) -> None:
        # Flushed: the next step may take a second, and people want to see how far it is.
        print(f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text, flush=True)


class _Recorder:
    """Keeps the story, and prints it as one JSON document."""

    def __init__(self) -> None:
        self.steps: list[dict[str, object]] = []
        self._events: list[dict[str, object]] = []

    def step(self, title: str) -> None:
        self._events = []
        self.steps.append({"title": title, "events": self._events})

    def say(self, text: str) -> None:
        self._events.append({"say": text})

    def command(self, words: Sequence[str], given: str, code: int, output: str) -> None:
        self._events.append({"run": list(words), "stdin": given, "exit": code, "output": output})

    def state(self, lines: Sequence[str]) -> None:
        self._events.append({"spool": list(lines)})

    def lines(self, title: str, lines: Sequence[str]) -> None:
        self._events.append({"show": title, "lines": list(lines)})

    def proved(self, fact: str) -> None:
        self._events.append({"proved": fact})

    def end(self) -> None:
        print_json({"ok": True, "error": None, "steps": self.steps})
