"""A Maildir that a relay delivers into: the messages, without the fields that the relay added."""

from __future__ import annotations

import os
import re

from rig.received import Received

# The fields that servers prepend at delivery, with continuation lines. The server's own Received:
# line is the last of them.
ADDED = re.compile(
    rb"(?:(?:Return-path|X-Original-To|Delivered-To|Envelope-to|Delivery-date):"
    rb"[^\n]*\n(?:[ \t][^\n]*\n)*)*"
    rb"Received:[^\n]*\n(?:[ \t][^\n]*\n)*",
    re.IGNORECASE,
)


def messages(directory: str, *, added: re.Pattern[bytes] = ADDED) -> list[Received]:
    """Return the mails of a Maildir in order of delivery, one for each recipient.

    The recipient is from `X-Original-To`, `Envelope-to` or `Delivered-To`, the sender from
    `Return-path`.
    """
    new = os.path.join(directory, "new")
    try:
        names = os.listdir(new)
    except FileNotFoundError:
        return []
    paths = sorted((os.path.join(new, name) for name in names), key=_age)
    return [_received(path, added) for path in paths]


def _age(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _received(path: str, added: re.Pattern[bytes]) -> Received:
    with open(path, "rb") as file:
        mail = file.read()
    match = added.match(mail)
    if match is None:
        raise ValueError(f"{path} does not begin with the fields of a delivery: {mail[:200]!r}")
    content = mail[match.end() :]
    fields = {
        name.lower(): value.strip().decode("utf-8", "replace").strip("<>")
        for name, _, value in (line.partition(b":") for line in match[0].split(b"\n"))
    }
    recipient = (
        fields.get(b"x-original-to") or fields.get(b"envelope-to") or fields.get(b"delivered-to")
    )
    return Received(
        sender=fields.get(b"return-path", ""),
        recipients=tuple((recipient or "").split(", ")),
        content=content.replace(b"\n", b"\r\n"),
        tls=re.search(rb"ESMTPS|with \S+ \(TLS|using TLS|\(TLS", match[0]) is not None,
    )
