"""`picoqmail`: the administrator's program; this module finds the subcommand and nothing else.

Exit codes are those of sysexits.h; 64 is a wrong command line. With --json, standard output is
one JSON document whatever happens: an error is an object with the key `error`.
"""

from __future__ import annotations

import argparse
import io
import sys
from typing import TYPE_CHECKING

from picoqmail import __version__
from picoqmail.cli.commands import COMMANDS, Parser, parser_of
from picoqmail.cli.output import report_errors
from picoqmail.errors import EX_USAGE

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name not in COMMANDS:
        _top_parser().parse_args(words)
        return EX_USAGE  # parse_args has ended the program; this line is for readers
    module, parser = parser_of(name)
    arguments = parser.parse_args(words[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end a command with a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    return report_errors(
        f"picoqmail {name}", lambda: int(module.run(arguments)), as_json=arguments.json
    )


def _top_parser() -> Parser:
    """Return the parser for a command line that starts with no subcommand."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    parser = Parser(
        prog="picoqmail",
        usage="picoqmail COMMAND [--json] ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\npicoqmail COMMAND --help says more of each.",
    )
    parser.add_argument("--version", action="version", version=f"picoqmail {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS))
    return parser


if __name__ == "__main__":
    sys.exit(main())
