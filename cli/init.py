"""`picoqmail init`: ask for the host's name and its relay, make the home, print the next steps."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from typing import TYPE_CHECKING

from picoqmail.admin.words import printable
from picoqmail.cli import units
from picoqmail.cli.output import is_terminal, print_json
from picoqmail.errors import EX_USAGE, ConfigurationError
from picoqmail.home import host_sendmail, make, make_system, secret, values
from picoqmail.home.control import Control
from picoqmail.home.paths import PACKAGED_HOME, QMAIL_HOME, Home, locate, personal_root

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the first settings, and the kind of home."""
    parser.epilog = (
        "The home is that of PICOQMAIL_HOME; without it, /var/qmail if that has a control/me, "
        "else that of the Debian package if it is installed, else ~/.local/state/picoqmail. "
        "Nothing that is there already is overwritten."
    )
    parser.add_argument("--me", metavar="NAME", help="this host's name, for control/me")
    parser.add_argument(
        "--system",
        action="store_true",
        help="as root: make a home for all users; the spool belongs to the user picoqmail, and "
        "everybody may submit through a set-id bin/qmail-queue",
    )
    parser.add_argument(
        "--sendmail",
        action="store_true",
        help="with --system: let /usr/sbin/sendmail, /usr/lib/sendmail, mailq and newaliases lead "
        "to this home (with dpkg-divert, where there is dpkg); a file that no package installed is "
        "never replaced",
    )
    parser.add_argument(
        "--units",
        choices=["print", "cron", "systemd"],
        nargs="?",
        const="print",
        help="for a home that exists: print the files for cron, systemd and logrotate, or install "
        "those for cron or systemd",
    )
    parser.add_argument(
        "--uninstall",
        action="store_true",
        help="remove the files that --units installed, and undo --sendmail",
    )
    parser.add_argument(
        "--destdir", metavar="DIR", default="", help="a directory to put before their paths"
    )
    parser.add_argument(
        "--relay",
        metavar="RELAY",
        action="append",
        default=[],
        help="host, host:port or URL of a relay, for control/relayip; may be given several times",
    )
    parser.add_argument("--user", metavar="NAME", help="the user to log in as at the relays")
    parser.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the relay's password, one line, from standard input, for control/relaypass",
    )
    parser.add_argument(
        "--admin",
        metavar="ADDRESS",
        help="the address that gets mail for root and other users of this host, for "
        "control/adminaddr",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace values that are set by those given here",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the home. Return 0, 64 if too little is given, 73 if a foreign file was in the way."""
    home = locate()
    if arguments.units or arguments.uninstall:
        return units.run(home, arguments)
    if arguments.sendmail and not arguments.system:
        problem = "makes a home the mailer of a whole host"
        raise ConfigurationError("--sendmail", problem, "also give --system")
    # Ours: under the caller's umask a directory could be made that nobody can enter.
    os.umask(0o077)
    if arguments.system:
        make_system.require_root()
        if not _is_named():
            if home.root == PACKAGED_HOME:
                raise make.InitError(
                    "--system",
                    "is not needed: the Debian package is the mailer of this host",
                    "leave --system out to set it up, or name another home with PICOQMAIL_HOME",
                )
            home = Home(QMAIL_HOME)
    elif os.geteuid() == 0 and home.root == personal_root(os.environ) and not _is_named():
        print(
            "picoqmail init: root has no home of its own; name one, for example:\n"
            f"    PICOQMAIL_HOME={QMAIL_HOME} picoqmail init --me NAME --relay RELAY",
            file=sys.stderr,
        )
        return EX_USAGE
    repaired = make.take_from_others(home)
    first = _first_settings(home, arguments, asking=is_terminal() and not arguments.json)
    if home.root == PACKAGED_HOME:
        outcome = make_system.settle_packaged_home(home, settings=first, replace=arguments.replace)
    else:
        make_it = make_system.make_system_home if arguments.system else make.make_home
        outcome = make_it(
            home, settings=first, replace=arguments.replace, programs=make.find_programs()
        )
    tables = _migrate(home)
    taken = host_sendmail.take(home) if arguments.sendmail else []
    outcome = make.HomeResult(outcome.root, (*repaired, *outcome.steps, *tables, *taken))
    steps = _next_steps(home, system=arguments.system)
    if arguments.json:
        print_json(_document(home, outcome, steps))
    else:
        _print(home, outcome, steps)
    for step in outcome.refused:
        print(f"picoqmail init: {step.path}: left alone: {step.detail}", file=sys.stderr)
    return make.EX_CANTCREAT if outcome.refused else 0


def _migrate(home: Home) -> list[make.Step]:
    """Make the tables of the database that the home names, if it names one."""
    if not home.database:
        return []
    from picoqmail.postgresql.address import read_url
    from picoqmail.postgresql.opening import demand_driver

    address = read_url(home.database)
    demand_driver()
    from picoqmail.postgresql import migration

    done = migration.migrate(address)
    return [make.Step(address.location, "made", name) for name in done]


def _is_named() -> bool:
    return bool(os.environ.get("PICOQMAIL_HOME"))


def _first_settings(
    home: Home, arguments: argparse.Namespace, *, asking: bool
) -> dict[str, list[str]]:
    """Return the lines of the control files to write, by name: as given or answered.

    Raises ConfigurationError for a wrong value.
    """
    settings = {}
    me = _host_name(home, arguments.me, asking=asking)
    control = Control(home.control)
    if me is not None:
        settings["me"] = [me]
        doubt = values.doubt_about_host(me)
        if doubt:
            print(
                f"picoqmail init: this host's name '{me}' {doubt}, so relays may refuse it; then "
                "use --me with a full name, or set helohost",
                file=sys.stderr,
            )
        # In a home that is there, addresses may rest on what its names are completed with today.
        domain = values.domain_of_host(me)
        if domain and control.read("me") is None and control.read("defaultdomain") is None:
            settings["defaultdomain"] = [domain]
    relays = _relays(home, arguments, asking=asking)
    if relays:
        settings["relayip"] = relays
    password = _password(home, arguments, relays, asking=asking)
    if password is not None:
        settings["relaypass"] = password
    admin = _administrator(home, arguments.admin, asking=asking)
    if admin:
        settings["adminaddr"] = [admin]
    if home.database:
        # So that cron, and programs without this variable, find it.
        settings["spool"] = [home.database]
    return settings


def _host_name(home: Home, given: str | None, *, asking: bool) -> str | None:
    """Return the name for control/me; None if that file is there and no name was given."""
    if given is not None:
        return _checked(values.host_name, given, "--me", "a host name in ASCII")
    if Control(home.control).read("me") is not None:
        return None
    guess = _name_of_this_machine()
    if asking:
        return _ask("This host's name", guess, values.host_name)
    if not guess:
        raise ConfigurationError(
            f"{home.control}/me",
            "is missing, and this machine has no name that could be used",
            "give --me NAME",
        )
    return guess


def _relays(home: Home, arguments: argparse.Namespace, *, asking: bool) -> list[str]:
    """Return the lines for control/relayip, none to leave that as it is."""
    user = arguments.user
    relays: list[str] = arguments.relay
    if not relays and asking and Control(home.control).read("relayip") is None:
        answer = _ask("Relay (host, host:port or URL; empty: later)", "", _relay_or_nothing)
        relays = [answer] if answer else []
        if relays and user is None and not values.relay(answer).user:
            user = _ask("User to log in as there (empty: no login)", "", str)
    if user and not relays:
        problem = "is part of the line of a relay, and no relay is given"
        raise ConfigurationError("--user", problem, "also give --relay RELAY")
    if user:
        relays = [_with_user(user, relay) for relay in relays]
    for relay in relays:
        _checked(values.relay, relay, "--relay", "host, host:port, [v6]:port or a URL")
    return relays


def _with_user(user: str, relay: str) -> str:
    """Return the line of a relay with a user in it; one that is there already stays."""
    scheme, mark, rest = relay.rpartition("://")
    return relay if "@" in rest else f"{scheme}{mark}{user}@{rest}"


def _password(
    home: Home, arguments: argparse.Namespace, relays: list[str], *, asking: bool
) -> list[str] | None:
    """Return the lines for control/relaypass, None to leave it as it is."""
    path = f"{home.control}/relaypass"
    if arguments.password_stdin:
        password = sys.stdin.readline().removesuffix("\n")
        where = "standard input"
    elif asking and any(values.relay(one).user for one in relays) and not os.path.lexists(path):
        password = getpass.getpass("Its password (not shown; empty: later): ")
        where = "the password"
        if not password:
            return None
    else:
        return None
    try:
        return secret.secret_lines(path, password)
    except ValueError as exc:
        raise ConfigurationError(where, str(exc)) from None


def _administrator(home: Home, given: str | None, *, asking: bool) -> str | None:
    """Return the address for control/adminaddr, None to leave that as it is."""
    if given is not None:
        return _checked(values.mail_address, given, "--admin", "an address user@host")
    if not asking or Control(home.control).read("adminaddr") is not None:
        return None
    question = "Address that gets the mail for root and other users of this host (empty: none)"
    return _ask(question, "", _address_or_nothing)


def _address_or_nothing(text: str) -> object:
    return values.mail_address(text) if text else None


def _relay_or_nothing(text: str) -> object:
    return values.relay(text) if text else None


def _checked(read: Callable[[str], object], text: str, option: str, allowed: str) -> str:
    try:
        read(text)
    except ValueError as exc:
        raise ConfigurationError(option, str(exc), f"allowed: {allowed}") from exc
    return text


def _ask(question: str, guess: str, read: Callable[[str], object]) -> str:
    """Ask until the answer is right; the end of input ends the program, and nothing is made."""
    while True:
        try:
            answer = input(f"{question}{f' [{guess}]' if guess else ''}: ").strip() or guess
        except EOFError:
            raise KeyboardInterrupt from None
        try:
            read(answer)
        except ValueError as exc:
            print(f"{exc}; please try again")
        else:
            return answer


def _name_of_this_machine() -> str:
    """Return this machine's full name, "" if it has none but localhost."""
    name = os.uname().nodename
    if "." not in name:
        name = socket.getfqdn() or name
    try:
        values.host_name(name)
    except ValueError:
        return ""
    return "" if name.split(".", 1)[0] == "localhost" else name


def _next_steps(home: Home, *, system: bool) -> list[str]:
    """Return what a person still has to do."""
    control = Control(home.control)
    steps = []
    if control.read("relayip") is None:
        steps.append(f"name your relay: echo 'smtp://RELAY' > {home.control}/relayip")
    which = " --system" if system else ""
    steps.append(
        f"if the relay wants a login: write user@ before its name in {home.control}/relayip, and "
        f"store the password in relaypass: picoqmail init{which} --password-stdin",
    )
    steps.append("see all settings: picoqmail config")
    if system:
        path, line = make_system.cron_file(home)
        steps.append(f"let cron retry mail; a line for {path}: {line}")
        steps.append(
            "see whether the limits for each user suit this host: picoqmail config databytes "
            "minfree userlimit"
        )
        steps.append("after each update of picoqmail, or of its user's groups, run this again")
    else:
        steps.append(f"let cron retry mail; a line for crontab -e: {make.crontab_line(home)}")
    steps.append(f"send mail with {home.bin}/sendmail; give your programs this path")
    return steps


def _document(home: Home, outcome: make.HomeResult, next_steps: list[str]) -> dict[str, object]:
    return {
        "home": home.root,
        "control": home.control,
        "spool": home.spool,
        "bin": home.bin,
        "steps": [
            {"path": step.path, "outcome": step.outcome, "detail": step.detail}
            for step in outcome.steps
        ],
        "crontab": make.crontab_line(home),
        "next": next_steps,
    }


def _print(home: Home, outcome: make.HomeResult, next_steps: list[str]) -> None:
    for step in outcome.steps:
        if step.outcome in {"made", "replaced", "repaired"}:
            detail = f"  ({printable(step.detail)})" if step.detail else ""
            print(f"{step.outcome:9} {printable(step.path)}{detail}")
    made = sum(step.outcome in {"made", "replaced"} for step in outcome.steps)
    print(f"The home {printable(home.root)} is ready: {made} made, {len(outcome.steps)} in all.")
    print("\nNext:")
    for advice in next_steps:
        print(f"  - {printable(advice)}")
