"""`picoqmail sink`: run the relay for trials, and print what it takes and refuses.

With --json each line of standard output is one JSON object: `listening`, `mail`, `refused` and at
the end `stopped`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import TYPE_CHECKING

from picoqmail.admin.words import printable
from picoqmail.errors import EX_UNAVAILABLE, EX_USAGE
from picoqmail.home.values import whole_number

if TYPE_CHECKING:
    import argparse

    from picoqmail.admin.sink import KeptMail, Maildir, Rules

HIGHEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to listen, where to keep mail, and what to refuse."""
    parser.epilog = (
        "PHASE is ehlo, mail, rcpt, data (the command) or content (the final dot; the default). "
        "SIGINT or SIGTERM ends the relay."
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (%(default)s)")
    parser.add_argument(
        "--port",
        type=port_number,
        default=0,
        help="the port; 0, the default, lets the system choose",
    )
    parser.add_argument(
        "--maildir",
        metavar="DIR",
        default="sink-maildir",
        help="where mail is kept (%(default)s); envelopes/NAME.json in it has the envelopes",
    )
    parser.add_argument(
        "--answer",
        metavar="[PHASE=]CODE[ TEXT]",
        action="append",
        default=[],
        help="refuse with this reply, for example 451 or 'rcpt=550 5.1.1 unknown'",
    )
    parser.add_argument(
        "--times",
        metavar="N",
        type=int,
        help="refuse only the first N messages with --answer, not all",
    )
    parser.add_argument(
        "--recipient-answer",
        metavar="ADDRESS=CODE[ TEXT]",
        action="append",
        default=[],
        help="always refuse this recipient with this reply",
    )
    parser.add_argument(
        "--unix-lines", action="store_true", help="keep mail with LF, as mail readers want it"
    )
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="also end when standard input, a pipe or a terminal, ends",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped. Return 0, 64 for a wrong argument, 69 without the extra `demo`."""
    try:
        from picoqmail.admin import sink
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "aiosmtpd":
            raise
        print(
            "picoqmail sink: needs aiosmtpd, which is not installed; install the extra demo: "
            "pip install 'picoqmail[demo]'",
            file=sys.stderr,
        )
        return EX_UNAVAILABLE
    try:
        rules = sink.Rules(
            tuple(sink.refusal(text, arguments.times) for text in arguments.answer),
            dict(_recipient_answer(text) for text in arguments.recipient_answer),
        )
        printer = _SinkPrinter(as_json=arguments.json)
        maildir = sink.Maildir(arguments.maildir, unix_lines=arguments.unix_lines)
        asyncio.run(_serve(arguments, maildir, rules, printer))
    except ValueError as exc:
        print(f"picoqmail sink: {printable(str(exc))}", file=sys.stderr)
        return EX_USAGE
    return 0


async def _serve(
    arguments: argparse.Namespace, maildir: Maildir, rules: Rules, printer: _SinkPrinter
) -> None:
    from picoqmail.admin.sink import Sink

    server = Sink(maildir, rules, on_mail=printer.mail, on_refusal=printer.refusal)
    await server.serve(
        arguments.host,
        arguments.port,
        lambda port: printer.listening(arguments.host, port, maildir.path),
        until_end_of=sys.stdin.fileno() if arguments.until_eof else None,
    )
    printer.stopped(server.mails)


def port_number(text: str) -> int:
    """Return a port. Raises ValueError, which argparse reports."""
    return whole_number(text, 0, HIGHEST_PORT)


def _recipient_answer(text: str) -> tuple[str, str]:
    from picoqmail.admin.sink import reply_line

    # The address may hold an equals sign, and so may the text of the reply.
    found = re.fullmatch(r"(.+?)=(\d{3}(?: .*)?)", text)
    if found is None:
        raise ValueError(f"{text!r} is not ADDRESS=CODE")
    return found[1].lower(), reply_line(found[2])


class _SinkPrinter:
    """Prints a line for each event; flushed, so that a reader of a pipe gets it at once."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def listening(self, host: str, port: int, path: str) -> None:
        at = f"[{host}]" if ":" in host else host
        self._print(
            f"listening on {at}:{port}, mail goes into {path}",
            event="listening",
            host=host,
            port=port,
            maildir=path,
        )

    def mail(self, mail: KeptMail) -> None:
        from picoqmail.admin.sink import as_document

        to = " ".join(f"<{address}>" for address in mail.recipients)
        self._print(
            f"mail: {mail.size} bytes from <{mail.sender}> to {to}: {mail.path}",
            event="mail",
            **as_document(mail),
        )

    def refusal(self, phase: str, reply: str) -> None:
        self._print(f"refused at {phase}: {reply}", event="refused", phase=phase, reply=reply)

    def stopped(self, mails: int) -> None:
        self._print(f"stopped; {mails} mails kept", event="stopped", mails=mails)

    def _print(self, line: str, **facts: object) -> None:
        print(json.dumps(facts) if self._as_json else printable(line), flush=True)
