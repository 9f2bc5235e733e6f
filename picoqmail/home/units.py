"""Fitting into a host: what makes cron, systemd and logrotate know of a home.

What may live here: the texts of those files, and their installing and removing. A file that does
not bear our mark belongs to others, and is neither overwritten nor removed.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail import durable
from picoqmail.home.make import InitError, crontab_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.home.paths import Home
    from picoqmail.home.settings import Settings

MARK = "# Made by picoqmail init; picoqmail init --uninstall removes it."
CRON = "cron"
SYSTEMD = "systemd"
_MODE = 0o644
_DIRECTORY_MODE = 0o755


@frozen
class Unit:
    """One file: where it belongs on a host, and its text."""

    path: str
    text: str


@frozen
class Account:
    """The user and group that send the mail of a home: the owner of its spool."""

    user: str
    group: str


def account_of(home: Home) -> Account:
    """Return the owner of a home's spool, by name where they have one. Raises InitError."""
    try:
        found = os.stat(home.spool)
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
        raise InitError(home.spool, problem, "make it first: picoqmail init") from exc
    return Account(user_name(found.st_uid), group_name(found.st_gid))


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or the number where there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def units(home: Home, kind: str, account: Account, settings: Settings | None) -> list[Unit]:
    """Return the files for `cron` or `systemd`, and for logrotate if the log is a file."""
    found = [cron_file(home, account)]
    if kind != CRON:
        found = list(systemd_files(home, account, settings))
    path = log_path(settings)
    return [*found, logrotate_file(path, account)] if path else found


def log_path(settings: Settings | None) -> str:
    """Return the file that the log goes to, "" if it goes elsewhere."""
    return settings.log.path if settings is not None else ""


def cron_file(home: Home, account: Account) -> Unit:
    """Return a file of /etc/cron.d, whose lines name a user (cron(8) of Debian)."""
    schedule, _, command = crontab_line(home).partition(" PICOQMAIL_HOME")
    text = f"""{MARK}
# Retries mail each minute; a run with nothing to do costs a few milliseconds and says nothing.
{schedule} {account.user} PICOQMAIL_HOME{command}
"""
    return Unit("/etc/cron.d/picoqmail", text)


def systemd_files(home: Home, account: Account, settings: Settings | None) -> Iterable[Unit]:
    """Yield a service that retries what is due, and the timer that starts it each minute."""
    environment = "\n".join(
        f"Environment={_quoted(f'{name}={value}')}"
        for name, value in (
            ("PICOQMAIL_HOME", home.root),
            ("PICOQMAIL_CONTROL", home.control),
            ("PICOQMAIL_SPOOL", home.spool),
        )
    )
    writable = [home.spool]
    path = log_path(settings)
    if path:
        writable.append(os.path.dirname(path))
    paths = " ".join(_quoted(one) for one in writable)
    yield Unit(
        "/etc/systemd/system/picoqmail.service",
        f"""{MARK}
[Unit]
Description=Retry of mail that waits in {_percent(home.spool)}
Documentation=man:picoqmail-cron(8)
Wants=network-online.target
After=network-online.target
ConditionPathIsDirectory={_percent(home.spool)}

[Service]
Type=oneshot
User={account.user}
Group={account.group}
{environment}
ExecStart={_quoted(f"{home.bin}/minisendcron")}
UMask=0077
# SIGTERM lets it finish and record what is under way.
TimeoutStopSec=5min
TimeoutStartSec=infinity
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={paths}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
""",
    )
    often, times = "each minute", "OnCalendar=minutely\nAccuracySec=15s"
    if settings is not None and not settings.sendatonce:
        # No mail of a user starts a sender, so the timer sends new mail, too.
        often, times = "every ten seconds", "OnCalendar=*:*:0/10\nAccuracySec=1s"
    yield Unit(
        "/etc/systemd/system/picoqmail.timer",
        f"""{MARK}
[Unit]
Description=Retry of mail {often}
Documentation=man:picoqmail-cron(8)

[Timer]
{times}
Unit=picoqmail.service

[Install]
WantedBy=timers.target
""",
    )


def logrotate_file(path: str, account: Account) -> Unit:
    """Return the file for logrotate(8); every run opens the log anew and needs no signal."""
    text = f"""{MARK}
{shlex.quote(path) if _is_odd(path) else path} {{
    weekly
    rotate 8
    missingok
    notifempty
    compress
    delaycompress
    create 0600 {account.user} {account.group}
    su {account.user} {account.group}
}}
"""
    return Unit("/etc/logrotate.d/picoqmail", text)


PLACES = (
    "/etc/cron.d/picoqmail",
    "/etc/systemd/system/picoqmail.service",
    "/etc/systemd/system/picoqmail.timer",
    "/etc/logrotate.d/picoqmail",
)


def install(found: Iterable[Unit], destination: str = "") -> list[str]:
    """Write files, each whole; returns their paths. `destination` stands before every path.

    Raises InitError where another one's file is in the way, or none can be written.
    """
    written = []
    for unit in found:
        path = destination + unit.path
        if not _is_ours(path):
            remedy = "move it away, and run this again"
            raise InitError(path, "is not ours, and is left alone", remedy)
        scratch = f"{path}.{os.getpid()}.new"
        try:
            durable.make_directories(os.path.dirname(path), _DIRECTORY_MODE)
            durable.replace(scratch, path, unit.text.encode())
            os.chmod(path, _MODE)
            durable.sync_directory(os.path.dirname(path))
        except OSError as exc:
            raise InitError(path, f"cannot be written: {exc.strerror}", "run this as root") from exc
        written.append(path)
    return written


def uninstall(destination: str = "") -> list[str]:
    """Remove what `install` wrote, whatever of it there is; returns the paths. Raises InitError."""
    removed = []
    for place in PLACES:
        path = destination + place
        if os.path.lexists(path) and _is_ours(path):
            try:
                durable.unlink(path)
                durable.sync_directory(os.path.dirname(path))
            except OSError as exc:
                problem = f"cannot be removed: {exc.strerror}"
                raise InitError(path, problem, "run this as root") from exc
            removed.append(path)
    return removed


def _is_ours(path: str) -> bool:
    """Say whether nothing is there, or a file with our mark."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        return file.readline().rstrip() == MARK.encode()


def _is_odd(text: str) -> bool:
    return any(character.isspace() or character in "'\"" for character in text)


def _percent(text: str) -> str:
    """Return a value for a unit, in which a percent sign begins a specifier (systemd.unit(5))."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Return one word of a unit (systemd.syntax(7))."""
    plain = _percent(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"' if _is_odd(plain) or plain != text else plain
