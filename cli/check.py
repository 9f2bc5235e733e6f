"""`picoqmail check`: one line and an exit code for monitoring, details for people.

Exit codes are those of monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import asdict

from picoqmail.admin import check, metrics
from picoqmail.admin.check import Thresholds
from picoqmail.admin.findings import CRITICAL, LEVELS, UNKNOWN, Finding, worst
from picoqmail.admin.opening import open_whole_home
from picoqmail.admin.words import printable
from picoqmail.cli.output import bold, print_json
from picoqmail.cli.spool import age
from picoqmail.cli.writer import Writer
from picoqmail.errors import ConfigurationError, PicoqmailError
from picoqmail.home.hands import HandsError
from picoqmail.home.paths import locate
from picoqmail.layout import UNDELIVERED
from picoqmail.store.directory import DirectoryStore

if TYPE_CHECKING:
    import argparse

    from picoqmail.admin.relay_probe import Probe
    from picoqmail.admin.status import Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is checked, and the thresholds."""
    parser.add_argument("--no-relay", action="store_true", help="do not connect to the relays")
    parser.add_argument("--deep", action="store_true", help="compare every body with its checksum")
    parser.add_argument(
        "--send-to",
        metavar="ADDRESS",
        help="also send a mail to this address, and report what becomes of it",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="first repair what can be repaired without losing anything",
    )
    parser.add_argument(
        "--prometheus",
        metavar="FILE",
        help="write the figures to this file, for the textfile collector of the node exporter",
    )
    group = parser.add_argument_group("thresholds", "an age is 90, 30m, 12h or 7d")
    default = Thresholds()
    for name, metavar, text in (
        ("age", "AGE", "the oldest message has waited for this time"),
        ("last", "AGE", "no relay has taken a message for this time"),
        ("waiting", "N", "this many messages wait"),
        ("failed", "N", "this many messages failed for good within a day"),
        ("certificate-days", "N", "a relay's certificate ends within this many days"),
    ):
        values = getattr(default, name.replace("-", "_"))
        for word, value in zip(("warn", "crit"), values, strict=True):
            group.add_argument(
                f"--{word}-{name}",
                metavar=metavar,
                type=age if metavar == "AGE" else int,
                default=value,
                help=f"{text} ({'not set' if value is None else '%(default)s'})",
            )


def run(arguments: argparse.Namespace) -> int:
    """Check everything, print what was found, and return the level."""
    writer = Writer(arguments.prometheus) if arguments.prometheus else None
    repaired: list[str] = []
    findings: list[Finding] = []
    now: Status | None = None
    probes: list[Probe] = []
    try:
        if arguments.repair:
            repaired += check.repair_password(locate())
        home = open_whole_home()
        if arguments.repair:
            repaired += check.repair(home, DirectoryStore(home.spool))
        now, probes = check.examine(
            home,
            _thresholds(arguments),
            findings,
            relays=not arguments.no_relay,
            deep=arguments.deep,
            send_to=arguments.send_to or "",
        )
    except HandsError as exc:
        findings.append(Finding("home", CRITICAL, str(exc)))
    except ConfigurationError as exc:
        findings.append(Finding("home", UNKNOWN, str(exc)))
    except PicoqmailError as exc:
        # As a rule, the findings before it say why.
        findings.append(Finding("spool", CRITICAL, str(exc)))
    level = worst(findings)
    if writer is not None:
        text = ""
        if now is not None:
            ran = check.cron_ran(home.spool)
            text = metrics.render(now, cron_ran=ran, level=level, probes=probes)
        problem = writer.write(text)
        if problem:
            findings.append(Finding("prometheus", UNKNOWN, problem))
            level = worst(findings)
    if arguments.json:
        print_json(_document(level, findings, now, probes, repaired))
    else:
        _print(level, findings, now, repaired)
    return level


def _thresholds(arguments: argparse.Namespace) -> Thresholds:
    def pair(name: str) -> tuple[int | None, int | None]:
        return getattr(arguments, f"warn_{name}"), getattr(arguments, f"crit_{name}")

    return Thresholds(
        age=pair("age"),
        waiting=pair("waiting"),
        failed=pair("failed"),
        last=pair("last"),
        certificate_days=pair("certificate_days"),
    )


def _print(level: int, findings: list[Finding], now: Status | None, repaired: list[str]) -> None:
    """Print one line with the figures after a bar, as plugins do; then a line for each finding."""
    worst = [one for one in findings if one.level == level]
    said = "; ".join(one.text for one in worst) if level else _in_short(findings)
    print(printable(f"PICOQMAIL {LEVELS[level]} - {said}".replace("|", "/")) + _figures(now))
    for line in repaired:
        print(f"  {bold('repaired')}  {printable(line)}")
    for one in findings:
        remedy = f"; {one.remedy}" if one.level and one.remedy else ""
        print(f"  {LEVELS[one.level]:8}  {one.name}: {printable(one.text + remedy)}")


def _in_short(findings: list[Finding]) -> str:
    wanted = ("queue", "relay", "last delivery")
    return ", ".join(one.text for one in findings if one.name in wanted)


def _figures(now: Status | None) -> str:
    if now is None:
        return ""
    oldest = now.taken - now.oldest_waiting if now.oldest_waiting else 0
    failed = now.heaps[UNDELIVERED].messages
    kept = f"undelivered={failed} held={now.held} in_doubt={now.in_doubt}"
    return f" | waiting={now.waiting} oldest={oldest}s {kept}"


def _document(
    level: int,
    findings: list[Finding],
    now: Status | None,
    probes: list[Probe],
    repaired: list[str],
) -> dict[str, object]:
    return {
        "level": level,
        "status": LEVELS[level],
        "findings": [{**asdict(one), "status": LEVELS[one.level]} for one in findings],
        "relays": [asdict(one) for one in probes],
        "repaired": repaired,
        "figures": None if now is None else now.document(),
    }
