"""`picoqmail import-config MAILER`: take over the relay and settings of another send-only mailer.

Exit codes: 0; 66 it has no configuration here; 73 a setting is there already with another value;
78 its configuration cannot be understood.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from picoqmail.admin.words import printable
from picoqmail.cli.output import complain, print_json
from picoqmail.errors import EX_NOINPUT
from picoqmail.home import foreign, make, takeover
from picoqmail.home.paths import locate

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the mailer, and where its files are."""
    parser.add_argument("mailer", choices=sorted(foreign.FILES))
    parser.add_argument(
        "path", nargs="*", metavar="PATH", help="its file or directory, if not the usual one"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be written")


def run(arguments: argparse.Namespace) -> int:
    """Translate, and write what is not there yet. Nothing is overwritten."""
    paths = arguments.path or list(foreign.FILES[arguments.mailer])
    texts = takeover.read_files(paths)
    if not texts:
        complain(f"there is nothing to import: {', '.join(paths)} cannot be found")
        return EX_NOINPUT
    found = foreign.translate(arguments.mailer, texts)
    home = locate()
    outcomes = {}
    if not arguments.dry_run:
        outcomes = takeover.write_settings(home, found.settings)
    if arguments.json:
        print_json(
            {
                "settings": {name: _shown(name, lines) for name, lines in found.settings.items()},
                "written": outcomes,
                "notes": found.notes,
            }
        )
    else:
        for name, lines in found.settings.items():
            said = outcomes.get(name, "would write")
            print(f"{said:12} {name}: {printable(' | '.join(_shown(name, lines)))}")
        for note in found.notes:
            print(f"note         {printable(note)}")
    refused = [name for name, said in outcomes.items() if said == takeover.LEFT_ALONE]
    for name in refused:
        where = f"{home.control}/{name}"
        print(f"picoqmail: {where}: has another value, and was left alone", file=sys.stderr)
    return make.EX_CANTCREAT if refused else 0


def _shown(name: str, lines: list[str]) -> list[str]:
    return ["<secret>"] if name == "relaypass" else lines
