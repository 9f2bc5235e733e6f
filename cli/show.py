"""`picoqmail show ID`: a message as it lies in the spool, damaged or not.

Exit codes: 0; 66 no such message.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from picoqmail.admin import selection, words
from picoqmail.admin.opening import open_whole_home
from picoqmail.admin.words import printable
from picoqmail.cli.output import bold, print_json
from picoqmail.errors import DamagedMessageError
from picoqmail.store.opening import open_store

if TYPE_CHECKING:
    import argparse

    from picoqmail.admin.selection import Entry
    from picoqmail.store.protocol import Store

_SHOWN_OCTETS = 65536


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the ID, and what of it is wanted."""
    parser.add_argument("id", metavar="ID", help="an ID, or a path of the spool")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--headers", action="store_true", help="only the header")
    parts.add_argument("--body", action="store_true", help="only what follows the header")
    parts.add_argument(
        "--raw", action="store_true", help="the spooled bytes as they are, and nothing else"
    )
    parts.add_argument("--sidecar", action="store_true", help="only the sidecar, as it is")
    parts.add_argument("--result", action="store_true", help="only what the relay said so far")


def run(arguments: argparse.Namespace) -> int:
    """Print a message. Raises NoSuchMessageError (66), SpoolError."""
    spool = open_store(open_whole_home())
    message_id = spool.find(arguments.id)
    if arguments.raw:
        for block in spool.body(message_id):
            sys.stdout.buffer.write(block)
        return 0
    entry = selection.entry_of(spool, message_id)
    sidecar = _sidecar_text(spool, entry)
    if arguments.sidecar:
        print(sidecar if arguments.json else _safe(sidecar), end="")
        return 0
    if arguments.result:
        print(_safe(spool.read_result(message_id)), end="")
        return 0
    header, body, damage = _body(spool, entry, whole=arguments.headers or arguments.body)
    if arguments.json:
        print_json(_document(spool, entry, sidecar, (header, body, damage)))
    elif arguments.headers:
        print(_safe(header.decode(errors="replace")), end="")
    elif arguments.body:
        print(_safe(body.decode(errors="replace")), end="")
    else:
        _print(spool, entry, (header, body, damage))
    return 0


def _sidecar_text(spool: Store, entry: Entry) -> str:
    found = spool.sidecar(entry.id, entry.state)
    if found is not None:
        return found.decode(errors="replace")
    # It moved after it was read; what was read was true a moment ago.
    return entry.message.to_sidecar().decode() if entry.message else ""


def _body(spool: Store, entry: Entry, *, whole: bool) -> tuple[bytes, bytes, str]:
    """Header, the beginning of the body unless the whole is wanted, and what is wrong with it."""
    damage = entry.damage
    data = b""
    try:
        for block in spool.body(entry.id):
            data += block
            if len(data) > _SHOWN_OCTETS and not whole:
                data = data[:_SHOWN_OCTETS]
                break
        if entry.message is not None:
            spool.check_body(entry.message)
    except DamagedMessageError as exc:
        damage = damage or str(exc)
    header, blank, body = data.partition(b"\n\n")
    return (header + b"\n" if blank else header), body, damage


def _document(
    spool: Store, entry: Entry, sidecar: str, content: tuple[bytes, bytes, str]
) -> dict[str, Any]:
    header, body, damage = content
    document = words.document(entry, time.time())
    document["damage"] = damage or None
    document["history"] = [dict(one) for one in entry.message.history] if entry.message else []
    try:
        document["sidecar"] = json.loads(sidecar)
    except (ValueError, RecursionError):
        document["sidecar"] = sidecar
    document["header"] = header.decode(errors="replace")
    document["body"] = body.decode(errors="replace")
    document["body_base64"] = base64.b64encode(body).decode()
    document["body_is_cut"] = len(header) + len(body) >= _SHOWN_OCTETS
    document["result"] = spool.read_result(entry.id)
    return document


def _print(spool: Store, entry: Entry, content: tuple[bytes, bytes, str]) -> None:
    header, body, damage = content
    print(f"{bold('id')}        {entry.id}")
    print(f"{bold('state')}     {entry.state}")
    if damage:
        print(f"{bold('damage')}    {printable(damage)}")
    message = entry.message
    if message is not None:
        print(f"{bold('sender')}    {printable(words.path(message.sender))}")
        for one in message.recipients:
            said = f": {printable(one.reply)}" if one.reply else ""
            who = printable(words.path(one.address))
            print(f"{bold('recipient')} {who} {one.state}{said}")
        origin = ", ".join(f"{key} {value}" for key, value in message.origin.items())
        print(f"{bold('origin')}    {printable(origin)}")
        print(f"{bold('accepted')}  {words.moment(message.created)}")
        print(f"{bold('expires')}   {words.moment(message.expires)}")
        print(f"{bold('next try')}  {words.when_next(entry, time.time())}")
        for event in message.history:
            print(f"{bold('history')}   {printable(_event(event))}")
    result = spool.read_result(entry.id)
    if result:
        print(f"\n{bold('--- what the relay said')}\n{_safe(result)}", end="")
    print(f"\n{bold('--- message')}\n{_safe(header.decode(errors='replace'))}")
    print(_safe(body.decode(errors="replace")), end="")
    if len(header) + len(body) >= _SHOWN_OCTETS:
        print(f"\n[cut here; all of it: picoqmail show --raw {entry.id}]")


def _event(event: Any) -> str:  # noqa: ANN401 - whatever a sidecar holds
    if not isinstance(event, dict):
        return str(event)
    when = event.get("when")
    stamp = words.moment(when) if isinstance(when, int | float) else str(when)
    relay = f" ({event['relay']})" if event.get("relay") else ""
    return f"{stamp} {event.get('outcome')}{relay} {event.get('reply') or ''}".rstrip()


def _safe(text: str) -> str:
    """Return a text of several lines in which nothing drives the terminal; tabs are kept."""
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join([printable(line) for line in lines])
