"""`picoqmail import-config MAILER`: take over the relay and settings of another send-only mailer.

Exit codes: 0; 66 it has no configuration here; 73 a setting is there already with another value;
78 its configuration cannot be understood.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from picoqmail.cli.output import print_json, printable
from picoqmail.cli.spool import complain
from picoqmail.errors import EX_NOINPUT
from picoqmail.home import foreign, make
from picoqmail.home.control import Control, read_text
from picoqmail.home.paths import locate

if TYPE_CHECKING:
    import argparse

    from picoqmail.home.foreign import Translation
    from picoqmail.home.paths import Home


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
    texts = _read(paths)
    if not texts:
        complain(f"there is nothing to import: {', '.join(paths)} cannot be found")
        return EX_NOINPUT
    found = foreign.translate(arguments.mailer, texts)
    home = locate()
    outcomes = {}
    if not arguments.dry_run:
        outcomes = _write(home, found)
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
    refused = [name for name, said in outcomes.items() if said == "left alone"]
    for name in refused:
        where = f"{home.control}/{name}"
        print(f"picoqmail: {where}: has another value, and was left alone", file=sys.stderr)
    return make.EX_CANTCREAT if refused else 0


def _read(paths: list[str]) -> dict[str, str]:
    texts = {}
    for path in paths:
        files = [path]
        if os.path.isdir(path):
            files = [f"{path}/{name}" for name in sorted(os.listdir(path))]
        for name in files:
            text = None if os.path.isdir(name) else read_text(name)
            if text is not None:
                texts[os.path.basename(name)] = text
    return texts


def _write(home: Home, found: Translation) -> dict[str, str]:
    """Write each setting that is not there; what each came to, by name."""
    outcomes = {}
    control = home.control
    there = Control(control)
    for name, lines in found.settings.items():
        value = there.read(name)
        if value is None:
            text = "".join(f"{line}\n" for line in lines)
            made = make.create_durably(f"{control}/{name}", text.encode())
            if made:
                _let_the_sender_read(home, f"{control}/{name}", secret=name == "relaypass")
            outcomes[name] = "wrote" if made else "left alone"
        else:
            same = [text for text, _ in value.lines] == lines
            outcomes[name] = "kept" if same else "left alone"
    return outcomes


def _let_the_sender_read(home: Home, path: str, *, secret: bool) -> None:
    """In a home that root makes for another user, have that user read what root wrote."""
    try:
        owner = os.stat(home.spool)
    except FileNotFoundError:
        return
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    if secret:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    else:
        os.chmod(path, 0o644)


def _shown(name: str, lines: list[str]) -> list[str]:
    return ["<secret>"] if name == "relaypass" else lines
