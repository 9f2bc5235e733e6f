"""The settings as people and programs read them: one entry as text or JSON, all as a page.

What may live here: pure functions from the table of settings, or an examined home, to text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.home.settings import SPECS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.home.settings import SettingEntry, Spec

SECRET = "<secret>"  # noqa: S105 - it is what stands where a secret is not shown

_HEAD = """\
# Settings

One value a file under `control/`, as qmail has it: lines that begin with `#` are comments, trailing
blanks and empty lines do not count. The same names in upper case may stand in `control/minivars`,
as `NAME=value` lines in shell quoting; nothing there is executed or expanded. A file of its own
wins over `minivars`; an empty file takes a value of `minivars` back where "none" is possible.

`picoqmail config` prints every setting of a home, its value, where it came from, and the sentences
below. It also names files that are not settings; they are not used. A wrong value is an error with
its file and line: exit code 78, or 55 of the queue program.

`relaypass` is read only from a file of mode 0600 or stricter (`minivars` too, if it stands there)
that belongs to the user who sends, or to root if root sends. It must not be a link: `!cat /path`
reads a secret that is elsewhere. `picoqmail init --password-stdin` writes it, whatever characters
the password has. A command in it is split into words as a shell would do it, and executed without a
shell, with nothing on its standard input: `!pass show relay` works, a pipe wants `!sh -c '...'`.
Its first line of output is the secret; what it prints is never logged.

No setting is read that others could have written: it must belong to root or to the user of the
program, and nobody else may write to it or to a directory on the way to it.

"""


# What belongs together, and an example of each setting: lines of its control file.
GROUPS: dict[str, dict[str, list[str]]] = {
    "This host": {
        "me": ["host.example.org"],
        "helohost": ["mail.example.org"],
        "idhost": ["example.org"],
        "adminaddr": ["admin@example.org"],
        "defaulthost": ["example.org"],
        "defaultdomain": ["example.org"],
        "plusdomain": ["example.org"],
        "rewritefrom": ["root@:noreply@example.org", "@host.example.org:@example.org"],
    },
    "Relays": {
        "relayip": [
            "smtp+starttls://joe@example.org@smtp.example.org:587",
            "smtps://backup.example.net",
        ],
        "relaypass": ["!pass show relay"],
        "smtproutes": ["example.net:smtp.example.net", ".internal.example:[192.0.2.7]:2525"],
        "senderroutes": [
            "shop@example.org:smtps://shop@smtp.example.com",
            "<>:bounces.example.org",
        ],
        "sourceip": ["192.0.2.1"],
        "authmechanisms": ["SCRAM-SHA-256 PLAIN"],
        "cleartextauth": ["on"],
    },
    "TLS": {
        "tls": ["require"],
        "tlsca": ["/etc/ssl/certs/our-ca.pem"],
        "tlscert": ["/etc/ssl/private/host.pem"],
        "tlsfingerprint": ["0123456789abcdef" * 4],
    },
    "Sending": {
        "queuelifetime": ["259200"],
        "retryschedule": ["1m 5m 15m 1h"],
        "doubtlimit": ["1"],
        "doubtpause": ["1d"],
        "concurrencyremote": ["10"],
        "ratelimit": ["30/m"],
        "timeoutconnect": ["20s"],
        "timeoutremote": ["10m"],
        "pipelining": ["off"],
        "chunking": ["off"],
        "runlifetime": ["1h"],
    },
    "What is accepted": {
        "databytes": ["20000000"],
        "minfree": ["100000000"],
        "userlimit": ["200"],
        "recipientlimit": ["1000"],
        "submitters": ["www-data", "@staff"],
        "sendatonce": ["off"],
        "idempotencylifetime": ["86400"],
    },
    "More than one host": {
        "spool": ["postgresql://picoqmail@db.example.org/mail?sslmode=verify-full"],
        "fallback": ["off"],
    },
    "Reports": {
        "bounces": ["off"],
        "bouncefrom": ["postmaster"],
        "bouncehost": ["example.org"],
        "doublebounceto": ["admin@example.org"],
        "bouncelimit": ["20"],
        "bouncemaxbytes": ["5000"],
        "delaywarning": ["4h"],
        "keepundelivered": ["30"],
    },
    "Log": {
        "log": ["/var/log/picoqmail/mail.log info"],
        "logprivacy": ["local"],
    },
}
_OTHERS = "Others"


def document() -> str:
    """Return the page docs/settings.md, in Markdown."""
    lines = []
    named = {name for group in GROUPS.values() for name in group}
    others: dict[str, list[str]] = {name: [] for name in SPECS if name not in named}
    groups = {**GROUPS, _OTHERS: others}
    for title, group in groups.items():
        if group:
            lines += [f"## {title}", ""]
        for name, example in group.items():
            lines += _section(name, SPECS[name], example)
    return _HEAD + "\n".join(lines)


def shown_lines(entry: SettingEntry) -> list[str]:
    """Return the value of an entry, one line each; none if it is not set."""
    if entry.spec.secret:
        return [SECRET] if entry.where else []
    if entry.text:
        return list(entry.text if entry.spec.many else entry.text[:1])
    if entry.value is None or entry.value == ():
        return []
    return [str(entry.value)]


def shown_value(entry: SettingEntry) -> object:
    """Return the value of an entry for JSON: number, boolean, text, list of texts, or null."""
    if entry.error is not None:
        return None
    if isinstance(entry.value, bool | int):
        return entry.value
    lines = shown_lines(entry)
    if entry.spec.many:
        return lines
    return lines[0] if lines else None


def default_text(spec: Spec) -> str:
    """Return how a person would name the default of a setting."""
    if spec.mandatory:
        return "none: it must be set"
    if spec.follows:
        return f"the value of {spec.follows}"
    return spec.default or "not set"


def _section(name: str, spec: Spec, example: list[str]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    yield spec.meaning
    yield ""
    yield f"- Allowed: {spec.allowed}{' (one a line)' if spec.many else ''}"
    yield f"- Default: {default_text(spec)}{f' {spec.unit}' if _counts(spec) else ''}"
    if len(example) == 1:
        yield f"- Example: `{example[0]}`"
    elif example:
        yield "- Example, one a line: " + ", ".join(f"`{line}`" for line in example)
    yield ""


def _counts(spec: Spec) -> bool:
    return bool(spec.unit) and spec.default.isdigit()
