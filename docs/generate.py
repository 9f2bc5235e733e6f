"""Write the pages that are made: settings.md, log.md, commands.md from code, then the man pages.

Run it with the interpreter of an environment that has picoqmail; a test fails when it is needed.
The man pages (man/) are made from the pages of the manual by Sphinx, which the extra `docs` has.
They are part of the sources, so that an installation has them and needs no Sphinx.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile

from picoqmail.cli import command_table
from picoqmail.home import page as settings_page
from picoqmail.log import events

HERE = os.path.dirname(os.path.abspath(__file__))
MAN = os.path.join(os.path.dirname(HERE), "man")
PAGES = {
    "settings.md": settings_page.document,
    "log.md": events.document,
    "commands.md": command_table.markdown,
}


def main() -> None:
    """Write them all."""
    for name, make in PAGES.items():
        with open(os.path.join(HERE, name), "w", encoding="utf-8") as page:
            page.write(make())
    for name, text in man_pages().items():
        with open(os.path.join(MAN, name), "w", encoding="utf-8") as page:
            page.write(text)


def man_pages() -> dict[str, str]:
    """The man pages by name, without what changes with the day and the version of Sphinx."""
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "man", HERE, made]
        subprocess.run(command, check=True)
        pages = {}
        for name in sorted(os.listdir(made)):
            if name.endswith((".1", ".5", ".8")):
                with open(os.path.join(made, name), encoding="utf-8") as page:
                    text = page.read()
                text = re.sub(r'^\.\\" (Man page|by the) .*\n', "", text, flags=re.MULTILINE)
                pages[name] = re.sub(
                    r'^(\.TH "[^"]*" "\d") "[^"]*"', r'\1 ""', text, flags=re.MULTILINE
                )
    return pages


if __name__ == "__main__":
    main()
