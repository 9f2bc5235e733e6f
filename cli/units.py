"""`picoqmail init --units` and `--uninstall`: the files by which a host knows of a home."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from picoqmail.cli.output import print_json
from picoqmail.home import host_sendmail, make_system, settings, units
from picoqmail.home.hands import HandsError
from picoqmail.home.make import crontab_line
from picoqmail.home.owner import refuse_root

if TYPE_CHECKING:
    import argparse

    from picoqmail.home.paths import Home

_ENABLE = "systemctl daemon-reload && systemctl enable --now picoqmail.timer"
_ALTERNATIVE = "/etc/alternatives/sendmail"
_DISABLE = "systemctl disable --now picoqmail.timer; systemctl daemon-reload"


def run(home: Home, arguments: argparse.Namespace) -> int:
    """Print, install or remove. Raises InitError (73)."""
    if arguments.uninstall:
        _uninstall(home, arguments)
        return 0
    account = units.account_of(home)
    chosen = _settings(home)
    if arguments.units == "print":
        _print(home, account, chosen, as_json=arguments.json)
        return 0
    found = units.units(home, arguments.units, account, chosen)
    written = units.install(found, arguments.destdir)
    _print_done(arguments, [f"wrote {path}" for path in written])
    if arguments.units == units.SYSTEMD and not arguments.json:
        print(f"now start it: {_ENABLE}")
    return 0


def _settings(home: Home) -> settings.Settings | None:
    """Read the settings, None if root must not read them: the home is another user's."""
    try:
        refuse_root(home)
    except HandsError as exc:
        print(f"picoqmail init: {exc}; no file for logrotate is made", file=sys.stderr)
        return None
    return settings.examine(home).settings


def _uninstall(home: Home, arguments: argparse.Namespace) -> None:
    removed = units.uninstall(arguments.destdir)
    if not arguments.destdir:
        removed += host_sendmail.give_back(home)
    left = _what_is_left(home, timer=any(path.endswith(".timer") for path in removed))
    if arguments.json:
        print_json({"done": [f"removed {path}" for path in removed], "left": left})
        return
    print("\n".join([f"removed {path}" for path in removed] or ["there was nothing of ours"]))
    if left:
        print("\nWhat is left, and how it is removed:")
        print("\n".join(f"  {line}" for line in left))


def _what_is_left(home: Home, *, timer: bool) -> list[str]:
    """Return what an uninstallation does not decide: lines for a person, the mail first."""
    lines = []
    if timer:
        lines.append(f"the timer, if it was enabled: {_DISABLE}")
    alternative = os.path.realpath(host_sendmail.SENDMAIL) if os.path.islink(_ALTERNATIVE) else ""
    if alternative and os.path.realpath(f"{home.bin}/sendmail") == alternative:
        lines.append(f"the alternative: update-alternatives --remove sendmail {home.bin}/sendmail")
    if os.path.isdir(home.spool):
        lines.append(
            f"settings and mail, once picoqmail status shows that nothing waits: rm -r {home.root}"
        )
        user = units.account_of(home).user
        if user == make_system.OWNER:
            lines.append(f"the user that the mail belongs to: userdel {user}")
    if sys.prefix != sys.base_prefix:
        lines.append(f"the programs: rm -r {sys.prefix}")
    return lines


def _print_done(arguments: argparse.Namespace, lines: list[str]) -> None:
    if arguments.json:
        print_json({"done": lines})
    else:
        print("\n".join(lines))


def _print(
    home: Home, account: units.Account, chosen: settings.Settings | None, *, as_json: bool
) -> None:
    found = units.units(home, units.CRON, account, chosen)
    found += [one for one in units.units(home, units.SYSTEMD, account, chosen) if one not in found]
    if as_json:
        print_json({"crontab": crontab_line(home), "files": {one.path: one.text for one in found}})
        return
    print("One of the three lets mail be retried:\n")
    print(f"--- a line for crontab -e of {account.user}\n{crontab_line(home)}\n")
    for one in found:
        print(f"--- {one.path}\n{one.text}")
    print(
        "Install: picoqmail init --units cron, or --units systemd; remove: picoqmail init "
        "--uninstall.\nTo be this host's sendmail: picoqmail init --system --sendmail"
    )
