"""Write the pages that are made from code: settings.md, log.md, commands.md.

Run it with the interpreter of an environment that has picoqmail; a test fails when it is needed.
"""

from __future__ import annotations

import os

from picoqmail.cli import command_table
from picoqmail.home import page as settings_page
from picoqmail.log import events

HERE = os.path.dirname(os.path.abspath(__file__))
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


if __name__ == "__main__":
    main()
