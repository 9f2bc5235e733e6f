"""`picoqmail`: the administrator's program; this module finds the subcommand and nothing else.

Each subcommand is a module of its own, `admin_NAME.py` or one for a group, imported only when it
is asked for.  It offers two functions: `add_arguments(parser)`, and `run(arguments)`, which returns
the exit code.  To add one, write it and add its line to `COMMANDS`.

Exit codes are those of sysexits.h; 64 is a wrong command line.  With --json, standard output is
one JSON document whatever happens: an error is an object with the key `error`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING

from picoqmail._version import VERSION
from picoqmail.cli.output import print_json
from picoqmail.errors import EX_OSERR, EX_USAGE, PicoqmailError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

EX_INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended

# name: (module, what it does, in one line)
COMMANDS = {
    "init": ("init", "make a home: directories, first settings, links"),
    "status": ("status", "tell whether mail flows: counts, ages, relays, who works"),
    "list": ("list", "list messages, oldest first"),
    "show": ("show", "show a message: envelope, header, body, what the relay said"),
    "explain": ("explain", "tell in sentences what happened to a message, and what will"),
    "retry": ("change", "make messages due and send them now"),
    "hold": ("change", "keep messages from being sent"),
    "release": ("change", "let held messages go"),
    "requeue": ("change", "give messages that failed for good a new life"),
    "delete": ("change", "delete messages; nobody is told"),
    "purge": ("change", "delete what failed for good and is older than told"),
    "check": ("check", "judge settings, spool, flow of mail and relays, for monitoring"),
    "config": ("config", "print every setting, its value and where it came from"),
    "import-config": ("import_config", "take over the settings of another send-only mailer"),
    "completion": ("completion", "print the completion of this command for a shell"),
    "sink": ("sink", "be a relay on loopback that keeps what it gets in a Maildir"),
    "demo": ("demo", "play the whole story in a temporary home, step by step"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint about a command line is exit code 64."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the complaint, and exit."""
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name not in COMMANDS:
        _top_parser().parse_args(words)
        return EX_USAGE  # parse_args has ended the program; this line is for readers
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(f"picoqmail.cli.{module_name}")
    parser = Parser(prog=f"picoqmail {name}", description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    module.add_arguments(parser)
    arguments = parser.parse_args(words[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end a command with a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(module.run(arguments))
        sys.stdout.flush()
    except PicoqmailError as exc:
        return _tell(name, str(exc), exc.sysexit, as_json=arguments.json)
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OSERR
    except OSError as exc:
        return _tell(name, str(exc), EX_OSERR, as_json=arguments.json)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    return code


def _tell(name: str, text: str, code: int, *, as_json: bool) -> int:
    print(f"picoqmail {name}: {text}", file=sys.stderr)
    if as_json:
        print_json({"error": text, "exit": code})
    return code


def _top_parser() -> Parser:
    """Return the parser for a command line that starts with no subcommand."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    parser = Parser(
        prog="picoqmail",
        usage="picoqmail COMMAND [--json] ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\npicoqmail COMMAND --help tells more of each.",
    )
    parser.add_argument("--version", action="version", version=f"picoqmail {VERSION}")
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS))
    return parser


if __name__ == "__main__":
    sys.exit(main())
