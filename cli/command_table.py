"""Every command with its options, as data: what completion and the manual are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.cli.commands import COMMANDS, parser_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


@frozen
class Option:
    """One option or argument: its spellings (none for an argument), value, and meaning."""

    names: tuple[str, ...]
    value: str
    meaning: str
    choices: tuple[str, ...] = ()


@frozen
class CommandHelp:
    """One command: what it does, its options, and what else its --help says."""

    name: str
    summary: str
    options: tuple[Option, ...]
    more: str


def commands() -> Iterator[CommandHelp]:
    """Yield all commands in the order of --help."""
    for name, (_, summary) in COMMANDS.items():
        _, parser = parser_of(name)
        # The first one is --help.
        options = tuple(_option(action) for action in parser._actions[1:])  # noqa: SLF001 - argparse has no other way
        yield CommandHelp(name, summary, options, parser.epilog or "")


def _option(action: argparse.Action) -> Option:
    choices = tuple(str(one) for one in action.choices or ())
    value = ""
    if action.nargs != 0:
        metavar = action.metavar or action.dest.upper()
        value = "|".join(choices) or (metavar if isinstance(metavar, str) else " ".join(metavar))
    meaning = str(action.help or "").replace("%(default)s", str(action.default))
    return Option(tuple(action.option_strings), value, meaning.replace("%%", "%"), choices)


def markdown() -> str:
    """Return the page docs/commands.md."""
    lines = [
        "# picoqmail",
        "",
        "The administrator's program: `picoqmail COMMAND ...`. Every command has `--help` and",
        "`--json`. Exit codes are those of sysexits.h (64 a wrong command line, 66 no such",
        "message, 75 try again, 78 a wrong setting); those of `check` are of monitoring plugins.",
        "Where a command wants messages it takes IDs, paths of the spool, or filters. Root becomes",
        "the owner of the spool before it touches it.",
        "",
    ]
    for command in commands():
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        lines += [f"## picoqmail {command.name}", "", summary, ""]
        lines += [_row(option) for option in command.options]
        lines += ["", *([command.more, ""] if command.more else [])]
    return "\n".join(lines)


def _row(option: Option) -> str:
    words = ", ".join(f"`{name}`" for name in option.names)
    value = f"`{option.value}`" if option.value else ""
    return f"- {' '.join(part for part in (words, value) if part)}: {option.meaning}"
