"""`picoqmail completion SHELL`: print what makes bash, zsh or fish complete this command.

bash: `picoqmail completion bash > /usr/share/bash-completion/completions/picoqmail`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.cli.output import print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from picoqmail.cli.command_table import CommandHelp

_LIST_IDS = "picoqmail list --ids --limit 1000 2>/dev/null"
_WITH_IDS = ("show", "explain", "retry", "hold", "release", "requeue", "delete")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shell."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from picoqmail.cli.command_table import commands

    found = list(commands())
    script = "\n".join(_fish(found) if arguments.shell == "fish" else _bash(found))
    if arguments.shell == "zsh":
        script = f"#compdef picoqmail\nautoload -U +X bashcompinit && bashcompinit\n{script}"
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})
    else:
        print(script)
    return 0


def _bash(found: list[CommandHelp]) -> Iterator[str]:
    names = " ".join(command.name for command in found)
    yield "_picoqmail() {"
    yield "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words="
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"        words='{names}'"
    yield "    else"
    yield "        case ${COMP_WORDS[1]}:$before in"
    for command in found:
        for option in command.options:
            if option.choices and option.names:
                patterns = "|".join(f"{command.name}:{name}" for name in option.names)
                yield f"        {patterns}) words='{' '.join(option.choices)}' ;;"
    for command in found:
        words = [name for option in command.options for name in option.names]
        words += [one for option in command.options if not option.names for one in option.choices]
        ids = f" $({_LIST_IDS})" if command.name in _WITH_IDS else ""
        yield f'        {command.name}:*) words="{" ".join(words)} --help{ids}" ;;'
    yield "        esac"
    yield "    fi"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o default -F _picoqmail picoqmail"


def _fish(found: list[CommandHelp]) -> Iterator[str]:
    yield "complete -c picoqmail -f"
    for command in found:
        quoted = command.summary.replace("'", r"\'")
        yield f"complete -c picoqmail -n __fish_use_subcommand -a {command.name} -d '{quoted}'"
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            needs = f" -x -a '{' '.join(option.choices)}'" if option.choices else ""
            meaning = option.meaning.split(":", 1)[0].replace("'", r"\'")
            for name in option.names:
                long = name.removeprefix("--")
                value = needs or (" -r" if option.value else "")
                yield f"complete -c picoqmail {seen} -l {long}{value} -d '{meaning}'"
            if not option.names and option.choices:
                yield f"complete -c picoqmail {seen}{needs}"
        if command.name in _WITH_IDS:
            yield f"complete -c picoqmail {seen} -a '({_LIST_IDS})'"
