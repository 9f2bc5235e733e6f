"""The invariant: the product's promises as one function over a home and a relay.

The rule of this module: it knows nothing of the injected fault. It reads files and the relay's
mail, and describes every breach in a sentence.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from attrs import define, field

from proof.world import read_sidecar

if TYPE_CHECKING:
    from collections.abc import Collection

    from proof.world import Promise, World
    from rig.received import Received

_OUR_LINE = re.compile(rb"Received: by [^\n]* id (?P<id>[^ ;\n]+); [^\n]*\n")
_DIGEST = re.compile(rb"^Subject: \d+ more of your mails could not be delivered$", re.MULTILINE)
_NOTICE = re.compile(rb"^Action: delayed$", re.MULTILINE)
_TOKEN = re.compile(rb"^X-Token: (?P<token>[^\n]+)\n", re.MULTILINE)


@define
class Finding:
    """The findings about one home."""

    breaches: list[str] = field(factory=list)
    delivered: int = 0
    waiting: int = 0
    duplicates: int = 0
    bounces: dict[str, list[str]] = field(factory=dict)
    """IDs of the reports of failure that arrived, by the token of the message they tell of."""
    digests: dict[str, list[str]] = field(factory=dict)
    """What the digests say that arrived, by their ID; twice where one arrived twice."""


def token_of(content: bytes) -> str:
    """Return the token of a message; empty for one that no trial wrote (a bounce)."""
    match = _TOKEN.search(content)
    return match["token"].decode() if match else ""


def half_visible(world: World) -> list[str]:
    """Return the messages that are visible but not complete at this moment."""
    found = []
    for path in world.sidecars("new", "cur", "undelivered"):
        body = path.removesuffix(".json") + ".eml"
        try:
            record = cast("dict[str, Any]", read_sidecar(path))
            with open(body, "rb") as file:
                content = file.read()
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            found.append(f"half visible: {os.path.relpath(path, world.spool)}: {why}")
            continue
        if (len(content), crc32(content)) != (record["size"], record["crc32"]):
            found.append(f"half visible: {os.path.relpath(body, world.spool)} is not whole")
    return found


def judge(
    world: World,
    received: list[Received],
    *,
    may_wait: Collection[str] = (),
    may_fail: Collection[str] = (),
    may_vanish: Collection[str] = (),
    may_repeat: Collection[str] = (),
    may_fail_again: Collection[str] = (),
    unreported: Collection[str] = (),
    requeued: bool = False,
) -> Finding:
    """Compare promises, relay and spool after recovery.

    `may_wait`, `may_fail` and `may_vanish` are recipients that may still be pending, have failed,
    or be gone from the spool; the last may also be tokens. The others are tokens: those of
    `may_repeat` may have arrived twice without a mark, those of `may_fail_again` may have failed
    and been reported several times, and the reports of `unreported` may be missing. `requeued` says
    that bounced messages may have been requeued.
    """
    finding = Finding(breaches=half_visible(world))
    promises = {promise.token: promise for promise in world.promises}
    arrived: Counter[tuple[str, str]] = Counter()
    ids: dict[str, str] = {}
    for mail in received:
        _check_mail(mail, promises, arrived, ids, finding)
    kept, spooled_ids = _spooled(world, promises, finding)
    for promise in world.promises:
        _check_promise(promise, arrived, kept, finding, (may_wait, may_fail, may_vanish))
    marks = "\n".join(line for line in world.events() if "in_doubt" in line or "maybe_" in line)
    told = _check_digests(finding, spooled_ids, marks, may_repeat)
    may = may_repeat, may_fail_again, unreported
    _check_bounces(kept, finding, marks, may, told, requeued=requeued)
    for (token, recipient), count in arrived.items():
        if count > 1:
            finding.duplicates += 1
            if token not in may_repeat and ids.get(token, "?") not in marks:
                finding.breaches.append(f"{token} came {count} times to {recipient}, unmarked")
    return finding


def _check_mail(
    mail: Received,
    promises: dict[str, Promise],
    arrived: Counter[tuple[str, str]],
    ids: dict[str, str],
    finding: Finding,
) -> None:
    token = token_of(mail.unix)
    promise = promises.get(token)
    if not mail.sender and _is_notice(mail, promise, promises, finding):
        return
    if promise is None:
        finding.breaches.append(f"a message that nobody handed in: {mail.content[:200]!r}")
        return
    refused = mail.reply is not None and not mail.reply.startswith("2")
    if not mail.sender and not refused:
        match = _OUR_LINE.match(mail.unix)
        finding.bounces.setdefault(token, []).append(match["id"].decode() if match else "?")
        if mail.recipients != (promise.sender,):
            finding.breaches.append(f"a bounce of {token} went to {mail.recipients}")
    if not mail.sender:
        return
    match = _OUR_LINE.match(mail.unix)
    if match is None or not promise.is_whole(mail.unix[match.end() :]):
        finding.breaches.append(f"{token} arrived altered")
        return
    if refused:
        return  # Its end arrived, but the relay replied in time that it did not accept the message.
    ids[token] = match["id"].decode()
    if mail.sender != promise.sender:
        finding.breaches.append(f"{token} arrived from {mail.sender}, not {promise.sender}")
    for recipient in mail.recipients:
        if recipient not in promise.recipients:
            finding.breaches.append(f"{token} went to {recipient}, who is no recipient of it")
        arrived[token, recipient] += 1


def _is_notice(
    mail: Received, promise: Promise | None, promises: dict[str, Promise], finding: Finding
) -> bool:
    """Say whether this is a digest, or about a delay, or of a mail that may have been delivered."""
    if promise is None and _DIGEST.search(mail.unix):
        match = _OUR_LINE.match(mail.unix)
        name = match["id"].decode() if match else "?"
        finding.digests.setdefault(name, []).append(mail.unix.decode(errors="replace"))
        senders = {one.sender for one in promises.values()}
    elif promise is not None and _NOTICE.search(mail.unix):
        senders = {promise.sender}
    else:
        return False
    if not set(mail.recipients) <= senders:
        finding.breaches.append(f"a notice or digest went to {mail.recipients}")
    return True


def _spooled(
    world: World, promises: dict[str, Promise], finding: Finding
) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """Return each recipient's state in the spool (`pending`, `failed`, `delivered`), by token.

    Also return the tokens of these messages by ID.
    """
    found: dict[tuple[str, str], str] = {}
    ids: dict[str, str] = {}
    for path in world.sidecars("new", "cur", "undelivered"):
        try:
            record = cast("dict[str, Any]", read_sidecar(path))
            with open(path.removesuffix(".json") + ".eml", "rb") as file:
                token = token_of(file.read())
        except (OSError, ValueError):
            continue  # half_visible has reported it.
        if token not in promises or not record["sender"]:
            continue
        state = os.path.basename(os.path.dirname(path))
        ids[str(record["id"])] = token
        for one in record["recipients"]:
            key = token, one["address"]
            if key in found:
                finding.breaches.append(f"{token} is in the spool twice")
            found[key] = (
                "stuck" if (one["state"], state) == ("pending", "undelivered") else one["state"]
            )
    return found, ids


def _check_digests(
    finding: Finding, ids: dict[str, str], marks: str, may_repeat: Collection[str]
) -> set[str]:
    """Return the tokens of the messages that digests report; each must be in one digest only.

    A digest may come twice for the reason for which any mail may (`may_repeat`).
    """
    told: dict[str, str] = {}
    for name, texts in finding.digests.items():
        is_allowed = name in marks or token_of(texts[0].encode()) in may_repeat
        if len(texts) > 1 and not is_allowed:
            finding.breaches.append(f"a digest came {len(texts)} times, unmarked")
        for token in {token for one, token in ids.items() if one in texts[0]}:
            if token in told:
                finding.breaches.append(f"{token} is in two digests")
            told[token] = name
    return set(told)


def _check_bounces(
    kept: dict[tuple[str, str], str],
    finding: Finding,
    marks: str,
    allowed: tuple[Collection[str], ...],
    digested: Collection[str],
    *,
    requeued: bool,
) -> None:
    may_repeat, may_fail_again, unreported = allowed
    failed = {token for (token, _), state in kept.items() if state == "failed"}
    for token in failed - set(finding.bounces) - set(digested) - set(unreported):
        finding.breaches.append(f"{token} failed, and its sender was not told")
    for token in set(finding.bounces) & set(digested) - set(may_fail_again):
        finding.breaches.append(f"{token} failed, and its sender was told by report and digest")
    for token, ids in finding.bounces.items():
        if token not in failed and not requeued:
            finding.breaches.append(f"{token} bounced and did not fail")
        if token in may_fail_again:
            continue
        if len(set(ids)) > 1:
            finding.breaches.append(f"{token} bounced by {len(set(ids))} different reports")
        elif len(ids) > 1 and token not in may_repeat and ids[0] not in marks:
            finding.breaches.append(f"{token} bounced {len(ids)} times, unmarked")


def _check_promise(
    promise: Promise,
    arrived: Counter[tuple[str, str]],
    kept: dict[tuple[str, str], str],
    finding: Finding,
    allowed: tuple[Collection[str], Collection[str], Collection[str]],
) -> None:
    may_wait, may_fail, may_vanish = allowed
    came = [one for one in promise.recipients if arrived[promise.token, one]]
    if came == list(promise.recipients):
        finding.delivered += 1
    for recipient in promise.recipients:
        state = kept.get((promise.token, recipient))
        there = recipient in came
        if state == "pending":
            finding.waiting += 1
        if there or (state == "pending" and recipient in may_wait):
            continue
        if state == "failed" and recipient in may_fail:
            continue
        if state is not None:
            finding.breaches.append(f"{promise.token}: {recipient} is {state} in the spool")
        elif promise.accepted and not {recipient, promise.token} & set(may_vanish):
            finding.breaches.append(f"LOST: {promise.token} for {recipient}, although accepted")
        elif came and not promise.accepted:
            finding.breaches.append(f"{promise.token}, not accepted, went to some: {came}")
