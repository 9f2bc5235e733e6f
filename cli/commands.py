"""The subcommands of `picoqmail`, and the parser of each.

Each subcommand is a module of `cli/`, imported only when it is asked for. It has two functions:
`add_arguments(parser)`, and `run(arguments)`, which returns the exit code. To add a subcommand,
write its module and add its line to `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from picoqmail.errors import EX_USAGE

if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn

# name: (module, what it does, in one line)
COMMANDS = {
    "init": ("init", "make a home: directories, first settings, links"),
    "status": ("status", "show whether mail flows: counts, ages, relays, what is at work"),
    "list": ("list", "list messages, oldest first"),
    "show": ("show", "show a message: envelope, header, body, what the relay said"),
    "explain": ("explain", "say in sentences what happened to a message, and what comes next"),
    "retry": ("change", "make messages due and send them now"),
    "hold": ("change", "keep messages from being sent"),
    "release": ("change", "let held messages be sent again"),
    "requeue": ("change", "try messages again that failed for good"),
    "delete": ("change", "delete messages; their senders get no report"),
    "purge": ("change", "delete messages that failed for good and are older than a given age"),
    "check": ("check", "check settings, spool, flow of mail and relays, for monitoring"),
    "config": ("config", "print every setting, its value and where it came from"),
    "import-config": ("import_config", "take over the settings of another send-only mailer"),
    "worker": (
        "worker",
        "deliver what is due in a database until a signal ends it",
    ),
    "migrate": ("migrate", "make or update the tables of the database that keeps the mail"),
    "move": ("move", "bring the mail of this home to another store"),
    "completion": ("completion", "print the completion of this command for a shell"),
    "sink": ("sink", "run a relay on loopback that keeps what it gets in a Maildir"),
    "demo": ("demo", "show step by step, in a temporary home, what happens to mail"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that ends with exit code 64 for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit."""
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser_of(name: str) -> tuple[ModuleType, Parser]:
    """Return the module and the parser of a subcommand."""
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(f"picoqmail.cli.{module_name}")
    parser = Parser(prog=f"picoqmail {name}", description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    module.add_arguments(parser)
    return module, parser
