"""The figures in the text format of Prometheus, for the node exporter's textfile collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.admin.findings import LEVELS
from picoqmail.ledger import counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from picoqmail.admin.relay_probe import Probe
    from picoqmail.admin.status import Status


def render(
    now: Status, *, cron_ran: int | None, level: int | None, probes: Iterable[Probe] = ()
) -> str:
    """Return one exposition; times are Unix seconds, sizes octets.

    `level` is the outcome of the check, 0 to 3, and `cron_ran` when cron last had its turn.
    """
    lines: list[str] = []
    for name, kind, text, samples in _families(now, cron_ran, level, list(probes)):
        found = list(samples)
        if found:
            lines += [f"# HELP picoqmail_{name} {text}", f"# TYPE picoqmail_{name} {kind}"]
            lines += [f"picoqmail_{name}{labels} {value}" for labels, value in found]
    return "\n".join(lines) + "\n"


def _families(
    now: Status, cron_ran: int | None, level: int | None, probes: list[Probe]
) -> Iterator[tuple[str, str, str, Iterable[tuple[str, float]]]]:
    heaps = now.heaps.items()
    yield (
        "messages",
        "gauge",
        "Messages in the spool.",
        [(_labels(state=state), heap.messages) for state, heap in heaps],
    )
    yield (
        "octets",
        "gauge",
        "Octets of the bodies in the spool.",
        [(_labels(state=state), heap.octets) for state, heap in heaps],
    )
    yield "held_messages", "gauge", "Messages that an administrator holds.", _one(now.held)
    text = "Messages that may have arrived, and that doubtlimit keeps from being sent again."
    yield "in_doubt_messages", "gauge", text, _one(now.in_doubt)
    yield "due_messages", "gauge", "Messages whose next attempt is due.", _one(now.due)
    oldest = now.taken - now.oldest_waiting if now.oldest_waiting else 0
    yield "oldest_age_seconds", "gauge", "Age of the oldest message that waits.", _one(oldest)
    yield (
        "last_delivery_timestamp_seconds",
        "gauge",
        "When a relay last took a message.",
        _one(now.last_delivery),
    )
    text = "When picoqmail-cron last had its turn."
    yield "cron_timestamp_seconds", "gauge", text, _one(cron_ran)
    yield "free_octets", "gauge", "Free space for the spool.", _one(now.free_octets)
    for name in counters.NAMES:
        text = f"Outcomes of that kind since the spool was made: {name}."
        yield f"{name}_total", "counter", text, _one(now.totals[name])
    yield (
        "relay_down",
        "gauge",
        "Relays that the last attempt found down.",
        [(_labels(relay=name), 1) for name in now.outages],
    )
    yield (
        "relay_up",
        "gauge",
        "Whether the relay let us in during this check.",
        [(_labels(relay=one.relay), int(one.is_up)) for one in probes],
    )
    yield (
        "relay_certificate_end_timestamp_seconds",
        "gauge",
        "When its certificate ends.",
        [
            (_labels(relay=one.relay), one.certificate_ends)
            for one in probes
            if one.certificate_ends is not None
        ],
    )
    text = f"Outcome of the check: {', '.join(f'{i} {name}' for i, name in enumerate(LEVELS))}."
    yield "check_level", "gauge", text, _one(level)
    yield "check_timestamp_seconds", "gauge", "When this was written.", _one(now.taken)


def _one(value: float | None) -> list[tuple[str, float]]:
    return [] if value is None else [("", value)]


def _labels(**labels: str) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
